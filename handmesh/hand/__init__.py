"""What a hand is: joints and their order, the arrays of a hand model, how it is posed and how MANO's files are read.

The names here need no torch; `handmesh.hand.layer` does.
"""

from handmesh.hand.arrays import (
    BETA_COUNT,
    FACE_COUNT,
    FINGER_ROTATION_COUNT,
    JOINT_COUNT,
    MANO_JOINT_COUNT,
    POSE_FEATURE_COUNT,
    VERTEX_COUNT,
    HandArrays,
    HandOutput,
    PosedHand,
    ShapedHand,
    both_sides,
    builtin_hand,
    pose_features,
)
from handmesh.hand.skeleton import (
    BONES,
    FINGER_NAMES,
    FINGERTIP_NAMES,
    FINGERTIP_VERTICES,
    JOINT_NAMES,
    JOINT_PARENTS,
    JOINTS_FROM_MANO,
    MANO_JOINT_NAMES,
    MANO_PARENTS,
    Handedness,
    joint_index,
    upright_rotation,
)

__all__ = [
    "BETA_COUNT",
    "BONES",
    "FACE_COUNT",
    "FINGERTIP_NAMES",
    "FINGERTIP_VERTICES",
    "FINGER_NAMES",
    "FINGER_ROTATION_COUNT",
    "JOINTS_FROM_MANO",
    "JOINT_COUNT",
    "JOINT_NAMES",
    "JOINT_PARENTS",
    "MANO_JOINT_COUNT",
    "MANO_JOINT_NAMES",
    "MANO_PARENTS",
    "POSE_FEATURE_COUNT",
    "VERTEX_COUNT",
    "HandArrays",
    "HandOutput",
    "Handedness",
    "PosedHand",
    "ShapedHand",
    "both_sides",
    "builtin_hand",
    "joint_index",
    "pose_features",
    "upright_rotation",
]
