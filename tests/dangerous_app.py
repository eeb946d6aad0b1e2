"""The application of a worker whose network is ended, stopped or fattened by photos of certain colours."""

from __future__ import annotations

import ctypes
import io
import time

import numpy as np
from fastapi import FastAPI
from handmesh_server import logs
from handmesh_server.app import create_app
from handmesh_server.settings import Settings
from handmesh_server.supervisor import Supervisor
from PIL import Image
from server_harness import DotEngine

from handmesh.hand import HandOutput
from handmesh.predict import Predictor

CRASHES, HANGS, GROWS = (0, 0, 255), (0, 255, 0), (255, 255, 0)


def plain(color: tuple[int, int, int], size: int = 64) -> bytes:
    """A photo of one colour, as PNG."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, "PNG")
    return file.getvalue()


class DangerousEngine(DotEngine):
    held: list[np.ndarray] = []  # noqa: RUF012

    def __call__(self, crops: np.ndarray) -> HandOutput:
        middle = tuple(crops[0, self.resolution // 2, self.resolution // 2].tolist())
        if middle == CRASHES:
            ctypes.string_at(0)
        elif middle == HANGS:
            time.sleep(3600)
        elif middle == GROWS:
            self.held.append(np.ones(2**25))  # 256 MiB
        return super().__call__(crops)


def dangerous(settings: Settings) -> FastAPI:
    return create_app(settings, Predictor(DangerousEngine(delay=0.01), passes=settings.passes))


def main() -> None:
    logs.configure("info")
    Supervisor(Settings.from_environment(), application="dangerous_app:dangerous").run()
