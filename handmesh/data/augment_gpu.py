"""`data.augment` for a whole batch at once, on the device that holds it: what a GPU needs to be kept busy.

The same crops, the same labels and the same camera, drawn from one `torch.Generator` on the device. Two things differ.
Lens blur is a product in the frequency domain, where any kernel costs the same. JPEG is its lossy half alone: colour
subsampling and quantised 8 x 8 cosine transforms, which is all that can be seen of it.

Pixels are (B, C, H, W) float32 in [0, 1] inside; colours of renders stay multiplied by alpha until they are composited.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

from handmesh.config.augmentation import Augmentation
from handmesh.data.augment import scaled_effects
from handmesh.data.sample import HandSample, hand_labels
from handmesh.hand import JOINT_NAMES
from handmesh.synth import CameraEffects
from handmesh.synth.camera_effects import (
    DEFOCUS_SIGMA,
    EXPOSURE_STOPS,
    LIGHT_CELLS,
    MOTION_LENGTH,
    SMALLER,
    UNEVEN_COLOR,
    UNEVEN_LIGHT,
)
from handmesh.synth.farm import RenderBatch

_WRIST, _MIDDLE_MCP = JOINT_NAMES.index("wrist"), JOINT_NAMES.index("middle_mcp")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of saturation and of JPEG
_LENS_PADDING = 12  # pixels mirrored around an image before it is filtered as if it were periodic
_BESIDE_ATTEMPTS = 8


class BatchAugmenter:
    """From stored renders to training examples, on the device of its backgrounds."""

    def __init__(self, backgrounds: Tensor, distractors: Tensor, settings: Augmentation) -> None:
        """Both (N, 3, H, H) uint8 RGB, see `picture_bank`; distractors look like hands at a glance and are none."""
        self.backgrounds, self.distractors, self.settings = backgrounds, distractors, settings
        self.effects = scaled_effects(settings.effects) if settings.effects else None
        # One sample's, sent once. Joints and vertices stay as they are here: they follow from pose and betas.
        self._unknown = hand_labels(present=False).map(lambda value: torch.from_numpy(value).to(backgrounds.device))

    @torch.no_grad()
    def __call__(self, renders: RenderBatch[Tensor], resolution: int, generator: Generator) -> HandSample[Tensor]:
        """One way a camera and a hand detector could have delivered each of the renders.

        Of a mirrored hand only keypoints are known, and without a hand nothing.
        """
        settings, batch = self.settings, len(renders.image)
        draw = _Draws(batch, generator)
        crops = sample_crops(renders.keypoints, settings, generator)
        present = ~draw.chance(settings.negative_ratio)
        empty = torch.zeros_like(present)  # nothing of the render is seen
        if settings.negative_ratio:
            beside, clear = crops_beside_hand(renders.keypoints, generator)
            crops = Crops(*(_where(present, own, other) for own, other in zip(crops, beside, strict=True)))
            empty = ~present & ~(clear & draw.chance(0.5))
        image = self._pixels(renders.image, crops, empty, resolution, draw)
        keypoints, pose = crop_labels(renders, crops)
        answerable = present & ~crops.mirror
        nothing = self._unknown.map(lambda value: value.expand(batch, *value.shape))
        labels = nothing._replace(
            keypoints=_where(present, keypoints, nothing.keypoints),
            keypoints_known=present[:, None].expand(-1, len(JOINT_NAMES)),
            pose=_where(answerable, pose, nothing.pose),
            pose_known=answerable,
            betas=_where(answerable, renders.betas, nothing.betas),
            betas_known=answerable,
            present=present,
            right=~(crops.mirror & present),
        )
        return HandSample((image * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous(), labels)

    def _pixels(self, image: Tensor, crops: Crops, empty: Tensor, resolution: int, draw: _Draws) -> Tensor:
        settings = self.settings
        widest = max(*settings.margin, *(settings.context_scale if settings.context_scale_prob else ()))
        # A hand's box, turned, is at most the render's diagonal: how strong shrinking can get is known beforehand.
        shrink = widest * math.sqrt(2) * image.shape[1] / resolution
        # Beyond the render's frame its edge goes on, so that a forearm does not end in the middle of the picture.
        foreground = warp(image.permute(0, 3, 1, 2) / 255, crops, resolution, "border", shrink)
        foreground = foreground * ~empty[:, None, None, None]
        background = _sample_pictures(self.backgrounds, resolution, draw)
        other = background.roll(1, dims=0)
        if settings.negative_ratio:
            clutter = _sample_pictures(self.distractors, resolution, draw)
            background = _where(empty & draw.chance(0.7), clutter, background)
        pixels = place_on_backgrounds(foreground, background, draw)
        if settings.fda_prob:
            share = torch.where(draw.chance(settings.fda_prob) & ~empty, draw.uniform(0.1, 0.6), 0.0)
            pixels = mix_amplitudes(pixels, other, share, draw.uniform(1, 4).floor())
        black = draw.chance(settings.border_prob) & ~empty
        inside = _share_inside(crops, image.shape[1], resolution)
        pixels = pixels * torch.where(black[:, None, None, None], inside, 1.0)
        return pixels if self.effects is None else camera_effects_batch(pixels, self.effects, draw)


def picture_bank(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """(H, H, 3) uint8 images of one size -> (N, 3, H, H) uint8 on the device."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).contiguous()


def _sample_pictures(bank: Tensor, resolution: int, draw: _Draws) -> Tensor:
    """(B, 3, R, R): a random square of a random picture each, mirrored half the time."""
    count, _, side, _ = bank.shape
    chosen = (draw.uniform(0, 1) * count).long().clamp(max=count - 1)
    size = draw.uniform(0.5, 1.0) * side
    low = (size - 1) / 2  # the squares' centres lie so that they stay inside
    center = low[:, None] + (side - size)[:, None] * draw.uniform(0, 1, 2)
    crops = Crops(center, size, torch.zeros_like(size), draw.chance(0.5))
    return warp(bank[chosen] / 255, crops, resolution, "border", side / resolution)


# ---------------------------------------------------------------------------------------------------- geometry


class Crops(NamedTuple):
    """`crop.CropTransform`, stacked."""

    center: Tensor  # (B, 2) pixels of the render
    size: Tensor  # (B,) side of the square, pixels
    rotation: Tensor  # (B,) radians, x towards y
    mirror: Tensor  # (B,) bool, left-right, after turning

    def from_image_axes(self) -> Tensor:
        """(B, 3, 3): a vector in camera axes -> the same in the crop's axes."""
        c, s, zero = torch.cos(self.rotation), torch.sin(self.rotation), torch.zeros_like(self.size)
        sign = 1 - 2 * self.mirror.to(self.size.dtype)
        rows = [sign * c, -sign * s, zero, s, c, zero, zero, zero, torch.ones_like(zero)]
        return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))

    def to_ndc(self, points_image: Tensor) -> Tensor:
        """(B, N, 2) pixels -> (B, N, 2) NDC."""
        turned = (points_image - self.center[:, None]) @ self.from_image_axes()[:, :2, :2].mT
        return turned * (2 / self.size)[:, None, None]

    def to_image(self, points_ndc: Tensor) -> Tensor:
        """(B, N, 2) or (1, N, 2) NDC -> (B, N, 2) pixels."""
        turned = points_ndc @ self.from_image_axes()[:, :2, :2]
        return turned * (self.size / 2)[:, None, None] + self.center[:, None]


def sample_crops(keypoints: Tensor, settings: Augmentation, generator: Generator) -> Crops:
    """Squares around (B, 21, 2) keypoints as a detector might place them: wider, off-centre, and turned."""
    draw = _Draws(len(keypoints), generator)
    dx, dy = (keypoints[:, _MIDDLE_MCP] - keypoints[:, _WRIST]).unbind(dim=-1)
    upright = -math.pi / 2 - torch.atan2(dy, dx)
    rotation = torch.where(
        draw.chance(settings.upright_prob),
        upright + settings.upright_noise * draw.normal(),
        draw.uniform(-math.pi, math.pi),
    )
    margin = torch.where(
        draw.chance(settings.context_scale_prob),
        draw.log_uniform(*settings.context_scale),
        draw.log_uniform(*settings.margin),
    )
    mirror = draw.chance(settings.mirrored)
    # As CropTransform.around_points: the extent is taken in the turned axes.
    c, s = torch.cos(rotation), torch.sin(rotation)
    axes = torch.stack([c, -s, s, c], dim=-1).unflatten(-1, (2, 2))
    turned = keypoints @ axes.mT
    low, high = turned.amin(dim=1), turned.amax(dim=1)
    center = ((low + high)[:, None] / 2 @ axes)[:, 0]
    size = margin * (high - low).amax(dim=-1)
    jitter = (0.5 * draw.normal(2)).clamp(-1, 1) * settings.center_jitter * size[:, None]
    return Crops(center + jitter, size, rotation, mirror)


def crops_beside_hand(keypoints: Tensor, generator: Generator) -> tuple[Crops, Tensor]:
    """Squares near the hand with no joint in them, and (B,) bool whether one was found: else the square is arbitrary.

    They show the forearm, a sleeve or a held thing, or nothing.
    """
    batch = len(keypoints)
    draw = _Draws(batch * _BESIDE_ATTEMPTS, generator)
    points = keypoints.repeat_interleave(_BESIDE_ATTEMPTS, dim=0)
    extent = (points.amax(dim=1) - points.amin(dim=1)).amax(dim=-1)
    size = extent * draw.log_uniform(0.25, 1.0)
    angle, far = draw.uniform(-math.pi, math.pi), draw.uniform(0.5, 1.0) * (extent + size)
    toward = torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)
    center = points.mean(dim=1) + far[:, None] * toward
    tried = Crops(center, size, draw.uniform(-math.pi, math.pi), torch.zeros_like(size, dtype=torch.bool))
    clear = (tried.to_ndc(points).abs().amax(dim=-1) > 1.1).all(dim=-1).view(batch, _BESIDE_ATTEMPTS)
    first = clear.int().argmax(dim=1) + _BESIDE_ATTEMPTS * torch.arange(batch, device=keypoints.device)
    return Crops(*(value[first] for value in tried)), clear.any(dim=1)


def crop_labels(renders: RenderBatch[Tensor], crops: Crops) -> tuple[Tensor, Tensor]:
    """-> keypoints (B, 21, 2) NDC, pose (B, 16, 3, 3) in the crops' axes, which is none where a crop is mirrored."""
    R = crops.from_image_axes() @ virtual_camera_rotation(renders.intrinsics, crops.center)
    pose = torch.cat([(R @ renders.pose[:, 0])[:, None], renders.pose[:, 1:]], dim=1)
    return crops.to_ndc(renders.keypoints), pose


def virtual_camera_rotation(intrinsics: Tensor, points_image: Tensor) -> Tensor:
    """(B, 3, 3), (B, 2) -> (B, 3, 3), as `camera.Intrinsics.virtual_camera_rotation`."""
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1)
    ray = functional.pad((points_image - intrinsics[:, :2, 2]) / focal, (0, 1), value=1.0)
    direction = ray / ray.norm(dim=-1, keepdim=True)
    xy, z = direction[:, :2], direction[:, 2:]
    top_left = torch.eye(2, device=xy.device, dtype=xy.dtype) - xy[:, :, None] * xy[:, None] / (1 + z[..., None])
    return torch.cat([torch.cat([top_left, -xy[..., None]], dim=2), direction[:, None]], dim=1)


def warp(images: Tensor, crops: Crops, resolution: int, border: str, largest_shrink: float) -> Tensor:
    """(B, C, S, S) -> (B, C, R, R), as `CropTransform.warp`: bilinear, and means where the crop shrinks the image.

    `border`: "border" goes on with the edge, "zeros" is black. `largest_shrink` bounds image pixels per crop pixel.
    """
    side = images.shape[-1]
    shrink = crops.size / resolution
    # A sample is the mean of 2 x 2 points: enough up to a shrink of 2. Beyond, the image is smoothed first.
    step = 1
    while 2 * step < largest_shrink:
        smooth = _smoothed(images, step)
        images = torch.where((shrink > 2 * step)[:, None, None, None], smooth, images)
        step *= 2
    centers = _pixel_centers(resolution, crops.size)
    quarter = torch.where(shrink > 1, 0.5 / resolution, 0.0)[:, None, None]
    total = torch.zeros((), device=images.device)
    for dx, dy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        moved = centers + torch.cat([dx * quarter, dy * quarter], dim=-1)
        points = (2 * crops.to_image(moved) + 1) / side - 1
        grid = points.unflatten(1, (resolution, resolution))
        total = total + functional.grid_sample(images, grid, padding_mode=border, align_corners=False)
    return total / 4


def _pixel_centers(resolution: int, like: Tensor) -> Tensor:
    """(1, R * R, 2) NDC (x, y), row by row."""
    axis = (2 * torch.arange(resolution, device=like.device, dtype=like.dtype) + 1) / resolution - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2)


def _smoothed(images: Tensor, step: int) -> Tensor:
    """Binomial [1, 2, 1] / 4 in both directions over pixels `step` apart; the edge goes on."""
    for dim in (2, 3):
        padding = (0, 0, step, step) if dim == 2 else (step, step, 0, 0)
        padded, size = functional.pad(images, padding, mode="replicate"), images.shape[dim]
        ends = padded.narrow(dim, 0, size) + padded.narrow(dim, 2 * step, size)
        images = 0.25 * ends + 0.5 * images
    return images


def _share_inside(crops: Crops, side: int, resolution: int) -> Tensor:
    """(B, 1, R, R): how much of each pixel lies in the render's frame, as a warp of ones over zeros would say."""
    points = crops.to_image(_pixel_centers(resolution, crops.size))
    width = (crops.size / resolution).clamp(min=1)[:, None, None]  # of a crop's pixel, or of the image's
    covered = (0.5 + torch.minimum(points + 0.5, side - 0.5 - points) / width).clamp(0, 1).prod(dim=-1)
    return covered.view(-1, 1, resolution, resolution)


# ------------------------------------------------------------------------------------------------------ pixels


def place_on_backgrounds(foreground: Tensor, background: Tensor, draw: _Draws) -> Tensor:
    """As `synth.place_on_background`: now and then badly cut out; a soft drop shadow half the time, and half the time a
    little of the background's colour. (B, 4, R, R) premultiplied over (B, 3, R, R).
    """
    resolution = foreground.shape[-1]
    badly = draw.chance(0.12)
    sigma = draw.uniform(0.4, 1.6) * resolution / 128
    opacity = torch.where(draw.chance(0.5), draw.uniform(0.75, 1.0), 1.0)[:, None, None, None]
    soft = _gaussian_blur(foreground, sigma, largest=1.6 * resolution / 128) * opacity
    foreground = _where(badly, soft, foreground)
    color, alpha = foreground[:, :3], foreground[:, 3:]

    strength = torch.where(draw.chance(0.5), draw.uniform(0.1, 0.45), 0.0)
    softness, shift = draw.uniform(2, 11), draw.normal(2) * 0.05 * resolution
    quarter = _gaussian_blur(functional.avg_pool2d(alpha, 4), softness / 4, largest=11 / 4)
    moved = Crops(
        center=((resolution - 1) / 2 - shift - 1.5) / 4,  # pixel i of a quarter covers pixels 4 i to 4 i + 3
        size=torch.full_like(softness, resolution / 4),
        rotation=torch.zeros_like(softness),
        mirror=torch.zeros_like(softness, dtype=torch.bool),
    )
    cast = warp(quarter, moved, resolution, "zeros", 1.0)
    background = background * (1 - strength[:, None, None, None] * cast)
    mean = background.mean(dim=(2, 3))
    tint = 1 + 0.10 * ((mean / (mean.mean(dim=1, keepdim=True) + 1e-5)).clamp(0.5, 1.6) - 1)
    tint = _where(draw.chance(0.5), tint, torch.ones_like(tint))
    color = torch.minimum(color * tint[..., None, None], alpha)  # stays premultiplied
    return (color + background * (1 - alpha)).clamp(0, 1)


def _gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """(B, C, H, W), each with its own sigma (B,) in pixels; the edge goes on."""
    batch, channels, height, width = images.shape
    radius = min(math.ceil(3 * largest), height - 1, width - 1)
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = functional.pad(images.reshape(1, batch * channels, height, width), (radius,) * 4, mode="replicate")
    planes = functional.conv2d(planes, kernel[:, None, None, :], groups=len(kernel))
    return functional.conv2d(planes, kernel[:, None, :, None], groups=len(kernel)).view(images.shape)


def mix_amplitudes(pixels: Tensor, others: Tensor, share: Tensor, reach: Tensor, cells: int = 16) -> Tensor:
    """As `synth.mix_amplitude`: a `share` (B,) of the amplitudes of the `reach` (B,) lowest frequencies is exchanged.

    A share of 0 leaves the image as it is. Sides are multiples of `cells`.
    """
    low = functional.avg_pool2d(pixels, pixels.shape[-1] // cells)
    model = functional.avg_pool2d(others, others.shape[-1] // cells)
    own, wanted = torch.fft.rfft2(low), torch.fft.rfft2(model).abs()
    y = torch.fft.fftfreq(cells, 1 / cells, device=pixels.device).abs()[:, None]
    x = torch.arange(own.shape[-1], device=pixels.device)
    reached = (y < reach[:, None, None]) & (x < reach[:, None, None])
    weight = (share[:, None, None] * reached)[:, None]
    amplitude = own.abs()
    changed = own * ((amplitude + weight * (wanted - amplitude)) / amplitude.clamp(min=1e-5))
    difference = torch.fft.irfft2(changed, s=(cells, cells)) - low
    smooth = functional.interpolate(difference, size=pixels.shape[-2:], mode="bicubic", align_corners=False)
    return _where(share > 0, (pixels + smooth).clamp(0, 1), pixels)


def camera_effects_batch(pixels: Tensor, effects: CameraEffects, draw: _Draws) -> Tensor:
    """As `synth.camera_effects`, in its order. (B, 3, R, R), R a multiple of 16."""
    pixels = _where(draw.chance(effects.spectrum), _jittered_spectrum(pixels, draw), pixels)
    pixels = _where(draw.chance(effects.uneven_light), _unevenly_lit(pixels, draw), pixels)
    pixels = _tone(pixels, effects, draw)
    pixels = _lens(pixels, effects, draw)
    amount = torch.where(draw.chance(effects.sharpen), draw.uniform(0.2, 0.9), 0.0)[:, None, None, None]
    pixels = (pixels + amount * (pixels - _blurred(pixels, 1.2))).clamp(0, 1)
    pixels = pixels * _vignette(pixels, effects, draw)
    pixels = (pixels * _flicker(pixels, effects, draw)).clamp(0, 1)
    pixels = _add_noise(pixels, effects, draw)
    pixels = _where(draw.chance(effects.grayscale), _luma(pixels).expand_as(pixels), pixels)
    coded = draw.chance(effects.jpeg)
    pixels = _where(coded, jpeg(pixels, draw.uniform(28, 96).floor()), pixels)
    again = _shifted_jpeg(pixels, draw.uniform(40, 96).floor(), draw.uniform(0, 8, 2).long())
    return _where(coded & draw.chance(effects.second_jpeg), again, pixels)


def _jittered_spectrum(pixels: Tensor, draw: _Draws, strength: float = 1.2, least: float = 0.12) -> Tensor:
    """As `synth.camera_effects.jitter_spectrum`: amplitudes scaled at random, fine ones more, phases kept."""
    spectrum = torch.fft.rfft2(pixels)
    y = torch.fft.fftfreq(pixels.shape[-2], device=pixels.device)[:, None]
    x = torch.fft.rfftfreq(pixels.shape[-1], device=pixels.device)
    deviation = strength**2 * 2 * (x * x + y * y) + least
    gains = 1 + deviation * torch.randn(spectrum.shape, generator=draw.generator, device=pixels.device)
    gains[..., 0, 0] = 1  # the mean colour stays
    return torch.fft.irfft2(spectrum * gains, s=pixels.shape[-2:]).clamp(0, 1)


def _unevenly_lit(pixels: Tensor, draw: _Draws) -> Tensor:
    cells = (LIGHT_CELLS, LIGHT_CELLS)
    field = UNEVEN_LIGHT * draw.normal(LIGHT_CELLS**2)[:, None] + UNEVEN_COLOR * draw.normal(3 * LIGHT_CELLS**2).view(
        -1, 3, LIGHT_CELLS**2
    )
    light = functional.interpolate(
        torch.exp(field).unflatten(-1, cells), size=pixels.shape[-2:], mode="bicubic", align_corners=False
    )
    return (pixels * light.clamp(min=0)).clamp(0, 1)


def _tone(pixels: Tensor, effects: CameraEffects, draw: _Draws) -> Tensor:
    """Gains, contrast, brightness and gamma, then saturation; or a short exposure, raised with all its noise."""
    gains = 1 + effects.white_balance * draw.normal(3)
    gains = _where(draw.chance(effects.color_cast), gains * torch.exp(0.2 * draw.normal(3)), gains)
    gains = _where(draw.chance(effects.exposure), gains * 2 ** draw.uniform(*EXPOSURE_STOPS, 1), gains)
    contrast, offset = 1 + effects.contrast * draw.normal(1), 0.5 + effects.brightness * draw.normal(1)
    gamma = torch.exp(effects.gamma * draw.normal(1))
    scale, shift = gains * contrast, offset - 0.5 * contrast
    toned = (pixels * scale[..., None, None] + shift[..., None, None]).clamp(0, 1) ** gamma[..., None, None]
    saturation = (1 + effects.saturation * draw.normal(1))[..., None, None]
    toned = (saturation * toned + (1 - saturation) * _luma(toned)).clamp(0, 1)
    if not effects.low_light:
        return toned
    noise = _blurred(torch.randn(pixels.shape, generator=draw.generator, device=pixels.device), 0.7)
    level = draw.uniform(6 / 255, 16 / 255, 1)[..., None, None]
    short = pixels * (gains * draw.uniform(0.25, 0.6, 1))[..., None, None] + noise * level
    raised = (short * draw.uniform(1.2, 2.4, 1)[..., None, None]).clamp(0, 1)
    return _where(draw.chance(effects.low_light), raised, toned)


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _lens(pixels: Tensor, effects: CameraEffects, draw: _Draws) -> Tensor:
    """Out of focus, moved, or small in the photo and enlarged since; at most one of them."""
    resolution = pixels.shape[-1]
    kind = draw.uniform(0, 1)
    defocus = kind < effects.defocus
    motion = (kind < effects.defocus + effects.motion) & ~defocus
    small = (kind < effects.defocus + effects.motion + effects.low_resolution) & ~defocus & ~motion
    sigma = torch.where(defocus, draw.log_uniform(*DEFOCUS_SIGMA) * resolution / 224, 0.0)[:, None, None]
    length = (draw.uniform(*MOTION_LENGTH) * resolution / 224).clamp(min=3)
    length = torch.where(motion, length, 0.0)[:, None, None]
    angle = draw.uniform(0, math.pi)[:, None, None]
    scale = torch.where(small, draw.log_uniform(*SMALLER), 1.0)
    cell = torch.where(small, 1 / scale, 0.0)[:, None, None]  # side of the pixels of the small photo

    padding = _LENS_PADDING
    padded = functional.pad(pixels, (padding,) * 4, mode="reflect")
    side = resolution + 2 * padding
    fy = torch.fft.fftfreq(side, device=pixels.device)[:, None]  # cycles per pixel
    fx = torch.fft.rfftfreq(side, device=pixels.device)[None, :]
    response = torch.exp(-2 * (math.pi * sigma) ** 2 * (fx**2 + fy**2))
    response = response * torch.sinc(length * (fx * torch.cos(angle) + fy * torch.sin(angle)))
    response = response * torch.sinc(cell * fx) * torch.sinc(cell * fy)
    filtered = torch.fft.irfft2(torch.fft.rfft2(padded) * response[:, None], s=(side, side))
    filtered = filtered[..., padding:-padding, padding:-padding].clamp(0, 1)

    # The small photo has `scale` times as many pixels: sample their centres, then enlarge by interpolation.
    cells = math.ceil(SMALLER[1] * resolution)
    index = torch.arange(cells, device=pixels.device)
    coarse_axis = (2 * index + 1) / (scale[:, None] * resolution) - 1  # NDC of the large image; some lie beyond
    coarse = functional.grid_sample(filtered, _grid(coarse_axis), padding_mode="border", align_corners=False)
    centers = (torch.arange(resolution, device=pixels.device) + 0.5) * scale[:, None]
    enlarged = functional.grid_sample(
        coarse, _grid(2 * centers / cells - 1), padding_mode="border", align_corners=False
    )
    return torch.where(small[:, None, None, None], enlarged, filtered)


def _grid(axis: Tensor) -> Tensor:
    """(B, N) coordinates along x and y alike -> (B, N, N, 2)."""
    count = axis.shape[1]
    x, y = axis[:, None, :].expand(-1, count, -1), axis[:, :, None].expand(-1, -1, count)
    return torch.stack([x, y], dim=-1)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian with the same sigma for all."""
    channels, radius = images.shape[1], math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    padded = functional.pad(images, (radius,) * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel, groups=channels)
    return functional.conv2d(rows, kernel.mT, groups=channels)


def _vignette(pixels: Tensor, effects: CameraEffects, draw: _Draws) -> Tensor:
    """(B, 1, R, R) factors: darker towards the corners."""
    centers = _pixel_centers(pixels.shape[-1], pixels)
    radius = (centers**2).sum(dim=-1).view(1, 1, *pixels.shape[-2:]) / 4  # 1/2 in the corners
    depth = torch.where(draw.chance(effects.vignette), draw.uniform(0.1, 0.5), 0.0)
    return 1 - depth[:, None, None, None] * radius


def _flicker(pixels: Tensor, effects: CameraEffects, draw: _Draws) -> Tensor:
    """(B, 1, R, 1) factors: bands across the rows, of lamps under a rolling shutter."""
    rows = torch.arange(pixels.shape[-2], device=pixels.device) * (2 * math.pi / pixels.shape[-2])
    waves = torch.sin(rows * draw.uniform(2, 9, 1) + draw.uniform(0, 2 * math.pi, 1))
    depth = torch.where(draw.chance(effects.flicker), draw.uniform(0.04, 0.2), 0.0)
    return (1 + depth[:, None] * waves)[:, None, :, None]


def _add_noise(pixels: Tensor, effects: CameraEffects, draw: _Draws) -> Tensor:
    """Read and shot noise in one: stronger where it is bright; sometimes coarse, as after a phone's denoising."""
    noise = torch.randn(pixels.shape, generator=draw.generator, device=pixels.device)
    coarse = draw.chance(0.4)[:, None, None, None]
    noise = torch.where(coarse, _blurred(noise, 0.7) * 1.8, noise)
    level = 0.004 * draw.normal(3).square().sum(dim=-1)  # gamma(1.5, 0.008) is 0.004 times a chi-square of 3
    level = torch.where(draw.chance(effects.noise), level, 0.0)[:, None, None, None]
    return (pixels + noise * level * (pixels + 0.4)).clamp(0, 1)


# -------------------------------------------------------------------------------------------------------- JPEG

# ITU-T T.81, Annex K, tables K.1 and K.2: luminance and chrominance at quality 50.
_LUMINANCE_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMINANCE_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip


def jpeg(pixels: Tensor, quality: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1], (B,) qualities 1 to 100 as libjpeg counts -> what a decoder would show.

    Sides are multiples of 16. Colours are halved in resolution (4:2:0), and enlarged by a triangle filter.
    """
    height, width = pixels.shape[-2:]
    if height % 16 or width % 16:
        raise ValueError(f"images are {width}x{height} px, wanted multiples of 16")
    levels = 255 * pixels
    y = _luma(levels)
    red, blue = levels[:, :1], levels[:, 2:]
    chroma = torch.cat([(blue - y) / 1.772, (red - y) / 1.402], dim=1)  # JFIF's Cb and Cr, less 128
    y = _quantised(y - 128, _steps(_LUMINANCE_STEPS, quality)) + 128
    chroma = _quantised(functional.avg_pool2d(chroma, 2), _steps(_CHROMINANCE_STEPS, quality))
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    cb, cr = chroma[:, :1], chroma[:, 1:]
    green = y - (_LUMA[0] * 1.402 * cr + _LUMA[2] * 1.772 * cb) / _LUMA[1]
    return (torch.cat([y + 1.402 * cr, green, y + 1.772 * cb], dim=1) / 255).clamp(0, 1)


def _shifted_jpeg(pixels: Tensor, quality: Tensor, shift: Tensor) -> Tensor:
    """`jpeg` with its blocks moved by `shift` (B, 2) of 0 to 7 pixels: saved once more after a crop."""
    side = pixels.shape[-1]
    places = torch.arange(side + 16, device=pixels.device)
    enlarged = _picked(pixels, (places - shift[..., None]).clamp(0, side - 1))
    return _picked(jpeg(enlarged, quality), places[:side] + shift[..., None])


def _picked(pixels: Tensor, places: Tensor) -> Tensor:
    """The pixels in the columns and rows of `places` (B, 2, N): (B, C, N, N)."""
    _, channels, height, _ = pixels.shape
    count = places.shape[-1]
    pixels = pixels.gather(3, places[:, None, None, 0].expand(-1, channels, height, -1))
    return pixels.gather(2, places[:, None, 1, :, None].expand(-1, channels, -1, count))


def _steps(table: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """(B, 1, 1, 1, 8, 8) quantisation steps, by libjpeg's rule."""
    base = _on_device(table, quality.device)
    percent = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    steps = ((base * percent[:, None, None] + 50) / 100).floor().clamp(1, 255)
    return steps[:, None, None, None]


@cache
def _on_device(table: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """float32. Sent once: while numbers travel to a GPU, the program waits for all that the GPU still has to do."""
    return torch.tensor(table, device=device, dtype=torch.float32)


def _quantised(plane: Tensor, steps: Tensor) -> Tensor:
    """(B, C, H, W) -> the same after rounding the cosine transforms of its 8 x 8 blocks to multiples of `steps`."""
    frequency = torch.arange(8, device=plane.device, dtype=plane.dtype)[:, None]
    position = torch.arange(8, device=plane.device, dtype=plane.dtype)[None, :]
    transform = 0.5 * torch.cos((2 * position + 1) * frequency * math.pi / 16)
    transform[0] /= math.sqrt(2)
    batch, channels, height, width = plane.shape
    blocks = plane.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = torch.round(transform @ blocks @ transform.mT / steps) * steps
    return (transform.mT @ coefficients @ transform).transpose(3, 4).reshape(plane.shape)


# ------------------------------------------------------------------------------------------------------ random


class _Draws:
    """Random numbers for B samples at a time: (B,), or (B, width)."""

    def __init__(self, batch: int, generator: Generator) -> None:
        self.batch, self.generator = batch, generator

    def uniform(self, low: float, high: float, width: int | None = None) -> Tensor:
        numbers = torch.rand(self._shape(width), generator=self.generator, device=self.generator.device)
        return low + (high - low) * numbers

    def log_uniform(self, low: float, high: float) -> Tensor:
        return torch.exp(self.uniform(math.log(low), math.log(high)))

    def normal(self, width: int | None = None) -> Tensor:
        return torch.randn(self._shape(width), generator=self.generator, device=self.generator.device)

    def chance(self, probability: float) -> Tensor:
        """bool, true with this probability."""
        return self.uniform(0, 1) < probability

    def _shape(self, width: int | None) -> tuple[int, ...]:
        return (self.batch,) if width is None else (self.batch, width)


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Sample by sample: chosen (B,) bool, yes and no (B, ...)."""
    return torch.where(chosen.view(-1, *(1,) * (yes.ndim - 1)), yes, no)
