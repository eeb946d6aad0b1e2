"""Training examples: the same numbers wherever they are made, and labels that fit the pixels of every new crop."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from handmesh.config.augmentation import Augmentation
from handmesh.config.data import SyntheticData
from handmesh.config.load import load_config, parse_config
from handmesh.config.scenes import RENAMED_SCENE_KEYS, TrainingScenes
from handmesh.config.train import TrainConfig
from handmesh.data.augment import augment, labels_in, sample_crop, scaled_effects, without_hand
from handmesh.data.sample import HandSample
from handmesh.data.sources import (
    PackSource,
    ValidationPack,
    training_pack,
    validation_pack,
)
from handmesh.data.stream import HandBatch, TrainingStream, collate, resolution_at, training_batches
from handmesh.errors import ConfigError, DataError
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.crop import CropTransform
from handmesh.hand import JOINT_NAMES, builtin_hand, upright_rotation
from handmesh.hand.layer import HandModel
from handmesh.learn.targets import make_targets
from handmesh.synth import Backgrounds, CameraEffects, Pack, PackedSample, SceneSettings

HAND = HandModel(builtin_hand()).double()
WRIST, MIDDLE = JOINT_NAMES.index("wrist"), JOINT_NAMES.index("middle_mcp")


def posed(pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """(21, 3) joints of the hand model, float64."""
    return HAND(torch.from_numpy(np.asarray(pose, float)), torch.from_numpy(np.asarray(betas, float)))[1].numpy()


def rest_root(betas: np.ndarray) -> np.ndarray:
    """(3,) what the orientation turns about."""
    hand = builtin_hand()
    return hand.J_regressor[0] @ (hand.v_template + hand.shapedirs @ betas.astype(float))


def weak_perspective_residual(points: np.ndarray, keypoints: np.ndarray) -> float:
    """Mean distance, NDC, after the best scale and translation (least squares over s, s tx, s ty)."""
    count = len(points)
    columns = np.zeros((2 * count, 3))
    columns[:, 0], columns[:count, 1], columns[count:, 2] = points[:, :2].T.ravel(), 1, 1
    solution = np.linalg.lstsq(columns, keypoints.astype(float).T.ravel(), rcond=None)[0]
    return float(np.linalg.norm((columns @ solution).reshape(2, count).T - keypoints, axis=-1).mean())


def source(pack: Pack, config: TrainConfig) -> list[PackSource]:
    return [PackSource(pack, config.augmentation, config.seed)]


def stream_of(pack: Pack, config: TrainConfig) -> TrainingStream:
    return TrainingStream(source(pack, config), config)


def batches_of(pack: Pack, config: TrainConfig, first_step: int, *rank: int) -> Iterator[HandBatch]:
    return training_batches(source(pack, config), config, first_step, *rank)


def labelled(image: np.ndarray, packed: PackedSample, crop: CropTransform) -> HandSample:
    return HandSample(image, labels_in(crop, packed))


def same(first: HandSample, second: HandSample) -> bool:
    pairs = zip((first.image, *first.labels), (second.image, *second.labels), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def crops(tiny_pack):
    """(packed, crop, sample) of every render, at all turns and off-centre."""
    rng = np.random.default_rng(0)
    settings = Augmentation(upright_prob=0.3, center_jitter=0.3)
    image = np.zeros((64, 64, 3), np.uint8)
    found = []
    for index in range(len(tiny_pack)):
        crop = sample_crop(tiny_pack[index].keypoints, rng, settings)
        found.append((tiny_pack[index], crop, labelled(image, tiny_pack[index], crop)))
    return found


def test_labels_project_onto_their_keypoints_through_the_true_camera(crops):
    """The labelled hand, put where it is by the turned camera, is seen by the pinhole exactly where the crop says.

    The camera faces the crop's centre and is turned with the crop; the hand model turns about its root, so that is
    what the label's place is counted from.
    """
    for packed, crop, sample in crops:
        camera = Intrinsics.from_matrix(packed.intrinsics)
        crop_from_cam = crop.crop_from_image_axes @ camera.virtual_camera_rotation(crop.center)
        root = rest_root(packed.betas)
        place = crop_from_cam @ (root + packed.translation) - root
        joints_cam = (posed(sample.labels.pose, sample.labels.betas) + place) @ crop_from_cam
        np.testing.assert_allclose(crop.to_ndc(camera.project(joints_cam)), sample.labels.keypoints, atol=1e-4)


def test_labels_fit_a_weak_perspective_camera(crops):
    """What the network is asked for can be answered by its own camera, up to the perspective within a hand."""
    residuals = [
        weak_perspective_residual(posed(sample.labels.pose, sample.labels.betas), sample.labels.keypoints)
        for *_, sample in crops
    ]
    assert np.mean(residuals) < 0.03
    assert max(residuals) < 0.08


def test_off_axis_hands_are_labelled_as_a_camera_that_faces_them_sees_them(crops):
    """Leaving out `virtual_camera_rotation` makes labels of hands beside the axis disagree with their pixels."""
    residuals = []
    for packed, crop, sample in crops:
        camera = Intrinsics.from_matrix(packed.intrinsics)
        pose = sample.labels.pose.astype(float)
        crop_axes = crop.crop_from_image_axes
        pose[0] = (
            crop_axes @ camera.virtual_camera_rotation(crop.center).T @ crop_axes.T @ pose[0]
        )  # the turn taken out
        with_turn = weak_perspective_residual(posed(sample.labels.pose, sample.labels.betas), sample.labels.keypoints)
        residuals.append(
            (with_turn, weak_perspective_residual(posed(pose, sample.labels.betas), sample.labels.keypoints))
        )
    with_turn, without = np.mean(residuals, axis=0)
    assert with_turn < without


def test_labels_of_an_unturned_central_crop_are_the_renders_own(tiny_pack):
    packed = tiny_pack[3]
    center = (float(packed.intrinsics[0, 2]), float(packed.intrinsics[1, 2]))
    sample = labelled(np.zeros((64, 64, 3), np.uint8), packed, CropTransform(center, 96.0))
    np.testing.assert_allclose(sample.labels.pose, packed.pose, atol=1e-6)
    np.testing.assert_array_equal(sample.labels.betas, packed.betas)
    np.testing.assert_allclose(sample.labels.keypoints, (packed.keypoints - center) / 48, atol=1e-6)


def test_labels_do_not_write_into_the_pack(tiny_pack):
    before = tiny_pack[0].pose.copy()
    labelled(np.zeros((64, 64, 3), np.uint8), tiny_pack[0], CropTransform((40.0, 50.0), 60.0, rotation=1.0))
    np.testing.assert_array_equal(tiny_pack[0].pose, before)


def test_the_targets_of_a_batch_are_its_posed_hands(crops):
    samples = [sample for *_, sample in crops[:3]]
    targets = make_targets(collate(samples).labels, HandModel(builtin_hand()))
    for index, sample in enumerate(samples):
        np.testing.assert_allclose(targets.joints[index], posed(sample.labels.pose, sample.labels.betas), atol=1e-6)


def test_pixels_move_with_their_labels(tiny_pack):
    """In every augmented crop the hand's alpha lies where the keypoints say, whatever was turned and shifted."""
    rng, settings = np.random.default_rng(1), Augmentation(upright_prob=0.0)
    differences: list[float] = []
    for index in range(len(tiny_pack)):
        packed = tiny_pack[index]
        crop = sample_crop(packed.keypoints, rng, settings)
        alpha = crop.warp(np.ascontiguousarray(packed.image[..., 3]), 64)
        seen = (packed.keypoints.round() >= 1).all(axis=-1) & (packed.keypoints.round() < 95).all(axis=-1)
        before = packed.image[..., 3][tuple(packed.keypoints[seen].round().astype(int).T[::-1])]
        pixels = ((crop.to_ndc(packed.keypoints[seen]) + 1) * 32 - 0.5).round().astype(int)
        inside = ((pixels >= 1) & (pixels < 63)).all(axis=-1)
        after = alpha[tuple(pixels[inside].T[::-1])]
        differences += np.abs(after.astype(float) - before[inside]).tolist()
    # Tips lie on the edge of the hand, where a fraction of a pixel counts: all others agree.
    assert np.mean(np.array(differences) < 30) > 0.8
    assert len(differences) > 200


def test_upright_crops_point_up_and_the_others_anywhere(tiny_pack):
    keypoints = tiny_pack[0].keypoints
    rng = np.random.default_rng(0)

    def turns(upright: float) -> np.ndarray:
        crops = [sample_crop(keypoints, rng, Augmentation(upright_prob=upright)) for _ in range(400)]
        wrist_to_middle = [np.subtract(*crop.to_ndc(keypoints[[MIDDLE, WRIST]])) for crop in crops]
        return np.array([math.atan2(x, -y) for x, y in wrist_to_middle])  # 0 = up

    assert turns(1.0).std() == pytest.approx(Augmentation().upright_noise, rel=0.15)
    assert abs(turns(1.0).mean()) < 0.1
    anywhere = np.histogram(turns(0.0), bins=4, range=(-math.pi, math.pi))[0]
    assert anywhere.min() > 60, "a quarter of 400 in every direction, give or take"
    assert upright_rotation(keypoints) == pytest.approx(
        sample_crop(keypoints, rng, Augmentation(upright_prob=1.0, upright_noise=0.0)).rotation
    )


def test_crops_keep_to_their_margins(tiny_pack):
    keypoints, rng = tiny_pack[5].keypoints, np.random.default_rng(0)
    settings = Augmentation(margin=(1.2, 2.0), center_jitter=0.2)
    ratios, shifts = [], []
    for _ in range(200):
        crop = sample_crop(keypoints, rng, settings)
        tight = CropTransform.around_points(keypoints, margin=1.0, rotation=crop.rotation)
        ratios.append(crop.size / tight.size)
        shifts.append(np.abs(np.subtract(crop.center, tight.center)).max() / crop.size)
    assert min(ratios) >= 1.2 - 1e-9
    assert max(ratios) <= 2.0 + 1e-9
    assert max(ratios) - min(ratios) > 0.6, "the whole range is used"
    assert 0.1 < max(shifts) <= 0.2 + 1e-9


def test_an_example_depends_on_its_seed_and_place_only(tiny_pack, tiny_config):
    stream = stream_of(tiny_pack, tiny_config(steps=20))
    again = stream_of(tiny_pack, tiny_config(steps=20))
    examples = {g: again[g] for g in (37, 5, 0)}  # in another order
    assert all(same(stream[g], example) for g, example in examples.items())
    other_run = stream_of(tiny_pack, tiny_config(steps=20, seed=1))
    assert not any(same(stream[g], other_run[g]) for g in range(3))
    assert not same(stream[0], stream[16]), "the same render, seen anew"


def test_a_run_sees_the_same_bytes_from_any_number_of_workers_and_from_any_start(tiny_pack, tiny_config):
    alone = list(batches_of(tiny_pack, tiny_config(steps=5), 0))
    helped = list(batches_of(tiny_pack, tiny_config(steps=5, loader_workers=2), 0))
    later = list(batches_of(tiny_pack, tiny_config(steps=5), 3))
    assert (len(alone), len(helped), len(later)) == (5, 5, 2)
    for first, second in [*zip(alone, helped, strict=True), *zip(alone[3:], later, strict=True)]:
        assert all(
            torch.equal(a, b) for a, b in zip((first.image, *first.labels), (second.image, *second.labels), strict=True)
        )


def test_making_batches_leaves_torchs_random_numbers_alone(tiny_pack, tiny_config):
    """A loader draws a seed for its workers when it starts: with drop path, a resumed run once differed by that."""
    before = torch.get_rng_state()
    next(batches_of(tiny_pack, tiny_config(steps=5), 0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_every_epoch_visits_every_render_once_in_its_own_order(count, tiny_pack, tiny_config):
    class Recorder:
        def __init__(self) -> None:
            self.visited: list[int] = []

        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int):
            self.visited.append(index)
            return tiny_pack[index]

    recorder = Recorder()
    stream = stream_of(recorder, tiny_config(steps=50))
    for g in range(4 * count):
        stream[g]
    epochs = [recorder.visited[start : start + count] for start in range(0, 4 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 7:
        assert all(first != second for first, second in pairwise(epochs))


def test_an_easy_start_lowers_the_resolution_of_the_first_steps(tiny_pack, tiny_config):
    model = {"backbone": "fastvit_t8", "resolution": 96}
    config = tiny_config(model=model, steps=10, low_resolution=64, low_resolution_share=0.4)
    assert [resolution_at(config, step) for step in range(10)] == [64] * 4 + [96] * 6
    sides = [batch.image.shape[1] for batch in batches_of(tiny_pack, config, 2)]
    assert sides == [64, 64, 96, 96, 96, 96, 96, 96]
    assert resolution_at(tiny_config(steps=10), 0) == 64


def test_held_out_samples_are_fixed_and_of_other_scenes(tiny_pack, tiny_config):
    config = tiny_config()
    held_out = ValidationPack(validation_pack(config.data.synthetic, 8), upright=True)
    first, second = ([held_out.sample(position, 64) for position in range(len(held_out))] for _ in range(2))
    assert len(first) == 8
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    training_betas = {tuple(tiny_pack[index].betas) for index in range(len(tiny_pack))}
    assert not training_betas & {tuple(sample.labels.betas) for sample in first}
    ups = np.array([sample.labels.keypoints[MIDDLE] - sample.labels.keypoints[WRIST] for sample in first])
    assert (ups[:, 1] < 0).all(), "upright: the knuckle above the wrist"


def test_packs_of_other_settings_do_not_take_each_others_place(tiny_config, tiny_pack):
    data = tiny_config().data.synthetic
    assert len(training_pack(data)) == 16, "found, not rendered again"
    impostor = data.directory / "train-17-96px-seed0"
    impostor.symlink_to(tiny_pack.path)
    with pytest.raises(DataError, match=r"train-17-96px-seed0 was made with other arguments: count is 16, wanted 17"):
        training_pack(data.model_copy(update={"count": 17}))


def test_augmentation_can_be_switched_off(tiny_pack):
    """No effects: the same crop gives pixels between the hand's and the background's."""
    settings = Augmentation(effects=0.0, center_jitter=0.0, upright_prob=1.0, upright_noise=0.0)
    backgrounds = Backgrounds(0, count=1)
    sample = augment(tiny_pack[0], np.random.default_rng(0), settings, backgrounds, 64)
    assert sample.image.shape == (64, 64, 3)
    assert sample.image.dtype == np.uint8
    assert np.abs(sample.labels.keypoints).max() < 1


def test_effects_scale_with_their_strength():
    whole, half = CameraEffects(), scaled_effects(0.5)
    for name, value in vars(whole).items():
        assert getattr(half, name) == pytest.approx(value / 2)
    assert scaled_effects(1.0) == whole
    assert max(vars(scaled_effects(100.0)).values()) <= 1, "probabilities stay probabilities"
    assert scaled_effects(0.0) == CameraEffects.none()


def test_a_mirrored_sample_is_the_crop_in_a_mirror_and_has_keypoints_only(tiny_pack):
    """Pixels and keypoints of a left hand; nothing that a right hand could be asked for."""
    packed = tiny_pack[0]
    crop = CropTransform.around_points(packed.keypoints.astype(float), 1.5, rotation=0.4)
    image = np.zeros((64, 64, 3), np.uint8)
    straight, mirrored = labelled(image, packed, crop), labelled(image, packed, replace(crop, mirror=True))
    np.testing.assert_allclose(mirrored.labels.keypoints, straight.labels.keypoints * (-1, 1), atol=1e-6)
    assert (bool(straight.labels.right), bool(mirrored.labels.right)) == (True, False)
    assert mirrored.labels.present
    assert mirrored.labels.keypoints_known.all()
    assert not any(
        (
            mirrored.labels.pose_known,
            mirrored.labels.betas_known,
            mirrored.labels.joints_known,
            mirrored.labels.vertices_known,
        )
    )


def test_samples_without_a_hand_show_no_joint(tiny_pack, monkeypatch):
    """What is drawn of a render lies beside the hand: no keypoint in the crop, with room to spare."""
    drawn = []
    monkeypatch.setattr("handmesh.data.augment.draw", lambda packed, crop, *_: drawn.append((packed, crop)) or "crop")
    rng, backgrounds, settings = np.random.default_rng(0), Backgrounds(0, count=2), Augmentation()
    images = [without_hand(tiny_pack[i % len(tiny_pack)], rng, settings, backgrounds, 64) for i in range(60)]
    assert 10 < len(drawn) < 50
    for packed, crop in drawn:
        assert (np.abs(crop.to_ndc(packed.keypoints.astype(float))).max(axis=-1) > 1).all()
    others = [image for image in images if not isinstance(image, str)]
    assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in others)


def test_shares_of_mirrored_absent_and_wide_samples_are_as_asked(tiny_pack):
    rng, backgrounds = np.random.default_rng(0), Backgrounds(0, count=2)
    settings = Augmentation(mirrored=0.4, negative_ratio=0.25, effects=0)
    samples = [augment(tiny_pack[i % len(tiny_pack)], rng, settings, backgrounds, 64) for i in range(400)]
    present = [sample for sample in samples if sample.labels.present]
    assert len(present) / 400 == pytest.approx(0.75, abs=0.07)  # three standard deviations
    assert np.mean([not sample.labels.right for sample in present]) == pytest.approx(0.4, abs=0.09)
    absent = [sample for sample in samples if not sample.labels.present]
    assert not any(sample.labels.keypoints_known.any() or sample.labels.pose_known for sample in absent)

    settings = Augmentation(context_scale_prob=0.5, margin=(1.2, 1.5), context_scale=(3.0, 4.0), center_jitter=0)
    keypoints = tiny_pack[0].keypoints
    sides = np.array([sample_crop(keypoints, rng, settings).size for _ in range(300)])
    extent = np.ptp(keypoints, axis=0).max()
    assert (sides / extent > 2).mean() == pytest.approx(0.5, abs=0.1)


def scenes_of(changes: dict) -> TrainingScenes:
    return parse_config({"data": {"synthetic": {"scenes": changes}}}, "test").data.synthetic.scenes


def test_a_runs_scenes_can_be_changed_by_name():
    """What is not named stays as training draws it, within nested settings too; and so is a live run's."""
    changes = {"second_hand": 0, "pose": {"single_fingers": 0.5}, "crop_share": [0.4, 0.6]}
    usual, changed = TrainingScenes(), scenes_of(changes)
    assert changed.pose == usual.pose.model_copy(update={"single_fingers": 0.5})
    assert changed == usual.model_copy(update={"second_hand": 0.0, "pose": changed.pose, "crop_share": (0.4, 0.6)})
    assert usual != SceneSettings()
    assert parse_config({"data": {"live": {"scenes": changes}}}, "test").data.live.scenes == changed
    assert load_config(None, ["data.synthetic.scenes={glove: 0.5}"]).data.synthetic.scenes.glove == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secnd_hand": 0}, r"data\.synthetic\.scenes\.secnd_hand is not a setting; did you mean 'second_hand'"),
        ({"pose": {"fingers": 0}}, r"scenes\.pose\.fingers is not a setting"),
        ({"pose": 0}, r"scenes\.pose: .*TrainingPoses.*, found 0"),
        ({"glove": "often"}, r"scenes\.glove: .*number, found 'often'"),
        ({"crop_share": [0.4]}, r"scenes\.crop_share\.1: Field required"),
        ({"crop_share": [3, 1]}, r"scenes: crop_share is \(3.0, 1.0\), wanted two numbers from 0 on"),
        ({"glove": -0.1}, r"scenes: glove is -0.1, wanted a number from 0 on"),
        ({"lights": {"spots": [0, math.nan]}}, r"scenes\.lights\.spots"),
        (
            {f"{name}_views": 0 for name in ("uniform", "tripod", "selfie", "egocentric", "table", "room")},
            r"room_views are all 0: wanted one above",
        ),
        ({"skin": {"relief": [0.1, math.inf]}}, r"scenes\.skin\.relief"),
    ],
)
def test_a_scene_setting_that_is_none_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        scenes_of(changes)


def test_a_pack_that_a_former_version_named_is_found(quick_scenes, tmp_path):
    """The name came from the text of the changes ("0", "0.0"); what a pack holds is in its meta.json."""
    settings = SyntheticData(directory=tmp_path, count=2, size=64, workers=1, scenes=scenes_of({"object": 0}))
    pack = training_pack(settings)
    former = pack.path.with_name("train-2-64px-seed0-scenes12345678")
    pack.path.rename(former)
    meta = json.loads((former / "meta.json").read_text())
    former_names = {new: old for old, new in RENAMED_SCENE_KEYS.items()}
    meta["settings"] = {former_names.get(name, name): value for name, value in meta["settings"].items()}
    (former / "meta.json").write_text(json.dumps(meta))
    assert {"least_clear", "least_visible"} < meta["settings"].keys()
    assert training_pack(settings).path == former
    other = settings.model_copy(update={"scenes": scenes_of({"object": 0.1})})
    assert training_pack(other).path not in (former, pack.path)


def test_a_pack_of_other_scenes_that_was_interrupted_is_gone_on_with(quick_scenes, tmp_path):
    """What lies there unfinished has the same meta.json, and black images without keypoints."""
    settings = SyntheticData(directory=tmp_path, count=2, size=64, workers=1, scenes=scenes_of({"object": 0}))
    path = training_pack(settings).path
    keypoints = np.load(path / "keypoints.npy")
    np.save(path / "keypoints.npy", np.zeros_like(keypoints))
    np.save(path / "done.npy", np.zeros(1, np.uint8))
    path.rename(path.with_name(path.name + ".partial"))
    pack = training_pack(settings)
    assert pack.path == path
    np.testing.assert_array_equal(pack.arrays["keypoints"], keypoints)


def test_sets_of_other_scenes_lie_beside_each_other(quick_scenes, tmp_path):
    plain = SyntheticData(directory=tmp_path, count=2, size=64, workers=1)
    bare = plain.model_copy(update={"scenes": scenes_of({"object": 0, "stray_object": 0})})
    assert training_pack(bare).meta["settings"]["object"] == 0
    assert training_pack(plain).meta["settings"]["object"] == SceneSettings().object
    assert len(list(tmp_path.iterdir())) == 2
