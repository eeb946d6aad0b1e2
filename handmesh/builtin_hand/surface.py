"""The built-in hand's skin as a signed distance: bones from published measurements, flesh as blended simple solids.

Everything here is in millimetres in the modelling frame of a flat right hand: axis 0 distal (wrist to fingers),
axis 1 radial (towards the thumb), axis 2 dorsal (out of the back of the hand); the wrist joint is the origin.

Bone lengths, and pulp beyond the last bone: Buryanov & Kotiuk, "Proportions of hand segments", Int. J. Morphol. 28(3),
2010, means of adults. The places of the knuckles are chosen so that the hand has the published breadth (men 84 +- 4 mm,
women 75 +- 4 mm) and length (183 +- 10, 166 +- 8 mm; ACOPLA95 survey). Half widths and the solids of flesh were shaped
by eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Order of the fingers in a MANO file; joints 1 + 3 k .. 3 + 3 k belong to the k-th.
FILE_FINGERS = ("index", "middle", "pinky", "ring", "thumb")
FOUR_FINGERS = ("index", "middle", "ring", "pinky")

# Where the surface is cut open: a short stub of forearm is left on the hand.
WRIST_CUT = -15.0


class Finger(NamedTuple):
    root: Floats  # (3,) first joint
    lengths: tuple[float, float, float, float]  # three bones, then the pulp beyond the last
    directions: Floats  # (3, 3) unit, one row per bone
    radii: tuple[float, float, float, float]  # half width at the three joints and near the tip
    dorsal: Floats  # (3,) side of the nail, before it is made perpendicular to a bone

    @property
    def joints(self) -> Floats:
        """(4, 3) the three joints and the tip of the skin."""
        steps = np.array(self.lengths[:3])[:, None] * self.directions
        points = self.root + np.vstack([np.zeros(3), np.cumsum(steps, axis=0)])
        points[3] += self.lengths[3] * self.directions[2]
        return points


def _directions(*spread_and_drop: tuple[float, float]) -> Floats:
    """Unit vectors from degrees of spread towards the thumb and of drop towards the palm."""
    spread, drop = np.radians(np.array(spread_and_drop)).T
    return np.stack([np.cos(spread) * np.cos(drop), np.sin(spread) * np.cos(drop), -np.sin(drop)], axis=1)


_UP = np.array([0.0, 0.0, 1.0])
FINGERS: dict[str, Finger] = {
    "index": Finger(
        np.array([91, 25, 3.0]),
        (39.8, 22.4, 15.8, 4.5),
        _directions((5, 1), (4, 6), (3, 10)),
        (10.4, 9.2, 7.9, 6.8),
        _UP,
    ),
    "middle": Finger(
        np.array([93.5, 4.0, 5.5]),
        (44.6, 26.3, 17.4, 4.6),
        _directions((0.5, 1), (0, 6), (0, 10)),
        (10.6, 9.5, 8.2, 7.0),
        _UP,
    ),
    "pinky": Finger(
        np.array([78.5, -32.5, -1.0]),
        (32.7, 18.1, 16.0, 4.2),
        _directions((-15, 3), (-13, 8), (-11, 12)),
        (8.7, 7.6, 6.7, 5.8),
        _UP,
    ),
    "ring": Finger(
        np.array([87.5, -15.5, 3.8]),
        (41.4, 25.7, 17.3, 4.5),
        _directions((-6.5, 2), (-5.5, 7), (-4.5, 11)),
        (10.0, 8.8, 7.6, 6.6),
        _UP,
    ),
    "thumb": Finger(
        np.array([21, 23, -11.0]),
        (45.0, 31.6, 21.7, 5.7),
        _directions((42, 14), (36, 13), (31, 10)),
        (12.4, 10.8, 9.7, 8.2),
        np.array([-0.35, 0.45, 0.82]),  # anatomy.THUMB_DORSAL_IN_PALM
    ),
}

# Where the metacarpals of the four fingers leave the carpus.
METACARPAL_BASES: dict[str, Floats] = {
    "index": np.array([30, 12, -1.5]),
    "middle": np.array([29, 3, -0.5]),
    "ring": np.array([28, -6.0, -1.5]),
    "pinky": np.array([27, -13.5, -3.5]),
}


def rest_joints() -> Floats:
    """(16, 3) wrist, then three joints per finger in the file's order; millimetres."""
    return np.vstack([np.zeros((1, 3)), *(FINGERS[name].joints[:3] for name in FILE_FINGERS)])


def signed_distance(points: Floats) -> Floats:
    """(n, 3) points -> (n,) distance to the skin in millimetres, negative inside; exact to about a tenth near it."""
    palm = _palm(points)
    hand = _union(palm, _finger(points, FINGERS["thumb"], is_thumb=True), 6.0)
    for name in FOUR_FINGERS:
        # Blends well with the palm and hardly with its neighbours.
        hand = _union(hand, _union(palm, _finger(points, FINGERS[name], is_thumb=False), 7.0), 1.4)
    return _back_of_hand(points, hand)


def gradient(points: Floats, step: float = 0.15) -> Floats:
    """(n, 3) central differences of the signed distance."""
    slopes = [signed_distance(points + offset) - signed_distance(points - offset) for offset in step * np.eye(3)]
    return np.stack(slopes, axis=-1) / (2 * step)


# ---------------------------------------------------------------------------------------------------------------------
# Flesh


def _finger(p: Floats, finger: Finger, is_thumb: bool) -> Floats:
    """Bones with a waist between thick joints, knuckle wrinkles above, pads below, a flattened tip with a nail bed."""
    r, joints, axes = finger.radii, finger.joints, finger.directions
    up = finger.dorsal
    tip_centre = joints[3] - 0.97 * r[3] * axes[2]
    ends = [joints[0] + (0.28 if is_thumb else -0.02) * (joints[1] - joints[0]), joints[1], joints[2], tip_centre]
    flattening = (0.94, 0.93, 0.80 if is_thumb else 0.84)
    waists = (0.975, 0.955, 1.0)
    d: Floats | None = None
    for bone in range(3):
        a, b = ends[bone], ends[bone + 1]
        waist = waists[bone] * (r[bone] + r[bone + 1]) / 2
        middle = a + 0.52 * (b - a)
        near = _cone(p, a, middle, 0.97 * r[bone], waist, up, flattening[bone])
        far = _cone(p, middle, b, waist, r[bone + 1], up, flattening[bone])
        half = _union(near, far, 3.0)
        d = half if d is None else _union(d, half, 2.5)
    assert d is not None
    for bone, (lift, height) in enumerate(((0.9, 0.95), (0.5, 0.91))):
        radius = r[bone + 1]
        frame = bone_frame(axes[bone] + axes[bone + 1], up)
        d = _union(
            d, _ellipsoid(p, joints[bone + 1] + lift * frame[2], radius * np.array([1.15, 0.98, height]), frame), 4.5
        )
    for bone, (place, depth) in enumerate(((0.64, 1.9), (0.50, 1.7), (0.60, 1.5))):
        a, b = joints[bone], (joints[bone + 1] if bone < 2 else tip_centre)
        mean = (r[bone] + r[bone + 1]) / 2
        frame = bone_frame(axes[bone], up)
        centre = a + place * (b - a) - frame[2] * depth * mean / 8.5
        size = np.array([0.46 * float(np.linalg.norm(b - a)), 0.90 * mean, 0.86 * mean])
        d = _union(d, _ellipsoid(p, centre, size, frame), 4.0)
    frame = bone_frame(axes[2], up)
    local = (p - joints[3]) @ frame.T
    return _intersection(d, local[:, 2] - 0.66 * r[3] + 0.22 * local[:, 0], 3.0)


def _palm(p: Floats) -> Floats:
    knuckle = {name: FINGERS[name].root for name in FINGERS}
    d: Floats | None = None
    for name, at_base, at_head in (
        ("index", 13.0, 11.8),
        ("middle", 13.5, 12.0),
        ("ring", 13.2, 11.4),
        ("pinky", 12.2, 10.2),
    ):
        head = knuckle[name] - np.array([3.0, 0, 2.2])
        metacarpal = _cone(p, METACARPAL_BASES[name], head, at_base, at_head, _UP, 0.97)
        d = metacarpal if d is None else _union(d, metacarpal, 8.0)
    assert d is not None
    d = _union(d, _ellipsoid(p, (54, -5, -8), (44, 33, 11.0)), 8)
    # Pads under the metacarpal heads: the palm runs some 18 mm past the knuckles on its palmar side.
    pads = [
        (knuckle["index"] + np.array([7, 0.5, -6.5]), 9.0),
        (knuckle["middle"] + np.array([8.5, 0, -8.2]), 9.2),
        (knuckle["ring"] + np.array([8, 0, -7.4]), 8.8),
        (knuckle["pinky"] + np.array([7, 0.4, -5.2]), 7.6),
    ]
    for (a, radius_a), (b, radius_b) in pairwise(pads):
        d = _union(d, _round_cone(p, a, b, radius_a, radius_b), 6.0)
    for one, other in pairwise(FOUR_FINGERS):
        web = [
            FINGERS[name].root + 0.36 * FINGERS[name].lengths[0] * FINGERS[name].directions[0] + np.array([0, 0, -4.5])
            for name in (one, other)
        ]
        d = _union(d, _round_cone(p, web[0], web[1], 3.9, 3.9), 6.0)
    d = _union(d, _ellipsoid(p, (44, -26.0, -10.5), (31, 11.5, 12.5), bone_frame((1, -0.26, 0.05))), 9)  # hypothenar
    d = _union(d, _thumb_base(p), 8)
    d = _intersection(d, -_ellipsoid(p, (60, 1, -33), (30, 15, 17.5), bone_frame((1, -0.10, 0.0))), 9)  # hollow
    return _union(d, _wrist(p), 18)


def _thumb_base(p: Floats) -> Floats:
    """Thenar muscles, first metacarpal and the web to the index finger."""
    thumb = FINGERS["thumb"]
    base, head = thumb.joints[:2]
    along = head - base
    frame = bone_frame(along, thumb.dorsal)
    d = _ellipsoid(p, base + 0.44 * along + np.array([3, -6.5, -4.5]), (30, 15.0, 13.5), frame)
    d = _union(d, _cone(p, base, base + 0.97 * along, 12.6, 10.6, thumb.dorsal, 0.98), 7)
    web_up = np.array([-0.2, 0.2, 1])
    d = _union(d, _cone(p, base + 0.62 * along, np.array([66, 23, -3.0]), 7.0, 8.0, web_up, 0.9), 11)
    return _union(d, _cone(p, base + 0.88 * along, np.array([72, 24, -3.0]), 4.0, 6.5, web_up, 0.9), 9)


def _wrist(p: Floats) -> Floats:
    """An elliptic wrist, narrowest at the joint, widening towards the forearm; the ulna's head on the dorsal side."""
    u = p[:, 0]
    towards_forearm = np.clip((6.0 - u) / 26.0, 0, 1)
    towards_hand = np.clip((u - 2.0) / 36.0, 0, 1)
    half_width = 26.0 + 2.2 * towards_forearm**2 + 1.8 * towards_hand**2
    half_depth = 17.6 + 1.6 * towards_forearm**2 + 1.4 * towards_hand**2
    across = np.stack([(p[:, 1] - 0.5) / half_width, (p[:, 2] + 2.2) / half_depth], axis=-1)
    tube = (np.linalg.norm(across, axis=-1) - 1) * np.minimum(half_width, half_depth)
    tube = _intersection(tube, u - 16, 14)
    ulna = _ellipsoid(p, (-8.0, -17.0, 8.6), (11.0, 8.0, 7.6))
    return _union(tube, ulna, 9.0)


def _back_of_hand(p: Floats, d: Floats) -> Floats:
    """Knuckles, the hollows between their metacarpals, and the extensor tendons that run over them."""
    for name, radius in (("index", 9.4), ("middle", 10.0), ("ring", 9.0), ("pinky", 7.8)):
        head = FINGERS[name].root
        bump = _ellipsoid(p, head + np.array([-2.0, 0, 3.7]), radius * np.array([1.05, 0.80, 0.92]))
        d = _union(d, bump, 4.5)
        base = METACARPAL_BASES[name]
        # The tendon lies 12 mm above the metacarpal's axis at the knuckle and sinks towards the wrist.
        tendon = _round_cone(p, head + np.array([-9, 0, 8.7]), base + np.array([14, 0, 9.9]), 2.6, 2.2)
        d = _union(d, tendon, 4.0)
    for one, other in pairwise(FOUR_FINGERS):
        between = (FINGERS[one].root + FINGERS[other].root) / 2
        start = between + np.array([1.5, 0, 11.5])
        back = between * np.array([0.62, 0.72, 1.0]) + np.array([0, 0, 15.0])
        d = _intersection(d, -_round_cone(p, start, back, 5.6, 3.4), 6.0)
    return d


# ---------------------------------------------------------------------------------------------------------------------
# Solids and their blends. Formulae of the primitives and of the polynomial blend: Inigo Quilez, "Distance functions".


def _union(a: Floats, b: Floats, blend: float) -> Floats:
    h = np.clip(0.5 + 0.5 * (b - a) / blend, 0, 1)
    return b + (a - b) * h - blend * h * (1 - h)


def _intersection(a: Floats, b: Floats, blend: float) -> Floats:
    return -_union(-a, -b, blend)


def _round_cone(p: Floats, a: ArrayLike, b: ArrayLike, radius_a: float, radius_b: float) -> Floats:
    """Two balls and the cone around both."""
    a, axis = np.asarray(a, float), np.asarray(b, float) - np.asarray(a, float)
    length2 = axis @ axis
    taper = radius_a - radius_b
    slope2 = length2 - taper * taper
    q = p - a
    y = q @ axis
    z = y - length2
    x2 = ((q * length2 - y[:, None] * axis) ** 2).sum(axis=-1)
    y2, z2 = y * y * length2, z * z * length2
    k = np.sign(taper) * taper * taper * x2
    d = (np.sqrt(np.maximum(x2 * slope2 / length2, 0)) + y * taper) / length2 - radius_a
    d = np.where(np.sign(z) * slope2 * z2 > k, np.sqrt(x2 + z2) / length2 - radius_b, d)
    return np.where(np.sign(y) * slope2 * y2 < k, np.sqrt(x2 + y2) / length2 - radius_a, d)


def _cone(p: Floats, a: Floats, b: Floats, radius_a: float, radius_b: float, up: Floats, flat: float) -> Floats:
    """A round cone squeezed by `flat` along its dorsal axis."""
    local = ((p - a) @ bone_frame(b - a, up).T) / np.array([1, 1, flat])
    end = (float(np.linalg.norm(b - a)), 0.0, 0.0)
    return _round_cone(local, (0.0, 0.0, 0.0), end, radius_a, radius_b) * flat


def _ellipsoid(p: Floats, centre: ArrayLike, radii: ArrayLike, frame: Floats | None = None) -> Floats:
    q = p - np.asarray(centre, float)
    if frame is not None:
        q = q @ frame.T
    r = np.asarray(radii, float)
    k0 = np.linalg.norm(q / r, axis=-1)
    k1 = np.linalg.norm(q / (r * r), axis=-1)
    return k0 * (k0 - 1) / np.maximum(k1, 1e-9)


def bone_frame(axis: Sequence[float] | Floats, up: Floats = _UP) -> Floats:
    """(3, 3) rows: the axis, the side, and the dorsal direction perpendicular to it."""
    x = np.asarray(axis, float) / np.linalg.norm(axis)
    side = np.cross(up, x)
    side /= np.linalg.norm(side)
    return np.stack([x, side, np.cross(x, side)])
