"""Labelled photographs as a source of training examples: a new crop, turn, colours and flaws every time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.config import PhotoAugmentation
from handmesh.data.augment import scaled_effects
from handmesh.data.labels import CropJitter, CropProtocol, RawData, RawSample, crop_sample
from handmesh.data.sample import HandSample, without
from handmesh.synth import camera_effects

_OF_ITS_OWN_HAND = ("vertices", "pose", "betas")  # labels that mean nothing in another hand's model


@dataclass(frozen=True, eq=False)
class PhotoSource:
    """Photographs, how they are cropped, and how often they are drawn in comparison with other sources.

    Data sets open their files at first use, so a source can be sent to worker processes.
    """

    name: str  # in records and messages
    data: RawData
    protocol: CropProtocol
    weight: float = 1.0
    indices: NDArray[np.int64] | None = None  # the samples to use, for example one side of a split; None = all
    augmentation: PhotoAugmentation = field(default_factory=PhotoAugmentation)
    # Whether vertices, pose and betas belong to the hand that is trained. If not they are left out: another hand's
    # vertices are in other places, and its betas mean something else.
    same_hand: bool = True

    def __len__(self) -> int:
        return len(self.data) if self.indices is None else len(self.indices)

    def example(self, position: int, rng: np.random.Generator, resolution: int) -> HandSample[NDArray[Any]]:
        """The photograph at a position of `indices`, seen anew."""
        sample, settings = self._sample(position), self.augmentation
        jitter = CropJitter(settings.rotation, settings.unrotated, settings.scale, settings.shift)
        cropped = crop_sample(sample, jitter(self.protocol.crop(sample), rng), resolution)
        return cropped._replace(image=changed_photo(rng, cropped.image, settings))

    def still(self, position: int, resolution: int) -> HandSample[NDArray[Any]]:
        """The same as its protocol crops it, unchanged: what scores are computed on."""
        sample = self._sample(position)
        return crop_sample(sample, self.protocol.crop(sample), resolution)

    def _sample(self, position: int) -> RawSample:
        sample = self.data[position if self.indices is None else int(self.indices[position])]
        if self.same_hand:
            return sample
        return replace(sample, labels=replace(sample.labels, hand=without(sample.labels.hand, *_OF_ITS_OWN_HAND)))


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
