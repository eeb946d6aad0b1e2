"""How a hand moves and what lies where on its skin: bone frames, joint limits, poses by angle, surface coordinates.

Everything is computed from the arrays of a hand model, so it holds for the built-in hand, for MANO's, for a reshaped
one (`v_template` and `J` moved by betas) and for either side. Angles are radians unless a name says degrees.

Each joint has three anatomical angles, in this order:

* flexion: positive curls towards the palm;
* abduction: positive swings towards the thumb's side of the hand (for the thumb: away from the index finger);
* twist: positive turns the joint's dorsal side towards the thumb's side (for the thumb's first joint: pronation, the
  rolling of opposition).

Numbers that are not computed are in tables below, each with its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ConfigError
from handmesh.geometry.normals import vertex_normals
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import FINGER_NAMES, FINGERTIP_VERTICES, MANO_JOINT_COUNT, MANO_JOINT_NAMES, HandArrays

Floats = NDArray[np.float64]

# First of the three joints of each finger, in FINGER_NAMES order.
FINGER_ROOTS = tuple(
    MANO_JOINT_NAMES.index(f"{finger}_{'cmc' if finger == 'thumb' else 'mcp'}") for finger in FINGER_NAMES
)

# The thumb is rolled against the palm: its nail faces dorsally and to the radial side. Direction in palm coordinates
# (distal, radial, dorsal); made perpendicular to each thumb bone where it is used. A flat hand shows the thumb nail
# at 30 to 45 degrees to the other nails.
THUMB_DORSAL_IN_PALM = (-0.35, 0.45, 0.82)


class PalmFrame(NamedTuple):
    """Orthonormal directions of the resting palm, in the hand's rest frame."""

    distal: Floats  # (3,) wrist towards the middle finger
    radial: Floats  # (3,) towards the thumb's side
    dorsal: Floats  # (3,) out of the back of the hand


def palm_frame(hand: HandArrays) -> PalmFrame:
    """The resting palm's axes. The dorsal side is the one that faces +y, for right and left hands alike."""
    wrist, index, middle, pinky = (
        hand.J[MANO_JOINT_NAMES.index(name)] for name in ("wrist", "index_mcp", "middle_mcp", "pinky_mcp")
    )
    distal = _unit(middle - wrist)
    across = index - pinky
    radial = _unit(across - (across @ distal) * distal)
    dorsal = np.cross(distal, radial)
    return PalmFrame(distal, radial, dorsal * (1.0 if dorsal[1] > 0 else -1.0))


def fingertips(hand: HandArrays) -> Floats:
    """(5, 3) resting fingertip vertices in FINGER_NAMES order."""
    return hand.v_template[list(FINGERTIP_VERTICES)]


def bone_ends(hand: HandArrays) -> Floats:
    """(16, 3) where the bone that starts at each joint ends: the next joint, or the fingertip; the wrist's bone ends
    at the middle finger's knuckle.
    """
    ends = np.empty_like(hand.J)
    ends[0] = hand.J[MANO_JOINT_NAMES.index("middle_mcp")]
    for root, tip in zip(FINGER_ROOTS, fingertips(hand), strict=True):
        ends[root], ends[root + 1], ends[root + 2] = hand.J[root + 1], hand.J[root + 2], tip
    return ends


def bone_frames(hand: HandArrays) -> Floats:
    """(16, 3, 3) rows distal, radial, dorsal of the bone that starts at each joint, in the hand's rest frame.

    Right-handed on a left hand, left-handed on a right hand (the rows are anatomical directions, not a rotation).
    """
    palm = palm_frame(hand)
    side = np.sign(np.cross(palm.distal, palm.radial) @ palm.dorsal)
    thumb_dorsal = np.stack(palm, axis=-1) @ np.array(THUMB_DORSAL_IN_PALM)
    thumb_root = FINGER_ROOTS[0]
    frames = np.empty((MANO_JOINT_COUNT, 3, 3))
    for joint, (start, end) in enumerate(zip(hand.J, bone_ends(hand), strict=True)):
        up = thumb_dorsal if thumb_root <= joint < thumb_root + 3 else palm.dorsal
        distal = _unit(end - start)
        dorsal = _unit(up - (up @ distal) * distal)
        frames[joint] = distal, side * np.cross(dorsal, distal), dorsal
    return frames


def flexion_axes(hand: HandArrays) -> Floats:
    """(16, 3, 3) rows flexion, abduction, twist: unit rotation axes in the hand's rest frame, right-handed turns.

    A positive turn about the first curls the joint's bone towards the palm, about the second swings it towards the
    thumb's side, about the third turns its dorsal side towards the thumb's side.
    """
    distal, radial, dorsal = np.moveaxis(bone_frames(hand), 1, 0)
    return np.stack([np.cross(dorsal, distal), np.cross(distal, radial), np.cross(dorsal, radial)], axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Poses by angle


def pose_from_angles(hand: HandArrays, angles: Floats | Mapping[str, Sequence[float]]) -> Floats:
    """(*B, 16, 3) flexion, abduction, twist in radians -> (*B, 16, 3, 3) parent-relative rotations.

    The bone is twisted about itself first, then flexed, then swung sideways. Zero angles give the flat rest pose. The
    wrist's entry turns the whole hand about the wrist; leave it zero for a pose of the fingers.

    By name, {"index_pip": (flexion, abduction, twist), ...} -> (16, 3, 3), what is left out being zero: the inverse of
    `joint_angles()`, so here the bone is swung before it is flexed, as `angles_from_pose` measures.

    Raises ConfigError for what is no hand model, for another name than MANO's joints have and for other than three
    angles of one, ValueError for an array of another shape.
    """
    if not isinstance(hand, HandArrays):
        raise ConfigError(f"The hand is of type {type(hand).__name__}, wanted what load_hand(name, side) gives.")
    if named := isinstance(angles, Mapping):
        if unknown := [name for name in angles if name not in MANO_JOINT_NAMES]:
            raise ConfigError(f"No joint {unknown[0]!r} bends. Those that do are {', '.join(MANO_JOINT_NAMES)}.")
        for name, of_joint in angles.items():
            if np.shape(of_joint) != (3,):
                raise ConfigError(f"Angles of {name!r} are {of_joint!r}: wanted flexion, abduction, twist in radians.")
        angles = np.array([angles.get(name, (0.0, 0.0, 0.0)) for name in MANO_JOINT_NAMES])
    angles = np.asarray(angles, float)
    if angles.shape[-2:] != (MANO_JOINT_COUNT, 3):
        raise ValueError(f"angles have shape {angles.shape}, wanted (*B, 16, 3): flexion, abduction, twist per joint")
    rotations = matrix_from_vector(angles[..., None] * flexion_axes(hand))
    flexion, abduction, twist = (rotations[..., kind, :, :] for kind in range(3))
    return flexion @ abduction @ twist if named else abduction @ flexion @ twist


class JointAngles(NamedTuple):
    """How far a joint is bent from the flat rest pose, radians."""

    flexion: float  # positive curls towards the palm
    abduction: float  # positive swings towards the thumb's side (the thumb: away from the index finger)
    twist: float  # positive turns the back of the bone towards the thumb's side


def angles_from_pose(flexion_axes: NDArray[np.floating[Any]], pose: NDArray[np.floating[Any]]) -> Floats:
    """(16, 3, 3) axes of a hand model, (*B, 16, 3, 3) rotations -> (*B, 16, 3) flexion, abduction, twist, radians.

    Measured as ISB's joint coordinate system for fingers does (Wu et al., J. Biomech. 2005): flexion about the parent's
    axis, abduction about the axis that flexion has carried along, twist about the bone, so that the rotation is
    ``flexion @ abduction @ twist``. Abduction is in the middle, which no joint brings near the 90 degrees where the
    other two could not be told apart. `pose_from_angles` is the inverse of angles by name; of an array, which it flexes
    before it swings, where one of the first two is zero.
    """
    axes = np.asarray(flexion_axes, np.float64)
    R = axes @ np.asarray(pose, np.float64) @ np.swapaxes(axes, -1, -2)  # in coordinates flexion, abduction, twist
    # A turn about a row of left-handed axes is a turn the other way about the coordinate.
    sense = np.sign(np.linalg.det(axes))
    flexion = np.arctan2(-R[..., 1, 2], R[..., 2, 2])
    abduction = np.arcsin(np.clip(R[..., 0, 2], -1, 1))
    twist = np.arctan2(-R[..., 0, 1], R[..., 0, 0])
    return np.stack([flexion, abduction, twist], axis=-1) * sense[:, None]


def hand_angles(
    thumb: tuple[float, ...] = (),
    index: tuple[float, ...] = (),
    middle: tuple[float, ...] = (),
    ring: tuple[float, ...] = (),
    pinky: tuple[float, ...] = (),
) -> Floats:
    """Angles of one hand from degrees per finger -> (16, 3) radians for `pose_from_angles`.

    Each finger: flexion of its three joints from the palm outwards, then abduction and twist of the first one; what is
    left out is zero. `hand_angles(index=(80, 95, 60))` curls the index finger.
    """
    angles = np.zeros((MANO_JOINT_COUNT, 3))
    for root, degrees in zip(FINGER_ROOTS, (thumb, index, middle, ring, pinky), strict=True):
        if len(degrees) > 5:
            raise ValueError(f"{len(degrees)} angles for a finger, wanted at most 5: three flexions, abduction, twist")
        flexion_1, flexion_2, flexion_3, abduction, twist = np.radians((*degrees, 0.0, 0.0, 0.0, 0.0, 0.0)[:5])
        angles[root : root + 3, 0] = flexion_1, flexion_2, flexion_3
        angles[root, 1:] = abduction, twist
    return angles


# Everyday hand shapes as (16, 3) angles in radians. Chosen by eye on the built-in hand so that what touches, touches.
POSES: dict[str, Floats] = {
    "flat": hand_angles(),
    "relaxed": hand_angles((6, 10, 10, -6), (14, 22, 12), (20, 26, 14), (24, 28, 15), (26, 27, 14)),
    "fist": hand_angles((21, 45, 52, 5, 38), (79, 101, 66), (82, 102, 68), (84, 102, 67), (82, 100, 64)),
    "point": hand_angles((37.5, 41, 47, -6, 41), (2, 4, 2), (81, 101, 66), (84, 101, 66), (82, 99, 63)),
    "pinch": hand_angles((19, 13, 19.5, -18, -10), (47, 43, 23), (24, 24, 12), (18, 18, 10), (12, 14, 8)),
    "spread": hand_angles((-8, -4, -6, 14), (-6, 2, 2, 11), (-6, 0, 0, 2), (-6, 1, 1, -9), (-6, 2, 2, -16)),
    "thumb_up": hand_angles((-8, -6, -10, 10), (79, 101, 66), (82, 102, 68), (84, 102, 67), (82, 100, 64)),
    "victory": hand_angles((21, 33, 43, -29, 13), (0, 2, 2, 12), (0, 2, 2, -8), (84, 100, 66), (82, 98, 62)),
    "ok": hand_angles((19, 13, 19.5, -18, -10), (47, 43, 23), (8, 10, 6, 2), (2, 6, 4, -4), (-4, 4, 3, -10)),
    "three": hand_angles((30, 44, 40, -29, 33), (0, 2, 2, 8), (-2, 2, 2), (0, 2, 2, -8), (84, 98, 66)),
    "four": hand_angles((26, 34, 40, -28, 30), (0, 2, 2, 7), (-2, 2, 2, 1), (0, 2, 2, -6), (0, 2, 2, -12)),
    "grasp": hand_angles((16, 8, 14, -4, 16), (38, 44, 24, 4), (42, 46, 26), (44, 46, 26, -3), (42, 42, 24, -7)),
}


def _limits() -> Floats:
    limits = np.zeros((MANO_JOINT_COUNT, 3, 2))
    for root in FINGER_ROOTS[1:]:
        limits[root] = (-20, 90), (-20, 20), (-5, 5)
        limits[root + 1, 0] = 0, 105
        limits[root + 2, 0] = -5, 80
    thumb = FINGER_ROOTS[0]
    limits[thumb] = (-15, 40), (-30, 30), (-30, 45)
    limits[thumb + 1, 0] = -10, 55
    limits[thumb + 2, 0] = -15, 80
    return np.radians(limits)


# (16, 3, 2) lowest and highest angle of a healthy adult's active motion, radians, from the flat rest pose. Fingers:
# MCP -20..90 (hyperextension limited to what hands show without help), PIP 0..100, DIP 0..80, MCP abduction +-20
# (e-hand.com, "Normal joint motion"); PIP up to 105 and DIP from -5, as `POSES` need a little more. Thumb:
# MCP -10..55, IP -15..80; CMC as the span of 45 degrees of palmar and 60 degrees of radial abduction around the resting
# thumb.
JOINT_LIMITS: Floats = _limits()


# ---------------------------------------------------------------------------------------------------------------------
# What lies where on the skin


class Nail(NamedTuple):
    """The nail plate of one finger at rest, as an ellipse in the plane spanned by `distal` and `radial`."""

    centre: Floats  # (3,) on the dorsal skin
    distal: Floats  # (3,) unit
    radial: Floats  # (3,) unit
    dorsal: Floats  # (3,) unit, out of the nail
    half_length: float
    half_width: float


@dataclass(frozen=True, eq=False)
class SurfaceAnatomy:
    """Where each vertex of a resting hand lies, for shading (creases, nails, redder knuckles) and for statistics."""

    finger: NDArray[np.int64]  # (778,) index into FINGER_NAMES, or -1 on the palm, back of the hand and wrist
    along: Floats  # (778,) 0 at the finger's first joint, 1 and 2 at the next two, 3 at the tip; 0 where finger is -1
    dorsality: Floats  # (778,) +1 faces away from the palm side, -1 faces to it; judged in the finger's own frame
    normals: Floats  # (778, 3) unit, outward
    nails: tuple[Nail, ...]  # in FINGER_NAMES order
    wrist_loop: NDArray[np.int64]  # (n,) the boundary's vertices in order, along the faces' own direction


def surface_anatomy(hand: HandArrays) -> SurfaceAnatomy:
    """Coordinates on the skin of a resting hand, from its geometry and skinning weights."""
    frames, ends, vertices = bone_frames(hand), bone_ends(hand), hand.v_template
    normals = vertex_normals(vertices, hand.faces)
    finger = np.full(len(vertices), -1)
    along = np.zeros(len(vertices))
    up = np.tile(palm_frame(hand).dorsal, (len(vertices), 1))
    joint_of = hand.weights.argmax(axis=1)
    for number, root in enumerate(FINGER_ROOTS):
        mine = (joint_of >= root) & (joint_of < root + 3)
        finger[mine] = number
        best = np.full(len(vertices), np.inf)
        for bone, joint in enumerate(range(root, root + 3)):
            t, distance = _segment_coordinates(vertices, hand.J[joint], ends[joint])
            nearer = mine & (distance < best)
            best[nearer] = distance[nearer]
            along[nearer] = bone + t[nearer]
            up[nearer] = frames[joint, 2]
    dorsality = np.clip(np.einsum("vi,vi->v", normals, up), -1, 1)
    nails = tuple(_nail(hand, root, frames, ends) for root in FINGER_ROOTS)
    return SurfaceAnatomy(finger, along, dorsality, normals, nails, boundary_loop(hand.faces))


def _nail(hand: HandArrays, root: int, frames: Floats, ends: Floats) -> Nail:
    """The nail covers the distal half of the last bone's dorsal skin and three quarters of its width."""
    joint = root + 2
    start, end = hand.J[joint], ends[joint]
    distal, radial, dorsal = frames[joint]
    length = float(np.linalg.norm(end - start))
    local = (hand.v_template - start) @ frames[joint].T
    near = (hand.weights[:, joint] > 0.5) & (local[:, 0] > 0.45 * length)
    if not near.any():
        raise ValueError(f"no vertex follows joint {joint} near its tip: the skinning weights are not those of a hand")
    height = float(np.quantile(local[near, 2], 0.9))
    width = float(np.quantile(np.abs(local[near, 1]), 0.85))
    centre = start + 0.72 * length * distal + 0.85 * height * dorsal
    return Nail(centre, distal, radial, dorsal, half_length=0.30 * length, half_width=0.80 * width)


def boundary_loop(faces: NDArray[np.integer]) -> NDArray[np.int64]:
    """(F, 3) faces of a surface with one hole -> the hole's vertices in order, along the faces' own direction.

    Starts at the smallest vertex number. Raises ValueError when the surface has no boundary or more than one, or one
    that passes a vertex twice.
    """
    edges = {(int(a), int(b)) for face in faces for a, b in zip(face, np.roll(face, -1), strict=True)}
    boundary = [(a, b) for a, b in edges if (b, a) not in edges]
    following = dict(boundary)
    if not following:
        raise ValueError("the surface is closed: it has no boundary")
    if len(following) < len(boundary) or set(following) != set(following.values()):  # the walk below would not end
        raise ValueError("boundaries of the surface meet at a vertex, or its faces are not wound alike")
    loop = [min(following)]
    while (vertex := following[loop[-1]]) != loop[0]:
        loop.append(vertex)
    if len(loop) != len(following):
        raise ValueError(f"the surface has more than one boundary: {len(following)} edges, {len(loop)} in the first")
    return np.array(loop)


def _segment_coordinates(points: Floats, start: Floats, end: Floats) -> tuple[Floats, Floats]:
    """(n, 3) points -> (n,) clamped fraction along the segment, (n,) distance to it."""
    along = end - start
    t = np.clip((points - start) @ along / (along @ along), 0, 1)
    return t, np.linalg.norm(points - start - t[:, None] * along, axis=1)


def _unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)
