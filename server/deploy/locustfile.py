"""Load for your own server, with your own photos.

    pip install locust
    HANDMESH_PHOTOS=photos/ locust -f server/deploy/locustfile.py --host http://127.0.0.1:8000 --users 16 --spawn-rate 4

429 is an answer, not a failure: it says that the limit you set is reached. HANDMESH_TOKEN is sent when it is set.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from locust import FastHttpUser, between, task

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def photos() -> list[bytes]:
    folder = Path(os.environ.get("HANDMESH_PHOTOS", "."))
    found = [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise SystemExit(f"No photos in {folder}: set HANDMESH_PHOTOS to a folder of JPEG, PNG or WebP files.")
    return found


class Caller(FastHttpUser):
    """Mostly JSON, sometimes a mesh or a picture."""

    wait_time = between(0.0, 0.2)

    def on_start(self) -> None:
        self.photos = photos()
        token = os.environ.get("HANDMESH_TOKEN")
        self.authorization = {"Authorization": f"Bearer {token}"} if token else {}

    @task(8)
    def json(self) -> None:
        self.ask("application/json")

    @task(1)
    def mesh(self) -> None:
        self.ask("model/gltf-binary")

    @task(1)
    def overlay(self) -> None:
        self.ask("image/jpeg")

    def ask(self, accept: str) -> None:
        with self.client.post(
            "/v1/hands",
            data=random.choice(self.photos),
            headers={"Accept": accept, **self.authorization},
            name=f"/v1/hands {accept}",
            catch_response=True,
        ) as response:
            if response.status_code == 429:
                response.success()
