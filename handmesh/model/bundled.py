"""The model that ships with the package, and models by name or path."""

from __future__ import annotations

from pathlib import Path

from handmesh.errors import CheckpointError

BUNDLED_MODEL = "handmesh_t8"


def find_model(model: str | Path | None) -> Path:
    """The file of a model by name or path; None for the bundled one. Raises CheckpointError when it is not there."""
    if model is None or str(model) == BUNDLED_MODEL:
        return bundled_model_path()
    path = Path(model)
    if not path.is_file():
        raise CheckpointError(
            f"No model at {path}. Give the path of a .safetensors file that `handmesh train` wrote, or "
            f"{BUNDLED_MODEL!r} for the one that ships with the package."
        )
    return path


def bundled_model_path() -> Path:
    """Where the model that ships with the package lies."""
    return Path(__file__).parents[1] / "assets" / f"{BUNDLED_MODEL}.safetensors"
