"""Things in a hand: bottles, cups, tools, pens, cards, phones and plain bodies, placed into the grasp of a posed hand.

Each is fitted to the posed bones (`pose_prior.bone_segments`): a body that touches fingers and palm from inside is as
thick as the channel they leave, what is pinched is as thick as the gap. Metres, the hand's rest frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.synth.parts import Part, object_attributes
from handmesh.synth.shade import Material

Floats = NDArray[np.float64]
Faces = NDArray[np.int32]

# Rows of `segments`: the bones that start at these joints, and the metacarpals.
_INDEX, _MIDDLE, _PINKY, _RING, _THUMB = (np.arange(root, root + 3) for root in (1, 4, 7, 10, 13))
_METACARPALS = np.arange(16, 20)  # of index, middle, little and ring finger
_PALM_RADIUS = 0.011  # metres from a metacarpal to the skin of the palm
_WIDEST = 0.045  # half as wide as the widest can that one hand holds around


class Body(NamedTuple):
    """A piece of an object in its own frame: vertices (V, 3), outward faces (F, 3), linear RGB albedo (3,)."""

    vertices: Floats
    faces: Faces
    albedo: Floats


def held_object(rng: np.random.Generator, kind: str, segments: Floats, radii: Floats, axes: Floats) -> Part | None:
    """An object that fits the grasp of posed bones (`pose_prior.bone_segments`), or None when nothing fits.

    kind: "cylinder", "tool" and "ball" fill the space between fingers and palm, "pen" passes between thumb and index
    tips, "plate" is a card or a book pinched by the thumb, "phone" lies between the thumb and the other fingertips,
    "tray" lies on the palm.
    """
    if kind in ("cylinder", "tool"):
        return _held_around(rng, segments, radii, kind)
    if kind == "ball":
        return _held_ball(rng, segments, radii)
    if kind == "pen":
        return _held_pen(rng, segments, radii)
    if kind == "plate":
        return _held_plate(rng, segments, radii)
    if kind == "tray":
        return _held_tray(rng, segments, radii, axes)
    return _held_phone(rng, segments, radii, axes)


def stray_object(rng: np.random.Generator, segments: Floats, axes: Floats) -> Part:
    """Something of any shape near the palm, held or not."""
    size = rng.uniform(0.01, 0.034, 3) * np.array([1, 1, rng.uniform(1, 4)])
    kind = rng.integers(4)
    if kind == 0:
        bodies = [_scaled(cylinder(), size, object_color(rng))]
    elif kind == 1:
        bodies = [_scaled(sphere(), size, object_color(rng))]
    elif kind == 2:
        bodies = [_scaled(box(), size, object_color(rng))]
    else:
        bodies = _vessel(rng, float(rng.uniform(0.015, 0.035)))
    away = rng.normal(0, 0.02, 3) + np.array([0, 0, -rng.uniform(0.02, 0.07)])
    center = segments[[4, 10], 0].mean(axis=0) + away @ axes
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return _placed(bodies, center, rotation * np.sign(np.linalg.det(rotation)))


# ------------------------------------------------------------------------------------------------------------- grasps


def _grasp_center(segments: Floats) -> Floats:
    """A point inside the curled hand, to start from."""
    knuckles, tips = segments[[1, 4, 10, 7], 0].mean(axis=0), segments[[3, 6], 1].mean(axis=0)
    return 0.35 * knuckles + 0.4 * tips + 0.25 * segments[15, 1]


def grasp_channel(segments: Floats, radii: Floats, axis: Floats) -> tuple[Floats, float]:
    """Centre (3,) and radius of the widest rod along the unit vector `axis` that touches fingers, palm and thumb from

    inside; the radius is negative when there is no room.
    """
    across = np.eye(3) - np.outer(axis, axis)
    chosen = np.concatenate([_INDEX, _MIDDLE, _RING, _THUMB[1:], _METACARPALS[[0, 1, 3]]])
    thick = np.concatenate([radii[chosen[:11]], np.full(3, _PALM_RADIUS)])
    along = axis * (axis @ segments[[2, 11], 0].mean(axis=0))
    center, radius = _largest_ball(across @ _grasp_center(segments), segments[chosen] @ across, thick, across)
    return center + along, radius


def _held_around(rng: np.random.Generator, segments: Floats, radii: Floats, kind: str) -> Part | None:
    """Along the row of fingers: the grip is as wide as the channel they leave, the rest is what such a grip belongs to:
    a rod, a tool, a bottle, a can, a glass.
    """
    axis = _unit((segments[_INDEX, 0] - segments[_PINKY, 0]).mean(axis=0))
    axis = _unit(axis + rng.normal(0, 0.08, 3))
    center, radius = grasp_channel(segments, radii, axis)
    radius = min(radius + 0.002, _WIDEST)  # soft flesh gives way
    if radius < 0.004:
        return None
    if kind == "tool" or radius < 0.013:
        bodies = _tool(rng, radius)
    elif rng.random() < 0.25:
        bodies = [_scaled(cylinder(), np.array([radius, radius, rng.uniform(0.04, 0.16)]), object_color(rng))]
    else:
        bodies = _vessel(rng, radius)
    # The thumb's side is up for most things that stand in a hand; a tool's head may be on either.
    frame = _frame_along(axis if rng.random() < 0.8 else -axis)
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    frame = frame @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    return _placed(bodies, center + axis * rng.normal(0, 0.012), frame)


def _held_ball(rng: np.random.Generator, segments: Floats, radii: Floats) -> Part | None:
    chosen = np.concatenate([_INDEX, _MIDDLE, _RING, _PINKY, _THUMB, _METACARPALS])
    thick = np.concatenate([radii[chosen[:15]], np.full(4, _PALM_RADIUS)])
    center, radius = _largest_ball(_grasp_center(segments), segments[chosen], thick, np.eye(3))
    radius = min(radius + 0.0015, _WIDEST)
    if radius < 0.006:
        return None
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation = rotation * np.sign(np.linalg.det(rotation))
    if rng.random() < 0.25:  # the ball that fits inside touches the fingers only at the box's faces: a cube of its size
        body = _scaled(box(), radius * rng.uniform(0.75, 1.0, 3), object_color(rng))
    else:
        body = _scaled(sphere(), radius * rng.uniform(0.94, 1.02, 3), object_color(rng))
    bodies = [body]
    if rng.random() < 0.2:  # a stalk or a knob: fruit, bulbs, ornaments
        stalk = _scaled(cylinder(), np.array([0.12, 0.12, 0.4]) * radius, object_color(rng))
        bodies.append(_moved(stalk, radius * 1.2))
    return _placed(bodies, center, rotation)


def _held_pen(rng: np.random.Generator, segments: Floats, radii: Floats) -> Part:
    """Between thumb and index tips, its other end over the web between them."""
    thumb, index = segments[15, 1], segments[3, 1]
    grip = 0.5 * (thumb + index)
    gap = np.linalg.norm(thumb - index) / 2 - 0.5 * (radii[15] + radii[3])
    radius = float(np.clip(gap, 0.0015, 0.009))
    # From the grip towards the hand; the working end points the other way.
    axis = _unit(_unit(0.6 * segments[1, 0] + 0.4 * segments[14, 0] - grip) + rng.normal(0, 0.25, 3))
    frame = _frame_along(axis)
    length, before = rng.uniform(0.06, 0.10), rng.uniform(0.015, 0.07)
    kind = rng.random()
    rod = np.array([[0.0, -before], [radius, -before], [radius, length], [0.0, length]])
    if kind < 0.45:  # a pen or pencil with a point
        color = object_color(rng)
        point = min(before * 0.6, 0.018)
        tip = _turned(
            [[[0.0005, -before], [radius * 0.8, point - before], [radius, point - before]]], object_color(rng)
        )
        bodies = [tip, _turned([[[radius, point - before], [radius, length]], [[radius, length], [0, length]]], color)]
    elif kind < 0.65:  # a spoon or a fork: a thin handle and a bowl
        bodies = [_turned([rod * [0.6, 1.0]], object_color(rng))]
        bowl = _scaled(
            sphere(8, 12), np.array([rng.uniform(0.009, 0.02), rng.uniform(0.003, 0.006), 0.026]), bodies[0].albedo
        )
        bodies.append(_moved(bowl, -(before + 0.02)))
    elif kind < 0.8:  # a brush, a screwdriver, a lollipop: something thick at the far end
        bodies = [_turned([rod], object_color(rng))]
        head = _scaled(
            (sphere(8, 12), cylinder(12), box(2))[rng.integers(3)], rng.uniform(0.004, 0.017, 3), object_color(rng)
        )
        bodies.append(_moved(head, -(before)))
    elif kind < 0.9:  # chopsticks
        first = _turned([rod * [0.5, 1.2]], object_color(rng))
        bodies = [first, Body(first.vertices + np.array([rng.uniform(0.003, 0.007), 0, 0]), first.faces, first.albedo)]
    else:
        bodies = [_turned([rod], object_color(rng))]
    return _placed(bodies, grip + axis * rng.normal(0, 0.004), frame)


def _held_plate(rng: np.random.Generator, segments: Floats, radii: Floats) -> Part:
    """Under the thumb's tip, against the index finger's tip or its middle bone, whichever is nearer; sticks out."""
    thumb = segments[15, 1]
    partners = np.stack([segments[3, 1], segments[2].mean(axis=0)])
    partner = partners[np.linalg.norm(partners - thumb, axis=1).argmin()]
    gap = float(np.linalg.norm(thumb - partner))
    normal, grip = (thumb - partner) / gap, 0.5 * (thumb + partner)
    along = _unit(grip - segments[0, 0]) + rng.normal(0, 0.3, 3)
    along = _unit(along - (along @ normal) * normal)
    thickness = float(np.clip(gap / 2 - 0.5 * (radii[15] + radii[3]), 0.0008, 0.012))
    width, length = rng.uniform(0.008, 0.055), rng.uniform(0.02, 0.08)
    frame = np.stack([np.cross(along, normal), along, normal], axis=1)
    size = np.array([width, length, thickness])
    return _placed([*_slab(rng, size, rng.random() < 0.5)], grip + along * rng.uniform(0.5, 0.9) * length, frame)


def _held_phone(rng: np.random.Generator, segments: Floats, radii: Floats, axes: Floats) -> Part:
    """Its edges against the thumb's tip and the other fingertips, its back to the palm."""
    thumb, fingers = segments[15, 1], segments[[6, 12], 1].mean(axis=0)
    span = float(np.linalg.norm(thumb - fingers))
    side = (thumb - fingers) / span
    back = axes[2] - (axes[2] @ side) * side
    back = _unit(back)
    frame = np.stack([side, np.cross(back, side), back], axis=1)
    half_width = float(np.clip(span / 2 - 0.7 * radii[15], 0.01, 0.042))
    size = np.array([half_width, rng.uniform(1.6, 2.1) * half_width, rng.uniform(0.003, 0.006)])
    return _placed(_slab(rng, size, True), 0.5 * (thumb + fingers) + frame[:, 1] * rng.normal(0, 0.01), frame)


def _held_tray(rng: np.random.Generator, segments: Floats, radii: Floats, axes: Floats) -> Part:
    """A book, a plate or a box that lies on the open palm: it touches what stands out most on the palm's side."""
    dorsal = axes[2]
    flesh = np.concatenate([radii[1:13], np.full(4, _PALM_RADIUS)])
    rows = np.concatenate([np.arange(1, 13), _METACARPALS])
    lowest = float((segments[rows].mean(axis=1) @ dorsal - flesh).min())
    thickness = rng.uniform(0.002, 0.02)
    center = segments[[4, 10], 0].mean(axis=0) + np.array([rng.normal(0, 0.02), rng.normal(0.02, 0.03), 0]) @ axes
    center = center + dorsal * (lowest - thickness - center @ dorsal)
    angle = rng.uniform(0, 2 * np.pi)
    first = np.array([np.cos(angle), np.sin(angle), 0]) @ axes
    frame = np.stack([first, np.cross(dorsal, first), dorsal], axis=1)
    if rng.random() < 0.35:
        radius = rng.uniform(0.03, 0.10)
        return _placed([_scaled(cylinder(28), np.array([radius, radius, thickness]), object_color(rng))], center, frame)
    size = np.array([rng.uniform(0.03, 0.10), rng.uniform(0.04, 0.12), thickness])
    return _placed(_slab(rng, size, rng.random() < 0.3), center, frame)


def _largest_ball(start: Floats, bones: Floats, radii: Floats, across: Floats) -> tuple[Floats, float]:
    """Move a ball's centre away from the nearest bones until it cannot grow: (centre, radius).

    bones (n, 2, 3) segments with radii (n,); moves stay in the plane of the projection `across` (3, 3).
    """
    center, step = start.copy(), 0.006
    along = bones[:, 1] - bones[:, 0]
    squared = np.maximum((along * along).sum(axis=1), 1e-12)
    best, best_room = center, -np.inf
    for _ in range(24):
        t = np.clip(((center - bones[:, 0]) * along).sum(axis=1) / squared, 0, 1)
        away = center - bones[:, 0] - t[:, None] * along
        distance = np.sqrt((away * away).sum(axis=1)) + 1e-9
        room = distance - radii
        nearest = int(room.argmin())
        if room[nearest] > best_room:
            best, best_room = center, float(room[nearest])
        else:
            step *= 0.8
        center = center + across @ (away[nearest] / distance[nearest]) * step
        if np.linalg.norm(center - start) > 0.03:
            break
    return best, best_room


# -------------------------------------------------------------------------------------------------------------- things
# In their own frame: the grip is around the origin, z is the long axis.


def _tool(rng: np.random.Generator, grip: float) -> list[Body]:
    """A handle with something on it: hammer, screwdriver, knife, racket, brush, torch, or a long pole."""
    color, other = object_color(rng), object_color(rng)
    back, front = rng.uniform(0.04, 0.07), rng.uniform(0.05, 0.12)
    handle = _turned(
        [[[0.0, -back], [grip * 0.9, -back]],
         [[grip * 0.9, -back], [grip, -back * 0.6], [grip, 0], [grip * 0.9, front]],
         [[grip * 0.9, front], [0.0, front]]], color
    )  # fmt: skip
    kind = rng.integers(6)
    if kind == 0:  # a pole, a rail, a rope: goes on on both sides
        long = rng.uniform(0.1, 0.35)
        return [_scaled(cylinder(), np.array([grip, grip, long]), color)]
    if kind == 1:  # a hammer, an axe, a mop: a head across
        head = _scaled(box(2), np.array([0.012, rng.uniform(0.02, 0.05), rng.uniform(0.01, 0.02)]), other)
        return [handle, _moved(head, front)]
    if kind == 2:  # a screwdriver, a key, a whisk: a thin shaft
        shaft = _turned([[[grip * 0.3, front], [grip * 0.3, front + rng.uniform(0.04, 0.10)]]], other)
        return [handle, shaft]
    if kind == 3:  # a knife, a spatula: a flat blade
        blade = _scaled(box(2), np.array([0.001, rng.uniform(0.008, 0.03), rng.uniform(0.03, 0.08)]), other)
        return [handle, _moved(blade, front + 0.05)]
    if kind == 4:  # a torch, a microphone, an ice cream: a thick end
        wide = grip * rng.uniform(1.2, 2.2)
        return [
            handle,
            _turned([[[grip * 0.9, front], [wide, front + 0.02], [wide, front + 0.05], [0, front + 0.06]]], other),
        ]
    disk = _scaled(cylinder(24), np.array([rng.uniform(0.02, 0.06), rng.uniform(0.02, 0.07), 0.004]), other)  # a racket
    return [handle, _moved(disk._replace(vertices=disk.vertices[:, [2, 0, 1]]), front + 0.05)]


def _vessel(rng: np.random.Generator, radius: float) -> list[Body]:
    """A bottle, a can, a glass or a mug; a band around it when it has a label."""
    color, other = object_color(rng), object_color(rng)
    below, above = rng.uniform(0.04, 0.09), rng.uniform(0.04, 0.09)
    side = [[radius, -below], [radius, 0.0], [radius, above]]
    bottom = [[0.0, -below], [radius, -below]]
    kind = rng.integers(4)
    if kind == 0:  # a bottle
        neck = rng.uniform(0.25, 0.5) * radius
        shoulder = above + rng.uniform(0.015, 0.04)
        bodies = [
            _turned(
                [bottom, [*side, [0.8 * radius, (above + shoulder) / 2], [neck, shoulder], [neck, shoulder + 0.02]]],
                color,
            )
        ]
        cap = neck * 1.15
        end = shoulder + 0.02
        bodies.append(
            _turned([[[cap, end - 0.004], [cap, end + 0.012]], [[cap, end + 0.012], [0, end + 0.012]]], other)
        )
    elif kind == 1:  # a can, a jar
        rim = [[radius, above], [radius * 0.88, above + 0.003], [0.0, above + 0.001]]
        bodies = [_turned([bottom, side], color), _turned([rim], np.full(3, rng.uniform(0.2, 0.7)))]
    else:  # a glass or a mug, open at the top
        top = radius * rng.uniform(0.95, 1.25)
        inside = [[top, above], [top * 0.93, above], [radius * 0.9, -below * 0.3], [0.0, -below * 0.3]]
        bodies = [
            _turned([bottom, [[radius * 0.95, -below], [radius, 0.0], [top, above]]], color),
            _turned([inside], 0.8 * color),
        ]
        if kind == 3:  # a mug's handle
            ring, faces = torus(0.018, 0.0045)
            bodies.append(Body(ring[:, [1, 2, 0]] + np.array([radius + 0.008, 0, above * 0.3]), faces, color))
    if kind < 2 and rng.random() < 0.7:
        low, high = sorted(rng.uniform(-0.8 * below, 0.9 * above, 2))
        bodies.append(_turned([[[radius + 0.0004, low], [radius + 0.0004, high]]], object_color(rng)))
    return bodies


def _slab(rng: np.random.Generator, size: Floats, screen: bool) -> list[Body]:
    """A card, a book or a phone: a box, some with a printed or lit face on each side."""
    bodies = [_scaled(box(), size, object_color(rng))]
    if screen:
        margin = np.array([rng.uniform(0.75, 0.96), rng.uniform(0.75, 0.96), 1.02])
        bodies.append(_scaled(box(2), size * margin, object_color(rng)))
    return bodies


def object_color(rng: np.random.Generator) -> Floats:
    """(3,) linear RGB of something man-made: any hue, most of little saturation; black, white and metal are common."""
    if rng.random() < 0.35:
        return np.full(3, rng.choice([0.02, 0.05, 0.25, 0.5, 0.8])) * rng.uniform(0.8, 1.1, 3)
    hsv = np.array([[[rng.uniform(0, 360), rng.beta(1.2, 1.8), rng.uniform(0.05, 0.85)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(float)


def _placed(bodies: Sequence[Body], center: Floats, frame: Floats) -> Part:
    """Bodies in the frame whose columns are `frame` (3, 3), moved to `center`."""
    starts = np.cumsum([0, *(len(body.vertices) for body in bodies)])
    local = np.concatenate([body.vertices for body in bodies])
    faces = np.concatenate([body.faces + start for body, start in zip(bodies, starts[:-1], strict=True)]).astype(
        np.int32
    )
    albedo = np.concatenate([np.tile(body.albedo, (len(body.vertices), 1)) for body in bodies])
    attributes = object_attributes(local, albedo)
    return Part(center + local @ frame.T, faces, attributes, np.full(len(faces), Material.OBJECT, np.int32))


def _scaled(shape: tuple[Floats, Faces], size: Floats, albedo: Floats) -> Body:
    return Body(shape[0] * size, shape[1], albedo)


def _moved(body: Body, along: float) -> Body:
    """Moved along z."""
    return body._replace(vertices=body.vertices + np.array([0, 0, along]))


def _turned(outline: Sequence[Sequence[Sequence[float]] | Floats], albedo: Floats, columns: int = 18) -> Body:
    """A turned body (a lathe's): polylines of (radius, z) from bottom to top, turned about z; each polyline is smooth

    within itself and has a sharp edge to the next.
    """
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    around = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vertices, faces, count = [], [], 0
    for line in outline:
        points = np.asarray(line, float)
        rings = np.empty((len(points), columns, 3))
        rings[..., :2] = points[:, :1, None] * around
        rings[..., 2] = points[:, 1:2]
        grid = count + np.arange(len(points) * columns).reshape(len(points), columns)
        a, b, c, d = grid[:-1], np.roll(grid[:-1], -1, 1), grid[1:], np.roll(grid[1:], -1, 1)
        faces += [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)]
        vertices.append(rings.reshape(-1, 3))
        count += len(points) * columns
    return Body(np.concatenate(vertices), np.concatenate(faces).astype(np.int32), albedo)


def _frame_along(axis: Floats) -> Floats:
    """(3, 3) rotation whose third column is `axis`."""
    helper = np.array([1.0, 0, 0]) if abs(axis[0]) < 0.9 else np.array([0, 1.0, 0])
    first = np.cross(helper, axis)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(axis, first), axis], axis=1)


def _unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)


@cache
def cylinder(columns: int = 20) -> tuple[Floats, Faces]:
    """Unit radius, z from -1 to 1; the side's and the caps' rims are apart so that shading has an edge."""
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    up = np.array([0, 0, 1.0])
    levels = np.linspace(-1, 1, 5)
    vertices = np.concatenate([*(ring + z * up for z in levels), ring - up, ring + up, [-up, up]])
    j = np.arange(columns)
    k = (j + 1) % columns
    faces = []
    for level in range(len(levels) - 1):
        low, high = level * columns, (level + 1) * columns
        faces += [np.stack([low + j, low + k, high + j], 1), np.stack([high + j, low + k, high + k], 1)]
    low, high = len(levels) * columns, (len(levels) + 1) * columns
    bottom, top = np.full(columns, len(vertices) - 2), np.full(columns, len(vertices) - 1)
    faces += [np.stack([bottom, low + k, low + j], 1), np.stack([top, high + j, high + k], 1)]
    return vertices, np.concatenate(faces).astype(np.int32)


@cache
def sphere(rows: int = 14, columns: int = 20) -> tuple[Floats, Faces]:
    polar, around = np.meshgrid(
        np.linspace(0, np.pi, rows + 1), np.arange(columns) * 2 * np.pi / columns, indexing="ij"
    )
    x, y = np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around)
    vertices = np.stack([x, y, np.cos(polar)], axis=-1).reshape(-1, 3)
    grid = np.arange(len(vertices)).reshape(rows + 1, columns)
    a, b, c, d = grid[:-1], np.roll(grid[:-1], -1, 1), grid[1:], np.roll(grid[1:], -1, 1)
    faces = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    return vertices, faces.astype(np.int32)


@cache
def box(cells: int = 4) -> tuple[Floats, Faces]:
    """Half extents 1; each side has its own vertices so that its edges are sharp."""
    vertices: list[Floats] = []
    faces: list[NDArray[np.int64]] = []
    line = np.linspace(-1, 1, cells + 1)
    u, v = np.meshgrid(line, line, indexing="ij")
    grid = np.arange(u.size).reshape(u.shape)
    a, b, c, d = grid[:-1, :-1].ravel(), grid[:-1, 1:].ravel(), grid[1:, :-1].ravel(), grid[1:, 1:].ravel()
    quads = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    for axis in range(3):
        for sign in (-1.0, 1.0):
            side = np.empty((u.size, 3))
            side[:, axis], side[:, (axis + 1) % 3], side[:, (axis + 2) % 3] = sign, u.ravel(), v.ravel()
            faces.append((quads if sign > 0 else quads[:, ::-1]) + len(vertices) * u.size)
            vertices.append(side)
    return np.concatenate(vertices), np.concatenate(faces).astype(np.int32)


def torus(radius: float, thick: float, columns: int = 20, rows: int = 8) -> tuple[Floats, Faces]:
    """Around z: the middle of its tube lies `radius` from the axis, the tube's own radius is `thick`."""
    around, tube = np.meshgrid(
        np.arange(columns) * 2 * np.pi / columns, np.arange(rows) * 2 * np.pi / rows, indexing="ij"
    )
    out = radius + thick * np.cos(tube)
    vertices = np.stack([out * np.cos(around), out * np.sin(around), thick * np.sin(tube)], -1).reshape(-1, 3)
    grid = np.arange(columns * rows).reshape(columns, rows)
    a, b, c, d = grid, np.roll(grid, -1, 0), np.roll(grid, -1, 1), np.roll(np.roll(grid, -1, 0), -1, 1)
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    return vertices, faces.astype(np.int32)
