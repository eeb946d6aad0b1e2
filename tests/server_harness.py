"""What the server's tests share: a server on a socket of its own, engines whose answers are known, photographs."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
from handmesh_server.app import create_app
from handmesh_server.server import make_server
from handmesh_server.settings import Settings
from PIL import Image

from handmesh.hand import JOINTS_FROM_MANO, HandOutput, builtin_hand
from handmesh.predict import Predictor

DOT = (150, 90)  # x, y in the upright photograph
SIZE = (240, 200)  # width, height
SCALE = 6.0


# In the place of the process that works on a clip: writes what that writes, without a network.
QUICK_JOBS = (
    sys.executable,
    "-S",
    "-c",
    """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
if json.loads((folder / "job.json").read_text())["query"]["hand"] == "left":
    (folder / "problem.json").write_text(json.dumps({"reason": "failed", "detail": "as asked"}))
    sys.exit(3)
(folder / "results").mkdir()
(folder / "results" / "hand.glb").write_bytes(b"glTF" * 1000)
result = {"frames": 2, "frames_with_hands": 1, "hands": 1, "remarks": [], "files": ["hand.glb"]}
(folder / "result.json").write_text(json.dumps(result))
""",
)


class DotEngine:
    """Finds a red dot, and answers with the hand at rest whose wrist is there. What it is asked is counted.

    While it is `held()` it answers nobody, so that what comes meanwhile does not depend on how fast anybody is.
    """

    name = "dot"
    resolution = 96
    record: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, delay: float = 0.0) -> None:
        self.hand = builtin_hand()
        self.delay = delay
        self.batches: list[int] = []
        self.open = threading.Event()
        self.open.set()
        vertices = self.hand.v_template.astype(np.float32)
        tips = vertices[[744, 320, 443, 555, 672]]
        self.vertices = vertices
        self.joints = np.vstack([self.hand.J_regressor @ vertices, tips])[list(JOINTS_FROM_MANO)].astype(np.float32)

    def __call__(self, crops: np.ndarray) -> HandOutput:
        self.batches.append(len(crops))
        self.open.wait()
        if self.delay:
            time.sleep(self.delay)
        cameras = []
        for crop in crops.astype(int):
            redness = np.clip(crop[..., 0] - np.maximum(crop[..., 1], crop[..., 2]) - 60, 0, None)
            y, x = np.indices(redness.shape)
            total = max(redness.sum(), 1)
            dot = np.array([(x * redness).sum(), (y * redness).sum()]) / total
            ndc = (2 * dot + 1) / self.resolution - 1
            cameras.append([SCALE, *(ndc / SCALE - self.joints[0, :2])])
        count = len(crops)
        return HandOutput(
            camera=np.asarray(cameras, np.float32),
            pose=np.broadcast_to(np.eye(3, dtype=np.float32), (count, 16, 3, 3)),
            betas=np.zeros((count, 10), np.float32),
            vertices=np.broadcast_to(self.vertices, (count, 778, 3)),
            joints=np.broadcast_to(self.joints, (count, 21, 3)),
            confidence=np.ones(count, np.float32),
            handedness=np.ones(count, np.float32),
            joint_confidence=np.ones((count, 21), np.float32),
            seen=np.zeros((count, 21, 3), np.float32),
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


def talk_to(url: str) -> httpx.Client:
    """Without certificates, which take longer to load than most tests take: nothing here is TLS."""
    return httpx.Client(base_url=url, timeout=60, trust_env=False, verify=False)


def wait_until(condition: Callable[[], object], seconds: float = 90) -> None:
    """For what the server does once an answer is out. The time is that of a very busy machine."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def dot_image() -> np.ndarray:
    """(H, W, 3): a red dot on grey that varies a little."""
    width, height = SIZE
    y, x = np.indices((height, width))
    image = np.repeat((90 + x // 8 + y // 8)[..., None], 3, axis=-1).astype(np.uint8)
    image[(x - DOT[0]) ** 2 + (y - DOT[1]) ** 2 <= 25] = (255, 0, 0)
    return image


def photo(format: str = "JPEG", orientation: int = 1, image: np.ndarray | None = None) -> bytes:
    """`image` (the dot) as a file whose EXIF orientation turns it upright again."""
    stored = Image.fromarray(dot_image() if image is None else image)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpositions; see test_image.py for what they mean
    if orientation != 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    stored.save(file, format, exif=exif, **options)
    return file.getvalue()


def settings(**changes: Any) -> Settings:
    return Settings(**{"port": 0, "passes": 2, "deadline_seconds": 50, "drain_seconds": 0, **changes})


@contextlib.contextmanager
def running(
    configuration: Settings | None = None, engine: Any = None, predictor: Predictor | None = None
) -> Iterator[SimpleNamespace]:
    """A server in a thread: `.url`, `.service`, `.client` (httpx), `.address` (host, port)."""
    configuration = configuration or settings()
    engine = engine or DotEngine()
    app = create_app(configuration, predictor or Predictor(engine, passes=configuration.passes))
    listening = threading.Event()
    address: list[str] = []

    def announce(url: str) -> None:
        address.append(url)
        listening.set()

    server = make_server(configuration, app, announce)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        assert listening.wait(180)
        url = address[0].rstrip("/")
        host, port = url.removeprefix("http://").split(":")
        with talk_to(url) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            engine.batches = []
            yield SimpleNamespace(
                url=url, address=(host, int(port)), client=client, service=app.state.service, app=app, engine=engine
            )
    finally:
        server.should_exit = True
        thread.join(90)
    assert not thread.is_alive()
