"""What a scene is made of, before a camera sees it: the arm that continues the hand, clothes, objects, skin, light.

Geometry is in the hand's rest frame (wrist at its rest place), metres, with the fingers already posed. `axes` (3, 3)
has the rows lateral (away from the thumb), distal (to the fingertips), dorsal (out of the back of the hand).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.config.scenes import LightSettings, SkinSettings
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import MANO_JOINT_NAMES, HandArrays
from handmesh.hand.anatomy import SurfaceAnatomy
from handmesh.synth import shade as kernels
from handmesh.synth.shade import ATTRIBUTE_COUNT, Appearance, Channel, Material

Floats = NDArray[np.float64]
Float32Array = NDArray[np.float32]
Faces = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Part:
    """A surface: vertices (V, 3), faces (F, 3) counter-clockwise outside, attributes (V, 14), materials (F,)."""

    vertices: Floats
    faces: Faces
    attributes: Float32Array
    materials: NDArray[np.int32]


@dataclass(eq=False)
class Scene:
    """All parts in the camera's frame; the arm comes first. `ArmTopology.tessellate` refines the arm in place."""

    vertices: NDArray[Any]  # float32 once in the camera's frame
    faces: Faces
    attributes: Float32Array
    materials: NDArray[np.int32]
    arm_vertices: int
    arm_faces: int
    inverse_depth: Float32Array | None = None


# --------------------------------------------------------------------------------------------------------------- arm

# Distances between the forearm's rings, wrist to elbow, metres.
_RING_STEPS = np.array([0.0, 0.024, 0.030, 0.040, 0.060, 0.090, 0.130])
_TESSELLATION = np.float32(0.70)  # how far edges bulge; 0.75 is the original paper's
_SLEEVE_COLUMNS, _SLEEVE_ROWS = 28, 11


class ArmTopology:
    """What is the same in all scenes of one hand: faces of hand and forearm, skin coordinates, nails, palm lines."""

    def __init__(self, hand: HandArrays, surface: SurfaceAnatomy, axes: Floats) -> None:
        self.axes = axes
        self.hand_vertices = len(hand.v_template)
        self.loop = surface.wrist_loop
        columns, rings = len(self.loop), len(_RING_STEPS)
        grid = np.vstack([self.loop, self.hand_vertices + np.arange((rings - 1) * columns).reshape(rings - 1, columns)])
        # The loop runs along the hand's own faces, so the neighbouring face must run the other way.
        a, b = grid[:-1], np.roll(grid[:-1], -1, axis=1)
        c, d = grid[1:], np.roll(grid[1:], -1, axis=1)
        tube = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
        if _runs_along(tube, self.loop):
            tube = tube[:, ::-1]
        self.faces = np.concatenate([hand.faces, tube]).astype(np.int32)
        self.vertex_count = self.hand_vertices + (rings - 1) * columns
        self.materials = np.where(np.arange(len(self.faces)) < len(hand.faces), Material.HAND, Material.FOREARM)
        self.materials = self.materials.astype(np.int32)
        self._edges, self._fine_faces = _midpoint_topology(self.faces, self.vertex_count)
        self._fine_materials = np.repeat(self.materials, 4)

        rest_mm = 1000 * hand.v_template @ axes.T
        attributes = np.zeros((self.vertex_count, ATTRIBUTE_COUNT), np.float32)
        attributes[: self.hand_vertices, :3] = rest_mm
        attributes[: self.hand_vertices, Channel.FINGER] = surface.along
        dorsality = _smooth(surface.dorsality, hand.faces)
        attributes[: self.hand_vertices, Channel.DORSAL] = dorsality
        # Hand features fade out over the last 20 mm before the wrist, so that no seam shows.
        wrist_mm = rest_mm[self.loop].mean(axis=0)
        self.wrist = float(wrist_mm[1])  # rest millimetres along the fingers' direction
        to_wrist = (rest_mm - wrist_mm)[:, 1]
        attributes[: self.hand_vertices, Channel.HAND] = np.clip(to_wrist / 20, 0, 1)
        plane, _ = self._in_plane(hand.v_template[self.loop])
        angle = np.arctan2(plane[:, 1], plane[:, 0])
        for ring in range(1, rings):
            rows = slice(self.hand_vertices + (ring - 1) * columns, self.hand_vertices + ring * columns)
            attributes[rows, :3] = rest_mm[self.loop] - [0, 1000 * _RING_STEPS[: ring + 1].sum(), 0]
            attributes[rows, Channel.DORSAL] = np.sin(angle)
        self.palmar = np.zeros(self.vertex_count)
        self.palmar[: self.hand_vertices] = np.clip((-dorsality - 0.05) / 0.5, 0, 1)
        self.palmar[self.hand_vertices :] = 0.5 * np.clip(
            (-attributes[self.hand_vertices :, Channel.DORSAL] - 0.1) / 0.9, 0, 1
        )
        near_wrist = np.clip(1 - to_wrist / 30, 0, 1)  # the palm's own tone ends at the wrist
        self.palmar[: self.hand_vertices] *= 1 - 0.5 * near_wrist
        attributes[: self.hand_vertices, Channel.REDNESS] = _redness(hand, surface, dorsality, axes)
        attributes[: self.hand_vertices, Channel.REDNESS] += 0.35 * self.palmar[: self.hand_vertices]
        self.attributes = attributes
        self.nails = _nails(surface, axes)
        # Where rings sit: the skin of the four fingers' first bones beyond the web.
        self.ring_places = [
            np.flatnonzero((surface.finger == finger) & (surface.along > 0.48) & (surface.along < 0.80))
            for finger in range(1, 5)
        ]
        self.dorsality = dorsality
        self.creases = _palm_lines(hand, axes)
        place = {name: (1000 * axes @ joint)[:2] for name, joint in zip(MANO_JOINT_NAMES, hand.J, strict=True)}
        # (4, 4) extensor tendons, segments in the rest plane in millimetres, from each knuckle towards the wrist.
        self.tendons = np.array(
            [
                [*place[name], *(0.25 * place[name] + 0.75 * place["wrist"])]
                for name in ("index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp")
            ],
            np.float32,
        )

    def _in_plane(self, loop: Floats) -> tuple[Floats, Floats]:
        """Wrist loop (n, 3) -> (lateral, dorsal) coordinates around its centre (n, 2), the centre (3,)."""
        center = loop.mean(axis=0)
        return (loop - center) @ self.axes[[0, 2]].T, center

    def build(self, rng: np.random.Generator, vertices: Float32Array, skin: Skin) -> Arm:
        """Hand vertices (778, 3) -> the hand with a forearm: bent at the wrist, tapered, a little twisted."""
        lateral, distal, dorsal = self.axes
        loop = vertices[self.loop].astype(float)
        plane, center = self._in_plane(loop)
        flexion, deviation = np.clip(rng.normal(0, 0.42), -1.0, 1.0), np.clip(rng.normal(0, 0.17), -0.45, 0.45)
        twist, girth = rng.normal(0, 0.25), rng.uniform(1.0, 1.25)
        steps = _RING_STEPS * rng.uniform(0.9, 1.1)
        distance = np.cumsum(steps)
        everything = np.empty((self.vertex_count, 3))
        everything[: self.hand_vertices] = vertices
        centers, rotations, at = [center], [np.eye(3)], center
        columns = len(self.loop)
        for ring in range(1, len(steps)):
            bend = min(ring / 2, 1)
            rotation = (
                matrix_from_vector(lateral * (flexion * bend))
                @ matrix_from_vector(dorsal * (deviation * bend))
                @ matrix_from_vector(distal * (twist * ring / len(steps)))
            )
            at = at - rotation @ distal * steps[ring]
            wide = 1 + 0.42 * girth * _ease(distance[ring] / 0.26)
            deep = wide * (1 + 0.25 * _ease(distance[ring] / 0.30))
            flat = np.stack([plane[:, 0] * wide, np.zeros(columns), plane[:, 1] * deep], axis=1)
            rows = slice(self.hand_vertices + (ring - 1) * columns, self.hand_vertices + ring * columns)
            everything[rows] = at + flat @ self.axes @ rotation.T
            centers.append(at)
            rotations.append(rotation)
        attributes = self.attributes.copy()
        share = self.palmar[:, None]
        attributes[:, Channel.ALBEDO : Channel.ALBEDO + 3] = skin.dorsal * (1 - share) + skin.palmar * share
        part = Part(everything, self.faces, attributes, self.materials)
        return Arm(part, self.axes, np.array(centers), rotations, distance, np.abs(plane).max(axis=0), girth)

    def ring(self, rng: np.random.Generator, vertices: Float32Array) -> Part:
        """A ring on one finger of posed vertices (778, 3), between knuckle and middle joint; some bear a stone."""
        place = self.ring_places[rng.choice(4, p=[0.2, 0.25, 0.4, 0.15])]
        skin = vertices[place].astype(float)
        center = skin.mean(axis=0)
        # The skin there is a short tube: two directions across with equal spread, its axis is the third.
        spread, directions = np.linalg.eigh((skin - center).T @ (skin - center) / len(skin))
        back = skin[self.dorsality[place] > 0.5].mean(axis=0) - center
        axis = directions[:, np.abs(spread - np.median(spread)).argmax()]
        top = back - (back @ axis) * axis
        top /= np.linalg.norm(top)
        side = np.cross(top, axis)
        flat = (skin - center) @ np.stack([side, top], axis=1)
        half = np.sqrt(2) * flat.std(axis=0) * 1.03  # a circle's coordinates vary by its radius over sqrt 2
        columns, width, thick = 20, rng.uniform(0.001, 0.0035), rng.uniform(0.0006, 0.0016)
        angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)
        outline = np.array([[0.0, -width], [thick, -width], [thick, width], [0.0, width], [0.0, -width]])
        grid = np.empty((len(outline), columns, 3))
        for row, (out, along) in enumerate(outline):
            around = np.stack([np.cos(angle) * (half[0] + out), np.sin(angle) * (half[1] + out)], axis=1)
            grid[row] = center + around @ np.stack([side, top]) + axis * along
        rings = grid.reshape(-1, 3)
        faces = _tube_faces(len(outline), columns)
        metal = (np.array([0.85, 0.62, 0.25]), np.array([0.75, 0.75, 0.78]), np.array([0.05, 0.05, 0.05]))
        local = np.tile(outline[:, :1], (1, columns)).reshape(-1, 1) * np.ones(3)
        attributes = object_attributes(local, metal[rng.integers(3)] * rng.uniform(0.7, 1.0))
        if rng.random() < 0.35:
            stone = center + top * (half[1] + thick)
            size = rng.uniform(0.0015, 0.0045)
            corners = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1.0]]) * size
            octahedron = [[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4], [1, 0, 5], [2, 1, 5], [3, 2, 5], [0, 3, 5]]
            hsv = np.array([[[rng.uniform(0, 360), rng.beta(1, 1), rng.uniform(0.3, 1)]]], np.float32)
            faces = np.concatenate([faces, np.array(octahedron) + len(rings)])
            rings = np.concatenate([rings, stone + corners])
            attributes = np.concatenate(
                [attributes, object_attributes(corners, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])]
            )
        return Part(rings, faces.astype(np.int32), attributes, np.full(len(faces), Material.OBJECT, np.int32))

    def tessellate(self, scene: Scene, normals: Float32Array) -> None:
        """Replace the arm's part of the scene by one with four faces for each; the rest of the scene moves up."""
        coarse = scene.arm_vertices
        count = coarse + len(self._edges)
        vertices = np.empty((count + len(scene.vertices) - coarse, 3), np.float32)
        attributes = np.empty((len(vertices), ATTRIBUTE_COUNT), np.float32)
        kernels.tessellate(
            scene.vertices[:coarse], normals[:coarse], scene.attributes[:coarse], self._edges, _TESSELLATION,
            vertices[:count], attributes[:count],
        )  # fmt: skip
        vertices[count:], attributes[count:] = scene.vertices[coarse:], scene.attributes[coarse:]
        rest = scene.faces[scene.arm_faces :] + np.int32(count - coarse)
        scene.vertices, scene.attributes = vertices, attributes
        scene.faces = np.concatenate([self._fine_faces, rest])
        scene.materials = np.concatenate([self._fine_materials, scene.materials[scene.arm_faces :]])
        scene.arm_vertices, scene.arm_faces = count, len(self._fine_faces)


@dataclass(frozen=True, eq=False)
class Arm:
    """A hand with its forearm, and the forearm's course for what is worn on it."""

    part: Part
    axes: Floats
    centers: Floats  # (R, 3) of the rings
    rotations: list[Floats]  # R rotations
    distance: Floats  # (R,) from the wrist's edge, metres
    half_extent: Floats  # (2,) lateral and dorsal half width of the wrist
    girth: float

    def _tube(self, starts: Floats, widths: Floats, wobble: Floats) -> Floats:
        """Rings at distances `starts` (n,) with relative widths (n,) and wobble (n, m) -> (n * m, 3)."""
        columns = wobble.shape[1]
        angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)
        rings = []
        for start, width, relative in zip(starts, widths, wobble, strict=True):
            i = int(np.clip(np.searchsorted(self.distance, start) - 1, 0, len(self.distance) - 2))
            t = (start - self.distance[i]) / (self.distance[i + 1] - self.distance[i])
            center = self.centers[i] * (1 - t) + self.centers[i + 1] * t
            rotation = self.rotations[min(i + (t > 0.5), len(self.rotations) - 1)]
            k = width * (1 + 0.42 * self.girth * _ease(start / 0.26))
            deep = k * (1 + 0.25 * _ease(start / 0.30)) * 1.05
            ring = np.stack(
                [np.cos(angle) * self.half_extent[0] * k, 0 * angle, np.sin(angle) * self.half_extent[1] * deep], axis=1
            )
            rings.append(center + (ring * relative[:, None]) @ self.axes @ rotation.T)
        return np.concatenate(rings)

    def sleeve(self, rng: np.random.Generator) -> Part:
        """A sleeve that ends between the wrist and the middle of the forearm, tight or loose, with folds."""
        start, loose, taper = rng.uniform(0.005, 0.16), rng.uniform(1.10, 1.55), rng.uniform(0.9, 1.5)
        crumple = rng.uniform(0, 0.035)
        share = (np.arange(_SLEEVE_ROWS) / (_SLEEVE_ROWS - 1)) ** 1.6
        starts = start + (self.distance[-1] - start) * share
        widths = np.maximum(loose * (1 + (taper - 1) * _ease((starts - start) / 0.25)), 1.07)
        widths *= 1 + crumple * rng.normal(size=_SLEEVE_ROWS)
        widths[0] *= 0.985  # the hem
        folds = rng.normal(size=(_SLEEVE_ROWS, _SLEEVE_COLUMNS))
        folds += 1.5 * np.sin(
            np.arange(_SLEEVE_ROWS)[:, None] * rng.uniform(0.8, 2.5) + rng.normal(0, 1, _SLEEVE_COLUMNS)
        )
        vertices = self._tube(starts, widths, 1 + crumple * folds)
        faces = _tube_faces(_SLEEVE_ROWS, _SLEEVE_COLUMNS)
        hsv = np.array([[[rng.uniform(0, 360), rng.beta(1, 2), rng.uniform(0.02, 0.75)]]], np.float32)
        attributes = np.zeros((len(vertices), ATTRIBUTE_COUNT), np.float32)
        attributes[:, 0] = np.tile(np.arange(_SLEEVE_COLUMNS) * 8.0, _SLEEVE_ROWS)
        attributes[:, 1] = np.repeat(np.arange(_SLEEVE_ROWS) * -22.0, _SLEEVE_COLUMNS)
        attributes[:, Channel.ALBEDO : Channel.ALBEDO + 3] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
        # The inside shows at the hem. It has vertices of its own: normals of both sides at one would cancel.
        faces = np.concatenate([faces, faces[:, ::-1] + np.int32(len(vertices))])
        vertices, attributes = np.tile(vertices, (2, 1)), np.tile(attributes, (2, 1))
        return Part(vertices, faces, attributes, np.full(len(faces), Material.CLOTH, np.int32))

    def bracelet(self, rng: np.random.Generator) -> Part:
        """A bracelet or a watch strap: a narrow band around the wrist."""
        columns, width, start = 24, rng.uniform(0.003, 0.024), rng.uniform(0.002, 0.06)
        thick = rng.uniform(1.05, 1.14)
        starts = start + width * np.array([0.0, 0.0, 0.25, 0.75, 1.0, 1.0])
        widths = np.array([0.9, thick, thick * 1.02, thick * 1.02, thick, 0.9])
        wobble = np.ones((6, columns))
        if width > 0.012 and rng.random() < 0.6:  # a watch: its case on the back of the wrist
            top = np.exp(-(((np.linspace(0, 2 * np.pi, columns, endpoint=False) - np.pi / 2) / 0.45) ** 2))
            wobble[1:-1] += 0.18 * top
        vertices = self._tube(starts, widths, wobble)
        faces = _tube_faces(6, columns)
        hsv = np.array([[[rng.uniform(0, 360), rng.beta(1, 2), rng.beta(1, 1.5)]]], np.float32)
        attributes = object_attributes(vertices - vertices.mean(axis=0), cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])
        return Part(vertices, faces, attributes, np.full(len(faces), Material.OBJECT, np.int32))


def object_attributes(local: Floats, albedo: Float32Array | Floats) -> Float32Array:
    """(V, 14) of things that are neither skin nor cloth: local coordinates (V, 3) metres, albedo (3,) or (V, 3)."""
    attributes = np.zeros((len(local), ATTRIBUTE_COUNT), np.float32)
    attributes[:, :3] = 1000 * local
    attributes[:, Channel.ALBEDO : Channel.ALBEDO + 3] = albedo
    return attributes


def _runs_along(faces: NDArray[np.int64], loop: NDArray[np.int64]) -> bool:
    """Whether some face has the directed edge loop[0] -> loop[1], as the hand's own face has."""
    following = np.roll(faces, -1, axis=1)
    return bool(((faces == loop[0]) & (following == loop[1])).any())


def _tube_faces(rows: int, columns: int) -> Faces:
    """Outward faces of rings stacked from the hand to the elbow, their angle clockwise seen from the fingers."""
    grid = np.arange(rows * columns).reshape(rows, columns)
    a, b = grid[:-1], np.roll(grid[:-1], -1, axis=1)
    c, d = grid[1:], np.roll(grid[1:], -1, axis=1)
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    return faces.astype(np.int32)


def _midpoint_topology(faces: Faces, count: int) -> tuple[NDArray[np.int32], Faces]:
    """(E, 2) edges and (4 F, 3) faces when each edge gets a vertex; face f becomes faces 4 f .. 4 f + 3."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    middle = inverse.reshape(3, -1).T + count
    a, b, c = faces.T
    ab, bc, ca = middle.T
    fine = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3)
    return unique.astype(np.int32), fine.astype(np.int32)


def _smooth(values: Floats, faces: Faces) -> Floats:
    """One step of averaging with the neighbours."""
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    total, degree = np.zeros_like(values), np.bincount(edges.ravel(), minlength=len(values))
    np.add.at(total, edges[:, 0], values[edges[:, 1]])
    np.add.at(total, edges[:, 1], values[edges[:, 0]])
    return 0.5 * values + 0.5 * total / degree


def _redness(hand: HandArrays, surface: SurfaceAnatomy, dorsality: Floats, axes: Floats) -> Floats:
    """(778,) where blood shines through: over the finger joints, on the fingertips, on the knuckles."""
    back = np.clip(dorsality, 0, 1)
    along = surface.along
    red = np.exp(-(((along - 1) / 0.16) ** 2)) * back + 0.8 * np.exp(-(((along - 2) / 0.16) ** 2)) * back
    red += 0.9 * np.clip((along - 2.45) / 0.4, 0, 1)
    for name in ("index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp"):
        knuckle = hand.J[MANO_JOINT_NAMES.index(name)] + 0.009 * axes[2]
        red += 0.9 * np.exp(-((np.linalg.norm(hand.v_template - knuckle, axis=1) / 0.009) ** 2)) * back
    return np.clip(red, 0, 1.2)


def _nails(surface: SurfaceAnatomy, axes: Floats) -> Float32Array:
    """(5, 14) for the shader: centre, distal, lateral and dorsal axes, half length and width; rest millimetres."""
    rows = [
        np.concatenate(
            [1000 * axes @ nail.centre, axes @ nail.distal, -axes @ nail.radial, axes @ nail.dorsal,
             [1000 * nail.half_length, 1000 * nail.half_width]]
        )
        for nail in surface.nails
    ]  # fmt: skip
    return np.array(rows, np.float32)


def _palm_lines(hand: HandArrays, axes: Floats) -> Float32Array:
    """(E, 5) segments (x0, y0, x1, y1, strength) in rest millimetres (lateral, distal): life, head and heart line."""
    place = {name: (1000 * axes @ joint)[:2] for name, joint in zip(MANO_JOINT_NAMES, hand.J, strict=True)}
    index, middle, ring, pinky = (place[f"{finger}_mcp"] for finger in ("index", "middle", "ring", "pinky"))
    thumb, thumb_2, wrist = place["thumb_cmc"], place["thumb_mcp"], place["wrist"]
    distal = np.array([0, 1.0])
    life = [
        0.55 * index + 0.45 * thumb_2 + 4 * distal,
        0.45 * index + 0.25 * middle + 0.3 * thumb - 6 * distal,
        0.4 * middle + 0.6 * thumb,
        0.75 * thumb + 0.25 * wrist + 0.12 * (middle - thumb),
    ]
    head = [
        0.6 * index + 0.4 * thumb_2 + 5 * distal,
        0.72 * middle + 0.28 * wrist,
        0.62 * ring + 0.38 * wrist,
        0.52 * pinky + 0.48 * wrist,
    ]
    heart = [
        0.5 * (index + middle) - 4 * distal,
        middle - 12 * distal,
        ring - 14 * distal,
        pinky - 12 * distal + 0.35 * (pinky - ring),
    ]
    segments = [
        [*start, *end, strength]
        for line, strength in ((life, 1.0), (head, 0.8), (heart, 0.9))
        for start, end in pairwise(line)
    ]
    return np.array(segments, np.float32)


# ------------------------------------------------------------------------------------------------------ skin and light


@dataclass(frozen=True, eq=False)
class Skin:
    """Linear RGB albedos and how they vary."""

    ita_degrees: float
    darkness: float  # 0 lightest, 1 darkest
    dorsal: Floats  # (3,)
    palmar: Floats  # (3,)
    nail: Floats  # (3,)
    polish: bool


@dataclass(frozen=True, eq=False)
class Worn:
    """What changes the appearance of the skin itself, as `Appearance` wants it."""

    hair: float
    tattoo: float
    glove: float
    glove_cuff: float
    glove_end: float
    glove_color: Floats  # (3,) linear RGB


@dataclass(frozen=True, eq=False)
class Lights:
    radiance: Float32Array  # (D, 3) from the environment's directions
    direction: Float32Array  # (3,) unit, towards the key light, cam
    key: Floats  # (3,) RGB


def sphere_directions(count: int) -> Float32Array:
    """(count, 3) evenly spread unit vectors (a Fibonacci lattice)."""
    i = np.arange(count) + 0.5
    azimuth, z = np.pi * (1 + 5**0.5) * i, 1 - 2 * i / count
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(azimuth), r * np.sin(azimuth), z], axis=1).astype(np.float32)


def _linear_from_lab(lightness: float, a: float, b: float) -> Floats:
    """CIE L*a*b* (D65) -> linear sRGB, kept above 0.004."""
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = np.array([0.9505, 1.0, 1.089]) * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    rgb = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]) @ xyz
    return np.clip(rgb, 0.004, 1)


def sample_skin(rng: np.random.Generator, polish_share: float) -> Skin:
    """Uniform in ITA = atan((L* - 50) / b*) from -55 (dark) to 62 degrees (very light), so every tone is as common.

    b* is largest for intermediate skin (Chardon et al. 1991; Del Bino and Bernerd 2013); palms are lighter and redder
    than the back, the more so the darker the skin.
    """
    ita = rng.uniform(-55, 62)
    light = (ita + 55) / 117
    slope = np.tan(np.radians(ita))
    # As yellow as leaves the lightness within 24..76.
    b = np.clip(rng.normal(14.5 + 7 * np.sin(np.pi * min(light * 1.1, 1)), 2.0), 9, min(25, 26 / max(abs(slope), 1)))
    lightness = 50 + b * slope
    a = np.clip(rng.normal(10.0 + 2 * np.sin(np.pi * light), 1.5), 6.5, 15)
    palm_lightness = max(lightness, rng.normal(0.45 * lightness + 0.55 * 64, 2.5)) + rng.uniform(0, 3)
    dorsal = _linear_from_lab(lightness, a, b)
    palmar = _linear_from_lab(min(palm_lightness, 78), a + rng.uniform(1.5, 5.5), b * rng.uniform(0.80, 1.0))
    darkness = float(np.clip(1 - light, 0, 1))
    polish = rng.random() < polish_share
    if polish:
        nail = _linear_from_lab(rng.uniform(20, 75), rng.normal(25, 30), rng.normal(5, 25))
    else:
        pink = np.array([0.62, 0.38, 0.33]) * 0.25 * (0.6 + 0.4 * (1 - darkness))
        nail = palmar * np.array([1.06, 0.92, 0.92]) * 0.75 + pink
    return Skin(float(ita), darkness, dorsal, palmar, nail, bool(polish))


def sample_worn(
    rng: np.random.Generator, wrist: float, hair_share: float, tattoo_share: float, glove_share: float
) -> Worn:
    """Hair, tattoos and gloves with these probabilities. wrist: its rest coordinate along the fingers, millimetres."""
    draws = rng.random(3) < [hair_share, tattoo_share, glove_share]
    hair = min(rng.gamma(2.0, 0.25), 1.2) * draws[0]
    tattoo = rng.uniform(0.5, 1.6) * draws[1]
    thin, fingerless = rng.random() < 0.4, rng.random() < 0.3
    cuff, end = wrist + rng.uniform(-60, 15), rng.uniform(0.8, 2.0) if fingerless else 4.0
    if rng.random() < 0.45:
        color = np.full(3, rng.choice([0.015, 0.04, 0.3, 0.75]))
    else:
        hsv = np.array([[[rng.uniform(0, 360), rng.beta(2, 2), rng.uniform(0.1, 0.8)]]], np.float32)
        color = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(float)
    return Worn(hair, tattoo, draws[2] * (2.0 if thin else 1.0), cuff, end, color)


def _light_color(rng: np.random.Generator) -> Floats:
    """Between lamp light and an overcast sky."""
    cold = rng.uniform(0, 1)
    return np.array([1, 0.86, 0.70]) * (1 - cold) + np.array([0.82, 0.93, 1.1]) * cold


def sample_lights(rng: np.random.Generator, directions: Float32Array, settings: LightSettings) -> Lights:
    """An environment that is brighter above, soft lamps or windows, and most often a key light with shadows."""
    up = rng.normal(size=3) * 0.35 + [0, -1, 0]
    up /= np.linalg.norm(up)
    above = (directions @ up) * 0.5 + 0.5
    radiance = (
        rng.uniform(0.15, 0.9) * _light_color(rng) * (rng.uniform(0.1, 0.8) + above[:, None] * rng.uniform(0.3, 1.2))
    )
    low, high = settings.spots
    for _ in range(rng.integers(low, max(high, low + 1))):
        lamp = rng.normal(size=3) + np.array([0, -0.8, -0.4])
        lamp /= np.linalg.norm(lamp)
        radiance = radiance + np.exp((directions @ lamp - 1) * rng.uniform(2, 12))[:, None] * _light_color(
            rng
        ) * rng.gamma(2, 0.9)
    direction = rng.normal(size=3) * [0.9, 0.6, 0.6] + [0, -0.9, -0.7]
    key = _light_color(rng) * rng.gamma(2.0, 0.42)
    kind = rng.random()
    if kind < settings.back:
        direction = rng.normal(size=3) * [0.7, 0.5, 0.2] + [0, -0.5, 0.9]
        key = key * rng.uniform(1, 3)
    elif kind < settings.back + settings.flash:
        direction = rng.normal(size=3) * [0.15, 0.15, 0] + [0, 0, -1]
        key = np.array([1, 0.98, 0.95]) * rng.uniform(0.8, 2.5)
    elif kind < settings.back + settings.flash + settings.overcast:
        key = key * 0
    if rng.random() < settings.colored:
        hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.2, 0.7), 1.0]]], np.float32)
        tint = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(float)
        if rng.random() < 0.5:
            key = key * tint
        else:
            radiance = radiance * tint
    direction /= np.linalg.norm(direction)
    return Lights(radiance.astype(np.float32), direction.astype(np.float32), key)


def sample_appearance(
    rng: np.random.Generator, skin: Skin, worn: Worn, key: Floats, exposure: float, settings: SkinSettings
) -> Appearance:
    """Surface detail of one person under one light."""
    wrap, specular = rng.uniform(*settings.scatter), rng.uniform(*settings.specular)
    values = Appearance(
        seed=rng.integers(1, 60000),
        bump=rng.uniform(*settings.relief),
        knuckle_wrinkles=min(0.15 + rng.gamma(2, 0.33), 1.6),
        creases=rng.uniform(*settings.palm_lines),
        roughness=rng.uniform(*settings.roughness),
        specular=specular,
        fresnel=rng.uniform(0.3, 1),
        mottle=rng.uniform(*settings.mottle),
        veins=max(rng.normal(0.25, 0.35), 0),
        tendons=max(rng.normal(0.5, 0.6), 0),
        redness=rng.uniform(0.05, 0.38) * (1 - 0.4 * skin.darkness),
        wrap_red=0.21 * wrap,
        wrap_green=0.13 * wrap,
        wrap_blue=0.10 * wrap,
        key_red=key[0],
        key_green=key[1],
        key_blue=key[2],
        shadow_softness=rng.choice([0.5, 1, 1.8, 3.0]),
        nail_red=skin.nail[0],
        nail_green=skin.nail[1],
        nail_blue=skin.nail[2],
        nail_polish=float(skin.polish),
        nail_gloss=0.6 * specular + 0.012,
        cloth_scale=rng.uniform(0.4, 4),
        cloth_pattern=rng.choice([0, 0, 0, 1, 2]),
        object_scale=rng.uniform(0.02, 0.3),
        object_specular=rng.uniform(0.02, 0.12),
        object_pattern=rng.random(),
        exposure=exposure,
        hair=worn.hair,
        tattoo=worn.tattoo,
        tattoo_scale=rng.uniform(0.06, 0.2),
        glove=worn.glove,
        glove_cuff=worn.glove_cuff,
        glove_end=worn.glove_end,
        glove_red=worn.glove_color[0],
        glove_green=worn.glove_color[1],
        glove_blue=worn.glove_color[2],
    )
    return Appearance(*(np.float32(value) for value in values))


def _ease(x: float | Floats) -> float | Floats:
    t = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)
