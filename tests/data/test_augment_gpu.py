"""Augmentation of whole batches: labels and crops of the one-by-one path, and a real codec's JPEG."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from handmesh.config.augmentation import Augmentation
from handmesh.data.augment import labels_in, sample_crop
from handmesh.data.augment_gpu import (
    BatchAugmenter,
    Crops,
    _Draws,
    _share_inside,
    _shifted_jpeg,
    camera_effects_batch,
    crop_labels,
    crops_beside_hand,
    jpeg,
    mix_amplitudes,
    picture_bank,
    place_on_backgrounds,
    sample_crops,
    warp,
)
from handmesh.geometry.crop import CropTransform
from handmesh.synth import CameraEffects, mix_amplitude
from handmesh.synth.backgrounds import procedural_background
from handmesh.synth.farm import RenderBatch

CPU = torch.device("cpu")
WIDE = Augmentation(context_scale_prob=0.4, mirrored=0.3, center_jitter=0.3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def renders(tiny_pack) -> RenderBatch:
    """The 16 renders of 96 px."""
    arrays = {**tiny_pack.arrays, "indices": np.arange(len(tiny_pack))}
    return RenderBatch(*(torch.from_numpy(np.array(arrays[name])) for name in RenderBatch._fields))


@pytest.fixture(scope="module")
def backgrounds() -> torch.Tensor:
    return picture_bank([procedural_background(np.random.default_rng((7, i)), 96) for i in range(4)], CPU)


def one_by_one(crops: Crops) -> list[CropTransform]:
    return [
        CropTransform((float(x), float(y)), float(size), float(rotation), bool(mirror))
        for (x, y), size, rotation, mirror in zip(*crops, strict=True)
    ]


def test_labels_are_those_of_the_one_by_one_path(renders, tiny_pack):
    """To 1e-5: keypoints of all crops, poses of those that are not mirrored, for those have none."""
    crops = sample_crops(renders.keypoints, WIDE, seeded())
    assert 0 < crops.mirror.sum() < 16
    keypoints, pose = crop_labels(renders, crops)
    for index, crop in enumerate(one_by_one(crops)):
        wanted = labels_in(crop, tiny_pack[index])
        np.testing.assert_allclose(keypoints[index], wanted.keypoints, atol=1e-5)
        if not crop.mirror:
            np.testing.assert_allclose(pose[index], wanted.pose, atol=1e-5)
        else:
            assert not wanted.pose_known
    points = torch.rand(16, 5, 2) * 96
    torch.testing.assert_close(crops.to_image(crops.to_ndc(points)), points, atol=1e-3, rtol=0)


def test_crops_are_placed_as_the_one_by_one_path_places_them(renders, tiny_pack):
    """With nothing left to chance both make the same square."""
    settings = Augmentation(upright_prob=1.0, upright_noise=0.0, margin=(1.3, 1.3), center_jitter=0.0)
    crops = sample_crops(renders.keypoints, settings, seeded())
    for index, crop in enumerate(one_by_one(crops)):
        wanted = sample_crop(tiny_pack[index].keypoints, np.random.default_rng(0), settings)
        np.testing.assert_allclose(crop.center, wanted.center, atol=1e-3)
        assert crop.size == pytest.approx(wanted.size, rel=1e-5)
        assert math.remainder(crop.rotation - wanted.rotation, 2 * math.pi) == pytest.approx(0, abs=1e-5)


def test_crops_spread_as_asked(renders):
    many = renders.keypoints.repeat(64, 1, 1)
    settings = Augmentation(context_scale_prob=0.25, mirrored=0.5, center_jitter=0.0, margin=(1.2, 1.9))
    crops = sample_crops(many, settings, seeded())
    margin = 2 / crops.to_ndc(many).abs().amax(dim=(1, 2)) / 2  # centred: the farthest point is at 1 / margin
    assert ((margin > 1.2 - 1e-3) & (margin < 4.0 + 1e-3)).all()
    assert (margin > 2.0).float().mean() == pytest.approx(0.25, abs=0.05)
    assert crops.mirror.float().mean() == pytest.approx(0.5, abs=0.05)
    assert crops.rotation.std() > 1  # 0.4 of them turned anyhow


@pytest.mark.parametrize("resolution", [64, 32])
def test_crops_show_what_the_one_by_one_crops_show(renders, tiny_pack, resolution):
    """Magnified the same arithmetic (OpenCV's, which rounds positions to 1/32 px); shrunk, two ways to take means, the
    farther apart the finer the texture: up to 0.49 of what half a pixel to the side would change, a quarter on average.
    """
    crops = sample_crops(renders.keypoints, WIDE, seeded(1))
    images = renders.image.permute(0, 3, 1, 2) / 255
    seen = (warp(images, crops, resolution, "border", 8.0) * 255).permute(0, 2, 3, 1).numpy()
    inside = _share_inside(crops, 96, resolution)[:, 0].numpy()
    shrinks, parts = [], []
    for index, crop in enumerate(one_by_one(crops)):
        image = np.ascontiguousarray(tiny_pack[index].image)
        wanted = crop.warp(image, resolution, cv2.BORDER_REPLICATE).astype(float)
        shrinks.append(crop.size / resolution)
        aside = replace(crop, center=(crop.center[0] + shrinks[-1] / 2, crop.center[1]))
        half_a_pixel = np.abs(seen[index] - aside.warp(image, resolution, cv2.BORDER_REPLICATE)).mean()
        parts.append(np.abs(seen[index] - wanted).mean() / half_a_pixel)
        assert np.abs(seen[index] - wanted).mean() < 0.2 if shrinks[-1] < 1 else parts[-1] < 0.55
        whole = crop.warp(np.full((96, 96), 255, np.uint8), resolution)
        # They differ along edges, which are of the order of 1 / resolution of all pixels.
        assert np.abs(255 * inside[index] - whole).mean() < 90 / resolution
    assert np.mean(parts) < 0.3
    assert min(shrinks) < (1 if resolution == 64 else 2)
    assert max(shrinks) > 2


def test_a_mark_on_the_hand_is_where_its_keypoint_says(renders, backgrounds):
    """Through crop, turn, mirror and shrinking: a bright dot at a joint stays under that joint's label."""
    image = torch.zeros(4, 96, 96, 4, dtype=torch.uint8)
    image[..., 3] = 255
    few = renders.map(lambda values: values[:4].clone())
    few.keypoints[:, 8] = few.keypoints[:, 8].round().clamp(8, 87)
    for index, (x, y) in enumerate(few.keypoints[:, 8].long().tolist()):
        image[index, y - 1 : y + 2, x - 1 : x + 2] = 255
    settings = Augmentation(
        effects=0.0, border_prob=0.0, fda_prob=0.0, mirrored=0.5, margin=(1.2, 1.6), center_jitter=0.0
    )
    sample = BatchAugmenter(backgrounds, backgrounds, settings)(few._replace(image=image), 64, seeded(3))
    weight = sample.image.float().mean(dim=-1) ** 2
    axis = (torch.arange(64) + 0.5) / 32 - 1
    total = weight.sum(dim=(1, 2))
    x, y = (weight.sum(dim=1) * axis).sum(dim=1) / total, (weight.sum(dim=2) * axis).sum(dim=1) / total
    torch.testing.assert_close(torch.stack([x, y], dim=-1), sample.labels.keypoints[:, 8], atol=0.5 / 32, rtol=0)


def test_samples_without_a_hand_show_no_joint(renders, backgrounds):
    crops, clear = crops_beside_hand(renders.keypoints, seeded())
    assert clear.float().mean() > 0.8
    outside = crops.to_ndc(renders.keypoints).abs().amax(dim=-1) > 1
    assert outside[clear].all()

    sample = BatchAugmenter(backgrounds, backgrounds, Augmentation(negative_ratio=0.5, mirrored=0.5))(
        renders, 64, seeded(4)
    )
    absent = ~sample.labels.present
    assert 0 < absent.sum() < 16
    assert sample.labels.right[absent].all()
    assert not sample.labels.keypoints[absent].any()
    assert not sample.labels.betas[absent].any()
    assert (sample.labels.pose[absent] == torch.eye(3)).all()
    assert sample.labels.keypoints[sample.labels.present].any(dim=-1).all()


def test_the_same_generator_gives_the_same_batch(renders, backgrounds):
    few = renders.map(lambda values: values[:3])
    augment = BatchAugmenter(
        backgrounds, backgrounds, Augmentation(negative_ratio=0.2, mirrored=0.2, context_scale_prob=0.2, fda_prob=0.5)
    )
    first, second, third = (augment(few, 64, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.image, second.image)
    assert all(torch.equal(a, b) for a, b in zip(first.labels, second.labels, strict=True))
    assert not torch.equal(first.image, third.image)
    assert first.image.shape == (3, 64, 64, 3)
    assert first.image.dtype == torch.uint8


def test_a_camera_without_effects_changes_nothing(backgrounds):
    pixels = backgrounds[..., :64, :64] / 255
    torch.testing.assert_close(
        camera_effects_batch(pixels, CameraEffects.none(), _Draws(4, seeded())), pixels, atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["defocus", "motion", "low_resolution"])
def test_a_blurred_picture_is_as_bright_but_smoother(backgrounds, name):
    pixels = torch.rand(4, 3, 64, 64, generator=seeded(5))
    blurred = camera_effects_batch(
        pixels, CameraEffects(**{**vars(CameraEffects.none()), name: 1.0}), _Draws(4, seeded())
    )
    assert blurred.mean() == pytest.approx(float(pixels.mean()), abs=0.01)
    assert (blurred.std(dim=(1, 2, 3)) < 0.995 * pixels.std(dim=(1, 2, 3))).all()
    edge = torch.zeros(1, 3, 64, 64)
    edge[..., 32:] = 1
    edge = camera_effects_batch(edge, CameraEffects(**{**vars(CameraEffects.none()), name: 1.0}), _Draws(1, seeded()))
    assert (edge * torch.ones(64)).sum(dim=-1).mean() == pytest.approx(32, abs=0.35)  # where it was


@pytest.mark.parametrize("quality", [30, 50, 75])
def test_jpeg_is_what_a_codec_does(quality):
    """libjpeg's own output but for its roundings: of what it decodes, and in colour of Y, Cb and Cr too."""
    rng = np.random.default_rng(quality)
    image = procedural_background(rng, 64) + rng.normal(0, 12, (64, 64, 1))  # noise, for codecs to work on
    image = image.clip(0, 255).astype(np.uint8)
    gray = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    for picture, tolerance in ((gray, 0.7), (image, 1.5)):
        _, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        wanted = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
        pixels = picture_bank([picture], CPU) / 255
        coded = 255 * jpeg(pixels, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy()
        assert np.abs(coded - wanted).mean() < tolerance
        assert np.abs(wanted - picture).mean() > 2 * tolerance  # what compression itself changes
    with pytest.raises(ValueError, match="multiples of 16"):
        jpeg(torch.zeros(1, 3, 24, 24), torch.tensor([50.0]))


def test_what_is_in_front_hides_what_is_behind(backgrounds):
    """Full coverage shows the foreground, at most a tenth tinted or badly cut out; none shows the background."""
    background = backgrounds[..., :64, :64] / 255
    foreground = torch.cat([torch.full((4, 3, 64, 64), 0.5), torch.ones(4, 1, 64, 64)], dim=1)
    behind = place_on_backgrounds(torch.zeros_like(foreground), background, _Draws(4, seeded()))
    torch.testing.assert_close(behind, background)
    many, behind_many = foreground.repeat(16, 1, 1, 1), background.repeat(16, 1, 1, 1)
    front = place_on_backgrounds(many, behind_many, _Draws(64, seeded()))
    whole = ((front > 0.5 * 0.949) & (front < 0.5 * 1.061)).all(dim=(1, 2, 3))
    assert 0.85 < whole.float().mean() < 1  # through the others, a sixteenth of all, the background shines
    alpha = torch.zeros(4, 1, 64, 64)
    alpha[..., 16:48, 16:48] = 1
    mixed = place_on_backgrounds(foreground * alpha, background, _Draws(4, seeded(2)))
    outside = (alpha == 0).expand_as(mixed).clone()
    outside[..., 8:56, 8:56] = False  # not where soft edges reach
    assert (mixed[outside] <= background[outside] + 1e-6).all()  # shadows only darken
    assert (mixed[outside] < background[outside] - 0.01).any()


@pytest.mark.parametrize("seed", range(4))
def test_mixed_amplitudes_are_those_of_the_one_by_one_path(backgrounds, seed):
    own, other = (np.ascontiguousarray(backgrounds[n, :, :64, :64].permute(1, 2, 0).numpy()) for n in (0, 1))
    wanted = mix_amplitude(np.random.default_rng(seed), own, other)
    rng = np.random.default_rng(seed)
    reach, share = float(rng.integers(1, 4)), float(rng.uniform(0.1, 0.6))
    pixels, others = picture_bank([own, own], CPU) / 255, picture_bank([other, other], CPU) / 255
    mixed = mix_amplitudes(pixels, others, torch.tensor([share, 0.0]), torch.tensor([reach, reach]))
    assert torch.equal(mixed[1], pixels[1])  # a share of nothing
    difference = 255 * mixed[0].permute(1, 2, 0).numpy() - wanted
    assert np.abs(difference).max() < 1.6  # OpenCV rounds the reduced pictures
    assert np.abs(wanted.astype(float) - own).mean() > 2


@pytest.mark.parametrize(
    ("name", "changed"),
    [("spectrum", "fine texture"), ("grayscale", "colour"), ("flicker", "rows"), ("low_light", "light"),
     ("uneven_light", "places"), ("color_cast", "colour"), ("exposure", "light"),
     ("second_jpeg", "nothing, without a first")],
)  # fmt: skip
def test_rare_effects_change_what_they_should(name, changed):
    pixels = 0.35 + 0.3 * torch.rand(6, 3, 64, 64, generator=seeded(7))
    effects = CameraEffects(**{**vars(CameraEffects.none()), name: 1.0})
    seen = camera_effects_batch(pixels, effects, _Draws(6, seeded(8)))
    means, before = seen.mean(dim=(2, 3)), pixels.mean(dim=(2, 3))
    if changed == "fine texture":
        torch.testing.assert_close(means, before, atol=1e-3, rtol=0)
        assert (seen - pixels).abs().mean() > 0.02
    elif name == "grayscale":
        assert (seen[:, :1] == seen).all()
    elif changed == "colour":
        assert ((means / before).std(dim=1) > 0.02).all()
    elif changed == "rows":
        rows = (seen / pixels).mean(dim=(1, 3))
        assert ((seen / pixels - rows[:, None, :, None]).abs() < 1e-3).all()
        assert (rows.std(dim=1) > 0.02).all()
    elif changed == "places":
        cells = torch.nn.functional.avg_pool2d(seen, 8) / torch.nn.functional.avg_pool2d(pixels, 8)
        assert (cells.std(dim=(2, 3)) > 0.08).all()
        steps = cells.diff(dim=2).abs().amax(dim=(2, 3)) / cells.std(dim=(2, 3))
        assert (steps < 2).all()  # from one eighth of the picture to the next, it changes little
    elif changed == "light":
        assert ((means / before).mean(dim=1) - 1).abs().mean() > 0.1
    else:
        torch.testing.assert_close(seen, pixels, atol=2e-5, rtol=0)


def test_saved_twice_after_a_crop_is_a_codec_on_moved_blocks():
    """A second JPEG whose blocks lie elsewhere: what a codec makes of the picture with its edge repeated before it."""
    image = np.random.default_rng(3).normal(128, 25, (64, 64, 1)).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    padded = cv2.copyMakeBorder(image, 5, 11, 3, 13, cv2.BORDER_REPLICATE)
    _, encoded = cv2.imencode(".jpg", padded, [cv2.IMWRITE_JPEG_QUALITY, 50])
    wanted = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[5:69, 3:67].astype(float)
    pixels = picture_bank([image], CPU) / 255
    coded = 255 * _shifted_jpeg(pixels, torch.tensor([50.0]), torch.tensor([[3, 5]]))[0].permute(1, 2, 0).numpy()
    unmoved = 255 * jpeg(pixels, torch.tensor([50.0]))[0].permute(1, 2, 0).numpy()
    assert np.abs(coded - wanted).mean() < 0.7
    assert np.abs(unmoved - wanted).mean() > 3
