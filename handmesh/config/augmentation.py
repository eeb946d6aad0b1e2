"""Settings of how a sample is seen anew each time: its crop, rotation, colours and what is in front."""

from __future__ import annotations

import math

from pydantic import Field

from handmesh.config.settings import Settings


class Augmentation(Settings):
    """How a synthetic hand is seen anew."""

    upright_prob: float = Field(default=0.6, ge=0, le=1)  # share of samples turned so that the hand points up ...
    upright_noise: float = Field(default=math.radians(25), ge=0, le=math.pi)  # ... give or take; the rest get any turn
    margin: tuple[float, float] = (1.15, 2.2)  # crop side over the keypoints' box
    center_jitter: float = Field(default=0.12, ge=0)  # of the crop's side, standard deviation 0.5 of this
    # Whole photos show small hands: this share of samples draws its margin from context_scale instead.
    context_scale_prob: float = Field(default=0.0, ge=0, le=1)
    context_scale: tuple[float, float] = (2.0, 4.0)  # times the keypoints' box
    # For the two optional heads: shares of samples seen in a mirror, as left hands are, and without a hand.
    mirrored: float = Field(default=0.0, ge=0, le=1)
    negative_ratio: float = Field(default=0.0, ge=0, le=1)  # a background alone: what confidence learns from
    effects: float = Field(default=1.0, ge=0)  # strength of blur, noise, JPEG and colour changes
    # Fourier amplitude mix (FDA): share of samples that take on coarse colours of another background.
    fda_prob: float = Field(default=0.15, ge=0, le=1)
    border_prob: float = Field(default=0.2, ge=0, le=1)  # share of samples that are black beyond the render's frame


class PhotoAugmentation(Settings):
    """How a photograph is seen anew. The defaults are METRO's (`augm_params` in its data code): no flip, no shift."""

    rotation: float = Field(default=math.pi / 2, ge=0, le=math.pi)  # radians, standard deviation; cut at half a turn
    no_rotation_prob: float = Field(default=0.6, ge=0, le=1)  # share of samples that are not turned
    # Before all that: this share of samples is turned so that the hand points up, give or take.
    upright_prob: float = Field(default=0.0, ge=0, le=1)
    upright_noise: float = Field(default=math.radians(25), ge=0, le=math.pi)  # radians
    scale: float = Field(default=0.25, ge=0, lt=1)  # of the side's factor: standard deviation, and where it is cut
    shift: float = Field(default=0.0, ge=0)  # of the crop's side: cut, standard deviation half of it
    # The first crop of a whole photo shows a small hand: this share of samples has a crop larger by a factor from here.
    context_scale_prob: float = Field(default=0.0, ge=0, le=1)
    context_scale: tuple[float, float] = (1.35, 2.7)  # times the crop
    # Share of samples that are mirrored so that the hand's side is taken for the other: what `handedness_head` learns.
    mirrored: float = Field(default=0.0, ge=0, le=1)
    # Share of samples reduced to a crop of so many pixels, and enlarged again: hands far away are small and soft.
    downscale_prob: float = Field(default=0.0, ge=0, le=1)
    downscale_px: tuple[float, float] = (32.0, 110.0)  # the crop's side, the smallest and the largest
    # Share of the samples with an `alpha` whose hand is put on another background.
    background_prob: float = Field(default=0.0, ge=0, le=1)
    # Share of the samples with an `alpha` beside or behind whose hand another one lies, of those with an `alpha`, too.
    second_hand: float = Field(default=0.0, ge=0, le=1)
    channel_gain: float = Field(default=0.4, ge=0, lt=1)  # each colour times 1 - this to 1 + this
    effects: float = Field(default=0.0, ge=0)  # strength of blur, noise, JPEG, colour changes: as synthetic hands'
    occlusion: float = Field(default=0.0, ge=0, le=1)  # share of samples with something in front
