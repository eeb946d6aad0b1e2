"""A photo of a hand goes in; a 3D hand mesh, its joints, its camera and an overlay come out.

    import handmesh
    predictor = handmesh.load_predictor()          # the bundled model
    hands = predictor("photo.jpg")                 # or bytes, or an (H, W, 3) uint8 RGB array
    hands[0].vertices                              # (778, 3) metres
    hands[0].save("hand.glb")
    hands[0].show()                                # in 3D, in a notebook or the browser

Importing this is cheap: names are loaded at first use, and nothing here imports torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handmesh.config.load import load_config as load_config
    from handmesh.errors import HandMeshError as HandMeshError
    from handmesh.files.image import photos_in as photos_in
    from handmesh.files.image import read_image as read_image
    from handmesh.files.mesh import MeshHand as MeshHand
    from handmesh.geometry.camera import Intrinsics as Intrinsics
    from handmesh.geometry.camera import WeakPerspectiveCamera as WeakPerspectiveCamera
    from handmesh.geometry.crop import CropTransform as CropTransform
    from handmesh.hand import BONES as BONES
    from handmesh.hand import JOINT_NAMES as JOINT_NAMES
    from handmesh.hand import JOINT_PARENTS as JOINT_PARENTS
    from handmesh.hand import HandArrays as HandArrays
    from handmesh.hand import Handedness as Handedness
    from handmesh.hand.anatomy import POSES as POSES
    from handmesh.hand.anatomy import JointAngles as JointAngles
    from handmesh.hand.anatomy import hand_angles as hand_angles
    from handmesh.hand.anatomy import pose_from_angles as pose_from_angles
    from handmesh.hand.fit import FitStart as FitStart
    from handmesh.hand.fit import fit_hand as fit_hand
    from handmesh.hand.models import load_hand as load_hand
    from handmesh.learn.train import train as train
    from handmesh.motion.clip import VideoOptions as VideoOptions
    from handmesh.motion.clip import convert_clip as convert_clip
    from handmesh.motion.clip import follow_video as follow_video
    from handmesh.motion.follow import HandFollower as HandFollower
    from handmesh.motion.smoothing import Smoothing as Smoothing
    from handmesh.motion.track import Tracking as Tracking
    from handmesh.predict import HandPrediction as HandPrediction
    from handmesh.predict import Keypoints as Keypoints
    from handmesh.predict import MediaPipeHand as MediaPipeHand
    from handmesh.predict import Predictor as Predictor
    from handmesh.predict import from_mediapipe as from_mediapipe
    from handmesh.predict import from_openpose as from_openpose
    from handmesh.predict import from_smplx as from_smplx
    from handmesh.predict import load_predictor as load_predictor
    from handmesh.predict import overlay_hands as overlay_hands
    from handmesh.predict import save_hands as save_hands
    from handmesh.predict import show_hands as show_hands

__version__: str  # of what is installed

_HOMES = {
    "BONES": "handmesh.hand",
    "CropTransform": "handmesh.geometry.crop",
    "FitStart": "handmesh.hand.fit",
    "HandArrays": "handmesh.hand",
    "HandFollower": "handmesh.motion.follow",
    "HandMeshError": "handmesh.errors",
    "HandPrediction": "handmesh.predict",
    "Handedness": "handmesh.hand",
    "Intrinsics": "handmesh.geometry.camera",
    "JOINT_NAMES": "handmesh.hand",
    "JOINT_PARENTS": "handmesh.hand",
    "JointAngles": "handmesh.hand.anatomy",
    "Keypoints": "handmesh.predict",
    "MediaPipeHand": "handmesh.predict",
    "MeshHand": "handmesh.files.mesh",
    "POSES": "handmesh.hand.anatomy",
    "Predictor": "handmesh.predict",
    "Smoothing": "handmesh.motion.smoothing",
    "Tracking": "handmesh.motion.track",
    "VideoOptions": "handmesh.motion.clip",
    "WeakPerspectiveCamera": "handmesh.geometry.camera",
    "convert_clip": "handmesh.motion.clip",
    "fit_hand": "handmesh.hand.fit",
    "follow_video": "handmesh.motion.clip",
    "from_mediapipe": "handmesh.predict",
    "from_openpose": "handmesh.predict",
    "from_smplx": "handmesh.predict",
    "hand_angles": "handmesh.hand.anatomy",
    "load_config": "handmesh.config.load",
    "load_hand": "handmesh.hand.models",
    "load_predictor": "handmesh.predict",
    "overlay_hands": "handmesh.predict",
    "photos_in": "handmesh.files.image",
    "pose_from_angles": "handmesh.hand.anatomy",
    "read_image": "handmesh.files.image",
    "save_hands": "handmesh.predict",
    "show_hands": "handmesh.predict",
    "train": "handmesh.learn.train",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'handmesh' has no attribute {name!r}")
    from handmesh.system.extras import extra

    with extra("train", f"handmesh.{name}"):  # training alone needs what may not be installed
        return getattr(import_module(_HOMES[name]), name)


@cache
def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("handmesh")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0.0"


def __dir__() -> list[str]:
    return sorted(__all__)
