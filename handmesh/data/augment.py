"""From a stored render to a training example: a new crop, turn, background and camera, every time it is seen."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.camera import Intrinsics
from handmesh.config import Augmentation
from handmesh.crop import CropTransform, upright_rotation
from handmesh.data.sample import HandSample
from handmesh.synth import (
    Backgrounds,
    CameraEffects,
    PackedSample,
    camera_effects,
    mix_amplitude,
    place_on_background,
)


def augment(
    packed: PackedSample,
    rng: np.random.Generator,
    settings: Augmentation,
    backgrounds: Backgrounds,
    resolution: int,
) -> HandSample:
    """One way a camera and a hand detector could have delivered this render, as a (resolution, resolution) crop."""
    crop = sample_crop(packed.keypoints, rng, settings)
    # Beyond the render's frame its edge goes on, so that a forearm does not end in the middle of the picture.
    foreground = crop.warp(np.ascontiguousarray(packed.image), resolution, cv2.BORDER_REPLICATE)
    color, alpha = np.ascontiguousarray(foreground[..., :3]), np.ascontiguousarray(foreground[..., 3])
    image = place_on_background(rng, color, alpha, backgrounds.sample(rng, resolution))
    if rng.random() < settings.amplitude_mix:
        image = mix_amplitude(rng, image, backgrounds.sample(rng, resolution))
    if rng.random() < settings.photo_edge:
        inside = crop.warp(np.full(packed.image.shape[:2], 255, np.uint8), resolution)
        image = cv2.multiply(image, cv2.cvtColor(inside, cv2.COLOR_GRAY2BGR), scale=1 / 255)
    if settings.effects:
        image = camera_effects(rng, image, scaled_effects(settings.effects))
    return labelled(image, packed, crop)


def sample_crop(keypoints: NDArray[np.float32], rng: np.random.Generator, settings: Augmentation) -> CropTransform:
    """A square around the keypoints as a detector might place it: wider, off-centre, and turned."""
    if rng.random() < settings.upright:
        rotation = upright_rotation(keypoints) + rng.normal(0, settings.upright_noise)
    else:
        rotation = rng.uniform(-math.pi, math.pi)
    side = math.exp(rng.uniform(*np.log(settings.margin)))
    crop = CropTransform.around_points(keypoints, margin=side, rotation=rotation)
    jitter = np.clip(rng.normal(0, 0.5, 2), -1, 1) * settings.center_jitter * crop.size
    return replace(crop, center=(crop.center[0] + float(jitter[0]), crop.center[1] + float(jitter[1])))


def labelled(image: NDArray[np.uint8], packed: PackedSample, crop: CropTransform) -> HandSample:
    """The labels of `packed` in the axes of `crop`."""
    camera = Intrinsics.from_matrix(packed.intrinsics)
    R = crop.crop_from_image_axes @ camera.facing_from_cam(crop.center)
    pose = packed.pose.astype(np.float64)
    pose[0] = R @ pose[0]
    return HandSample(
        image=image,
        keypoints=crop.to_ndc(packed.keypoints.astype(np.float64)).astype(np.float32),
        pose=pose.astype(np.float32),
        betas=np.array(packed.betas),
    )


def scaled_effects(strength: float) -> CameraEffects:
    """The default camera effects with every probability and deviation times `strength`."""
    effects = CameraEffects()
    if strength == 1:
        return effects
    return replace(effects, **{name: min(value * strength, 1.0) for name, value in vars(effects).items()})
