"""Running a trained network: (B, S, S, 3) uint8 RGB crops in, `HandOutput` of numpy arrays out.

Everything above this line of the program (crops, photos, the server) sees only the `Engine` protocol and never torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import CheckpointError
from handmesh.hand import HandArrays, HandOutput
from handmesh.mano_file import load_hand

BUNDLED_MODEL = "handmesh_t8"


class Engine(Protocol):
    """Safe to call from several threads at once."""

    name: str  # for people: what computes, in which precision
    resolution: int  # side S of the crops it wants, pixels
    hand: HandArrays  # the right hand that its answers are made of
    record: dict[str, Any]  # what the model file says about itself

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput: ...


class TorchEngine:
    """PyTorch, float32, train-time branches folded away."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Raises CheckpointError, and AssetError where the model's hand is MANO's and MANO was not added.

        `threads`: torch's intra-op threads for the whole process; None leaves them alone.
        """
        import torch

        from handmesh.checkpoint import load_model
        from handmesh.model import to_device

        if threads is not None:
            torch.set_num_threads(threads)
        model, self.record = load_model(path)
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folded = model if model.folded else model.reparameterize()
        self._model = to_device(folded, self._device).eval()
        self.resolution = model.config.resolution
        self.hand = load_hand(model.config.hand)
        self.name = f"torch {torch.__version__.split('+')[0]} float32 on {self._device}"

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        with self._torch.inference_mode():
            output = self._model(self._torch.from_numpy(crops).to(self._device))
        return HandOutput(*(tensor.cpu().numpy() for tensor in output))


def open_engine(model: str | Path | None = None, threads: int | None = None) -> Engine:
    """The engine for a model: None or "handmesh_t8" for the bundled one, else the path of a model file.

    Raises CheckpointError when there is no such model.
    """
    if model is None or str(model) == BUNDLED_MODEL:
        return TorchEngine(bundled_model_path(), threads)
    path = Path(model)
    if not path.is_file():
        raise CheckpointError(
            f"No model at {path}. Give the path of a .safetensors file that `handmesh train` wrote, or "
            f"{BUNDLED_MODEL!r} for the one that ships with the package."
        )
    return TorchEngine(path, threads)


def bundled_model_path() -> Path:
    """Where the model that ships with the package lies."""
    return Path(__file__).parent / "assets" / f"{BUNDLED_MODEL}.safetensors"
