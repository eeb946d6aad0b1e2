"""What is around a synthetic hand: objects fit the grasp, rings sit on fingers, a second hand leaves labels alone."""

from __future__ import annotations

import numpy as np
import pytest

from handmesh.hand import FINGERTIP_VERTICES, builtin_hand
from handmesh.hand.anatomy import FINGER_ROOTS, bone_ends, palm_frame
from handmesh.synth import Backgrounds, PosePrior, SceneRenderer, SceneSettings, sample_generator
from handmesh.synth import objects as things
from handmesh.synth.parts import Scene, sample_skin
from handmesh.synth.pose_prior import BASE_POSES, bone_segments, forward_kinematics, limit_angles
from handmesh.synth.scene import _depth_to_touch
from handmesh.synth.shade import vertex_normals

SIZE = 80
# Nothing but an arm, and no scene refused for what it hides, so that the same seed is the same hand in the same view.
BARE = SceneSettings(
    sleeve=0, bracelet=0, object=0, stray_object=0, occluder=0, second_hand=0, ring=0, hair=0, tattoo=0, glove=0,
    min_unoccluded=1e-9, min_visible=0,
)  # fmt: skip
HOLDING = [name for name, pose in BASE_POSES.items() if pose.holds]


@pytest.fixture(scope="module")
def backgrounds() -> Backgrounds:
    return Backgrounds(seed=0, count=4)


@pytest.fixture(scope="module")
def prior() -> PosePrior:
    return PosePrior(builtin_hand())


@pytest.fixture(scope="module")
def axes() -> np.ndarray:
    palm = palm_frame(builtin_hand())
    return np.stack([-palm.radial, palm.distal, palm.dorsal])


def bones_of(prior: PosePrior, name: str) -> np.ndarray:
    rest = builtin_hand().J
    turns, places = forward_kinematics(prior.rotations(limit_angles(BASE_POSES[name].angles)), rest)
    return bone_segments(turns, places, rest, bone_ends(builtin_hand()))


def flesh_gap(points: np.ndarray, segments: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(n, 3) points -> (n,) metres to the surface of the nearest finger bone's flesh, negative inside."""
    gaps = []
    for (start, end), radius in zip(segments[1:16], radii[1:16], strict=True):
        along = end - start
        t = np.clip((points - start) @ along / (along @ along), 0, 1)
        gaps.append(np.linalg.norm(points - start - t[:, None] * along, axis=1) - radius)
    return np.min(gaps, axis=0)


# ------------------------------------------------------------------------------------------------------------ objects


@pytest.mark.parametrize("name", HOLDING)
def test_what_is_held_touches_the_fingers(prior, axes, name):
    """For every grasp of the library: contact, within what soft flesh gives way and a mesh's corners leave open."""
    segments, found = bones_of(prior, name), 0
    for seed in range(6):
        part = things.held_object(np.random.default_rng(seed), BASE_POSES[name].holds, segments, prior.radii, axes)
        if part is None:
            continue
        found += 1
        corners = part.vertices[part.faces]
        points = np.concatenate([part.vertices, corners.mean(axis=1), corners[:, :2].mean(axis=1)])
        gap = flesh_gap(points, segments, prior.radii)
        assert gap.min() < 0.006
    assert found >= 3 or name in ("fist", "loose_fist", "hook", "bag_handle", "handle", "steering")


def test_the_channel_of_a_grasp_is_as_wide_as_the_fingers_leave_it(prior):
    """Independent: dense points on the bones; none is nearer to the rod's axis than its radius plus the flesh."""
    checked = 0
    for name in ("grasp", "grasp_tight", "grasp_large", "bottle", "ring_grasp"):
        segments = bones_of(prior, name)
        axis = (segments[1:4, 0] - segments[7:10, 0]).mean(axis=0)
        axis /= np.linalg.norm(axis)
        center, radius = things.grasp_channel(segments, prior.radii, axis)
        t = np.linspace(0, 1, 60)[:, None, None]
        fingers = [*range(1, 7), 10, 11, 12, 14, 15]  # the little finger and the thumb's base may reach around
        points = segments[fingers, 0] + t * (segments[fingers, 1] - segments[fingers, 0])
        away = points - center
        distance = np.linalg.norm(away - (away @ axis)[..., None] * axis, axis=-1) - prior.radii[fingers]
        assert distance.min() >= radius - 1e-3
        assert radius > 0.01
        checked += 1
    assert checked == 5


@pytest.mark.parametrize(
    ("shape", "volume"),
    [
        (things.cylinder(64), 2 * np.pi),
        (things.sphere(40, 60), 4 / 3 * np.pi),
        (things.box(), 8.0),
        (things.torus(2.0, 0.5, 80, 40), 2 * np.pi**2 * 2.0 * 0.25),
    ],
)
def test_bodies_are_closed_and_face_outwards(shape, volume):
    """The divergence theorem: the signed volume under all faces is the body's own, positive."""
    vertices, faces = shape
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    signed = np.einsum("fi,fi->", a, np.cross(b, c)) / 6
    assert signed == pytest.approx(volume, rel=0.02)


def test_turned_bodies_face_outwards():
    body = things._turned(
        [[[0.0, -1.0], [1.0, -1.0]], [[1.0, -1.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]]], np.ones(3), 96
    )
    a, b, c = (body.vertices[body.faces[:, k]] for k in range(3))
    assert np.einsum("fi,fi->", a, np.cross(b, c)) / 6 == pytest.approx(2 * np.pi, rel=0.01)


def test_labels_lie_on_the_side_of_a_bottle():
    """One in fifteen stood out below its bottom or above its shoulder."""
    labels = 0
    for seed in range(200):
        first, *_, last = things._vessel(np.random.default_rng(seed), 0.03)
        if np.allclose(np.linalg.norm(last.vertices[:, :2], axis=1), 0.0304):
            labels += 1
            side = first.vertices[np.isclose(np.linalg.norm(first.vertices[:, :2], axis=1), 0.03), 2]
            assert side.min() < last.vertices[:, 2].min() < last.vertices[:, 2].max() < side.max()
    assert labels > 20


# --------------------------------------------------------------------------------------------------------- worn things


def test_a_ring_sits_around_the_first_bone_of_one_finger(backgrounds):
    renderer = SceneRenderer(builtin_hand(), BARE, SIZE, backgrounds=backgrounds)
    fingers = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        hand = renderer._pose_hand(rng)
        part = renderer._arm.ring(rng, hand.vertices)
        band = part.vertices[:80]  # without a stone
        centre = band.mean(axis=0)
        gaps = []
        for root in FINGER_ROOTS[1:]:
            start, end = hand.segments[root]
            along = end - start
            t = (centre - start) @ along / (along @ along)
            gaps.append((np.linalg.norm(centre - start - np.clip(t, 0, 1) * along), t))
        finger = int(np.argmin([gap for gap, _ in gaps]))
        fingers.add(finger)
        gap, t = gaps[finger]
        assert gap < 0.006
        assert 0.3 < t < 0.95
        assert 0.005 < np.linalg.norm(band - centre, axis=1).mean() < 0.016
    assert len(fingers) >= 3


def test_what_is_worn_is_lit_by_where_it_faces(backgrounds):
    """A sheet that is seen from both sides shared its vertices between them: their normals cancelled to rounding noise,
    so that sleeves and rings were lit from anywhere.
    """
    renderer = SceneRenderer(builtin_hand(), BARE, SIZE, backgrounds=backgrounds)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        hand = renderer._pose_hand(rng)
        arm = renderer._arm.build(rng, hand.vertices, sample_skin(rng, 0))
        for part in (arm.sleeve(rng), arm.bracelet(rng), renderer._arm.ring(rng, hand.vertices)):
            vertices = part.vertices.astype(np.float32)
            normals = np.empty_like(vertices)
            vertex_normals(vertices, part.faces, normals)
            np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-3)
            a, b, c = (part.vertices[part.faces[:, k]] for k in range(3))
            agrees = np.einsum("fi,fi->f", np.cross(b - a, c - a), normals[part.faces].mean(axis=1)) > 0
            assert agrees.mean() > 0.85  # sharp folds of a crumpled sleeve


def test_rings_face_away_from_the_finger(backgrounds):
    renderer = SceneRenderer(builtin_hand(), BARE, SIZE, backgrounds=backgrounds)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        part = renderer._arm.ring(rng, renderer._pose_hand(rng).vertices)
        a, b, c = (part.vertices[part.faces[:, k]] for k in range(3))
        assert np.einsum("fi,fi->", a - part.vertices[0], np.cross(b - a, c - a)) > 0  # the volume


def render_both(backgrounds: Backgrounds, changed: SceneSettings, seed: int, index: int):
    return [
        SceneRenderer(builtin_hand(), settings, SIZE, backgrounds=backgrounds).render_foreground(
            sample_generator(seed, index)
        )
        for settings in (BARE, changed)
    ]


@pytest.mark.parametrize("steeple", [0.0, 1.0])
def test_a_second_hand_changes_no_label(backgrounds, steeple):
    """Pose, place and camera are those of the first hand alone; the second can only hide, and only adds coverage."""
    hidden = added = 0
    for index in range(8, 13):  # one of them has the second hand in front
        changed = BARE.model_copy(update={"second_hand": 1.0, "steeple": steeple})
        alone, both = render_both(backgrounds, changed, 3, index)
        for name in ("vertices", "joints", "keypoints", "pose", "betas", "translation", "intrinsics"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(both, name))
        assert both.facts["second_hand"] == 1
        assert (both.visible <= alone.visible).all()
        assert (both.mask <= alone.mask).all()
        assert (both.alpha >= alone.alpha).all()
        hidden += int((alone.visible & ~both.visible).sum())
        added += int((both.alpha > alone.alpha).sum())
    assert hidden > 0
    assert added > 500


def test_hands_touch_and_do_not_pass_through_each_other():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.uniform(-0.05, 0.05, (80, 3)), rng.uniform(-0.05, 0.05, (60, 3))
        near = np.abs(first[:, None, :2] - second[None, :, :2]).max(axis=2) < 0.009
        for behind in (True, False):
            moved = second + np.array([0, 0, _depth_to_touch(first, second, behind)])
            gap = (moved[None, :, 2] - first[:, None, 2]) * (1 if behind else -1)
            assert gap[near].min() == pytest.approx(0.004)  # touching where they are nearest, apart elsewhere
    far = second + np.array([1.0, 0, 0])
    assert _depth_to_touch(first, far, True) == 0


def test_hands_laid_together_meet_in_a_plane_that_neither_passes(backgrounds):
    """Finger tips where it leans towards them most, as a steeple does; the other hand is the mirror image."""
    hand = builtin_hand()
    renderer = SceneRenderer(hand, BARE, SIZE, backgrounds=backgrounds)
    arm = renderer._arm.build(np.random.default_rng(0), hand.v_template, sample_skin(np.random.default_rng(0), 0))
    rotation = np.diag([1.0, -1.0, -1.0])  # lateral to the right, fingers up, the back towards the camera
    points = (arm.part.vertices - hand.v_template.mean(axis=0)) @ (rotation @ renderer._axes).T + (0, 0, 0.6)
    scene = Scene(
        points.astype(np.float32),
        arm.part.faces,
        arm.part.attributes,
        arm.part.materials,
        len(points),
        len(arm.part.faces),
    )
    drawn = [renderer._with_mirror_image(np.random.default_rng(seed), scene, rotation) for seed in range(12)]
    meetings = [meeting for meeting in drawn if meeting is not None]  # the forearm is not in the way
    assert len(meetings) > 5
    nearest = set()
    for meeting in meetings:
        first, second = np.split(meeting.vertices.astype(float), 2)
        normal = (second - first)[0] / np.linalg.norm((second - first)[0])
        height = first @ normal
        np.testing.assert_allclose(second, first + 2 * (height.max() - height)[:, None] * normal, atol=1e-5)
        nearest.add(int(np.argmax(height)))  # where they touch
        assert normal[2] > 0  # the palm's side
        assert normal[1] < 0  # the fingers' side
    assert len(nearest) > 1
    assert nearest & set(FINGERTIP_VERTICES)


def test_gloves_hair_and_tattoos_change_the_picture_and_no_label(backgrounds):
    for name in ("glove", "hair", "tattoo"):
        changed = 0.0
        for index in range(4):
            plain, worn = render_both(backgrounds, BARE.model_copy(update={name: 1.0}), 4, index)
            for label in ("vertices", "keypoints", "visible", "mask", "alpha"):
                np.testing.assert_array_equal(getattr(plain, label), getattr(worn, label))
            inside = plain.alpha == 255
            changed += float(np.abs(plain.image[inside].astype(int) - worn.image[inside]).mean())
        assert changed > 0.4, name


def test_forearms_never_pass_the_camera(backgrounds):
    """Close, egocentric views along the arm: the open end of the forearm must not be seen, so all of it is in front."""
    names = ("uniform_views", "tripod_views", "selfie_views", "table_views", "room_views")
    settings = BARE.model_copy(update=dict.fromkeys(names, 0.0))
    renderer = SceneRenderer(builtin_hand(), settings, SIZE, backgrounds=backgrounds)
    for index in range(12):
        renderer.render_foreground(sample_generator(5, index))
        # What was rasterised last: the nearest surface is at least 5 cm away (inverse depth below 20 per metre).
        assert renderer._z.max() < 20
