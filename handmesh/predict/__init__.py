"""A photograph in, hands out.

`HandPrediction` is one hand as a value, in the photo's own axes; `Predictor` is what finds it, and the one place where
pixels, engine, crop and handedness meet.
"""

from handmesh.predict.arguments import AUTO, parse_handedness
from handmesh.predict.conversions import Keypoints, MediaPipeHand, from_mediapipe, from_openpose, from_smplx
from handmesh.predict.prediction import (
    HandednessSource,
    HandPrediction,
    as_mesh_hand,
    drawable_meshes,
    overlay_hands,
    save_hands,
    show_hands,
)
from handmesh.predict.predictor import (
    BOX_MARGIN,
    HANDEDNESS_PASSES,
    MAX_HANDS,
    MIN_SCORE,
    Predictor,
    load_predictor,
)

__all__ = [
    "AUTO",
    "BOX_MARGIN",
    "HANDEDNESS_PASSES",
    "MAX_HANDS",
    "MIN_SCORE",
    "HandPrediction",
    "HandednessSource",
    "Keypoints",
    "MediaPipeHand",
    "Predictor",
    "as_mesh_hand",
    "drawable_meshes",
    "from_mediapipe",
    "from_openpose",
    "from_smplx",
    "load_predictor",
    "overlay_hands",
    "parse_handedness",
    "save_hands",
    "show_hands",
]
