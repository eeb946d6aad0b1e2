"""How the built-in hand moves and varies: skinning weights, joint regressor, shape directions, pose correctives, poses.

Weights, regressor and shape directions are worked out in the modelling frame of `handmesh.builtin_hand.surface`
(millimetres; distal, radial, dorsal); pose correctives and pose space in the hand's rest frame (metres, radians).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from handmesh.builtin_hand.remesh import neighbours
from handmesh.builtin_hand.surface import FILE_FINGERS, FINGERS, FOUR_FINGERS, Finger, bone_frame
from handmesh.geometry.rotation import matrix_from_vector, vector_from_matrix
from handmesh.hand import MANO_PARENTS, HandArrays, anatomy

Floats = NDArray[np.float64]
Faces = NDArray[np.int64]

# The ten shape directions; one unit is about one standard deviation of adults, women and men together.
SHAPE_NAMES = (
    "size",
    "fullness",
    "finger length",
    "palm width",
    "palm length",
    "index against ring and little finger",
    "finger thickness",
    "thumb length",
    "muscle pads",
    "little finger and palm depth",
)

MAX_INFLUENCES = 4
EXAMPLE_POSES = 1554  # as many as a MANO file holds


def first_joint(finger: str) -> int:
    return 1 + 3 * FILE_FINGERS.index(finger)


# ---------------------------------------------------------------------------------------------------------------------
# Skinning


def skinning_weights(vertices: Floats, faces: Faces, smoothing_rounds: int = 8) -> Floats:
    """(778, 16) rows sum to one, at most four influences.

    A vertex belongs to a finger by relative distance to its bones, and to a bone by arc length along them, with the
    MCP's band moved towards the fingertip on the palmar side, where the crease of a real finger is, and the PIP's band
    wider there. Eight rounds of smoothing: with three, a third more faces fold over in a fist; from ten on, fingers
    bend like hoses.
    """
    weights = np.zeros((len(vertices), 16))
    along = {name: arc_coordinates(vertices, FINGERS[name]) for name in FILE_FINGERS}
    relative = np.stack([along[name][1] / FINGERS[name].radii[1] for name in FOUR_FINGERS], axis=1)
    nearest = relative.min(axis=1)
    membership = np.exp(-(((relative - nearest[:, None]) / 0.22) ** 2))
    membership /= membership.sum(axis=1, keepdims=True)

    thumb, root = FINGERS["thumb"], first_joint("thumb")
    s, distance, _ = along["thumb"]
    relative_thumb = distance / thumb.radii[1]
    share = _step(30.0 - distance, 15.0)
    beyond_knuckle = (membership * _step(np.stack([along[n][0] for n in FOUR_FINGERS], axis=1) + 4, 14)).sum(axis=1)
    share *= 1 - beyond_knuckle * _step(relative_thumb - nearest + 0.3, 0.8)
    share = np.where((s > thumb.lengths[0] + 6) & (relative_thumb < nearest), 1.0, share)
    bands = (_step(s + 9, 26), _step(s - thumb.lengths[0] + 8, 16), _step(s - sum(thumb.lengths[:2]) + 6.5, 13))
    weights[:, root : root + 3] = _bone_shares(share, bands)

    rest = 1 - weights.sum(axis=1)
    for number, name in enumerate(FOUR_FINGERS):
        finger, root = FINGERS[name], first_joint(name)
        s, _, palmar = along[name]
        scale = finger.radii[1] / 9.1
        crease = 1.5 + 4.5 * (0.5 + 0.5 * palmar)
        wide = scale * (1 + 0.4 * (0.5 + 0.5 * palmar))
        bands = (
            _step(s - crease + 11, 22),
            _step(s - finger.lengths[0] + 6.5 * wide, 13 * wide),
            _step(s - sum(finger.lengths[:2]) + 5.2 * scale, 10.4 * scale),
        )
        weights[:, root : root + 3] = _bone_shares(membership[:, number] * rest, bands)
    weights[:, 0] = np.maximum(1 - weights[:, 1:].sum(axis=1), 0)

    around = neighbours(faces, len(vertices))
    for _ in range(smoothing_rounds):
        weights = 0.6 * weights + 0.4 * np.stack([weights[each].mean(axis=0) for each in around])
    weights[weights < np.sort(weights, axis=1)[:, -MAX_INFLUENCES][:, None]] = 0
    weights[weights < 0.004] = 0
    return weights / weights.sum(axis=1, keepdims=True)


def _bone_shares(share: Floats, bands: tuple[Floats, Floats, Floats]) -> Floats:
    first, second, third = bands
    return (share * np.stack([first * (1 - second), first * second * (1 - third), first * second * third])).T


def arc_coordinates(points: Floats, finger: Finger) -> tuple[Floats, Floats, Floats]:
    """(n,) arc length from the first joint (negative before it), distance to the bones, palmar side in -1..1."""
    joints = finger.joints
    best = np.full(len(points), np.inf)
    s, palmar, start = np.zeros(len(points)), np.zeros(len(points)), 0.0
    for bone in range(3):
        a, ab = joints[bone], joints[bone + 1] - joints[bone]
        length = float(np.linalg.norm(ab))
        t = (points - a) @ ab / length**2
        inside = np.clip(t, 0, 1)
        t = np.clip(t, -np.inf if bone == 0 else 0, np.inf if bone == 2 else 1)
        distance = np.linalg.norm(points - a - inside[:, None] * ab, axis=1)
        local = (points - a) @ bone_frame(ab, finger.dorsal).T
        nearer = distance < best - 1e-9
        best[nearer] = distance[nearer]
        s[nearer] = start + t[nearer] * length
        palmar[nearer] = (-local[:, 2] / np.maximum(np.hypot(local[:, 1], local[:, 2]), 1e-6))[nearer]
        start += length
    return s, best, palmar


def joint_regressor(vertices: Floats, weights: Floats, joints: Floats) -> Floats:
    """(16, 778) rows >= 0 that sum to one and reproduce each joint from the skin around it."""
    regressor = np.zeros((16, len(vertices)))
    for joint, place in enumerate(joints):
        if joint == 0:
            reach, own, count = 26.0, weights[:, 0] > 0.5, 70
        else:
            finger, bone = FILE_FINGERS[(joint - 1) // 3], (joint - 1) % 3
            reach = 22.0 if (finger, bone) == ("thumb", 0) else 1.35 * FINGERS[finger].radii[bone]
            own, count = weights[:, joint] + weights[:, MANO_PARENTS[joint]] > 0.25, 40
        near = np.exp(-((np.linalg.norm(vertices - place, axis=1) / reach) ** 2)) * own
        chosen = np.argsort(-near, kind="stable")[:count]
        chosen = chosen[near[chosen] > 1e-6]
        # Non-negative weights that hit the joint, as close as they can be to the smooth bump `wanted`.
        wanted = np.maximum(near[chosen] / near[chosen].sum(), 1e-4)
        exact = np.vstack([np.ones(len(chosen)), (vertices[chosen] - place).T / 10])
        target = np.array([1.0, 0, 0, 0])
        row, _ = nnls(
            np.vstack([1e3 * exact, np.diag(0.05 / np.sqrt(wanted))]), np.r_[1e3 * target, 0.05 * np.sqrt(wanted)]
        )
        used = row > 1e-9
        row[used] += np.linalg.pinv(exact[:, used]) @ (target - exact[:, used] @ row[used])
        regressor[joint, chosen] = np.where(used, row, 0)
    return regressor


# ---------------------------------------------------------------------------------------------------------------------
# Shape


def shape_directions(vertices: Floats, normals: Floats, weights: Floats) -> Floats:
    """(778, 3, 10) millimetres per unit, in the order of SHAPE_NAMES.

    Adults of both sexes together have hand lengths of 175 +- 12 mm (7.1 %) and breadths of 79.5 +- 6.0 mm (7.6 %), from
    183 +- 10, 166 +- 8 and 84 +- 4, 75 +- 4 mm for men and women (ACOPLA95). Size carries what they share, and palm
    and finger lengths and palm width the rest, so that ten independent standard normal betas give those spreads.
    The other amounts are chosen: single bones have standard deviations of 2 to 6 mm (Buryanov & Kotiuk 2010).
    """
    proximity = {name: weights[:, first_joint(name) :][:, :3] for name in FILE_FINGERS}
    radius = np.full(len(vertices), 12.0)
    for name in FILE_FINGERS:
        for bone in range(3):
            radius = np.where(proximity[name][:, bone] > 0.5, FINGERS[name].radii[bone], radius)

    def lengthen(fingers: dict[str, float], amount: float) -> Floats:
        shift = np.zeros_like(vertices)
        for name, share in fingers.items():
            joints = FINGERS[name].joints
            for bone in range(3):
                along = joints[bone + 1] - joints[bone]
                t = np.clip((vertices - joints[bone]) @ along / (along @ along), 0, 1)
                follows = proximity[name][:, bone:].sum(axis=1)
                shift += amount * share * (follows * t)[:, None] * along
        return shift

    def stretch_palm(factors: tuple[float, float, float]) -> Floats:
        shift = weights[:, :1] * vertices * factors
        for name in FILE_FINGERS:
            shift += proximity[name].sum(axis=1, keepdims=True) * (FINGERS[name].root * factors)
        return shift

    def bump(centre: tuple[float, float, float], extent: tuple[float, float, float], height: float) -> Floats:
        return height * np.exp(-(((vertices - centre) / extent) ** 2).sum(axis=1))

    pads = bump((45, 28, -20), (26, 16, 16), 2.2) + bump((42, -28, -14), (26, 12, 14), 1.8)
    on_finger = 1 - weights[:, 0]
    directions = {
        "size": 0.062 * vertices,
        "fullness": normals * (0.047 * radius)[:, None],
        "finger length": lengthen({"index": 1, "middle": 1, "ring": 1, "pinky": 1, "thumb": 0.6}, 0.055),
        "palm width": stretch_palm((0, 0.045, 0)),
        "palm length": stretch_palm((0.045, 0, 0)),
        "index against ring and little finger": lengthen({"index": 1, "ring": -1, "pinky": -0.6}, 0.045),
        "finger thickness": normals * (np.where(on_finger < 0.5, 0, 0.075 * radius) * on_finger)[:, None],
        "thumb length": lengthen({"thumb": 1}, 0.065),
        "muscle pads": normals * pads[:, None],
        "little finger and palm depth": lengthen({"pinky": 1}, 0.07) + stretch_palm((0, 0, 0.05)),
    }
    return np.stack([directions[name] for name in SHAPE_NAMES], axis=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Pose correctives


def pose_correctives(vertices: Floats, weights: Floats, joints: Floats, axes: Floats) -> Floats:
    """(778, 3, 135) metres per unit of (rotation - identity), joints 1 to 15.

    Linear blend skinning shrinks a bent joint. The offsets are the least squares fit, over the joint's range, of what
    would move each vertex to where spherical blending puts it: about the joint by its share of the full rotation
    (Kavan & Zara 2005). Less on the palmar side, where flesh gives way. On top, knuckles of the four fingers
    stand out in proportion to the sine of flexion, as the metacarpal head slides out under the skin.

    `axes` (16, 3, 3) as from `anatomy.flexion_axes`.
    """
    correctives = np.zeros((len(vertices), 3, 15, 9))
    for joint in range(1, 16):
        follows = weights[:, _descendants(joint)].sum(axis=1)
        blended = np.flatnonzero((follows > 0.02) & (follows < 0.98))
        rotations = _sampled_rotations(joint, axes[joint])
        features = (rotations - np.eye(3)).reshape(-1, 9)
        fit = np.linalg.solve(features.T @ features + 2e-2 * np.eye(9), features.T)
        share = follows[blended]
        arm = vertices[blended] - joints[joint]
        matrix = (1 - share)[:, None, None, None] * np.eye(3) + share[:, None, None, None] * rotations
        spherical = matrix_from_vector(share[:, None, None] * vector_from_matrix(rotations))
        wanted = (spherical @ arm[:, None, :, None])[..., 0]
        offset = np.linalg.solve(matrix, wanted[..., None])[..., 0] - arm[:, None]
        palmar = 0.5 - 0.5 * (arm @ axes[joint, 1]) / (np.linalg.norm(arm, axis=1) + 1e-9)
        offset *= (1 - 0.55 * palmar)[:, None, None]
        correctives[blended, :, joint - 1] = np.einsum("fs,vsi->vif", fit, offset)
        if FILE_FINGERS[(joint - 1) // 3] != "thumb":
            correctives[:, :, joint - 1] += _knuckle_bump(vertices, joint, joints[joint], axes[joint])
    return correctives.reshape(len(vertices), 3, 135)


def _descendants(joint: int) -> list[int]:
    """The joint and the rest of its finger."""
    return list(range(joint, joint + 3 - (joint - 1) % 3))


def _sampled_rotations(joint: int, axes: Floats) -> Floats:
    """(s, 3, 3) rotations over the joint's range: flexion, and abduction and twist where the joint has any."""
    is_thumb, is_first = joint >= first_joint("thumb"), (joint - 1) % 3 == 0
    flexions = np.radians(np.arange(-20, 60 if is_thumb else 100, 12))
    abductions = np.radians(([-28, 0, 18] if is_thumb else [-18, 0, 18]) if is_first else [0])
    twists = np.radians([0, 35] if is_thumb and is_first else [0])
    return np.stack(
        [
            matrix_from_vector(abduction * axes[1])
            @ matrix_from_vector(flexion * axes[0])
            @ matrix_from_vector(twist * axes[2])
            for flexion in flexions
            for abduction in abductions
            for twist in twists
        ]
    )


def _knuckle_bump(vertices: Floats, joint: int, place: Floats, axes: Floats) -> Floats:
    """(778, 3, 9) a bump on the dorsal side; the antisymmetric part of the rotation measures the sine of flexion."""
    finger, bone = FINGERS[FILE_FINGERS[(joint - 1) // 3]], (joint - 1) % 3
    radius = finger.radii[bone] / 1000
    height, extent = (0.0020, 0.9) if bone == 0 else (0.0012, 0.6)
    flexion, dorsal = axes[0], axes[1]
    centre = place + 0.8 * radius * dorsal
    bump = height * np.exp(-(((vertices - centre) / (extent * radius)) ** 2).sum(axis=1))
    bump[bump < 0.02 * height] = 0
    x, y, z = flexion / 2
    sine = np.array([0, -z, y, z, 0, -x, -y, x, 0])
    return bump[:, None, None] * dorsal[:, None] * sine


# ---------------------------------------------------------------------------------------------------------------------
# Pose space

# Directions of joint motion in degrees (thumb: CMC, MCP, IP flexion, CMC abduction, twist; fingers: MCP, PIP, DIP
# flexion, MCP abduction). The first two are those of Santello, Flanders & Soechting 1998 ("Postural hand synergies for
# tool use", fig. 4-5): all MCP and PIP joints close together, and MCP flexion against PIP extension; they carry more
# than 80 % of the variance of grasps. The rest are the movements named beside them there and in later studies:
# thumb opposition, spread, single fingers, thumb flexion.
SYNERGIES: dict[str, Floats] = {
    "close": anatomy.hand_angles((12, 15, 18, -8, 8), (45, 60, 36), (50, 62, 38), (52, 62, 37), (50, 58, 34)),
    "mcp against pip": anatomy.hand_angles((5, -6, -8), (45, -40, -20), (48, -42, -22), (48, -42, -22), (46, -38, -20)),
    "oppose": anatomy.hand_angles((25, 4, 0, -18, 25)),
    "spread": anatomy.hand_angles((-6, 0, 0, 14), (0, 0, 0, 11), (0, 0, 0, 1), (0, 0, 0, -8), (0, 0, 0, -15)),
    "index against the rest": anatomy.hand_angles((), (-50, -60, -35), (15, 20, 12), (18, 20, 12), (16, 20, 12)),
    "little side against index side": anatomy.hand_angles(
        (), (-20, -25, -14), (-14, -18, -10), (18, 24, 14), (26, 30, 18)
    ),
    "bend the thumb": anatomy.hand_angles((-4, 25, 40)),
    "middle against ring": anatomy.hand_angles((), (), (30, 35, 20), (-24, -30, -18), ()),
    "fingertips": anatomy.hand_angles((0, 0, 12), (0, 4, 24), (0, 4, 26), (0, 4, 25), (0, 4, 24)),
    "lean": anatomy.hand_angles((), (0, 0, 0, 8), (0, 0, 0, 8), (0, 0, 0, 8), (0, 0, 0, 8)),
}


def pose_components(axes: Floats) -> Floats:
    """(45, 45) orthonormal rows of rotation vectors, joints 1 to 15: the synergies first, then what they leave out."""
    rows = [np.einsum("ja,jai->ji", angles, axes)[1:].ravel() for angles in SYNERGIES.values()]
    q, r = np.linalg.qr(np.vstack([*rows, np.eye(45)]).T)
    return (q * np.where(np.diag(r) < 0, -1.0, 1.0)).T


def pose_vector(hand: HandArrays, angles: Floats) -> Floats:
    """(*B, 16, 3) joint angles -> (*B, 45) rotation vectors of joints 1 to 15, as a hand model file stores poses."""
    vectors = vector_from_matrix(anatomy.pose_from_angles(hand, angles))
    return vectors[..., 1:, :].reshape(*vectors.shape[:-2], 45)


def example_angles(count: int = EXAMPLE_POSES) -> Floats:
    """(count, 16, 3) plausible joint angles: between two everyday poses, varied along the synergies, within limits."""
    rng = np.random.default_rng(1554)
    poses, synergies = np.stack(list(anatomy.POSES.values())), np.stack(list(SYNERGIES.values()))
    pair = rng.integers(len(poses), size=(count, 2))
    towards = rng.beta(0.7, 0.7, size=(count, 1, 1))
    angles = poses[pair[:, 0]] * (1 - towards) + poses[pair[:, 1]] * towards
    angles += np.einsum("ns,sja->nja", rng.normal(0, 0.15, size=(count, len(synergies))), synergies)
    low, high = anatomy.JOINT_LIMITS[..., 0], anatomy.JOINT_LIMITS[..., 1]
    return np.clip(angles, low, high)


def _step(x: Floats, width: float | Floats) -> Floats:
    """Smooth step from 0 at x = 0 to 1 at x = width."""
    t = np.clip(x / width, 0, 1)
    return t * t * (3 - 2 * t)
