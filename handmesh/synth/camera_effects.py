"""From a clean render to what a camera delivers: put it on a background, then colour, blur, noise and JPEG.

Renders are kept clean in a pack, so that each use of one can get another background and another camera.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.config.scenes import CameraEffects

# Any: what OpenCV returns is typed without a dtype. The docstrings say which.
Image = NDArray[Any]
Floats = NDArray[Any]

# Real hands are often out of focus, or move: edges in 224 px frames of FreiHAND are as soft as Gaussians of 2 to 3 px
# leave them. A network that was trained on at most 1.4 draws hands blurred by 2.5 px 1.5 times as far off as sharp ones
# (`benchmarks/rerender.py`).
DEFOCUS_SIGMA = (0.35, 4.0)  # px at 224, standard deviation of the Gaussian; uniform in the logarithm
MOTION_LENGTH = (5.0, 22.0)  # px at 224, but at least 3 px
SMALLER = (0.16, 0.8)  # share of the side that a small photo has; uniform in the logarithm
EXPOSURE_STOPS = (-1.3, 1.3)
# A lamp lights the hand and not the arm; walls and cloth near it lend one of them their colour. Standard deviation of
# the logarithm of the light, and of each of its colours, in cells of a third of the picture's side.
UNEVEN_LIGHT, UNEVEN_COLOR, LIGHT_CELLS = 0.4, 0.12, 3


def composite(foreground: Image, alpha: Image, background: Image) -> Image:
    """Premultiplied (H, W, 3) foreground with (H, W) alpha over an (H, W, 3) background, all uint8.

    The foreground is premultiplied: colour times coverage, black where nothing is. That makes edges exact on any
    background, and lets foreground and alpha be resized and warped together without a halo.
    """
    rest = cv2.cvtColor(255 - alpha, cv2.COLOR_GRAY2BGR)
    return cv2.add(foreground, cv2.multiply(background, rest, scale=1 / 255))


def place_on_background(
    rng: np.random.Generator,
    foreground: Image,
    alpha: Image,
    background: Image,
    shadow: float = 0.5,
    soft_matte: float = 0.12,
) -> Image:
    """`composite`, with a soft drop shadow on the background (probability `shadow`) and, half the time, a hand that
    takes on a little of the background's colour. With probability `soft_matte` the hand is cut out as badly as in
    composited data sets: soft edges, a background that shines through.
    """
    if rng.random() < soft_matte:
        softness, opacity = rng.uniform(0.4, 1.6) * alpha.shape[0] / 128, rng.uniform(0.75, 1.0)
        both = cv2.GaussianBlur(np.dstack([foreground, alpha]), (0, 0), softness)
        if rng.random() < 0.5:
            both = cv2.convertScaleAbs(both, alpha=opacity)
        foreground, alpha = np.ascontiguousarray(both[..., :3]), np.ascontiguousarray(both[..., 3])
    if rng.random() < shadow:
        strength, softness = rng.uniform(0.1, 0.45), rng.uniform(2, 11)
        shift = rng.normal(0, 0.05, 2) * alpha.shape[0]
        half = cv2.resize(alpha, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        half = cv2.GaussianBlur(half, (0, 0), softness / 2)
        move = np.array([[2, 0, shift[0]], [0, 2, shift[1]]], np.float32)
        cast = cv2.warpAffine(half, move, alpha.shape[::-1], flags=cv2.INTER_LINEAR)
        light = cv2.cvtColor(cv2.addWeighted(cast, -strength, cast, 0, 255), cv2.COLOR_GRAY2BGR)
        background = cv2.multiply(background, light, scale=1 / 255)
    if rng.random() < 0.5:
        mean = np.array(cv2.mean(background)[:3])
        tint = 1 + 0.10 * (np.clip(mean / (mean.mean() + 1e-3), 0.5, 1.6) - 1)
        foreground = _scale_channels(foreground, tint)
        foreground = np.minimum(foreground, alpha[..., None])  # stays premultiplied
    return composite(foreground, alpha, background)


def _scale_channels(image: Image, gains: NDArray[np.float64]) -> Image:
    table = np.clip(np.arange(256)[:, None] * gains + 0.5, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])


@cache
def _noise_tile() -> Floats:
    """(512, 512, 3) standard normal numbers; noise is a random cut of it (drawing fresh numbers costs 1.5 ms)."""
    return np.random.default_rng(11).standard_normal((512, 512, 3), np.float32)


def camera_effects(rng: np.random.Generator, image: Image, settings: CameraEffects | None = None) -> Image:
    """(H, W, 3) uint8 RGB -> (H, W, 3) uint8 RGB as a camera would deliver it. Geometry stays as it is.

    Sides above 512 px are refused (ValueError): the effects' sizes are meant for crops.
    """
    settings = CameraEffects() if settings is None else settings
    height, width = image.shape[:2]
    if max(height, width) > 512:
        raise ValueError(f"the image is {width}x{height}, wanted at most 512 px: apply the effects to the crop")
    if rng.random() < settings.spectrum:
        image = jitter_spectrum(rng, image)
    if rng.random() < settings.uneven_light:
        image = _uneven_light(rng, image)
    image = _tone(rng, image, settings)
    kind = rng.random()
    if kind < settings.defocus:
        image = cv2.GaussianBlur(image, (0, 0), _log_uniform(rng, DEFOCUS_SIGMA) * max(height, width) / 224)
    elif kind < settings.defocus + settings.motion:
        image = _motion_blur(rng, image)
    elif kind < settings.defocus + settings.motion + settings.low_resolution:
        scale = _log_uniform(rng, SMALLER)
        # By the whole image to whole pixels: `fx` would leave part of the last ones empty, and move what comes back.
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        back = cv2.INTER_LINEAR if rng.random() < 0.6 else cv2.INTER_CUBIC
        image = cv2.resize(small, (width, height), interpolation=back)
    if rng.random() < settings.sharpen:
        amount = rng.uniform(0.2, 0.9)
        image = cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), 1.2), -amount, 0)
    if rng.random() < settings.vignette:
        image = _vignette(rng, image)
    if rng.random() < settings.flicker:
        rows = np.arange(height) * rng.uniform(2, 9) * 2 * np.pi / height + rng.uniform(0, 6.28)
        gains = 1 + rng.uniform(0.04, 0.2) * np.sin(rows)
        image = np.clip(image * gains[:, None, None], 0, 255).astype(np.uint8)
    if rng.random() < settings.noise:
        image = _noise(rng, image)
    if rng.random() < settings.grayscale:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < settings.jpeg:
        image = _through_jpeg(image, int(rng.integers(28, 96)))
        if rng.random() < settings.second_jpeg:
            y, x = (int(shift) for shift in rng.integers(0, 8, 2))
            padded = cv2.copyMakeBorder(image, y, 0, x, 0, cv2.BORDER_REPLICATE)
            image = _through_jpeg(padded, int(rng.integers(40, 96)))[y:, x:]
    return np.ascontiguousarray(image)


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    low, high = limits
    return float(low * (high / low) ** rng.random())


def _through_jpeg(image: Image, quality: int) -> Image:
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded a line above
    return decoded[..., ::-1]


def jitter_spectrum(rng: np.random.Generator, image: Image, strength: float = 1.2, least: float = 0.12) -> Image:
    """(H, W, 3) uint8 -> the same with each Fourier amplitude scaled at random, phases kept.

    The deviation grows with the square of the frequency, from `least` on: rendered and real images differ most in fine
    texture, and a network should not lean on it (PASTA, Chattopadhyay et al. 2023).
    """
    height, width = image.shape[:2]
    spectrum = np.fft.rfft2(image.astype(np.float32), axes=(0, 1))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    deviation = (strength * 2 * np.sqrt((x * x + y * y) / 2)) ** 2 + least
    tile = _noise_tile()
    row, column = rng.integers(0, 513 - height), rng.integers(0, 513 - x.shape[1])
    gains = 1 + deviation[..., None] * tile[row : row + height, column : column + x.shape[1]]
    gains[0, 0] = 1  # the mean colour stays
    values = np.fft.irfft2(spectrum * gains.astype(np.float32), s=(height, width), axes=(0, 1))
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def mix_amplitude(rng: np.random.Generator, image: Image, other: Image, share: float = 1.0, cells: int = 16) -> Image:
    """(H, W, 3) uint8 -> `image` with some of its coarse Fourier amplitudes taken from `other` (any size), phases kept.

    FDA (Yang and Soatto 2020): colours, light and haze of another picture under the same shapes. Worked on a
    `cells` x `cells` reduction, which holds the lowest frequencies; `share` is the largest part of the exchange.
    """
    height, width = image.shape[:2]
    low = cv2.resize(image, (cells, cells), interpolation=cv2.INTER_AREA).astype(np.float32)
    model = cv2.resize(other, (cells, cells), interpolation=cv2.INTER_AREA).astype(np.float32)
    own, wanted = np.fft.rfft2(low, axes=(0, 1)), np.abs(np.fft.rfft2(model, axes=(0, 1)))
    reach = rng.integers(1, 4)  # how many frequencies are exchanged
    y, x = np.abs(np.fft.fftfreq(cells, 1 / cells))[:, None, None], np.arange(own.shape[1])[None, :, None]
    weight = share * rng.uniform(0.1, 0.6) * ((y < reach) & (x < reach))
    amplitude = np.abs(own)
    changed = own * ((amplitude + weight * (wanted - amplitude)) / np.maximum(amplitude, 1e-3))
    difference = np.fft.irfft2(changed, s=(cells, cells), axes=(0, 1)).astype(np.float32) - low
    smooth = cv2.resize(difference, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + smooth + 0.5, 0, 255).astype(np.uint8)


def _uneven_light(rng: np.random.Generator, image: Image) -> Image:
    field = UNEVEN_LIGHT * rng.standard_normal((LIGHT_CELLS, LIGHT_CELLS, 1), np.float32)
    field = np.exp(field + UNEVEN_COLOR * rng.standard_normal((LIGHT_CELLS, LIGHT_CELLS, 3), np.float32))
    light = cv2.resize(field, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.convertScaleAbs(image * np.maximum(light, 0))


def _tone(rng: np.random.Generator, image: Image, settings: CameraEffects) -> Image:
    """Gains, contrast, brightness and gamma as one lookup table per channel, then saturation."""
    gains = 1 + rng.normal(0, settings.white_balance, 3)
    if rng.random() < settings.color_cast:
        gains = gains * np.exp(rng.normal(0, 0.2, 3))
    if rng.random() < settings.exposure:
        gains = gains * 2 ** rng.uniform(*EXPOSURE_STOPS)
    dark = rng.random() < settings.low_light
    contrast, offset = 1 + rng.normal(0, settings.contrast), 0.5 + rng.normal(0, settings.brightness)
    gamma, saturation = np.exp(rng.normal(0, settings.gamma)), 1 + rng.normal(0, settings.saturation)
    if dark:
        return _low_light(rng, image, gains)
    levels = np.arange(256)[:, None] / 255 * gains
    curve = np.clip((levels - 0.5) * contrast + offset, 0, 1) ** gamma
    image = cv2.LUT(image, (curve * 255 + 0.5).astype(np.uint8)[None])
    if abs(saturation - 1) < 1e-3:
        return image
    luma = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    mix = (saturation * np.eye(3) + (1 - saturation) * luma).astype(np.float32)
    return cv2.transform(image, mix)


def _low_light(rng: np.random.Generator, image: Image, gains: NDArray[np.float64]) -> Image:
    """A short exposure with heavy, coarse noise, raised afterwards."""
    height, width = image.shape[:2]
    y, x = rng.integers(0, 513 - height), rng.integers(0, 513 - width)
    noise = cv2.GaussianBlur(_noise_tile()[y : y + height, x : x + width], (0, 0), rng.uniform(0.4, 1.0))
    values = image * (gains * rng.uniform(0.25, 0.6)).astype(np.float32) + noise * rng.uniform(6, 16)
    return np.clip(values * rng.uniform(1.2, 2.4), 0, 255).astype(np.uint8)


def _motion_blur(rng: np.random.Generator, image: Image) -> Image:
    length = max(3, round(rng.uniform(*MOTION_LENGTH) * image.shape[0] / 224)) | 1  # an even kernel moves the picture
    kernel = np.zeros((length, length), np.float32)
    angle, middle = rng.uniform(0, np.pi), (length - 1) / 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * middle
    start, end = np.round(middle - reach).astype(int), np.round(middle + reach).astype(int)
    cv2.line(kernel, tuple(map(int, start)), tuple(map(int, end)), 1.0, 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def _vignette(rng: np.random.Generator, image: Image) -> Image:
    height, width = image.shape[:2]
    y, x = np.ogrid[0:height, 0:width]
    radius = ((x - width / 2) ** 2 + (y - height / 2) ** 2) * (2.0 / (height**2 + width**2))
    shade = (255 * (1 - rng.uniform(0.1, 0.5) * radius)).astype(np.uint8)
    return cv2.multiply(image, cv2.cvtColor(shade, cv2.COLOR_GRAY2BGR), scale=1 / 255)


def _noise(rng: np.random.Generator, image: Image) -> Image:
    """Read and shot noise in one: stronger where it is bright; sometimes coarse, as after a phone's denoising."""
    height, width = image.shape[:2]
    y, x = rng.integers(0, 513 - height), rng.integers(0, 513 - width)
    noise = _noise_tile()[y : y + height, x : x + width]
    if rng.random() < 0.4:
        noise = cv2.GaussianBlur(noise, (0, 0), 0.7) * 1.8
    level = rng.gamma(1.5, 0.008) * 255
    values = image.astype(np.float32)
    values += noise * (values * np.float32(level / 255) + np.float32(0.4 * level))
    return cv2.convertScaleAbs(np.maximum(values, 0))
