"""The same application on a Ray cluster: replicas come and go with the load, and what is too much is answered 429.

    pip install -e ".[ray]"
    serve run server.deploy.ray_serve:build                            # on this machine, or on the cluster it is of
    serve run server.deploy.ray_serve:build max_replicas=8 num_gpus=1  # a GPU for each replica

Every other setting is a HANDMESH_... variable of the replicas; see docs/how_to/serving.md.
"""

from __future__ import annotations

from typing import Any

from handmesh_server.app import create_app
from handmesh_server.settings import Settings
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from handmesh.predict import load_predictor


class Arguments(BaseModel):
    """`serve run ... key=value`."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(4, ge=1)
    num_cpus: float = Field(1, gt=0)  # of each replica; as many threads compute
    num_gpus: float = Field(0, ge=0)


def build(arguments: Arguments) -> serve.Application:
    """For `serve run` and `serve.run`."""
    # Ray keeps what the replicas have no room for, so that their own queues stay short and a new replica is of use.
    ongoing = 8 if arguments.num_gpus == 0 else 64
    deployment = serve.deployment(
        serve.ingress(_replica)(),
        name="handmesh",
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=ongoing / 2,
        ),
        max_ongoing_requests=ongoing,
        max_queued_requests=4 * ongoing,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=2),
        graceful_shutdown_timeout_s=30,
    )
    return deployment.bind()


def _replica() -> Any:
    """The ASGI application, in the replica's process. The model is loaded before Ray sends requests."""
    settings = Settings.from_environment()
    predictor = load_predictor(settings.model, passes=settings.passes, threads=settings.threads)
    return create_app(settings, predictor)
