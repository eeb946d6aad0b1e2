"""Synthetic scenes: labels agree with the pixels and with an independent hand model; the same seed, the same bytes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from handmesh.config.scenes import LightSettings
from handmesh.errors import DataError
from handmesh.hand import FINGERTIP_VERTICES, JOINT_NAMES, JOINTS_FROM_MANO, MANO_PARENTS, builtin_hand
from handmesh.hand.anatomy import palm_frame
from handmesh.synth import (
    Backgrounds,
    CameraEffects,
    SceneRenderer,
    SceneSettings,
    Shot,
    SyntheticSample,
    camera_effects,
    composite,
    jitter_spectrum,
    mix_amplitude,
    place_on_background,
    sample_generator,
    view_rotation,
)
from handmesh.synth.backgrounds import (
    _FAMILIES,
    _HELD_OUT_FAMILIES,
    _draw_limb,
    draw_distractors,
    procedural_background,
)
from handmesh.synth.parts import sample_lights, sample_skin, sphere_directions

SIZE = 96
COUNT = 12


@pytest.fixture(scope="module")
def backgrounds() -> Backgrounds:
    return Backgrounds(seed=0, count=8)


@pytest.fixture(scope="module")
def renderer(backgrounds: Backgrounds) -> SceneRenderer:
    return SceneRenderer(builtin_hand(), SceneSettings(), SIZE, backgrounds=backgrounds)


@pytest.fixture(scope="module")
def bare(backgrounds: Backgrounds) -> SceneRenderer:
    """Nothing but an arm."""
    settings = SceneSettings(sleeve=0, bracelet=0, object=0, stray_object=0, second_hand=0, ring=0, occluder=0)
    return SceneRenderer(builtin_hand(), settings, SIZE, backgrounds=backgrounds)


@pytest.fixture(scope="module")
def samples(renderer: SceneRenderer) -> list[SyntheticSample]:
    return [renderer.render(sample_generator(1, i)) for i in range(COUNT)]


@pytest.fixture(scope="module")
def bare_samples(bare: SceneRenderer) -> list[SyntheticSample]:
    return [bare.render_foreground(sample_generator(2, i)) for i in range(COUNT)]


def skinned(pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """MANO's function written out per vertex and joint, float64: (778, 3)."""
    hand = builtin_hand()
    shaped = hand.v_template + np.einsum("vck,k->vc", hand.shapedirs, betas)
    rest = hand.J_regressor @ shaped
    posed = shaped + np.einsum("vcp,p->vc", hand.posedirs, (pose[1:] - np.eye(3)).ravel())
    world = []
    for joint, parent in enumerate(MANO_PARENTS):
        local = np.eye(4)
        local[:3, :3] = pose[joint]
        local[:3, 3] = rest[joint] - (rest[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    from_rest = []
    for joint in range(16):
        back = np.eye(4)
        back[:3, 3] = -rest[joint]
        from_rest.append(world[joint] @ back)
    blended = np.einsum("vj,jab->vab", hand.weights, np.stack(from_rest))
    return np.einsum("vab,vb->va", blended, np.column_stack([posed, np.ones(len(posed))]))[:, :3]


def test_vertices_are_the_hand_model_plus_a_translation(samples):
    for sample in samples:
        expected = skinned(sample.pose.astype(float), sample.betas.astype(float)) + sample.translation
        np.testing.assert_allclose(sample.vertices, expected, atol=1e-5)


def test_pose_holds_rotations(samples):
    for sample in samples:
        gram = sample.pose.astype(float) @ sample.pose.astype(float).transpose(0, 2, 1)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), (16, 3, 3)), atol=1e-5)
        assert (np.linalg.det(sample.pose) > 0.99).all()


def test_joints_are_regressed_from_the_posed_mesh(samples):
    """FreiHAND's definition, not the kinematic chain."""
    for sample in samples:
        vertices = sample.vertices.astype(float)
        regressed = np.vstack([builtin_hand().J_regressor @ vertices, vertices[list(FINGERTIP_VERTICES)]])
        np.testing.assert_allclose(sample.joints, regressed[list(JOINTS_FROM_MANO)], atol=1e-5)


def test_keypoints_are_the_pinhole_projection_of_the_joints(samples):
    for sample in samples:
        image_plane = sample.joints @ sample.intrinsics.T
        np.testing.assert_allclose(sample.keypoints, image_plane[:, :2] / image_plane[:, 2:], atol=1e-3)
        assert (sample.joints[:, 2] > 0.1).all()


def test_the_drawn_hand_is_where_the_vertices_project(bare_samples):
    """Pixel centres at integers: the mask's centroid is that of the projected triangles, filled by OpenCV at 8x.

    An error of half a pixel (the other common convention) would show as 0.5. Single hands are up to 0.2 off, by what
    the forearm hides and an outline that is rounder than the coarse mesh.
    """
    fine, differences = 8, []
    for sample in bare_samples:
        plane = sample.vertices @ sample.intrinsics.T
        points = ((plane[:, :2] / plane[:, 2:] + 0.5) * fine - 0.5) * 16  # OpenCV takes 1/16 px with shift=4
        filled = np.zeros((SIZE * fine, SIZE * fine), np.uint8)
        for face in builtin_hand().faces:
            cv2.fillConvexPoly(filled, np.round(points[face]).astype(np.int32), 255, shift=4)
        expected = cv2.resize(filled, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(float)
        found = sample.mask.astype(float)
        if found.sum() < 0.997 * expected.sum():
            continue  # the forearm is in front of a part of it
        y, x = np.mgrid[0:SIZE, 0:SIZE]
        differences.append(
            [(found * axis).sum() / found.sum() - (expected * axis).sum() / expected.sum() for axis in (x, y)]
        )
    assert len(differences) >= 4
    assert np.abs(np.median(differences, axis=0)).max() < 0.08


def test_visible_joints_lie_on_the_hand(bare_samples):
    for sample in bare_samples:
        for (x, y), seen in zip(np.round(sample.keypoints).astype(int), sample.visible, strict=True):
            if seen:
                near = sample.alpha[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
                assert near.max() > 0


def test_a_joint_outside_the_image_is_not_visible(samples):
    for sample in samples:
        outside = ((sample.keypoints < -0.5) | (sample.keypoints > SIZE - 0.5)).any(axis=1)
        assert not (sample.visible & outside).any()


def test_occluders_hide_joints_and_the_mask(backgrounds):
    """Where something is put in front, the mask no longer says hand, and the joints there are no longer visible."""
    plain = SceneSettings(
        sleeve=0, bracelet=0, object=0, stray_object=0, second_hand=0, ring=0, occluder=0, min_visible=0
    )
    covered = plain.model_copy(update={"occluder": 1.0})
    first = SceneRenderer(builtin_hand(), plain, SIZE, backgrounds=backgrounds)
    second = SceneRenderer(builtin_hand(), covered, SIZE, backgrounds=backgrounds)
    lost = 0
    for i in range(6):
        clean = first.render_foreground(sample_generator(4, i))
        hidden = second.render_foreground(sample_generator(4, i))
        np.testing.assert_array_equal(clean.keypoints, hidden.keypoints)  # the same scene
        assert (hidden.mask <= clean.mask).all()
        assert (hidden.alpha.astype(int) >= clean.alpha.astype(int) - 1).all()
        assert (hidden.visible <= clean.visible).all()
        lost += int((clean.visible & ~hidden.visible).sum())
    assert lost > 0


def test_what_is_in_front_leaves_as_much_to_see_as_is_asked_for(backgrounds):
    """It was drawn after the joints were counted: one scene in twenty that had it showed fewer."""
    settings = SceneSettings(occluder=1, second_hand=0, min_visible=0.45)
    renderer = SceneRenderer(builtin_hand(), settings, 48, 1, backgrounds)
    assert min(renderer.render_foreground(sample_generator(9, i)).visible.mean() for i in range(60)) >= 0.45


def test_a_shot_is_drawn_as_it_is_given(renderer, bare):
    """Hand and camera are those; with another seed only the rest differs. Frames of a clip are made so."""
    angles = bare.prior.sample(np.random.default_rng(4)).rotations
    camera = np.array([[SIZE * 1.1, 0, 40], [0, SIZE * 1.1, 50], [0, 0, 1.0]])
    betas, place = np.linspace(-1, 1, 10), np.array([0.02, -0.01, 0.4])
    shot = Shot(angles, betas, view_rotation(np.array([0.2, 0.1, -1.0]), 0.3), place, camera)
    first, second = (renderer.render(sample_generator(12, seed), shot) for seed in (0, 1))
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    assert (first.image != second.image).mean() > 0.5
    np.testing.assert_allclose(first.pose[1:], angles[1:], atol=1e-6)
    np.testing.assert_allclose(first.betas, betas, atol=1e-6)
    np.testing.assert_allclose(first.vertices.mean(axis=0), place, atol=1e-5)
    np.testing.assert_allclose(first.vertices, skinned(first.pose, betas) + first.translation, atol=1e-5)
    drawn = first.joints @ camera.T
    np.testing.assert_allclose(first.keypoints, drawn[:, :2] / drawn[:, 2:], atol=1e-3)


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before(renderer, backgrounds):
    """Buffers are reused between scenes: nothing of an earlier scene may leak into a later one."""
    first = renderer.render(sample_generator(3, 7))
    renderer.render(sample_generator(3, 8))
    fresh = SceneRenderer(builtin_hand(), SceneSettings(), SIZE, backgrounds=backgrounds)
    for again in (renderer.render(sample_generator(3, 7)), fresh.render(sample_generator(3, 7))):
        for name in ("image", "alpha", "mask", "keypoints", "visible", "vertices", "pose", "translation"):
            assert getattr(first, name).tobytes() == getattr(again, name).tobytes(), name


def test_hands_fill_the_share_of_the_frame_that_was_asked_for(backgrounds):
    settings = SceneSettings(crop_share=(0.6, 0.7), off_center=0)
    renderer = SceneRenderer(builtin_hand(), settings, SIZE, backgrounds=backgrounds)
    for i in range(4):
        sample = renderer.render_foreground(sample_generator(5, i))
        plane = sample.vertices @ sample.intrinsics.T
        points = plane[:, :2] / plane[:, 2:]
        extent = (points.max(axis=0) - points.min(axis=0)).max() / SIZE
        assert 0.6 - 1e-3 <= extent <= 0.7 + 1e-3
        np.testing.assert_allclose((points.max(axis=0) + points.min(axis=0)) / 2, (SIZE - 1) / 2, atol=1e-2)


def test_skin_tones_are_even_over_the_whole_range(bare):
    """Uniform in ITA from -55 to 62 degrees: each third gets its share."""
    tones = [float(bare.render_foreground(sample_generator(6, i)).facts["ita_degrees"]) for i in range(60)]
    counts, _ = np.histogram(tones, bins=[-55, -16, 23, 62])
    assert counts.sum() == 60
    assert counts.min() >= 9  # 20 expected, standard deviation 3.7


def test_skin_has_the_tone_that_its_label_says():
    """Measured by OpenCV. The palest hands were 7 degrees darker than said, the darkest 7 paler."""
    for seed in range(200):
        skin = sample_skin(np.random.default_rng(seed), 0)
        linear = skin.dorsal[None, None].astype(np.float32)
        lightness, _, b = cv2.cvtColor(linear, cv2.COLOR_LRGB2Lab)[0, 0]
        assert np.degrees(np.arctan2(lightness - 50, b)) == pytest.approx(skin.ita_degrees, abs=0.1)


@pytest.mark.parametrize("toward", [(0, 0, 1.0), (0, 0, -1.0), (0.3, -0.8, 0.5), (0, 1.0, 0), (0, -1.0, 0)])
@pytest.mark.parametrize("angle", [0.0, 0.7, -2.0])
def test_view_rotation_looks_from_where_it_says(toward, angle):
    direction = np.array(toward) / np.linalg.norm(toward)
    rotation = view_rotation(direction, angle)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation @ direction, [0, 0, -1], atol=1e-12)  # towards the camera is -z
    fingers = rotation @ [0, 1.0, 0]
    if abs(fingers[2]) < 0.99:  # up is -y; a positive angle turns clockwise on the screen
        np.testing.assert_allclose(np.arctan2(fingers[0], -fingers[1]), angle, atol=1e-9)


def test_selfies_show_the_palm_or_the_back_as_asked(backgrounds):
    """A camera on the palm's side sees palmar vertices nearer than dorsal ones."""
    settings = SceneSettings(uniform_views=0, tripod_views=0, egocentric_views=0, table_views=0, room_views=0)
    renderer = SceneRenderer(builtin_hand(), settings, SIZE, backgrounds=backgrounds)
    up = 0
    for i in range(8):
        sample = renderer.render_foreground(sample_generator(7, i))
        assert sample.facts["view"] == "selfie"
        wrist, knuckle = (sample.joints[JOINT_NAMES.index(name)] for name in ("wrist", "middle_mcp"))
        up += bool(knuckle[1] < wrist[1])
    assert up >= 7  # the in-plane angle's standard deviation is 26 degrees


def test_tripod_cameras_see_the_hand_from_all_around(backgrounds):
    """Palm, back and edge are equally common, and the arm is seldom seen end on."""
    settings = SceneSettings(
        uniform_views=0, selfie_views=0, egocentric_views=0, table_views=0, room_views=0, min_unoccluded=1e-9,
        min_visible=0,
    )  # fmt: skip
    renderer = SceneRenderer(builtin_hand(), settings, 32, backgrounds=backgrounds)
    palm = palm_frame(builtin_hand())
    facing, along = [], []
    for i in range(60):
        sample = renderer.render_foreground(sample_generator(8, i))
        assert sample.facts["view"] == "tripod"
        turned = sample.pose[0].astype(float) @ np.stack([palm.dorsal, palm.distal], axis=1)
        facing.append(-turned[2, 0])  # 1: the back faces the camera
        along.append(abs(turned[2, 1]))
        assert 0.35 < sample.joints[9, 2] < 1.1
    counts, _ = np.histogram(facing, bins=[-1, -0.6, 0.6, 1])  # around a circle: 30 %, 41 %, 30 %
    assert counts.min() >= 8
    assert np.mean(np.array(along) > 0.85) < 0.2


def test_light_comes_from_where_the_settings_say():
    directions = sphere_directions(24)

    def draw(**shares: float) -> list:
        settings = LightSettings(**{"back": 0, "flash": 0, "overcast": 0, "colored": 0, **shares})
        return [sample_lights(np.random.default_rng(i), directions, settings) for i in range(20)]

    assert all(lights.direction[2] > 0 for lights in draw(back=1))  # away from the camera
    assert all(lights.direction[2] < -0.8 for lights in draw(flash=1))
    assert all((lights.key == 0).all() for lights in draw(overcast=1))
    # As many lamps as are asked for: none leaves the sky, which no direction exceeds by far.
    few, many = ([np.ptp(lights.radiance) for lights in draw(spots=(count, count))] for count in (0, 5))
    assert max(few) < np.median(many)

    def purity(lights) -> float:
        both = np.stack([lights.key, lights.radiance.mean(axis=0)])
        return float((np.ptp(both, axis=1) / both.max(axis=1)).max())

    assert np.mean([purity(l) for l in draw(colored=1)]) > np.mean([purity(l) for l in draw()]) + 0.1


@pytest.mark.parametrize(("arguments", "words"), [({"size": 8}, "size is 8"), ({"supersample": 9}, "supersample is 9")])
def test_impossible_renderers_are_refused(backgrounds, arguments, words):
    with pytest.raises(ValueError, match=words):
        SceneRenderer(builtin_hand(), SceneSettings(), backgrounds=backgrounds, **arguments)


def test_a_left_hand_is_refused(backgrounds):
    with pytest.raises(ValueError, match="left"):
        SceneRenderer(builtin_hand().mirrored(), SceneSettings(), SIZE, backgrounds=backgrounds)


# ------------------------------------------------------------------------------------------- compositing and effects


def test_edges_take_on_any_background_without_a_halo(bare_samples):
    """On a background of the hand's own colours edges must vanish; black outside must never show through."""
    for sample in bare_samples[:4]:
        assert (sample.image[sample.alpha == 0] == 0).all()
        assert (sample.image.max(axis=2) <= sample.alpha).all()  # premultiplied
        covered = sample.alpha == 255
        edge = (sample.alpha > 0) & ~covered
        white = composite(sample.image, sample.alpha, np.full_like(sample.image, 255)).astype(float)
        black = composite(sample.image, sample.alpha, np.zeros_like(sample.image)).astype(float)
        # Over white minus over black is what shines through: 255 - alpha, in every channel.
        np.testing.assert_allclose((white - black)[edge], np.repeat(255.0 - sample.alpha[edge][:, None], 3, 1), atol=1)
        np.testing.assert_array_equal(white[covered], black[covered])


def test_composite_is_the_over_operator():
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 256, (17, 23), dtype=np.uint8)
    color = rng.integers(0, 256, (17, 23, 3))
    foreground = np.round(color * (alpha[..., None] / 255)).astype(np.uint8)
    background = rng.integers(0, 256, (17, 23, 3), dtype=np.uint8)
    share = alpha[..., None] / 255
    expected = color * share + background * (1 - share)
    np.testing.assert_allclose(composite(foreground, alpha, background), expected, atol=1.01)


def test_effects_of_zero_strength_change_nothing():
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    np.testing.assert_array_equal(camera_effects(np.random.default_rng(1), image, CameraEffects.none()), image)


def test_effects_do_not_move_the_image():
    """A bright dot stays where it was, whatever blur, rescaling and JPEG do to it."""
    image = np.full((65, 65, 3), 40, np.uint8)
    image[28:37, 18:27] = 220  # centred on x = 22, y = 32
    effects = CameraEffects(uneven_light=0)  # moves nothing, but which side of the dot is brighter
    for seed in range(40):
        seen = camera_effects(np.random.default_rng(seed), image, effects).astype(float).mean(axis=2)
        weight = np.clip(seen - np.median(seen) - 40, 0, None)
        y, x = np.mgrid[0:65, 0:65]
        assert abs((x * weight).sum() / weight.sum() - 22) < 0.75
        assert abs((y * weight).sum() / weight.sum() - 32) < 0.75


@pytest.mark.parametrize("effect", ["low_resolution", "motion"])
@pytest.mark.parametrize("side", [65, 160, 224])
def test_what_blurs_a_photo_leaves_it_where_it_was(side, effect):
    """Far from the corner, too: there a small photo that is enlarged lay up to three pixels off. Motion blur of an even
    length moved it by half a pixel.
    """
    y, x = np.mgrid[0:side, 0:side]
    middle, spread = 0.8 * side, side / 20
    dot = np.exp(-((x - middle) ** 2 + (y - middle) ** 2) / (2 * spread**2))
    image = np.repeat(np.rint(200 * dot).astype(np.uint8)[..., None], 3, axis=-1)
    effects = CameraEffects.none().model_copy(update={effect: 1.0})
    for seed in range(20):
        seen = camera_effects(np.random.default_rng(seed), image, effects).astype(float).mean(axis=2)
        assert np.abs([(axis * seen).sum() / seen.sum() - middle for axis in (x, y)]).max() < 0.2


def test_effects_are_repeatable_and_leave_their_input_alone():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = image.copy()
    results = [[camera_effects(np.random.default_rng(seed), image) for seed in range(12)] for _ in range(2)]
    np.testing.assert_array_equal(image, before)
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
        assert first.shape == image.shape
        assert first.dtype == np.uint8


def test_effects_refuse_whole_photographs():
    with pytest.raises(ValueError, match="at most 512"):
        camera_effects(np.random.default_rng(0), np.zeros((600, 800, 3), np.uint8))


def test_spectral_jitter_keeps_colour_and_shapes():
    """The mean colour stays exactly (but for clipping), a large shape stays where it was."""
    image = np.full((64, 64, 3), (90, 120, 150), np.uint8)
    image[16:48, 8:40] = (150, 100, 90)
    for seed in range(8):
        jittered = jitter_spectrum(np.random.default_rng(seed), image)
        np.testing.assert_allclose(jittered.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=1.0)
        assert np.corrcoef(jittered.ravel(), image.ravel())[0, 1] > 0.8
        assert (jittered != image).mean() > 0.5


def test_mixing_amplitudes_takes_colour_from_the_other_image_and_shape_from_the_first():
    rng = np.random.default_rng(0)
    image = np.full((64, 64, 3), 60, np.uint8)
    image[20:44, 12:36] = 200
    other = np.full((48, 48, 3), (220, 120, 40), np.uint8)
    np.testing.assert_allclose(mix_amplitude(rng, image, image).astype(int), image, atol=1)
    np.testing.assert_allclose(mix_amplitude(rng, image, other, share=0).astype(int), image, atol=1)
    for seed in range(6):
        mixed = mix_amplitude(np.random.default_rng(seed), image, other).astype(float)
        before, wanted = image.mean(axis=(0, 1)), other.mean(axis=(0, 1))
        change = mixed.mean(axis=(0, 1)) - before
        assert (np.sign(np.round(change, 1)) == np.sign(wanted - before)).all()  # each channel towards the other's
        assert mixed[24:40, 16:32].mean() > mixed[:, 44:].mean() + 20  # the square is still the bright part


def test_a_bad_matte_lets_the_background_through(bare_samples):
    sample = bare_samples[0]
    backgrounds = [np.full_like(sample.image, value) for value in (0, 255)]
    through = []
    for seed in range(6):
        black, white = (
            place_on_background(np.random.default_rng(seed), sample.image, sample.alpha, b, shadow=0, soft_matte=1)
            for b in backgrounds
        )
        through.append((white.astype(int) - black)[sample.alpha == 255].mean())
    assert max(through) > 15  # up to a quarter of 255 in half of the cases
    assert min(through) < 0.5 * max(through)  # the other half has soft edges only


def test_placing_a_hand_leaves_the_background_bright_where_nothing_is(bare_samples):
    sample = bare_samples[0]
    white = np.full_like(sample.image, 255)
    placed = place_on_background(np.random.default_rng(0), sample.image, sample.alpha, white, shadow=0, soft_matte=0)
    assert (placed[sample.alpha == 0] == 255).all()


# -------------------------------------------------------------------------------------------------- backgrounds, sheet


def test_negatives_are_repeatable_and_show_more_than_their_background(backgrounds):
    def plain(rng: np.random.Generator) -> np.ndarray:
        return draw_distractors(rng, np.full((SIZE, SIZE, 3), 128, np.uint8))

    drawn = [plain(np.random.default_rng(i)) for i in range(24)]
    covered = [(np.abs(image.astype(int) - 128) > 25).any(axis=2).mean() for image in drawn]
    assert sum(share > 0.02 for share in covered) >= 10  # a quarter is background alone, some things are small
    for i in range(4):
        first, second = (backgrounds.sample_distractor(np.random.default_rng(i), SIZE) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.shape == (SIZE, SIZE, 3)
        assert first.dtype == np.uint8


def test_a_distracting_arm_leaves_the_picture():
    """It ends in no hand: from its rounded start it goes out over an edge."""
    for seed in range(20):
        image = np.zeros((SIZE, SIZE, 3), np.float32)
        _draw_limb(np.random.default_rng(seed), image, np.full(3, 200.0), np.array([48.0, 48]), 8.0)
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert edge.max() > 100
        assert image[48, 48].max() > 100


def test_the_held_out_look_shares_hands_and_views_but_no_light_and_no_background_with_training():
    training, held_out = SceneSettings(), SceneSettings.held_out_appearance()
    assert held_out.pose == training.pose
    for name in vars(training):
        if name.endswith("_views") or name in ("crop_share", "object", "second_hand", "min_unoccluded"):
            assert getattr(held_out, name) == getattr(training, name), name
    # No skin of the held-out look could have come up in training.
    for name in ("relief", "mottle", "roughness", "specular", "scatter"):
        (low, high), (other_low, other_high) = getattr(training.skin, name), getattr(held_out.skin, name)
        assert high <= other_low or other_high <= low, name
    assert not {family for family, _ in _FAMILIES} & {family for family, _ in _HELD_OUT_FAMILIES}
    ours = Backgrounds(seed=3, count=1, held_out=True).sample(np.random.default_rng(0), 32)
    assert (ours != Backgrounds(seed=3, count=1).sample(np.random.default_rng(0), 32)).any()


@pytest.mark.parametrize("family", [family for family, _ in _FAMILIES + _HELD_OUT_FAMILIES])
def test_every_family_of_backgrounds_varies(family):
    first, second = (procedural_background(np.random.default_rng(seed), 64, ((family, 1.0),)) for seed in (1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.abs(first.astype(int) - second).mean() > 3


def test_backgrounds_from_a_folder(tmp_path):
    photo = np.zeros((50, 80, 3), np.uint8)
    photo[..., 0] = 200  # blue in OpenCV's order
    cv2.imwrite(str(tmp_path / "wall.png"), photo)
    bank = Backgrounds(seed=0, count=1, folder=tmp_path, size=64)
    rng = np.random.default_rng(0)
    found = [bank.sample(rng, 33) for _ in range(20)]
    assert all(image.shape == (33, 33, 3) for image in found)
    blue = [image for image in found if (image == [0, 0, 200]).all()]
    assert 3 <= len(blue) <= 17  # half of them


def test_backgrounds_that_are_not_read_are_told(tmp_path, monkeypatch, caplog):
    """Of ten thousand photographs four fifths were left out, and nobody heard of it."""
    monkeypatch.setattr("handmesh.synth.backgrounds.FOLDER_LIMIT", 2)
    for name in ("b", "a", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((8, 8, 3), ord(name), np.uint8))
    bank = Backgrounds(seed=0, count=1, folder=tmp_path, size=8)
    assert [image.mean() for image in bank._photos] == [ord("a"), ord("b")]
    assert f"{tmp_path} has 3 images: the first 2 by name are backgrounds" in caplog.messages
    (tmp_path / "c.png").unlink()
    caplog.clear()
    Backgrounds(seed=0, count=1, folder=tmp_path, size=8)
    assert not caplog.messages


def test_an_empty_background_folder_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="No background image"):
        Backgrounds(seed=0, count=1, folder=tmp_path)
