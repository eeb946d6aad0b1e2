"""A photo of a hand goes in; a 3D hand mesh, its joints, its camera and an overlay come out.

    import handmesh
    predictor = handmesh.load_predictor()          # the bundled model
    hands = predictor("photo.jpg")                 # or bytes, or an (H, W, 3) uint8 RGB array
    hands[0].vertices                              # (778, 3) metres
    hands[0].save("hand.glb")

Importing this is cheap: names are loaded at first use, and nothing here imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handmesh.errors import HandMeshError as HandMeshError
    from handmesh.geometry.camera import Intrinsics as Intrinsics
    from handmesh.geometry.camera import WeakPerspectiveCamera as WeakPerspectiveCamera
    from handmesh.geometry.crop import CropTransform as CropTransform
    from handmesh.hand import JOINT_NAMES as JOINT_NAMES
    from handmesh.hand import Handedness as Handedness
    from handmesh.hand.fit import fit_hand as fit_hand
    from handmesh.predict import HandPrediction as HandPrediction
    from handmesh.predict import Predictor as Predictor
    from handmesh.predict import load_predictor as load_predictor

__version__ = "0.1.0"

_HOMES = {
    "CropTransform": "handmesh.geometry.crop",
    "HandMeshError": "handmesh.errors",
    "HandPrediction": "handmesh.predict",
    "Handedness": "handmesh.hand",
    "Intrinsics": "handmesh.geometry.camera",
    "JOINT_NAMES": "handmesh.hand",
    "Predictor": "handmesh.predict",
    "WeakPerspectiveCamera": "handmesh.geometry.camera",
    "fit_hand": "handmesh.hand.fit",
    "load_predictor": "handmesh.predict",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'handmesh' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
