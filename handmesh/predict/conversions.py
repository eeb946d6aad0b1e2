"""A hand in the forms of other projects, and theirs as what ours takes.

From another project's keypoints to a hand of ours: `fit_hand(found.points, found.scores, hand=load_hand("builtin",
found.handedness))` of what `from_mediapipe` or `from_openpose` gave. Their 21 joints stand in our order; where in the
hand they lie differs by millimetres (docs/how_to/data.md has the numbers for MediaPipe, `handmesh.hand.definitions`
those for MANO).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import ConfigError, DataError
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.rotation import matrix_from_vector, vector_from_matrix
from handmesh.hand import BETA_COUNT, FINGER_ROTATION_COUNT, JOINT_COUNT, MANO_JOINT_COUNT, Handedness

Floats = NDArray[np.float64]


class Keypoints(NamedTuple):
    """A hand that another project pointed out, for `fit_hand`."""

    points: Floats  # (21, 2) px of the photograph, centres at integers; not-a-number where not known
    scores: Floats  # (21,) 0..1
    handedness: Handedness | None  # None: not said
    joints: Floats | None  # (21, 3) metres, the camera's axes, any origin; None: not said


# ---------------------------------------------------------------------------------------------------------------------
# smplx


def to_smplx(
    handedness: Handedness, pose: NDArray[Any], betas: NDArray[Any], hands_mean: ArrayLike | None = None
) -> dict[str, Any]:
    """(16, 3, 3) and (10,) -> keyword arguments for smplx, with a leading batch dimension of one.

    `MANOLayer` takes "global_orient", "hand_pose" (rotation matrices) and "betas"; `MANO` built with
    `use_pca=False, flat_hand_mean=True` takes the same names from "axis_angle". Both with `is_rhand` as given.
    `hands_mean`, the (45,) mean pose of that hand's model: "axis_angle" is then relative to it, for
    `flat_hand_mean=False`; matrices are absolute always. Raises DataError for another shape.
    """
    vectors = vector_from_matrix(pose).astype(np.float32)
    vectors[1:] -= _mean_vectors(hands_mean).astype(np.float32)
    return {
        "is_rhand": handedness == Handedness.RIGHT,
        "global_orient": pose[None, :1],
        "hand_pose": pose[None, 1:],
        "betas": betas[None],
        "axis_angle": {"global_orient": vectors[None, 0], "hand_pose": vectors[1:].reshape(1, -1)},
    }


def from_smplx(
    global_orient: ArrayLike,
    hand_pose: ArrayLike,
    betas: ArrayLike | None = None,
    hands_mean: ArrayLike | None = None,
) -> tuple[Floats, Floats]:
    """MANO's parameters of smplx -> (*B, 16, 3, 3) pose, (*B, 10) betas: what `shaped(betas).posed(pose)` takes.

    Axis-angle, (*B, 3) and (*B, 45), or rotation matrices, (*B, 1, 3, 3) and (*B, 15, 3, 3); without PCA. Axis-angle is
    absolute (`flat_hand_mean=True`), or relative to `hands_mean`, the (45,) mean pose of its hand's model
    (`flat_hand_mean=False`, smplx's default). `betas`: (*B, 10); None is the mean shape. Torch tensors that need no
    gradient will do. Raises DataError for other shapes. 6 to 44 numbers of a hand are PCA's, which only the model that
    made them can read.
    """
    fingers, orientation = np.asarray(hand_pose, np.float64), np.asarray(global_orient, np.float64)
    count = MANO_JOINT_COUNT - 1
    if fingers.shape[-3:] != (count, 3, 3):
        if fingers.shape[-1:] != (FINGER_ROTATION_COUNT,):
            raise DataError(
                f"hand_pose is {fingers.shape}, wanted (*B, 45) axis-angle or (*B, 15, 3, 3) rotations. Of "
                "smplx's MANO take use_pca=False."
            )
        fingers = matrix_from_vector(fingers.reshape(*fingers.shape[:-1], count, 3) + _mean_vectors(hands_mean))
    elif hands_mean is not None:
        raise DataError("hand_pose holds rotation matrices, which smplx takes as absolute: leave hands_mean out.")
    batch = fingers.shape[:-3]
    if orientation.shape == (*batch, 3):
        orientation = matrix_from_vector(orientation)
    elif orientation.shape not in ((*batch, 1, 3, 3), (*batch, 3, 3)):
        raise DataError(f"global_orient is {orientation.shape}, wanted (*B, 3) or (*B, 1, 3, 3) with *B as {batch}.")
    shape = np.zeros((*batch, BETA_COUNT)) if betas is None else np.asarray(betas, np.float64)
    if shape.shape != (*batch, BETA_COUNT):
        raise DataError(f"betas are {shape.shape}, wanted {(*batch, BETA_COUNT)}.")
    return np.concatenate([orientation.reshape(*batch, 1, 3, 3), fingers], axis=-3), shape


def _mean_vectors(hands_mean: ArrayLike | None) -> Floats:
    """(15, 3) rotation vectors; zeros of a flat one."""
    mean = np.zeros(FINGER_ROTATION_COUNT) if hands_mean is None else np.asarray(hands_mean, np.float64)
    if mean.shape != (FINGER_ROTATION_COUNT,):
        raise DataError(
            f"hands_mean is {mean.shape}, wanted ({FINGER_ROTATION_COUNT},): `hands_mean` of the hand model."
        )
    return mean.reshape(-1, 3)


# ---------------------------------------------------------------------------------------------------------------------
# MediaPipe


class MediaPipeHand(NamedTuple):
    """One hand as MediaPipe's hand landmarker answers it; its names, as arrays."""

    hand_landmarks: Floats  # (21, 3): x over the width, y over the height, z from the wrist in units of x; z grows away
    hand_world_landmarks: Floats  # (21, 3) metres from the joints' middle: x right, y down, z away
    handedness: str  # "Left" or "Right": the hand's own side, as versions from 0.10.30 on say it
    score: float  # of the handedness


def to_mediapipe(
    handedness: Handedness, score: float, points: NDArray[Any], joints: NDArray[Any], size: tuple[int, int]
) -> MediaPipeHand:
    """`points`: (21, 3) x and y in pixels, depth in pixels of the same scale; `joints`: (21, 3) metres.

    `size`: (width, height) of the photograph in pixels. Raises ConfigError for one that is no size.
    """
    width, height = _checked_size(size)
    xy = (points[:, :2].astype(np.float64) + 0.5) / (width, height)  # from edge to edge
    depth = (points[:, 2] - points[0, 2]).astype(np.float64) / width
    return MediaPipeHand(
        hand_landmarks=np.column_stack([xy, depth]),
        hand_world_landmarks=joints.astype(np.float64) - joints.mean(axis=0, dtype=np.float64),
        handedness=handedness.capitalize(),
        score=score,
    )


def from_mediapipe(
    hand_landmarks: Any,
    size: tuple[int, int],
    *,
    hand_world_landmarks: Any = None,
    handedness: str | None = None,
) -> Keypoints:
    """One hand of a result of MediaPipe, in a photograph of `size` (width, height).

    `hand_landmarks`: (21, 2) or (21, 3) numbers, or MediaPipe's own landmarks with x, y and z. `handedness`: the hand's
    own side; up to 0.10.29 MediaPipe calls it by the other name unless the picture is a mirrored selfie. Raises
    DataError, ConfigError.
    """
    landmarks = _landmarks(hand_landmarks, "hand_landmarks")
    world = None if hand_world_landmarks is None else _landmarks(hand_world_landmarks, "hand_world_landmarks")
    if world is not None and world.shape[-1] != 3:
        raise DataError(f"hand_world_landmarks are {world.shape}, wanted (21, 3) metres.")
    return Keypoints(
        points=landmarks[:, :2] * _checked_size(size) - 0.5,
        scores=np.ones(JOINT_COUNT),
        handedness=None if handedness is None else Handedness.parse(handedness),
        joints=world,
    )


def _landmarks(values: Any, name: str) -> Floats:
    values = getattr(values, "landmark", values)  # the list's own name in MediaPipe's former interface
    try:
        rows = [(one.x, one.y, one.z) if hasattr(one, "x") else one for one in values]
        array = np.asarray(rows, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape not in ((JOINT_COUNT, 2), (JOINT_COUNT, 3)):
        raise DataError(f"{name} are {array.shape}, wanted the 21 landmarks of one hand, x, y (and z) each.")
    return array


# ---------------------------------------------------------------------------------------------------------------------
# OpenPose


def to_openpose(handedness: Handedness, points: NDArray[Any], scores: NDArray[Any]) -> dict[str, list[float]]:
    """(21, 2) px, (21,) -> one of the `people` in OpenPose's JSON: x, y, score of each joint; empty: no such hand."""
    numbers = np.column_stack([points, scores]).astype(np.float64).ravel().tolist()
    return {_openpose_key(side): numbers if side == handedness else [] for side in Handedness}


def from_openpose(person: Mapping[str, Sequence[float]]) -> list[Keypoints]:
    """The hands of one of the `people` in OpenPose's JSON, none to two. A joint of score 0 is not known.

    Raises DataError for anything but 63 numbers of a hand, and for the whole file.
    """
    if not isinstance(person, Mapping) or "people" in person:
        raise DataError('Not one person of OpenPose: wanted one of its file\'s people, json.load(file)["people"][0].')
    found = []
    for side in Handedness:
        numbers = np.asarray(person.get(_openpose_key(side), []), np.float64).ravel()
        if not numbers.size:
            continue
        if numbers.shape != (3 * JOINT_COUNT,):
            raise DataError(f"{_openpose_key(side)} has {numbers.size} numbers, wanted x, y, score of 21 joints: 63.")
        points, scores = numbers.reshape(JOINT_COUNT, 3)[:, :2].copy(), numbers[2::3]
        if not (scores > 0).any():  # how OpenPose says that there is no hand
            continue
        points[scores <= 0] = np.nan
        found.append(Keypoints(points, np.clip(scores, 0, 1), side, None))
    return found


def _openpose_key(side: Handedness) -> str:
    return f"hand_{side}_keypoints_2d"


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch3D


def to_pytorch3d(
    vertices_cam: NDArray[np.float32], faces: NDArray[Any], intrinsics: Intrinsics, size: tuple[int, int]
) -> tuple[Any, Any]:
    """(V, 3) metres in the camera frame, (F, 3) -> PyTorch3D's `Meshes` of them, and its `PerspectiveCameras`.

    The camera is the photograph's own, for a picture of `size` (width, height) pixels: it turns our axes (x right, y
    down) to PyTorch3D's (x left, y up). There is no way back: what a picture is drawn from holds no pose. Raises
    ConfigError where PyTorch3D is not installed.
    """
    from handmesh.draw.pytorch3d import check_installed

    check_installed()
    import torch
    from pytorch3d.renderer.cameras import PerspectiveCameras
    from pytorch3d.structures import Meshes

    width, height = _checked_size(size)
    mesh = Meshes(verts=[torch.from_numpy(vertices_cam)], faces=[torch.from_numpy(faces.astype(np.int64))])
    cameras = PerspectiveCameras(
        focal_length=((intrinsics.fx, intrinsics.fy),),
        # From the picture's corner, not from the centre of its first pixel.
        principal_point=((intrinsics.cx + 0.5, intrinsics.cy + 0.5),),
        R=torch.diag(torch.tensor([-1.0, -1.0, 1.0]))[None],
        T=torch.zeros(1, 3),
        image_size=((height, width),),
        in_ndc=False,
    )
    return mesh, cameras


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in size)
    except (TypeError, ValueError):
        width = height = 0
    if width < 1 or height < 1:
        raise ConfigError(f"Size {size!r}: wanted the photograph's (width, height) in pixels.")
    return width, height
