"""A hand in stages, each an immutable value: the arrays of a hand model, a shaped hand, a posed hand. And `HandOutput`.

    hand = builtin_hand()            # HandArrays: what MANO's format holds
    person = hand.shaped(betas)      # ShapedHand: (*B, 10) -> a mesh at rest, its joints
    posed = person.posed(rotations)  # PosedHand: (*B, 16, 3, 3) -> vertices, joints, ...

numpy alone, float64, over any batch shape (shapes and rotations broadcast). What is computed is MANO's function
(Romero, Tzionas, Black: "Embodied Hands", SIGGRAPH Asia 2017, equations 1 to 4); `handmesh.hand.layer.HandModel` is the
same for torch, with gradients. Metres, radians; a rotation acts on column vectors.

Axes of a hand model at rest: right hand, fingers towards -x, palm towards -y, thumb towards +z.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import AssetError, DataError
from handmesh.hand.skeleton import (
    FINGERTIP_VERTICES,
    JOINT_NAMES,
    JOINTS_FROM_MANO,
    MANO_JOINT_NAMES,
    MANO_LEVELS,
    MANO_PARENTS,
    Handedness,
)

VERTEX_COUNT = 778
FACE_COUNT = 1538
BETA_COUNT = 10
MANO_JOINT_COUNT = len(MANO_JOINT_NAMES)  # 16: those with a rotation
JOINT_COUNT = len(JOINT_NAMES)  # 21
# A rotation less the identity, for each joint but the wrist: what pose correctives are linear in.
POSE_FEATURE_COUNT = 9 * (MANO_JOINT_COUNT - 1)  # 135
FINGER_ROTATION_COUNT = 3 * (MANO_JOINT_COUNT - 1)  # 45: rotation vectors of all joints but the wrist


class HandOutput(NamedTuple):
    """What the network answers for a batch of crops; also the names of an exported graph's outputs.

    Torch tensors inside the model, numpy arrays out of an engine. Frame "hand": the camera's axes (x right, y down,
    z forward) with the predicted orientation applied, origin at the hand model's own origin.
    """

    camera: Any  # (B, 3)         scale in NDC per metre, then t_x, t_y in metres
    pose: Any  # (B, 16, 3, 3)  parent-relative rotations; [0] is the hand's orientation; identity = flat rest pose
    betas: Any  # (B, 10)        shape coefficients, about standard normal
    vertices: Any  # (B, 778, 3)    metres, hand
    joints: Any  # (B, 21, 3)     metres, hand
    confidence: Any  # (B,)       0..1: that there is a hand and it was found; 1 of a network without that head
    handedness: Any  # (B,)      0..1: that the crop shows a right hand; 1 of a network without that head
    joint_confidence: Any  # (B, 21)  0..1: that there is a hand and this joint of it was found; 1 without that head
    # (B, 21, 3) where the keypoint head sees each joint, x and y in NDC, and how surely, 0..1; 0 without that head
    seen: Any


_SHAPES: dict[str, tuple[int | None, ...]] = {
    "v_template": (VERTEX_COUNT, 3),
    "f": (FACE_COUNT, 3),
    "shapedirs": (VERTEX_COUNT, 3, BETA_COUNT),
    "posedirs": (VERTEX_COUNT, 3, POSE_FEATURE_COUNT),
    "J_regressor": (MANO_JOINT_COUNT, VERTEX_COUNT),
    "J": (MANO_JOINT_COUNT, 3),
    "weights": (VERTEX_COUNT, MANO_JOINT_COUNT),
    "kintree_table": (2, MANO_JOINT_COUNT),
    "hands_components": (FINGER_ROTATION_COUNT, FINGER_ROTATION_COUNT),
    "hands_coeffs": (None, FINGER_ROTATION_COUNT),
    "hands_mean": (FINGER_ROTATION_COUNT,),
}


@dataclass(frozen=True, eq=False)
class HandArrays:
    """One hand model, with the key names, shapes and dtypes of a MANO file. float64, metres, radians."""

    v_template: NDArray[np.float64]  # (778, 3)       rest mesh
    f: NDArray[np.uint32]  # (1538, 3)      faces, counter-clockwise seen from outside
    shapedirs: NDArray[np.float64]  # (778, 3, 10)   metres per unit of beta
    posedirs: NDArray[np.float64]  # (778, 3, 135)  metres per unit of (rotation - identity), joints 1..15, row-major
    J_regressor: NDArray[np.float64]  # (16, 778)      rows sum to one
    J: NDArray[np.float64]  # (16, 3)        rest joints
    weights: NDArray[np.float64]  # (778, 16)      skinning weights, rows sum to one
    kintree_table: NDArray[np.int64]  # (2, 16)        parents (the root's is 2**32 - 1), joint ids
    hands_components: NDArray[np.float64]  # (45, 45)       rows are pose components (axis-angle, joints 1..15)
    hands_coeffs: NDArray[np.float64]  # (N, 45)        example poses in component coordinates
    hands_mean: NDArray[np.float64]  # (45,)          relaxed pose, axis-angle
    bs_type: str = "lrotmin"
    bs_style: str = "lbs"

    @classmethod
    def from_mapping(cls, arrays: Mapping[str, Any], source: str) -> HandArrays:
        """Check names, shapes and values and build the model. `source` names the file in an AssetError."""
        missing = [name for name in _SHAPES if name not in arrays]
        if missing:
            raise AssetError(f"{source} is not a hand model: missing {', '.join(missing)}.")
        values: dict[str, Any] = {}
        for name, shape in _SHAPES.items():
            integer = name in ("f", "kintree_table")
            array = np.asarray(arrays[name])
            matches = array.ndim == len(shape) and all(
                wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
            )
            if not matches or array.dtype.kind not in ("iu" if integer else "f"):
                raise AssetError(f"{source}: {name} is {array.dtype} {array.shape}, wanted {shape}.")
            if not integer and not np.isfinite(array).all():
                raise AssetError(f"{source}: {name} holds values that are not finite numbers.")
            values[name] = array.astype({"f": np.uint32, "kintree_table": np.int64}.get(name, np.float64))
        _check_values(values, source)
        for name in ("bs_type", "bs_style"):
            if name in arrays:
                values[name] = str(arrays[name])
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> HandArrays:
        """Read an .npz written by `save`. Raises AssetError when it is missing, damaged or not a hand model."""
        try:
            # Opened here, since numpy leaves the file open when it is damaged.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            raise AssetError(f"No hand model at {path}.") from None
        except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on damaged bytes
            raise AssetError(f"{path} cannot be read as a hand model (.npz): {error}.") from error
        return cls.from_mapping(arrays, str(path))

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Parent of each of the 16 joints; -1 for the root."""
        return (-1, *(int(parent) for parent in self.kintree_table[0, 1:]))

    @cached_property
    def faces(self) -> NDArray[np.int32]:
        return self.f.astype(np.int32)

    @cached_property
    def sha256(self) -> str:
        """Identity of everything that shapes an answer: a checkpoint names the hand it was trained with by this."""
        digest = hashlib.sha256()
        for name in ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table"):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    def shaped(self, betas: ArrayLike | None = None) -> ShapedHand:
        """(*B, 10) shape coefficients -> the hands of such people; None is the mean shape.

        Raises DataError for another shape.
        """
        shape = np.zeros(BETA_COUNT) if betas is None else np.asarray(betas, np.float64)
        if shape.shape[-1:] != (BETA_COUNT,):
            raise DataError(f"betas are {shape.shape}, wanted (*B, {BETA_COUNT}).")
        offsets = shape @ self.shapedirs.reshape(-1, BETA_COUNT).T
        vertices = self.v_template + offsets.reshape(*shape.shape[:-1], VERTEX_COUNT, 3)
        return ShapedHand(self, shape, vertices, self.J_regressor @ vertices)

    def correctives(self, pose_features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(*B, 135) -> (*B, 778, 3): what a pose adds to the mesh at rest before it is skinned. See `pose_features`."""
        offsets = pose_features @ self.posedirs.reshape(-1, POSE_FEATURE_COUNT).T
        return offsets.reshape(*pose_features.shape[:-1], VERTEX_COUNT, 3)

    def joints_of(self, vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        """(*B, 778, 3) posed vertices -> (*B, 21, 3) joints, regressed from the mesh, and fingertips."""
        joints = np.concatenate([self.J_regressor @ vertices, vertices[..., list(FINGERTIP_VERTICES), :]], axis=-2)
        return joints[..., list(JOINTS_FROM_MANO), :]

    def mirrored(self) -> HandArrays:
        """The other hand: x -> -x. Rotation vectors mirror as (x, -y, -z); faces are rewound to stay outward."""
        flip = np.array([-1.0, 1.0, 1.0])
        rotation_signs = np.tile(np.outer(flip, flip).ravel(), MANO_JOINT_COUNT - 1)
        vector_signs = np.tile([1.0, -1.0, -1.0], MANO_JOINT_COUNT - 1)
        return HandArrays(
            v_template=self.v_template * flip,
            f=np.ascontiguousarray(self.f[:, ::-1]),
            shapedirs=self.shapedirs * flip[:, None],
            posedirs=self.posedirs * flip[:, None] * rotation_signs,
            J_regressor=self.J_regressor,
            J=self.J * flip,
            weights=self.weights,
            kintree_table=self.kintree_table,
            hands_components=self.hands_components * vector_signs,
            hands_coeffs=self.hands_coeffs,
            hands_mean=self.hands_mean * vector_signs,
            bs_type=self.bs_type,
            bs_style=self.bs_style,
        )


@dataclass(frozen=True, eq=False)
class ShapedHand:
    """The hand of one person, or of a batch of them, at rest; metres, with the model's origin."""

    model: HandArrays
    betas: NDArray[np.float64]  # (*B, 10)
    vertices: NDArray[np.float64]  # (*B, 778, 3) without pose correctives
    joints: NDArray[np.float64]  # (*B, 16, 3) of the kinematic tree, in MANO's order

    def posed(self, rotations: ArrayLike) -> PosedHand:
        """(*B, 16, 3, 3) parent-relative rotations, MANO's order; [0] turns the hand about its root joint.

        All of them the identity is the flat rest pose (the mean pose is not added). Raises DataError for another shape.
        """
        R = np.asarray(rotations, np.float64)
        if R.shape[-3:] != (MANO_JOINT_COUNT, 3, 3):
            raise DataError(
                f"rotations are {R.shape}, wanted matrices, (*B, {MANO_JOINT_COUNT}, 3, 3): `pose_from_angles` makes "
                "them of angles, `from_smplx` of axis-angle."
            )
        orientations, joints = posed_tree(R, self.joints)
        batch = joints.shape[:-2]
        # posed = orientation @ rest + shift, blended per vertex.
        shifts = joints - (orientations @ self.joints[..., None])[..., 0]
        transforms = np.concatenate([orientations, shifts[..., None]], axis=-1).reshape(*batch, MANO_JOINT_COUNT, 12)
        blended = (self.model.weights @ transforms).reshape(*batch, VERTEX_COUNT, 3, 4)
        rest = self.vertices + self.model.correctives(pose_features(R))
        vertices = (blended[..., :3] @ rest[..., None])[..., 0] + blended[..., 3]
        return PosedHand(self, R, vertices, joints, orientations)


@dataclass(frozen=True, eq=False)
class PosedHand:
    """A hand in a pose, or a batch of them; metres, with the model's origin."""

    shaped: ShapedHand
    rotations: NDArray[np.float64]  # (*B, 16, 3, 3) parent-relative
    vertices: NDArray[np.float64]  # (*B, 778, 3)
    tree_joints: NDArray[np.float64]  # (*B, 16, 3) where the kinematic tree puts its joints, in MANO's order
    joint_rotations: NDArray[np.float64]  # (*B, 16, 3, 3) of each joint, from its rest pose

    @cached_property
    def joints(self) -> NDArray[np.float64]:
        """(*B, 21, 3) joints, regressed from the posed mesh, and the fingertips."""
        return self.shaped.model.joints_of(self.vertices)


def posed_tree(
    rotations: NDArray[np.float64], rest: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(*B, 16, 3, 3) parent-relative rotations, (*B, 16, 3) joints at rest -> each joint's rotation and its place."""
    batch = np.broadcast_shapes(rotations.shape[:-3], rest.shape[:-2])
    orientations = np.empty((*batch, MANO_JOINT_COUNT, 3, 3))
    places = np.empty((*batch, MANO_JOINT_COUNT, 3))
    orientations[..., 0, :, :], places[..., 0, :] = rotations[..., 0, :, :], rest[..., 0, :]
    for joints, parents in MANO_LEVELS:
        above = orientations[..., parents, :, :]
        bones = rest[..., joints, :] - rest[..., parents, :]
        orientations[..., joints, :, :] = above @ rotations[..., joints, :, :]
        places[..., joints, :] = places[..., parents, :] + (above @ bones[..., None])[..., 0]
    return orientations, places


def pose_features(rotations: ArrayLike) -> NDArray[np.float64]:
    """(*B, 16, 3, 3) -> (*B, 135): rotations less the identity, without the root's."""
    fingers = np.asarray(rotations, np.float64)[..., 1:, :, :] - np.eye(3)
    return fingers.reshape(*fingers.shape[:-3], POSE_FEATURE_COUNT)


def _check_values(values: dict[str, Any], source: str) -> None:
    faces, tree = values["f"], values["kintree_table"]
    if faces.max() >= VERTEX_COUNT:
        raise AssetError(f"{source}: a face names vertex {faces.max()}, there are {VERTEX_COUNT}.")
    if tuple(tree[0, 1:]) != MANO_PARENTS[1:]:
        raise AssetError(f"{source}: the joint tree is {tree[0, 1:].tolist()}, wanted {list(MANO_PARENTS[1:])}.")
    for name, axis in (("weights", 1), ("J_regressor", 1)):
        error = np.abs(values[name].sum(axis=axis) - 1).max()
        if error > 1e-3:
            raise AssetError(f"{source}: rows of {name} sum to one only within {error:.2g}.")


def both_sides(right: HandArrays) -> dict[Handedness, HandArrays]:
    """A right hand and its mirror image, by side."""
    return {Handedness.RIGHT: right, Handedness.LEFT: right.mirrored()}


def builtin_hand(handedness: Handedness = Handedness.RIGHT) -> HandArrays:
    """The licence-free hand that ships with the package (made by `python -m handmesh.builtin_hand`)."""
    return _builtin_hand(handedness)


@cache  # by value: a default that is left out would be another key
def _builtin_hand(handedness: Handedness) -> HandArrays:
    if handedness != Handedness.RIGHT:
        return builtin_hand().mirrored()
    with resources.as_file(resources.files("handmesh") / "assets" / "builtin_right.npz") as path:
        return HandArrays.load(path)
