"""Animated hands, read back by other means: pygltflib and numpy pose the .glb, a few lines of text the .bvh."""

import re

import numpy as np
import pygltflib
import pytest
from scipy.spatial.transform import Rotation

from handmesh.errors import ExportError
from handmesh.files.animation import HandTrack, encode_animation, encode_bvh
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import FINGERTIP_VERTICES, MANO_JOINT_NAMES, Handedness, builtin_hand

Y_UP = np.array([1.0, -1, -1])


def moving_hand(side=Handedness.RIGHT, frames=range(40), seed=0, fps=30.0):
    """A hand that turns about every joint by up to a right angle, at an uneven rate."""
    rng = np.random.default_rng(seed)
    frames = np.array(list(frames))
    phase, pace = rng.uniform(0, 6, (16, 3)), rng.uniform(1, 5, (16, 3))
    times = frames / fps + np.where(frames > 0, rng.uniform(0, 0.3 / fps, len(frames)), 0)
    rotations = 0.9 * np.sin(phase + pace * times[:, None, None])
    rotations[:, 0] *= 2
    return HandTrack(
        name=f"{side}_hand_{seed}",
        handedness=side,
        frames=frames,
        times=times,
        rotations=rotations.astype(np.float32),
        translations=(np.array([0.1, -0.05, 0.6]) + 0.1 * np.sin(times[:, None] + [0, 1, 2])).astype(np.float32),
        betas=rng.normal(size=10).astype(np.float32),
    )


TYPES = {"SCALAR": (), "VEC3": (3,), "VEC4": (4,), "MAT4": (4, 4)}
COMPONENTS = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}


class Reader:
    """An independent player of glTF animations: keys, morph targets, then skinning. Only what the standard says."""

    def __init__(self, content):
        self.gltf = pygltflib.GLTF2.load_from_bytes(content)
        self.blob = self.gltf.binary_blob()
        self.parent = {c: i for i, node in enumerate(self.gltf.nodes) for c in node.children or []}

    def array(self, index):
        accessor = self.gltf.accessors[index]
        view = self.gltf.bufferViews[accessor.bufferView]
        shape = (accessor.count, *TYPES[accessor.type])
        start = view.byteOffset + (accessor.byteOffset or 0)
        return np.frombuffer(self.blob, COMPONENTS[accessor.componentType], int(np.prod(shape)), start).reshape(shape)

    def key(self, node, path, time):
        """The animated value of a node, or None."""
        for channel in self.gltf.animations[0].channels:
            if (channel.target.node, channel.target.path) != (node, path):
                continue
            sampler = self.gltf.animations[0].samplers[channel.sampler]
            times, values = self.array(sampler.input), self.array(sampler.output)
            values = values.reshape(len(times), -1)
            before = int(np.clip(np.searchsorted(times, time + 1e-6) - 1, 0, len(times) - 1))
            after = min(before + 1, len(times) - 1)
            if sampler.interpolation == "STEP" or after == before:
                return values[before]
            share = np.clip((time - times[before]) / (times[after] - times[before]), 0, 1)
            a, b = values[before], values[after]
            mixed = a + share * (b * (np.sign(a @ b) if path == "rotation" else 1) - a)
            return mixed / np.linalg.norm(mixed) if path == "rotation" else mixed
        return None

    def world(self, node, time):
        """(4, 4)"""
        item, local = self.gltf.nodes[node], np.eye(4)
        move = self.key(node, "translation", time)
        turn, scale = self.key(node, "rotation", time), self.key(node, "scale", time)
        if turn is not None:
            local[:3, :3] = Rotation.from_quat(turn).as_matrix()
        if scale is not None:
            local[:3, :3] *= scale
        local[:3, 3] = move if move is not None else (item.translation or (0, 0, 0))
        return self.world(self.parent[node], time) @ local if node in self.parent else local

    def vertices(self, skinned, time):
        """(778, 3) of the node that is skinned."""
        node = self.gltf.nodes[skinned]
        mesh, skin = self.gltf.meshes[node.mesh], self.gltf.skins[node.skin]
        (primitive,) = mesh.primitives
        vertices = self.array(primitive.attributes.POSITION).astype(np.float64)
        weights = self.key(skinned, "weights", time)
        for index, target in enumerate(primitive.targets or []):
            vertices = vertices + weights[index] * self.array(target["POSITION"])
        bind = self.array(skin.inverseBindMatrices).swapaxes(1, 2)
        joints = np.stack([self.world(j, time) @ bind[i] for i, j in enumerate(skin.joints)])
        influences, shares = self.array(primitive.attributes.JOINTS_0), self.array(primitive.attributes.WEIGHTS_0)
        assert getattr(primitive.attributes, "JOINTS_1", None) is None, (
            "the built-in hand needs four influences, as three.js reads"
        )
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
        blended = (shares[:, :, None, None] * joints[influences]).sum(axis=1)
        return (blended[:, :3, :3] @ vertices[:, :, None])[:, :, 0] + blended[:, :3, 3]

    def skinned(self):
        return [index for index, node in enumerate(self.gltf.nodes) if node.skin is not None]


def truth(track, frame):
    hand = builtin_hand() if track.handedness == Handedness.RIGHT else builtin_hand().mirrored()
    posed = hand.shaped(track.betas).posed(matrix_from_vector(track.rotations[frame]))
    return (posed.vertices + track.translations[frame]) * Y_UP


@pytest.fixture(scope="module")
def two():
    tracks = [moving_hand(), moving_hand(Handedness.LEFT, frames=[*range(6, 20), *range(26, 36)], seed=1)]
    return tracks, Reader(encode_animation(tracks, builtin_hand()))


def test_it_is_our_hand_in_every_frame(two):
    """Skinning alone cannot express pose correctives; with the morph targets no vertex is 0.1 mm away."""
    tracks, reader = two
    assert len(reader.skinned()) == 2
    for track, node in zip(tracks, reader.skinned(), strict=True):
        far = [
            np.linalg.norm(reader.vertices(node, time) - truth(track, frame), axis=1).max()
            for frame, time in enumerate(track.times)
        ]
        assert max(far) < 1e-4


def test_weights_stay_within_the_sliders(two):
    _, reader = two
    for node in reader.skinned():
        values = [reader.key(node, "weights", time) for time in np.linspace(0, 1.4, 9)]
        assert np.abs(values).max() <= 1 + 1e-6


def test_a_hand_that_is_not_seen_is_not_shown(two):
    tracks, reader = two
    node = reader.skinned()[1]
    times = tracks[1].times
    for time, shown in [(0.0, False), (times[0] + 0.01, True), (times[13] + 0.01, True), (times[13] + 0.1, False),
                        (times[14] + 0.01, True), (times[-1] + 0.1, False)]:  # fmt: skip
        extent = np.ptp(reader.vertices(node, time), axis=0).max()
        assert (extent > 0.05) == shown, time
    assert reader.key(reader.gltf.skins[0].joints[0], "scale", 0.5) is None, "the other one is always there"


def test_skin_only_is_smaller_and_nearly_as_good():
    track = moving_hand()
    light = encode_animation([track], builtin_hand(), correctives=False)
    whole = encode_animation([track], builtin_hand())
    assert len(light) < 0.8 * len(whole)
    reader = Reader(light)
    (node,) = reader.skinned()
    far = [np.linalg.norm(reader.vertices(node, t) - truth(track, f), axis=1) for f, t in enumerate(track.times)]
    assert 1e-4 < np.max(far) < 0.01
    assert np.mean(far) < 0.001


def test_the_skeleton_is_named_and_the_file_valid(two):
    _, reader = two
    names = [reader.gltf.nodes[joint].name for joint in reader.gltf.skins[0].joints]
    assert names == list(MANO_JOINT_NAMES)
    for accessor in reader.gltf.accessors:
        assert accessor.count > 0
    for view in reader.gltf.bufferViews:
        assert view.byteOffset % 4 == 0
        assert view.byteOffset + view.byteLength <= len(reader.blob)
    for channel in reader.gltf.animations[0].channels:
        times = reader.array(reader.gltf.animations[0].samplers[channel.sampler].input)
        assert (np.diff(times) > 0).all()


def test_no_hands_are_an_empty_scene():
    assert Reader(encode_animation([], builtin_hand())).gltf.scenes[0].nodes in (None, [])


def test_one_frame_is_a_still():
    track = moving_hand(frames=[0])
    reader = Reader(encode_animation([track], builtin_hand()))
    np.testing.assert_allclose(reader.vertices(reader.skinned()[0], 0.0), truth(track, 0), atol=1e-4)


def test_what_cannot_be_animated_is_named():
    track = moving_hand()
    track.translations[3] = np.nan
    with pytest.raises(ExportError, match=r"right_hand_0.*translations"):
        encode_animation([track], builtin_hand())


def read_bvh(text):
    """(joint names, parents, offsets, end offsets by joint, (T, channels) motion)."""
    names, parents, offsets, ends, stack = [], [], [], {}, []
    head, motion = text.split("MOTION")
    in_end = False
    for line in map(str.strip, head.splitlines()):
        if match := re.match(r"(?:ROOT|JOINT) (\w+)", line):
            parents.append(stack[-1] if stack else -1)
            names.append(match.group(1))
            stack.append(len(names) - 1)
        elif line == "End Site":
            in_end = True
            stack.append(stack[-1])
        elif line.startswith("OFFSET"):
            values = np.array(line.split()[1:], float)
            if in_end:
                ends[stack[-1]] = values
            else:
                offsets.append(values)
        elif line == "}":
            stack.pop()
            in_end = False
    rows = motion.strip().splitlines()
    assert int(rows[0].split()[1]) == len(rows) - 2
    return names, parents, offsets, ends, np.array([row.split() for row in rows[2:]], float)


@pytest.mark.parametrize("side", list(Handedness))
def test_bvh_puts_joints_where_ours_are(side):
    track = moving_hand(side)
    even = np.arange(len(track.frames)) / 30.0  # so that its even frames are ours
    track = HandTrack(**{**vars(track), "times": even})
    names, parents, offsets, ends, motion = read_bvh(encode_bvh(track, builtin_hand(), 30.0).decode())
    assert sorted(names) == sorted(MANO_JOINT_NAMES)
    assert len(motion) == len(track.frames)
    shaped = builtin_hand(side).shaped(track.betas)
    tips = shaped.vertices[list(FINGERTIP_VERTICES)]
    for frame in (0, 17, 39):
        values = motion[frame]
        turns, places, found = {}, {}, []
        for index, parent in enumerate(parents):
            z, x, y = values[3 + 3 * index : 6 + 3 * index]
            local = Rotation.from_euler("ZXY", [z, x, y], degrees=True).as_matrix()
            turns[index] = local if parent < 0 else turns[parent] @ local
            places[index] = values[:3] if parent < 0 else places[parent] + turns[parent] @ offsets[index]
            if index in ends:
                found.append((names[index], places[index] + turns[index] @ ends[index]))
        posed = shaped.posed(matrix_from_vector(track.rotations[frame]))
        for index, name in enumerate(names):
            joint = MANO_JOINT_NAMES.index(name)
            want = 100 * (posed.tree_joints[joint] + track.translations[frame]) * Y_UP
            np.testing.assert_allclose(places[index], want, atol=2e-3)
        for name, place in found:
            joint = MANO_JOINT_NAMES.index(name)
            finger = ("thumb", "index", "middle", "ring", "pinky").index(name.split("_")[0])
            tip = posed.joint_rotations[joint] @ (tips[finger] - shaped.joints[joint]) + posed.tree_joints[joint]
            want = 100 * (tip + track.translations[frame]) * Y_UP
            np.testing.assert_allclose(place, want, atol=2e-3)
        assert len(found) == 5
