"""A photograph in, hands out.

`HandPrediction` is one hand as a value, in the photo's own axes; `Predictor` is what finds it, and the one place where
pixels, engine, crop and handedness meet.
"""

from handmesh.predict.arguments import AUTO, parse_handedness
from handmesh.predict.prediction import (
    HandednessSource,
    HandPrediction,
    as_mesh_hand,
    overlay_hands,
    save_predictions,
)
from handmesh.predict.predictor import (
    BOX_MARGIN,
    HANDEDNESS_PASSES,
    MIN_SCORE,
    Predictor,
    load_predictor,
    predict_detected,
)

__all__ = [
    "AUTO",
    "BOX_MARGIN",
    "HANDEDNESS_PASSES",
    "MIN_SCORE",
    "HandPrediction",
    "HandednessSource",
    "Predictor",
    "as_mesh_hand",
    "load_predictor",
    "overlay_hands",
    "parse_handedness",
    "predict_detected",
    "save_predictions",
]
