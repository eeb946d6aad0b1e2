"""Renders and photographs seen anew, each time they are asked for: another crop, camera, background, occluder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.config.augmentation import Augmentation, PhotoAugmentation
from handmesh.data.sample import HandLabels, HandSample, hand_labels
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.crop import CropTransform
from handmesh.hand import upright_rotation
from handmesh.synth import (
    Backgrounds,
    CameraEffects,
    PackedSample,
    camera_effects,
    composite,
    mix_amplitude,
    place_on_background,
)
from handmesh.synth.crowd import Foreground, laid, placement

_ATTEMPTS_BESIDE = 8  # crops tried until one shows none of the hand
# Of the square around a box without a hand: its side over the box's, as crops of hands have it (`Predictor`: 1.5), and
# how far its middle is moved, over its side (standard deviation).
_MARGIN_OF_NO_HAND, _SHIFT_OF_NO_HAND = (1.2, 1.9), 0.05


def augment(
    packed: PackedSample,
    rng: np.random.Generator,
    settings: Augmentation,
    backgrounds: Backgrounds,
    resolution: int,
) -> HandSample[NDArray[Any]]:
    """One way a camera and a hand detector could have delivered this render, as a (resolution, resolution) crop."""
    if settings.negative_ratio and rng.random() < settings.negative_ratio:
        image = without_hand(packed, rng, settings, backgrounds, resolution)
        return HandSample(image, hand_labels(present=False))
    crop = sample_crop(packed.keypoints, rng, settings)
    return HandSample(draw(packed, crop, rng, settings, backgrounds, resolution), labels_in(crop, packed))


def without_hand(
    packed: PackedSample,
    rng: np.random.Generator,
    settings: Augmentation,
    backgrounds: Backgrounds,
    resolution: int,
) -> NDArray[np.uint8]:
    """A crop that shows no joint: forearm, sleeve or held thing from beside the hand, or a picture with no hand at all.

    Half and half, but where nothing lies beside the hand it is the latter.
    """
    points = packed.keypoints.astype(np.float64)
    middle, extent = points.mean(axis=0), float(np.ptp(points, axis=0).max())
    for _ in range(_ATTEMPTS_BESIDE if rng.random() < 0.5 else 0):
        side = extent * math.exp(rng.uniform(math.log(0.25), 0))
        angle, away = rng.uniform(-math.pi, math.pi), rng.uniform(0.5, 1.0) * (extent + side)
        center = (float(middle[0] + away * math.cos(angle)), float(middle[1] + away * math.sin(angle)))
        crop = CropTransform(center, side, rng.uniform(-math.pi, math.pi))
        if (np.abs(crop.to_ndc(points)).max(axis=-1) > 1.1).all():
            return draw(packed, crop, rng, settings, backgrounds, resolution)
    clutter = rng.random() < 0.7
    image = backgrounds.sample_distractor(rng, resolution) if clutter else backgrounds.sample(rng, resolution)
    return camera_effects(rng, image, scaled_effects(settings.effects)) if settings.effects else image


def draw(
    packed: PackedSample,
    crop: CropTransform,
    rng: np.random.Generator,
    settings: Augmentation,
    backgrounds: Backgrounds,
    resolution: int,
) -> NDArray[np.uint8]:
    """The crop's pixels, on a new background and through a new camera."""
    # Beyond the render's frame its edge goes on, so that a forearm does not end in the middle of the picture.
    foreground = crop.warp(np.ascontiguousarray(packed.image), resolution, cv2.BORDER_REPLICATE)
    color, alpha = np.ascontiguousarray(foreground[..., :3]), np.ascontiguousarray(foreground[..., 3])
    image = place_on_background(rng, color, alpha, backgrounds.sample(rng, resolution))
    if rng.random() < settings.fda_prob:
        image = mix_amplitude(rng, image, backgrounds.sample(rng, resolution))
    if rng.random() < settings.border_prob:
        inside = crop.warp(np.full(packed.image.shape[:2], 255, np.uint8), resolution)
        image = cv2.multiply(image, cv2.cvtColor(inside, cv2.COLOR_GRAY2BGR), scale=1 / 255)
    if settings.effects:
        image = camera_effects(rng, image, scaled_effects(settings.effects))
    return image


def sample_crop(keypoints: NDArray[np.float32], rng: np.random.Generator, settings: Augmentation) -> CropTransform:
    """A square around the keypoints as a detector might place it: wider, off-centre, and turned."""
    if rng.random() < settings.upright_prob:
        rotation = upright_rotation(keypoints) + rng.normal(0, settings.upright_noise)
    else:
        rotation = rng.uniform(-math.pi, math.pi)
    wide = settings.context_scale_prob > 0 and rng.random() < settings.context_scale_prob
    side = math.exp(rng.uniform(*np.log(settings.context_scale if wide else settings.margin)))
    mirror = settings.mirrored > 0 and rng.random() < settings.mirrored
    crop = CropTransform.around_points(keypoints, margin=side, rotation=rotation, mirror=mirror)
    jitter = np.clip(rng.normal(0, 0.5, 2), -1, 1) * settings.center_jitter * crop.size
    return replace(crop, center=(crop.center[0] + float(jitter[0]), crop.center[1] + float(jitter[1])))


def labels_in(crop: CropTransform, packed: PackedSample) -> HandLabels[NDArray[Any]]:
    """The labels of `packed` in the axes of `crop`; joints and vertices follow from pose and betas.

    A mirrored crop shows a left hand, of which no right hand's pose is true: its keypoints alone are labels.
    """
    keypoints = crop.to_ndc(packed.keypoints.astype(np.float64))
    if crop.mirror:
        return hand_labels(keypoints=keypoints, right=False)
    camera = Intrinsics.from_matrix(packed.intrinsics)
    R = crop.crop_from_image_axes @ camera.virtual_camera_rotation(crop.center)
    pose = packed.pose.astype(np.float64)
    pose[0] = R @ pose[0]
    return hand_labels(keypoints=keypoints, pose=pose, betas=np.array(packed.betas))


@cache
def scaled_effects(strength: float) -> CameraEffects:
    """The default camera effects with every probability and deviation times `strength`."""
    effects = CameraEffects()
    if strength == 1:
        return effects
    return effects.model_copy(update={name: min(value * strength, 1.0) for name, value in effects})


# ------------------------------------------------------------------------------------------------------ photographs


@dataclass(frozen=True)
class CropJitter:
    """Random changes of a crop in training. The defaults are METRO's (its `augm_params`); it never shifts."""

    rotation: float = math.pi / 2  # radians, standard deviation; cut at half a turn
    no_rotation_prob: float = 0.6  # share of samples that are not rotated
    scale: float = 0.25  # standard deviation of the side's factor, and where it is cut
    shift: float = 0.0  # of the crop's side: cut, standard deviation half of it
    context_scale_prob: float = 0.0  # share of samples whose side has one more factor ...
    context_scale: tuple[float, float] = (1.35, 2.7)  # ... from here, uniform in the logarithm

    def __call__(self, crop: CropTransform, rng: np.random.Generator) -> CropTransform:
        """The crop, turned, resized and shifted."""
        rotation = float(np.clip(self.rotation * rng.normal(), -math.pi, math.pi))
        if rng.random() < self.no_rotation_prob:
            rotation = 0.0
        size = crop.size * float(np.clip(1 + self.scale * rng.normal(), 1 - self.scale, 1 + self.scale))
        if self.context_scale_prob and rng.random() < self.context_scale_prob:
            size *= math.exp(rng.uniform(*np.log(self.context_scale)))
        x, y = np.clip(rng.normal(0, 0.5, 2), -1, 1) * self.shift * size
        center = (crop.center[0] + float(x), crop.center[1] + float(y))
        return CropTransform(center, size, crop.rotation + rotation, crop.mirror)


def negative_crop(
    shape: tuple[int, ...], rng: np.random.Generator, box: NDArray[np.float64] | None = None
) -> CropTransform:
    """A square somewhere in a photograph of (height, width, ...) that shows no hand, as a search for hands crops it.

    `box` (4,) px: where something was taken for a hand; the square is about there, as a hand's would be.
    """
    if box is None:
        height, width = shape[:2]
        size = max(height, width) * math.exp(rng.uniform(math.log(0.2), 0.0))
        center = (float(rng.uniform(0, width - 1)), float(rng.uniform(0, height - 1)))
    else:
        around = CropTransform.around_box(box, rng.uniform(*_MARGIN_OF_NO_HAND))
        size = around.size
        x, y = np.array(around.center) + rng.normal(0, _SHIFT_OF_NO_HAND * size, 2)
        center = (float(x), float(y))
    return CropTransform(center, size, float(rng.uniform(-math.pi, math.pi)), bool(rng.random() < 0.5))


def downscaled_side(rng: np.random.Generator, resolution: int, settings: PhotoAugmentation) -> int:
    """The side in pixels that the crop is taken with: `resolution`, or at times fewer, as of a hand far away."""
    if not settings.downscale_prob or rng.random() >= settings.downscale_prob:
        return resolution
    return min(resolution, round(math.exp(rng.uniform(*np.log(settings.downscale_px)))))


def enlarged(rng: np.random.Generator, image: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """A square image brought to (resolution, resolution, 3), softly or, half the time, with cubic's harder edges."""
    if image.shape[0] == resolution:
        return image
    how = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (resolution, resolution), interpolation=how), np.uint8)


def on_background(
    rng: np.random.Generator, image: NDArray[np.uint8], alpha: NDArray[np.uint8], background: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """What `alpha` (R, R) leaves of a crop (R, R, 3), on another background of its size."""
    premultiplied = cv2.multiply(image, cv2.cvtColor(alpha, cv2.COLOR_GRAY2BGR), scale=1 / 255)
    return np.asarray(place_on_background(rng, np.asarray(premultiplied, np.uint8), alpha, background), np.uint8)


def with_second_hand(
    rng: np.random.Generator,
    image: NDArray[np.uint8],
    alpha: NDArray[np.uint8],
    keypoints: NDArray[Any],
    other: Foreground,
) -> NDArray[np.uint8]:
    """A crop (R, R, 3) whose hand, `alpha` (R, R), is met by another one: as large, most often of the other side.

    It lies behind the hand, or before it where it hides a third of the joints at most. `keypoints`: (21, 2) the hand's,
    in the crop's normalised coordinates.
    """
    side = image.shape[0]
    points = (keypoints + 1) / 2 * side - 0.5
    low, high = points.min(axis=0), points.max(axis=0)
    size = float((high - low).max())
    angle, away = rng.uniform(-math.pi, math.pi), rng.uniform(0.3, 1.0) * size
    center = (low + high) / 2 + away * np.array([math.cos(angle), math.sin(angle)])
    turn = rng.normal(0, math.radians(40)) if rng.random() < 0.5 else rng.uniform(-math.pi, math.pi)
    mirror = rng.random() < 0.8  # the crop shows a right hand
    to_crop = placement(other.keypoints, size * math.exp(rng.normal(0, 0.15)), center, turn, mirror=mirror)
    layer = laid(other.image, to_crop, side)
    color, mask = np.ascontiguousarray(layer[..., :3]), np.ascontiguousarray(layer[..., 3])
    x, y = np.clip(np.rint(points).astype(int), 0, side - 1).T
    both = place_on_background(rng, color, mask, image)
    if rng.random() < 0.4 and (mask[y, x] > 127).mean() < 1 / 3:
        return both
    return composite(cv2.multiply(image, cv2.cvtColor(alpha, cv2.COLOR_GRAY2BGR), scale=1 / 255), alpha, both)


def changed_photo(rng: np.random.Generator, image: NDArray[np.uint8], settings: PhotoAugmentation) -> NDArray[np.uint8]:
    """(R, R, 3) uint8 with something in front of it, other colours, and what a worse camera would have made of it."""
    if settings.occlusion and rng.random() < settings.occlusion:
        image = occluded(rng, image)
    if settings.channel_gain:
        gains = rng.uniform(1 - settings.channel_gain, 1 + settings.channel_gain, 3)
        image = np.asarray(cv2.multiply(image, np.array([*gains, 1.0])), np.uint8)
    if settings.effects:
        image = np.asarray(camera_effects(rng, image, scaled_effects(settings.effects)), np.uint8)
    return image


def occluded(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One to three turned ellipses and rectangles over the image: plain, noisy, or a piece of the image itself.

    Each has sides of 10 to 40 % of the image's, so most of a hand stays visible. What hides a hand need not look like
    an object: random pixels do nearly as well (arXiv 2503.19307: 10.4 against 10.2 mm).
    """
    side = image.shape[0]
    covered = image.copy()
    for _ in range(rng.integers(1, 4)):
        center = tuple(int(value) for value in rng.integers(0, side, 2))
        width, height = (float(value) for value in rng.uniform(0.10, 0.40, 2) * side)
        angle = float(rng.uniform(0, 180))
        mask = np.zeros((side, side), np.uint8)
        if rng.random() < 0.5:
            cv2.ellipse(mask, (center, (width, height), angle), 255, -1)
        else:
            corners = cv2.boxPoints((center, (width, height), angle)).round().astype(np.int32)
            cv2.fillConvexPoly(mask, corners, 255)
        kind = rng.random()
        if kind < 0.4:
            filling = np.broadcast_to(rng.integers(0, 256, 3).astype(np.uint8), image.shape)
        elif kind < 0.6:
            coarse = rng.integers(0, 256, (max(side // 8, 1), max(side // 8, 1), 3)).astype(np.uint8)
            filling = np.asarray(cv2.resize(coarse, (side, side)), np.uint8)
        else:
            filling = np.roll(image, tuple(int(shift) for shift in rng.integers(side // 4, 3 * side // 4, 2)), (0, 1))
        covered[mask > 0] = filling[mask > 0]
    return covered
