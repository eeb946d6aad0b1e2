"""The application as a Ray Serve deployment, started for real. Needs the extra: pip install "handmesh[ray]"."""

from __future__ import annotations

import importlib
import os
import socket
import warnings
from pathlib import Path

import httpx
import numpy as np
import pytest
from server_harness import photo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray", reason='needs Ray: pip install -e ".[ray]"')
    from ray import serve

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_deployment_answers(model_file, monkeypatch):
    monkeypatch.setenv("HANDMESH_MODEL", str(model_file))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module("server.deploy.ray_serve")
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"HANDMESH_MODEL": str(model_file), "PYTHONPATH": python_path}},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(module.build(module.Arguments(max_replicas=1)))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            answer = client.post("/v1/hands", content=photo())
            assert answer.status_code == 200, answer.text
            assert np.shape(answer.json()["hands"][0]["vertices"]) == (778, 3)
            assert client.post("/v1/hands", content=b"no image").status_code == 415
            assert client.get("/readyz").status_code == 200
    finally:
        serve.shutdown()
        ray.shutdown()
