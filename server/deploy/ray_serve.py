"""The same application on a Ray cluster: replicas come and go with the load. From the repository's root:

    pip install -e ".[ray]"
    serve run server.deploy.ray_serve:build                            # on this machine, or on the cluster it is of
    serve run server.deploy.ray_serve:build max_replicas=8 num_gpus=1  # a GPU for each replica

Every other setting is a HANDMESH_... variable of the replicas. Requests are refused by the replicas themselves, with
the same problem documents; a replica is sent requests when its model is warm; /metrics has all replicas, whichever is
asked.
Clips need a folder that all nodes mount (HANDMESH_JOBS_DIR), and Redis where there are several (HANDMESH_JOBS_REDIS).
"""

# No `from __future__ import annotations`: Ray reads the type of `arguments` from the function.

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from handmesh_server.app import create_app
from handmesh_server.service import HandService
from handmesh_server.settings import Settings
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig

_BOARD = "handmesh-metrics"
_TOLD_EVERY, _FORGOTTEN_AFTER = 5.0, 30.0  # seconds


class Arguments(BaseModel):
    """`serve run ... key=value`."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(4, ge=1)
    num_cpus: float = Field(1, gt=0)  # of each replica; as many threads compute
    num_gpus: float = Field(0, ge=0)


def build(arguments: Arguments) -> serve.Application:
    """For `serve run` and `serve.run`."""
    ongoing = 8 if arguments.num_gpus == 0 else 64  # more than that for each, and a further replica is of use
    deployment = serve.deployment(
        serve.ingress(_replica)(),
        name="handmesh",
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=ongoing / 2,
        ),
        # Ray itself refuses in plain text. So it refuses nothing: the replicas do, when their own queues are full.
        max_ongoing_requests=1000,
        max_queued_requests=-1,
        graceful_shutdown_timeout_s=30,
    )
    return deployment.bind()


def _replica() -> Any:
    """The ASGI application, in the replica's process."""
    # Ray sets OMP_NUM_THREADS to the processors of the replica.
    threads = int(os.environ.get("HANDMESH_THREADS") or os.environ.get("OMP_NUM_THREADS") or 1)
    app = create_app(Settings.from_environment(threads=threads), ready_first=True)
    _join(app.state.service)
    return app


@ray.remote(num_cpus=0)
class _Board:
    """What each replica has counted, for whichever of them is asked."""

    def __init__(self) -> None:
        self._texts: dict[int, tuple[float, bytes]] = {}

    def put(self, replica: int, text: bytes) -> None:
        self._texts[replica] = time.monotonic(), text

    def every(self) -> dict[int, bytes]:
        now = time.monotonic()
        self._texts = {key: value for key, value in self._texts.items() if now - value[0] < _FORGOTTEN_AFTER}
        return {key: text for key, (_, text) in self._texts.items()}


def _join(service: HandService) -> None:
    """The service tells the board what it counts, and answers /metrics with what all have told."""
    board = _Board.options(name=_BOARD, get_if_exists=True, lifetime="detached").remote()
    replica = int(ray.get_runtime_context().get_actor_id(), 16) % 10**9

    def tell() -> None:
        while True:
            board.put.remote(replica, service.metrics.text())
            time.sleep(_TOLD_EVERY)

    async def every() -> Mapping[int, bytes]:
        return {**await board.every.remote(), replica: service.metrics.text()}

    service.metrics_of_all = every
    threading.Thread(target=tell, name="handmesh-metrics", daemon=True).start()
