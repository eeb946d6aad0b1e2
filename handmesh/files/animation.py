"""Hands that move, as files: skinned and animated glTF (.glb), and BVH.

A hand in MANO's format is posed by linear blend skinning of 16 joints, which glTF has, after pose correctives: the mesh
at rest changes a little with the rotations (posedirs), which skinning alone cannot express. glTF has what is needed:
morph targets are added before skinning, exactly where correctives are. For each hand of a clip the correctives of all
frames are reduced to as few targets as keep every vertex of every frame within `CORRECTIVE_ERROR`, by a principal
component analysis of the displacements, and animated by their weights. `correctives=False` leaves them out.

Axes and units as in mesh.py: glTF and BVH are y up, so (x, y, z) of the camera is (x, -y, -z); metres, in BVH
centimetres. The animation's time is the clip's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handmesh.draw.colors import HAND_COLORS
from handmesh.errors import ExportError
from handmesh.files.glb import Glb, gltf_normals, linear_from_srgb
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import (
    BETA_COUNT,
    FINGERTIP_VERTICES,
    MANO_JOINT_COUNT,
    MANO_JOINT_NAMES,
    POSE_FEATURE_COUNT,
    HandArrays,
    Handedness,
    both_sides,
    pose_features,
)

Array = NDArray[np.floating[Any]]

# The largest distance by which morph targets may miss a pose corrective, metres: half of what the whole file may err.
CORRECTIVE_ERROR: Final = 5e-5
# Skinning weights below this are left out; what remains sums to one again.
_MIN_WEIGHT = 1e-5
_BLOCK = 512  # frames whose correctives are held at a time

_FLIP = np.diag([1.0, -1.0, -1.0])  # y_up_from_camera, its own inverse


@dataclass(frozen=True, eq=False)
class HandTrack:
    """One hand through a clip: T frames in which it was seen. Camera frame (x right, y down, z forward), metres."""

    name: str
    handedness: Handedness
    frames: NDArray[np.int64]  # (T,) their numbers, growing; a jump in them is time in which the hand was not seen
    times: NDArray[np.float64]  # (T,) seconds
    rotations: NDArray[np.float32]  # (T, 16, 3) rotation vectors, parent-relative, MANO's order; [0] in camera axes
    translations: NDArray[np.float32]  # (T, 3) vertices_cam = posed hand model + translation
    betas: NDArray[np.float32]  # (10,) the one shape that is baked


def encode_animation(tracks: Sequence[HandTrack], hand: HandArrays, *, correctives: bool = True) -> bytes:
    """A .glb of all hands of a clip. `hand` is the right hand that the parameters are of. Raises ExportError."""
    glb = Glb()
    channels: list[dict[str, Any]] = []
    samplers: list[dict[str, Any]] = []
    end = max((float(track.times[-1]) for track in tracks if len(track.times)), default=0.0)
    models = both_sides(hand)
    for track in tracks:
        _check(track)
        _add_hand(glb, track, models[track.handedness], correctives, end, channels, samplers)
    if channels:
        glb.add("animations", {"name": "hands", "channels": channels, "samplers": samplers})
    return glb.encode()


def _check(track: HandTrack) -> None:
    count = len(track.times)
    shapes = (
        ("frames", (count,)), ("rotations", (count, MANO_JOINT_COUNT, 3)), ("translations", (count, 3)),
        ("betas", (BETA_COUNT,)),
    )  # fmt: skip
    for name, shape in shapes:
        array = getattr(track, name)
        if array.shape != shape or not np.isfinite(array).all():
            raise ExportError(f"Cannot animate {track.name!r}: its {name} are {array.shape}, wanted finite {shape}.")
    if not count or (np.diff(track.times) <= 0).any():
        raise ExportError(f"Cannot animate {track.name!r}: it has no frames, or their times do not grow.")


def _add_hand(
    glb: Glb,
    track: HandTrack,
    hand: HandArrays,
    correctives: bool,
    end: float,
    channels: list[dict[str, Any]],
    samplers: list[dict[str, Any]],
) -> None:
    shaped = hand.shaped(track.betas)
    rest_joints = shaped.joints @ _FLIP
    targets, weights, mean = _morph_targets(track, hand) if correctives else _no_targets(track, hand)
    vertices = ((shaped.vertices + mean) @ _FLIP).astype(np.float32)

    joints = []
    for joint, name in enumerate(MANO_JOINT_NAMES):
        parent = hand.parents[joint]
        offset = rest_joints[joint] - (rest_joints[parent] if parent >= 0 else 0)
        joints.append(glb.add("nodes", {"name": name, "translation": offset.tolist()}))
    nodes = glb.document["nodes"]
    for joint, parent in enumerate(hand.parents):
        if parent >= 0:
            nodes[joints[parent]].setdefault("children", []).append(joints[joint])
    inverse_bind = np.tile(np.eye(4, dtype=np.float32), (MANO_JOINT_COUNT, 1, 1))
    inverse_bind[:, :3, 3] = -rest_joints
    skin = glb.add(
        "skins",
        {
            "name": track.name,
            "joints": joints,
            "skeleton": joints[0],
            "inverseBindMatrices": glb.accessor(inverse_bind),
        },
    )

    color = linear_from_srgb(np.tile(np.array(HAND_COLORS[track.handedness], np.uint8), (len(vertices), 1)))
    attributes = {
        "POSITION": glb.accessor(vertices, "vertices"),
        "NORMAL": glb.accessor(gltf_normals(vertices, hand.faces), "vertices"),
        "COLOR_0": glb.accessor(color, "vertices"),
    }
    for index, (influences, shares) in enumerate(_influences(hand.weights)):
        attributes[f"JOINTS_{index}"] = glb.accessor(influences, "vertices")
        attributes[f"WEIGHTS_{index}"] = glb.accessor(shares, "vertices")
    primitive: dict[str, Any] = {
        "attributes": attributes,
        "indices": glb.accessor(hand.faces.ravel().astype(np.uint16), "indices"),
        "material": glb.add(
            "materials",
            {
                "name": f"{track.name} skin",
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.7},
                "doubleSided": True,  # the wrist is open: one can look inside
            },
        ),
    }
    mesh: dict[str, Any] = {"name": track.name, "primitives": [primitive]}
    if len(targets):
        primitive["targets"] = [
            {"POSITION": glb.accessor((target @ _FLIP).astype(np.float32), "vertices")} for target in targets
        ]
        mesh["weights"] = weights[0].tolist()
        mesh["extras"] = {"targetNames": [f"pose corrective {index}" for index in range(len(targets))]}
    armature = glb.add(
        "nodes", {"name": track.name, "children": [joints[0]], "extras": {"handedness": str(track.handedness)}}
    )
    # The mesh beside its skeleton: a node's own place does not move a skinned mesh (glTF 2.0, section 3.7.3.3).
    mesh_node = glb.add("nodes", {"name": f"{track.name} mesh", "mesh": glb.add("meshes", mesh), "skin": skin})
    glb.document["scenes"][0].setdefault("nodes", []).extend([armature, mesh_node])

    # A player adds times of day to float32 numbers; a clip's stay exact enough: 1e-7 of an hour is 0.4 ms.
    times = glb.accessor(track.times.astype(np.float32))

    def animate(node: int, path: str, values: NDArray[np.float32], when: int, steps: bool = False) -> None:
        sampler = {"input": when, "output": glb.accessor(values), "interpolation": "STEP" if steps else "LINEAR"}
        samplers.append(sampler)
        channels.append({"sampler": len(samplers) - 1, "target": {"node": node, "path": path}})

    quaternions = _quaternions(track.rotations)
    for joint in range(MANO_JOINT_COUNT):
        animate(joints[joint], "rotation", quaternions[:, joint], times)
    # vertices_cam = R (rest - root) + root + translation: the root joint stands at root + translation.
    root = rest_joints[0] + track.translations @ _FLIP
    animate(joints[0], "translation", root.astype(np.float32), times)
    if len(targets):
        animate(mesh_node, "weights", weights.astype(np.float32).ravel(), times)
    shown_times, shown = _visibility(track, end)
    if (shown == 0).any():
        scale = np.repeat(shown[:, None], 3, axis=1).astype(np.float32)
        animate(joints[0], "scale", scale, glb.accessor(shown_times.astype(np.float32)), steps=True)


def _quaternions(rotations: Array) -> NDArray[np.float32]:
    """(T, 16, 3) rotation vectors, y down -> (T, 16, 4) x, y, z, w, y up, without jumps of sign in time."""
    from scipy.spatial.transform import Rotation

    quaternions = Rotation.from_rotvec(rotations.reshape(-1, 3).astype(np.float64) @ _FLIP).as_quat()
    quaternions = quaternions.reshape(*rotations.shape[:2], 4)
    flips = (quaternions[1:] * quaternions[:-1]).sum(axis=-1) < 0
    signs = np.cumprod(np.where(flips, -1.0, 1.0), axis=0)
    quaternions[1:] *= signs[..., None]
    return quaternions.astype(np.float32)


def _influences(weights: Array) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Joints and weights per vertex in sets of four, the strongest first; as many sets as the hand needs."""
    order = np.argsort(-weights, axis=1, kind="stable")
    sorted_weights = np.take_along_axis(weights, order, axis=1)
    sorted_weights = np.where(sorted_weights > _MIN_WEIGHT, sorted_weights, 0)
    most = int((sorted_weights > 0).sum(axis=1).max())
    count = 4 * math.ceil(most / 4)
    shares = (sorted_weights / sorted_weights.sum(axis=1, keepdims=True))[:, :count].astype(np.float32)
    joints = np.where(shares > 0, order[:, :count], 0).astype(np.uint8)
    return [(joints[:, first : first + 4], shares[:, first : first + 4]) for first in range(0, count, 4)]


def _features(track: HandTrack, first: int, end: int) -> NDArray[np.float64]:
    return pose_features(matrix_from_vector(track.rotations[first:end]))


def _no_targets(track: HandTrack, hand: HandArrays) -> tuple[Array, Array, Array]:
    """Without morph targets the mean corrective of the clip is the best: it is in the mesh at rest."""
    sums = sum(_features(track, first, first + _BLOCK).sum(axis=0) for first in range(0, len(track.times), _BLOCK))
    mean = hand.correctives(np.asarray(sums) / len(track.times))
    return np.zeros((0, *mean.shape)), np.zeros((len(track.times), 0)), mean


def _morph_targets(track: HandTrack, hand: HandArrays) -> tuple[Array, Array, Array]:
    """(K, 778, 3) targets, (T, K) weights of -1 to 1 and the (778, 3) mean of the clip's pose correctives.

    Displacements are linear in 135 numbers, so their principal components need a 135 x 135 matrix, however long the
    clip is. K is the smallest number that keeps every vertex of every frame within CORRECTIVE_ERROR.
    """
    count = len(track.times)
    blocks = [(first, min(first + _BLOCK, count)) for first in range(0, count, _BLOCK)]
    basis = hand.posedirs.reshape(-1, POSE_FEATURE_COUNT)  # (2334, 135)
    mean = sum((_features(track, *block).sum(axis=0) for block in blocks), np.zeros(POSE_FEATURE_COUNT)) / count
    covariance = np.zeros((POSE_FEATURE_COUNT, POSE_FEATURE_COUNT))
    for block in blocks:
        centered = _features(track, *block) - mean
        covariance += centered.T @ centered / count
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    components, strengths, _ = np.linalg.svd(basis @ root, full_matrices=False)  # (2334, 135)
    components = components[:, strengths > 1e-9]

    def worst(kept: int, features: Array) -> float:
        """Metres, over the frames of `features` (T, 135)."""
        chosen = components[:, :kept]
        missed = (features - mean).astype(np.float32) @ (basis - chosen @ (chosen.T @ basis)).T.astype(np.float32)
        return float(np.sqrt(np.square(missed.reshape(len(missed), -1, 3)).sum(axis=-1).max()))

    # The number is sought on some of the frames, then proved on all.
    some = np.concatenate([_features(track, *block)[:: max(1, count // 1000)] for block in blocks])
    low, high = 0, components.shape[1]  # nothing is missed with all of them
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if worst(middle, some) <= CORRECTIVE_ERROR else (middle + 1, high)
    while low < components.shape[1] and any(worst(low, _features(track, *b)) > CORRECTIVE_ERROR for b in blocks):
        low += 1
    targets = components[:, :low]
    weights = np.concatenate([(_features(track, *block) - mean) @ (basis.T @ targets) for block in blocks])
    # Weights of -1 to 1: that is how far the sliders of 3D programs go.
    scale = np.maximum(np.abs(weights).max(axis=0, initial=0.0), 1e-12)
    shaped = (targets * scale).T.reshape(low, len(basis) // 3, 3)
    return shaped, weights / scale, (basis @ mean).reshape(-1, 3)


def _visibility(track: HandTrack, end: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Times from which on the hand is there (1) or not (0); `end` is the end of the clip's last hand."""
    usual = float(np.median(np.diff(track.times))) if len(track.times) > 1 else 1 / 30
    times, shown = ([0.0], [0]) if track.times[0] > 0 else ([], [])
    first = 0
    for last in [*np.flatnonzero(np.diff(track.frames) > 1).tolist(), len(track.times) - 1]:
        times.append(float(track.times[first]))
        shown.append(1)
        gone = float(track.times[last]) + usual
        more = last + 1 < len(track.times)
        if (more and gone < track.times[last + 1]) or (not more and gone < end):
            times.append(gone)
            shown.append(0)
        first = last + 1
    return np.array(times), np.array(shown)


_BVH_UNITS: Final = 100.0  # per metre


def encode_bvh(track: HandTrack, hand: HandArrays, fps: float) -> bytes:
    """One hand as Biovision hierarchy: 16 joints, ends at the fingertips, centimetres, y up; rotations Z X Y, degrees.

    BVH knows one even frame rate: the rotations in between are taken along the geodesic, and while the hand is not
    seen it moves evenly from where it went to where it comes back. `hand` is the right hand that the parameters are of.
    Raises ExportError.
    """
    from scipy.spatial.transform import Rotation, Slerp

    _check(track)
    model = both_sides(hand)[track.handedness]
    shaped = model.shaped(track.betas)
    rest = _BVH_UNITS * (shaped.joints @ _FLIP)
    tips = _BVH_UNITS * (shaped.vertices[list(FINGERTIP_VERTICES)] @ _FLIP)
    tip_of = dict(zip((MANO_JOINT_NAMES.index(f"{finger}_{last}") for finger, last in _LAST_JOINTS), tips, strict=True))
    order: list[int] = []

    def lines_of(joint: int, depth: int) -> list[str]:
        order.append(joint)
        parent = model.parents[joint]
        offset = rest[joint] - rest[parent] if parent >= 0 else np.zeros(3)
        pad = "  " * depth
        channels = "6 Xposition Yposition Zposition " if parent < 0 else "3 "
        lines = [
            f"{pad}{'ROOT' if parent < 0 else 'JOINT'} {MANO_JOINT_NAMES[joint]}",
            f"{pad}{{",
            f"{pad}  OFFSET {' '.join(f'{value:.6f}' for value in offset)}",
            f"{pad}  CHANNELS {channels}Zrotation Xrotation Yrotation",
        ]
        for child, its_parent in enumerate(model.parents):
            if its_parent == joint:
                lines += lines_of(child, depth + 1)
        if joint in tip_of:
            end = " ".join(f"{value:.6f}" for value in tip_of[joint] - rest[joint])
            lines += [f"{pad}  End Site", f"{pad}  {{", f"{pad}    OFFSET {end}", f"{pad}  }}"]
        return [*lines, f"{pad}}}"]

    hierarchy = lines_of(0, 0)
    start = float(track.times[0])
    count = max(1, round((float(track.times[-1]) - start) * fps) + 1)
    when = np.clip(start + np.arange(count) / fps, start, float(track.times[-1]))
    root = _BVH_UNITS * (track.translations @ _FLIP) + rest[0]
    columns = [np.stack([np.interp(when, track.times, axis) for axis in root.T], axis=-1)]
    for joint in order:
        rotations = Rotation.from_rotvec(track.rotations[:, joint].astype(np.float64) @ _FLIP)
        rotations = Slerp(track.times, rotations)(when) if len(track.times) > 1 else rotations
        with warnings.catch_warnings():  # at X = 90 degrees Z and Y turn about one axis: any split of theirs is right
            warnings.simplefilter("ignore", UserWarning)
            columns.append(rotations.as_euler("ZXY", degrees=True))
    motion = [" ".join(f"{value:.5f}" for value in row) for row in np.hstack(columns)]
    text = ["HIERARCHY", *hierarchy, "MOTION", f"Frames: {count}", f"Frame Time: {1 / fps:.8f}", *motion]
    return ("\n".join(text) + "\n").encode()


_LAST_JOINTS: Final = (("thumb", "ip"), ("index", "dip"), ("middle", "dip"), ("ring", "dip"), ("pinky", "dip"))
