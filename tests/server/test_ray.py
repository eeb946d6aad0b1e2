"""The application on Ray Serve, started by the documented command. Needs the extra: pip install "handmesh[ray]"."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from server_harness import photo

if importlib.util.find_spec("ray") is None:
    pytest.skip('needs Ray: pip install "handmesh[ray]"', allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]

# The documented command on a port of the test's own; `serve` itself asks for 8000. Both end with it.
DRIVER = """
import sys
from ray import serve
from ray.serve.scripts import cli
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
cli(sys.argv[2:])
"""


def documented_command() -> list[str]:
    text = (ROOT / "server" / "deploy" / "ray_serve.py").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ +serve (run \S+) +#", text, re.MULTILINE)[:1]
    return command.split()


@pytest.fixture(scope="module")
def cluster(model_file, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("ray")
    environment = os.environ | {
        "HANDMESH_MODEL": str(model_file),
        "HANDMESH_QUEUE_SIZE": "2",
        "HANDMESH_MAX_BODY_BYTES": "200000",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server"), os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else its processes wait for everybody else's
        "NO_PROXY": "127.0.0.1",
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        DRIVER,
        str(port),
        *documented_command(),
        "min_replicas=2",
        "num_cpus=0.5",
    ]
    with open(folder / "log", "wb") as log:
        driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            until = time.monotonic() + 240
            while True:
                assert driver.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until, (folder / "log").read_text()
                try:
                    answer = client.post("/v1/hands?min_score=0", content=photo())
                except httpx.TransportError:
                    pass
                else:
                    if answer.status_code != 404:  # Ray's, until there is an application
                        break
                time.sleep(0.2)
            yield client, answer
    finally:
        driver.send_signal(signal.SIGINT)  # as Ctrl-C: it takes its cluster with it
        driver.wait(60)


def test_the_first_answer_of_a_replica_is_an_answer(cluster):
    """Replicas got requests before their models were loaded, and answered 503."""
    client, first = cluster
    assert first.status_code == 200, first.text
    assert np.shape(first.json()["hands"][0]["vertices"]) == (778, 3)
    assert client.get("/readyz").status_code == 200


def test_limits_and_refusals_are_those_of_the_service(cluster):
    client, _ = cluster
    refused = {415: b"no image", 413: bytes(200_001)}
    for status, content in refused.items():
        answer = client.post("/v1/hands", content=content)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"

    def post(_: int) -> httpx.Response:
        return client.post("/v1/hands?min_score=0", content=photo())

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(post, range(96)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1


def test_metrics_are_of_all_replicas(cluster):
    client, _ = cluster
    until = time.monotonic() + 60
    while len(ready := re.findall(r"^handmesh_ready\{.*\} 1\.0", client.get("/metrics").text, re.MULTILINE)) < 2:
        assert time.monotonic() < until
        time.sleep(1)
    assert len(set(ready)) == len(ready)
