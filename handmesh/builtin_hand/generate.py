"""The licence-free hand that ships with handmesh, made from published measurements and no scan at all.

    python -m handmesh.builtin_hand [--out PATH]      generate
    python -m handmesh.builtin_hand --check           measure the hand in that file, pose by pose
    python -m handmesh.builtin_hand --sheet PATH      draw it from six sides in every named pose

`generate` builds a right hand in the exact array format of a MANO file (same keys, shapes, vertex numbering where
public code relies on it), so that every tool for MANO runs on it: `handmesh.builtin_hand.surface` is its skin as a
signed distance, `handmesh.builtin_hand.remesh` makes 778 vertices of it, `handmesh.builtin_hand.rig` makes it move and
vary. It is not MANO's shape and its betas and poses are not MANO's. The same machine gives the same bytes;
docs/explain/builtin_hand.md has the numbers, their sources, the measured quality and the picture.

Generating needs scikit-image (extra `hand`). Using the shipped file needs neither it nor this module.
"""

from __future__ import annotations

import argparse
import io
import logging
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.builtin_hand import remesh
from handmesh.builtin_hand import rig as hand_rig
from handmesh.builtin_hand import surface as hand_surface
from handmesh.builtin_hand.rig import SHAPE_NAMES
from handmesh.builtin_hand.surface import FINGERS, FOUR_FINGERS, WRIST_CUT
from handmesh.errors import HandMeshError
from handmesh.geometry.normals import vertex_normals
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import FACE_COUNT, FINGER_NAMES, FINGERTIP_VERTICES, MANO_PARENTS, VERTEX_COUNT, HandArrays, anatomy

__all__ = [
    "OTHER_FINGERTIP_VERTICES",
    "SHAPE_NAMES",
    "WRIST_LOOP",
    "PoseQuality",
    "contact_sheet",
    "generate",
    "main",
    "measure",
]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Faces = NDArray[np.int64]

SHIPPED = Path(__file__).parents[1] / "assets" / "builtin_right.npz"

# Vertices of the open wrist in the order of the public closing faces (a fan [loop[i - 1], loop[i], centre] faces out).
WRIST_LOOP = (108, 79, 78, 121, 214, 215, 279, 239, 234, 92, 38, 122, 118, 117, 119, 120)
# Fingertip ids of other projects' tables (manopth, smplx, InterHand), beside hand.FINGERTIP_VERTICES; the nearest
# vertices to each tip get them.
OTHER_FINGERTIP_VERTICES = {
    "thumb": (745,),
    "index": (317, 333),
    "middle": (444, 445),
    "ring": (556, 554),
    "pinky": (673, 671),
}
# Two vertices that public code averages into "the palm": on its palmar and dorsal skin, millimetres.
PALM_VERTICES = {95: (60.0, -2.0, -20.0), 22: (60.0, -2.0, 12.0)}

FIRST_WEB = np.array([68.0, 33.0, -5.0])  # middle of its edge, millimetres

# A MANO hand's wrist lies some 93 mm from its origin, which is near the middle of the hand.
ORIGIN_FROM_WRIST = np.array([0.093, 0.0, 0.0])

VOXEL_MM = 2.0
RELAX_ROUNDS = 25
GRID_LOW, GRID_HIGH = np.array([WRIST_CUT, -62.0, -58.0]), np.array([195.0, 112.0, 34.0])
# Example poses are kept to 1/256 radian (0.2 degrees) so that the file stays small.
COEFFICIENT_STEP = 2.0**-8


def generate() -> HandArrays:
    """Build the right hand; about 15 s. Raises AssetError when scikit-image is not installed."""
    started = time.perf_counter()
    vertices_mm, faces = _skin()
    logger.info("skin: %d vertices, %d faces, %.1f s", len(vertices_mm), len(faces), time.perf_counter() - started)
    vertices_mm, faces = _numbered(vertices_mm, faces)
    joints_mm = hand_surface.rest_joints()
    normals = vertex_normals(vertices_mm, faces)
    weights = hand_rig.skinning_weights(vertices_mm, faces)
    regressor = hand_rig.joint_regressor(vertices_mm, weights, joints_mm)
    shape = hand_rig.shape_directions(vertices_mm, normals, weights)

    vertices = _rest_axes(vertices_mm) / 1000 + ORIGIN_FROM_WRIST
    kintree = np.array([[2**32 - 1, *MANO_PARENTS[1:]], range(16)], dtype=np.int64)
    rigid = HandArrays(
        v_template=vertices,
        f=faces.astype(np.uint32),
        shapedirs=np.moveaxis(_rest_axes(np.moveaxis(shape, -1, 0)), 0, -1) / 1000,
        posedirs=np.zeros((VERTEX_COUNT, 3, 135)),
        J_regressor=regressor,
        J=regressor @ vertices,
        weights=weights,
        kintree_table=kintree,
        hands_components=np.eye(45),
        hands_coeffs=np.zeros((0, 45)),
        hands_mean=np.zeros(45),
    )
    axes = anatomy.flexion_axes(rigid)
    mean = hand_rig.pose_vector(rigid, anatomy.POSES["relaxed"])
    components = hand_rig.pose_components(axes)
    coefficients = (hand_rig.pose_vector(rigid, hand_rig.example_angles()) - mean) @ components.T
    hand = HandArrays(
        v_template=rigid.v_template,
        f=rigid.f,
        shapedirs=rigid.shapedirs,
        posedirs=hand_rig.pose_correctives(vertices, weights, rigid.J, axes),
        J_regressor=rigid.J_regressor,
        J=rigid.J,
        weights=rigid.weights,
        kintree_table=rigid.kintree_table,
        hands_components=components,
        hands_coeffs=np.round(coefficients / COEFFICIENT_STEP) * COEFFICIENT_STEP,
        hands_mean=mean,
    )
    logger.info("hand: %.1f s", time.perf_counter() - started)
    return hand


def _skin() -> tuple[Floats, Faces]:
    """778 vertices (millimetres, modelling frame) and 1538 faces, one boundary of 16 at the wrist."""
    vertices, faces = remesh.surface_at_zero(hand_surface.signed_distance, GRID_LOW, GRID_HIGH, VOXEL_MM)
    vertices, faces = remesh.collapse(vertices, faces, VERTEX_COUNT, len(WRIST_LOOP), _sizing(vertices))
    tips = _project(np.stack([FINGERS[name].joints[3] for name in FINGER_NAMES]), np.zeros(5, bool))
    pinned = {int(np.linalg.norm(vertices - tip, axis=1).argmin()): tip for tip in tips}
    vertices, faces = remesh.relax(vertices, faces, _sizing, _project, RELAX_ROUNDS, pinned)
    assert len(faces) == FACE_COUNT
    return vertices, faces


def _sizing(points: Floats) -> Floats:
    """(n,) wanted edge length in millimetres: fine where a hand bends and where its outline curves."""
    size = np.full(len(points), 11.0)
    # The back of the hand has tendons and valleys to show; the palm is one soft hollow.
    back = np.clip((points[:, 2] - 2) / 5, 0, 1) * np.clip((points[:, 0] - 35) / 20, 0, 1)
    size -= 3.8 * back
    # The web between thumb and index finger is a thin curved edge.
    size = np.minimum(size, 11.0 - 4.0 * np.exp(-((np.linalg.norm(points - FIRST_WEB, axis=1) / 14) ** 2)))
    for name, finger in FINGERS.items():
        is_thumb = name == "thumb"
        s, distance, _ = hand_rig.arc_coordinates(points, finger)
        start = finger.lengths[0] * (0.55 if is_thumb else 0.25)
        near = np.clip((1.45 * finger.radii[1] + 4 - distance) / 6, 0, 1) * np.clip((s - start) / 14, 0, 1)
        at_tip = np.clip((s - (sum(finger.lengths) - 14)) / 12, 0, 1)
        fine = (5.8 - 1.4 * at_tip) * (0.55 + 0.45 * finger.radii[1] / 9.1)
        size = np.minimum(size, size + (fine - size) * near)
        if name in FOUR_FINGERS:
            knuckle = finger.root + np.array([0, 0, 0.9 * finger.radii[0]])
            size = np.minimum(size, 11.0 - 5.6 * np.exp(-((np.linalg.norm(points - knuckle, axis=1) / 14) ** 2)))
    return size


def _project(points: Floats, is_boundary: NDArray[np.bool_]) -> Floats:
    """Bring points onto the skin by Newton steps; boundary points move within the plane of the wrist's cut."""
    points = points.copy()
    points[is_boundary, 0] = WRIST_CUT
    for _ in range(2):
        slope = hand_surface.gradient(points)
        slope[is_boundary, 0] = 0
        step = hand_surface.signed_distance(points) / np.maximum((slope * slope).sum(axis=1), 1e-3)
        points = points - np.clip(step, -3, 3)[:, None] * slope
    return points


def _numbered(vertices: Floats, faces: Faces) -> tuple[Floats, Faces]:
    """Renumber so that the vertex ids that public code addresses lie where that code expects them."""
    number = np.full(len(vertices), -1)

    def give(place: Floats, wanted_ids: tuple[int, ...]) -> None:
        nearest = np.argsort(np.linalg.norm(vertices - place, axis=1), kind="stable")
        free = nearest[number[nearest] < 0]
        for vertex, wanted in zip(free[: len(wanted_ids)], wanted_ids, strict=True):
            number[vertex] = wanted

    for name, tip_id in zip(FINGER_NAMES, FINGERTIP_VERTICES, strict=True):
        give(FINGERS[name].joints[3], (tip_id, *OTHER_FINGERTIP_VERTICES[name]))
    # Closing faces run against the surface's own boundary direction; the loop starts on the thumb's side.
    loop = anatomy.boundary_loop(faces)[::-1]
    loop = np.roll(loop, -int(vertices[loop, 1].argmax()))
    number[loop] = WRIST_LOOP
    for palm_id, place in PALM_VERTICES.items():
        give(np.array(place), (palm_id,))
    # The rest from the wrist to the fingertips.
    free = np.flatnonzero(number < 0)
    unused = np.setdiff1d(np.arange(len(vertices)), number)
    number[free[np.argsort(vertices[free, 0], kind="stable")]] = unused
    renumbered = np.empty_like(vertices)
    renumbered[number] = vertices
    faces = number[faces]
    # One order of faces whatever the path of the remeshing: smallest corner first, then ascending.
    faces = np.stack([np.roll(face, -int(face.argmin())) for face in faces])
    return renumbered, faces[np.lexsort(faces.T[::-1])]


def _rest_axes(points: Floats) -> Floats:
    """(*B, 3) distal, radial, dorsal -> the rest frame's axes: fingers -x, dorsal +y, thumb +z."""
    return np.stack([-points[..., 0], points[..., 2], points[..., 1]], axis=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring and looking


class PoseQuality(NamedTuple):
    """How sound the skin is in one pose."""

    volume_cm3: float  # closed at the wrist by a fan
    folded_edges: int  # faces on both sides turn by more than 120 degrees
    penetrating_vertices: int  # 0.7 mm above their own skin lies inside another part of the hand


def measure(hand: HandArrays, pose: Floats) -> PoseQuality:
    """Measure a right hand in one pose, (16, 3, 3) rotations."""
    vertices = hand.shaped().posed(pose).vertices
    faces = hand.faces
    normals = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    first, second = np.array([owners for owners in remesh.edge_faces(faces).values() if len(owners) == 2]).T
    folded = int(((normals[first] * normals[second]).sum(axis=1) < np.cos(np.radians(120))).sum())

    loop = np.array(WRIST_LOOP)
    corners = np.vstack([vertices, vertices[loop].mean(axis=0)])
    closed = np.vstack([faces, np.stack([np.roll(loop, 1), loop, np.full(len(loop), len(vertices))], axis=1)])
    p, q, r = (corners[closed[:, corner]] for corner in range(3))
    volume = float((p * np.cross(q, r)).sum() / 6)
    above = vertices + 0.0007 * vertex_normals(vertices, faces)
    penetrating = int((_winding_number(above, p, q, r) > 0.5).sum())
    return PoseQuality(1e6 * volume, folded, penetrating)


def _winding_number(points: Floats, p: Floats, q: Floats, r: Floats) -> Floats:
    """(n,) how often closed triangles (m, 3) x 3 wrap each point: solid angles over 4 pi (Van Oosterom 1983)."""
    winding = np.empty(len(points))
    for start in range(0, len(points), 64):
        a, b, c = (corner - points[start : start + 64, None] for corner in (p, q, r))
        la, lb, lc = (np.linalg.norm(arm, axis=-1) for arm in (a, b, c))
        numerator = (a * np.cross(b, c)).sum(axis=-1)
        dots = (a * b).sum(axis=-1) * lc + (b * c).sum(axis=-1) * la + (c * a).sum(axis=-1) * lb
        winding[start : start + 64] = np.arctan2(numerator, la * lb * lc + dots).sum(axis=-1) / (2 * np.pi)
    return winding


# Rotations of the hand's rest frame onto the camera's axes (x right, y down, z forward), fingers upwards: rows are
# what the picture shows to the right, downwards and away from the viewer.
_VIEWS: dict[str, Floats] = {
    "back": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "palm": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "thumb's side": np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]]),
    "little finger's side": np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    "fingertips": np.array([[0.0, 0, 1], [0, -1, 0], [1, 0, 0]]),
    "oblique": matrix_from_vector(np.array([0.5, 0.0, 0.0]))
    @ matrix_from_vector(np.array([0.0, 0.75, 0.0]))
    @ np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
}
_SKIN_COLOR = (222, 176, 146)


def contact_sheet(hand: HandArrays, cell: int = 190) -> NDArray[np.uint8]:
    """Every named pose (rows) from six sides (columns) -> (rows * cell, 6 * cell, 3) uint8 RGB. For a right hand."""
    import cv2  # for the labels; on first use, as generating and measuring need no drawing

    from handmesh.draw.render import overlay

    rows = []
    for name, angles in anatomy.POSES.items():
        vertices = hand.shaped().posed(anatomy.pose_from_angles(hand, angles)).vertices
        normals = vertex_normals(vertices, hand.faces)
        row = []
        for view in _VIEWS.values():
            seen = vertices @ view.T
            middle = (seen.max(axis=0) + seen.min(axis=0)) / 2
            pixels = (seen - middle) * (cell / 0.225) + (cell / 2, cell / 2, cell)
            blank = np.full((cell, cell, 3), 250, np.uint8)
            row.append(overlay(blank, pixels, hand.faces, normals=normals @ view.T, color=_SKIN_COLOR, opacity=1))
        strip = np.ascontiguousarray(np.hstack(row))
        cv2.putText(strip, name.replace("_", " "), (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40,) * 3, 1, cv2.LINE_AA)
        rows.append(strip)
    for column, view_name in enumerate(_VIEWS):
        at = (column * cell + 6, cell - 6)
        cv2.putText(rows[0], view_name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (110,) * 3, 1, cv2.LINE_AA)
    return np.vstack(rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; the exit code is 0 only when everything asked for was done."""
    parser = argparse.ArgumentParser(
        prog="python -m handmesh.builtin_hand",
        description="Generate the built-in hand, or measure or draw it.",
    )
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the hand's .npz file (default: the shipped one)")
    parser.add_argument("--check", action="store_true", help="generate nothing: measure the hand in that file")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="generate nothing: draw the hand in that file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.sheet is not None:
            _write_sheet(HandArrays.load(options.out), options.sheet)
        if options.check:
            _log_quality(HandArrays.load(options.out))
        if options.sheet is None and not options.check:
            hand = generate()
            options.out.parent.mkdir(parents=True, exist_ok=True)
            hand.save(options.out)
            size = options.out.stat().st_size
            logger.info("saved %s: %d bytes, identity %s", options.out, size, hand.sha256[:16])
    except HandMeshError as error:
        logger.error("%s", error)
        return 1
    return 0


def _write_sheet(hand: HandArrays, path: Path) -> None:
    from PIL import Image

    from handmesh.system.atomic import write_atomically

    # Skin on white has few colours: a palette makes the file a third of the size.
    picture = Image.fromarray(contact_sheet(hand)).quantize(
        96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    encoded = io.BytesIO()
    picture.save(encoded, "png", optimize=True)
    write_atomically(path, encoded.getvalue())
    logger.info("drew %s", path)


def _log_quality(hand: HandArrays) -> None:
    rest = measure(hand, anatomy.pose_from_angles(hand, anatomy.POSES["flat"]))
    logger.info("pose        volume cm3  change  folded edges  penetrating vertices")
    for name, angles in anatomy.POSES.items():
        quality = measure(hand, anatomy.pose_from_angles(hand, angles))
        change = 100 * (quality.volume_cm3 / rest.volume_cm3 - 1)
        logger.info("%-10s  %10.1f  %+5.1f%%  %12d  %20d", name, quality.volume_cm3, change, *quality[1:])
