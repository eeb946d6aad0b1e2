"""What lies behind a hand: a bank of procedural images, and a user's own folder of photographs.

Procedural families stand in for photographs (the package ships none): gradients, fractal colour, planks, rooms,
clutter, fabric, foliage, and people: large skin-coloured shapes, so that colour alone never finds the hand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.errors import DataError

logger = logging.getLogger(__name__)

# Any: what OpenCV returns is typed without a dtype. The docstrings say which.
Image = NDArray[Any]
Floats = NDArray[Any]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FOLDER_LIMIT = 2000  # images read from a folder: 0.3 MB each in memory at 320 px


class Backgrounds:
    """A bank of images in memory; `sample` cuts a random square out of one of them.

    The bank depends on `seed`, `count`, `size` and the folder's files only. With a folder, half of all samples come
    from it. Costs about 5 ms and 0.3 MB per procedural image.
    """

    def __init__(self, seed: int = 0, count: int = 256, folder: Path | None = None, size: int = 320) -> None:
        """Raises DataError when `folder` holds no image that can be read."""
        if count < 1:
            raise ValueError(f"count is {count}, wanted at least 1 procedural background")
        self._procedural = [procedural_background(np.random.default_rng((seed, i)), size) for i in range(count)]
        self._photos = _read_folder(folder, size) if folder is not None else []

    def __len__(self) -> int:
        return len(self._procedural) + len(self._photos)

    def sample(self, rng: np.random.Generator, size: int) -> Image:
        """(size, size, 3) uint8 RGB: a random square of a random image, mirrored half the time."""
        bank = self._photos if self._photos and rng.random() < 0.5 else self._procedural
        image = bank[rng.integers(len(bank))]
        side = int(rng.uniform(0.5, 1.0) * min(image.shape[:2]))
        y, x = rng.integers(0, image.shape[0] - side + 1), rng.integers(0, image.shape[1] - side + 1)
        interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
        square = cv2.resize(image[y : y + side, x : x + side], (size, size), interpolation=interpolation)
        return np.ascontiguousarray(square[:, ::-1] if rng.random() < 0.5 else square)


def _read_folder(folder: Path, size: int) -> list[Image]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:FOLDER_LIMIT]
    images: list[Image] = []
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            logger.warning("background %s cannot be read, left out", path)
            continue
        scale = size / min(image.shape[:2])
        shape = (max(size, round(image.shape[1] * scale)), max(size, round(image.shape[0] * scale)))
        images.append(cv2.cvtColor(cv2.resize(image, shape, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB))
    if not images:
        raise DataError(
            f"No background image in {folder}: found {len(paths)} files named {', '.join(IMAGE_SUFFIXES)}, none "
            "readable. Give a folder of photographs without hands, or leave the setting out."
        )
    return images


# ------------------------------------------------------------------------------------------------- the procedural ones


def procedural_background(rng: np.random.Generator, size: int) -> Image:
    """(size, size, 3) uint8 RGB of a random family."""
    weights = np.array([weight for _, weight in _FAMILIES])
    family = _FAMILIES[rng.choice(len(_FAMILIES), p=weights / weights.sum())][0]
    image = family(rng, size)
    if rng.random() < 0.7:
        image = image * (1 + 0.22 * _fractal(rng, size, 2))[..., None]  # uneven light
    if rng.random() < 0.35:
        image = image * rng.uniform(0.85, 1.12, 3).astype(np.float32)
    blur = rng.choice([0, 0, 1.0, 2.0, 4.0, 8.0])
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    return np.clip(image, 0, 255).astype(np.uint8)


def _color(rng: np.random.Generator) -> Floats:
    """A colour as rooms and streets have them: mostly of low saturation."""
    hsv = np.array([[[rng.integers(0, 180), int(255 * rng.beta(1.2, 3.0)), int(255 * rng.beta(1.4, 1.2))]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def skin_color(rng: np.random.Generator) -> Floats:
    """(3,) display RGB of somebody's skin, 0..255."""
    tone = rng.uniform(0, 1)
    light, dark = np.array([236, 196, 172.0]), np.array([88, 56, 42.0])
    return ((light * (1 - tone) + dark * tone) * rng.uniform(0.8, 1.1) * rng.uniform(0.95, 1.05, 3)).astype(np.float32)


def _fractal(rng: np.random.Generator, size: int, octaves: int, gain: float = 0.55, cells: int = 2) -> Floats:
    total = np.zeros((size, size), np.float32)
    amplitude = 1.0
    for _ in range(octaves):
        lattice = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
        total += amplitude * cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC)
        amplitude *= gain
        cells *= 2
    return total


def _mix(first: Floats, second: Floats, share: Floats) -> Floats:
    weight = np.clip(share, 0, 1)[..., None]
    return first * (1 - weight) + second * weight


def _turned(rng: np.random.Generator, image: Floats, angle: float, zoom: float) -> Floats:
    size = image.shape[0]
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), angle, zoom)
    return cv2.warpAffine(image, turn, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _point(values: Sequence[float] | Floats) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _gradient(rng: np.random.Generator, size: int) -> Floats:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle = rng.uniform(0, 2 * np.pi)
    return _mix(_color(rng), _color(rng), (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5)


def _clouds(rng: np.random.Generator, size: int) -> Floats:
    image = _mix(_color(rng), _color(rng), _fractal(rng, size, 6, rng.uniform(0.4, 0.8)) * 0.4 + 0.5)
    return _mix(image, _color(rng), _fractal(rng, size, 5) * 0.5)


def _planks(rng: np.random.Generator, size: int) -> Floats:
    grain: Floats = cv2.resize(rng.standard_normal((size // 2, 6)).astype(np.float32), (size, size))
    grain += 0.7 * cv2.resize(rng.standard_normal((size, 10)).astype(np.float32), (size, size))
    grain += 0.5 * _fractal(rng, size, 3)
    tone = rng.uniform(0.25, 0.95)
    wood = np.array([215 * tone, 170 * tone**1.15, 125 * tone**1.3]) * rng.uniform(0.9, 1.1, 3)
    image = wood.astype(np.float32) * (1 + 0.13 * grain[..., None])
    image[(np.arange(size) % rng.integers(24, 80)) < rng.integers(1, 3)] *= 0.55
    return _turned(rng, image, rng.uniform(0, 360), 1.45)


def _room(rng: np.random.Generator, size: int) -> Floats:
    """A wall, a table and furniture-like boxes, some with a window's bright pane."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = _color(rng)
    image[int(size * rng.uniform(0.3, 0.8)) :] = _color(rng)
    for _ in range(rng.integers(2, 10)):
        corner, extent = rng.integers(-20, size, 2), rng.integers(15, size // 2, 2)
        color = _color(rng) if rng.random() < 0.85 else np.full(3, 245.0, np.float32)
        if rng.random() < 0.7:
            cv2.rectangle(image, _point(corner), _point(corner + extent), color.tolist(), -1)
            if rng.random() < 0.4:
                cv2.rectangle(image, _point(corner), _point(corner + extent), (color * 0.6).tolist(), 2)
        else:
            ellipse = _point(extent // 2)
            cv2.ellipse(image, _point(corner), ellipse, rng.uniform(0, 180), 0, 360, color.tolist(), -1, cv2.LINE_AA)
    image *= 1 + 0.18 * _fractal(rng, size, 4)[..., None]
    return _turned(rng, image, rng.normal(0, 12), 1.15)


def _clutter(rng: np.random.Generator, size: int) -> Floats:
    image = np.empty((size, size, 3), np.uint8)
    image[:] = _color(rng).astype(np.uint8)
    for _ in range(rng.integers(15, 60)):
        color = [int(c) for c in _color(rng)]
        points = rng.integers(0, size, (rng.integers(3, 6), 2))
        kind = rng.random()
        if kind < 0.4:
            polygon = (points[0] + (points - points[0]) * rng.uniform(0.1, 0.7)).astype(np.int32)
            cv2.fillConvexPoly(image, cv2.convexHull(polygon), color, cv2.LINE_AA)
        elif kind < 0.7:
            thickness = -1 if rng.random() < 0.7 else 2
            cv2.circle(image, _point(points[0]), int(rng.integers(2, 40)), color, thickness, cv2.LINE_AA)
        elif kind < 0.9:
            cv2.line(image, _point(points[0]), _point(points[1]), color, int(rng.integers(1, 9)), cv2.LINE_AA)
        else:
            text, font = f"{rng.integers(1 << 30):x}", int(rng.integers(0, 4))
            cv2.putText(image, text, _point(points[0]), font, rng.uniform(0.4, 2), color, int(rng.integers(1, 4)))
    return image * (1 + 0.12 * _fractal(rng, size, 5))[..., None]


def _fabric(rng: np.random.Generator, size: int) -> Floats:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(0.05, 1.2)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    pattern = np.sin(u * frequency)
    if rng.random() < 0.6:
        pattern = pattern * np.sin(v * frequency * rng.uniform(0.3, 1.5))
    if rng.random() < 0.5:
        pattern = np.where(pattern > rng.uniform(-0.5, 0.5), 1.0, -1.0)
    image = _mix(_color(rng), _color(rng), (pattern * 0.5 + 0.5).astype(np.float32))
    return image * (1 + 0.15 * _fractal(rng, size, 4))[..., None]


def _foliage(rng: np.random.Generator, size: int) -> Floats:
    """Leaves in the sun over a dark ground, with sky above: what outdoor photographs have most of."""
    leaf = np.array([rng.uniform(50, 130), rng.uniform(90, 160), rng.uniform(25, 70)], np.float32)
    image = np.empty((size, size, 3), np.float32)
    image[:] = leaf * 0.35
    for _ in range(rng.integers(150, 350)):
        center, axes = rng.integers(0, size, 2), (int(rng.integers(2, 14)), int(rng.integers(1, 7)))
        color = leaf * rng.uniform(0.4, 1.6) * rng.uniform(0.85, 1.15, 3)
        cv2.ellipse(image, _point(center), axes, rng.uniform(0, 180), 0, 360, color.tolist(), -1, cv2.LINE_AA)
    image *= 1 + 0.35 * _fractal(rng, size, 5, 0.7)[..., None]
    if rng.random() < 0.5:
        horizon = size * rng.uniform(0.1, 0.6) + 12 * _fractal(rng, size, 5, 0.7)[0]
        sky = np.array([rng.uniform(150, 235), rng.uniform(180, 240), rng.uniform(200, 255)], np.float32)
        image = np.where((np.arange(size)[:, None] < horizon)[..., None], sky, image)
    return image.astype(np.float32)


def _people(rng: np.random.Generator, size: int) -> Floats:
    """Skin-coloured heads, arms and bodies over a room: colour alone must not find the hand."""
    image = _room(rng, size)
    for _ in range(rng.integers(1, 4)):
        skin, center = skin_color(rng), rng.integers(0, size, 2)
        cloth, hair = _color(rng), skin_color(rng) * rng.uniform(0.1, 0.8)
        scale, tilt = rng.uniform(0.12, 0.5) * size, rng.normal(0, 15)
        down = np.array([0, 1.0])
        body = _point(center + down * scale * 2.1)
        cv2.ellipse(image, body, _point((scale * 1.3, scale * 1.4)), tilt, 0, 360, cloth.tolist(), -1, cv2.LINE_AA)
        neck = _point(center + down * scale * 1.2)
        cv2.line(image, _point(center), neck, (skin * 0.9).tolist(), max(int(scale * 0.6), 1), cv2.LINE_AA)
        top = _point(center - down * scale * 0.25)
        cv2.ellipse(image, top, _point((scale * 0.85, scale)), tilt, 0, 360, hair.tolist(), -1, cv2.LINE_AA)
        face = _point((scale * 0.68, scale * 0.9))
        cv2.ellipse(image, _point(center), face, tilt, 0, 360, skin.tolist(), -1, cv2.LINE_AA)
        for side in (-1, 1):
            eye = _point(center + np.array([side * 0.28, -0.12]) * scale)
            cv2.ellipse(image, eye, _point((scale * 0.1 + 1, scale * 0.05 + 1)), 0, 0, 360, (30, 25, 25), -1)
        mouth = _point(center + down * scale * 0.45)
        cv2.ellipse(image, mouth, _point((scale * 0.25, scale * 0.07 + 1)), 0, 0, 360, (skin * 0.7).tolist(), -1)
        if rng.random() < 0.7:  # an arm
            end = _point(center + rng.normal(0, 1.5, 2) * scale)
            thickness = max(int(scale * rng.uniform(0.25, 0.5)), 1)
            cv2.line(image, body, end, (skin * rng.uniform(0.8, 1)).tolist(), thickness, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.7, 2.5))
    return image * (1 + 0.15 * _fractal(rng, size, 4))[..., None]


_FAMILIES: tuple[tuple[Callable[[np.random.Generator, int], Floats], float], ...] = (
    (_gradient, 1.0),
    (_clouds, 1.0),
    (_planks, 1.0),
    (_room, 2.0),
    (_clutter, 1.5),
    (_fabric, 0.8),
    (_foliage, 1.2),
    (_people, 1.5),
)
