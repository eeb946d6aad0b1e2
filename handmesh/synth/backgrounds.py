"""What lies behind a hand: a bank of procedural images, and a user's own folder of photographs.

Procedural families stand in for photographs (the package ships none): dead leaves and random-phase colour with the
spectra of natural images, rooms, studios, screens, lights out of focus, planks, clutter, fabric, foliage, and people,
so that skin colour alone never finds the hand. `Backgrounds.sample_distractor` gives backgrounds with hand-like
clutter and no hand: what a network should say "no hand" to.
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

    The bank depends on `seed`, `count`, `size` and the folder's files only, of which the first `FOLDER_LIMIT` by name
    are read. With a folder, half of all samples come from it. Costs about 6 ms and 0.3 MB per procedural image. With
    `held_out` the bank is of other families, which training never sees, for scores on a look of its own.
    """

    def __init__(
        self, seed: int = 0, count: int = 256, folder: Path | None = None, size: int = 320, held_out: bool = False
    ) -> None:
        """Raises DataError when `folder` holds no image that can be read."""
        if count < 1:
            raise ValueError(f"count is {count}, wanted at least 1 procedural background")
        families = _HELD_OUT_FAMILIES if held_out else _FAMILIES
        self._procedural = [
            procedural_background(np.random.default_rng((seed, i)), size, families) for i in range(count)
        ]
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

    def sample_distractor(self, rng: np.random.Generator, size: int) -> Image:
        """(size, size, 3) uint8 RGB without a hand, but most with what looks like one at a glance: faces, arms that

        leave the picture, skin-coloured lumps and bundles of rods, objects. For teaching a confidence. Under 1 ms.
        """
        return draw_distractors(rng, self.sample(rng, size))


def check_folder(folder: Path) -> list[Path]:
    """Its images by name, up to the limit; one of them can be read. Raises DataError."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) > FOLDER_LIMIT:
        logger.warning("%s has %d images: the first %d by name are backgrounds", folder, len(paths), FOLDER_LIMIT)
        paths = paths[:FOLDER_LIMIT]
    if all(cv2.imread(str(path)) is None for path in paths):
        raise DataError(
            f"No background image in {folder}: found {len(paths)} files named {', '.join(IMAGE_SUFFIXES)}, none "
            "readable. Give a folder of photographs without hands, or leave the setting out."
        )
    return paths


def _read_folder(folder: Path, size: int) -> list[Image]:
    images: list[Image] = []
    for path in check_folder(folder):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            logger.warning("background %s cannot be read, left out", path)
            continue
        scale = size / min(image.shape[:2])
        shape = (max(size, round(image.shape[1] * scale)), max(size, round(image.shape[0] * scale)))
        images.append(cv2.cvtColor(cv2.resize(image, shape, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB))
    return images


# ------------------------------------------------------------------------------------------------- the procedural ones


def procedural_background(rng: np.random.Generator, size: int, families: Families | None = None) -> Image:
    """(size, size, 3) uint8 RGB of a random family."""
    families = _FAMILIES if families is None else families
    weights = np.array([weight for _, weight in families])
    family = families[rng.choice(len(families), p=weights / weights.sum())][0]
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
    affine = cv2.getRotationMatrix2D((size / 2, size / 2), angle, zoom)
    return cv2.warpAffine(image, affine, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


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


def _spectral(rng: np.random.Generator, size: int) -> Floats:
    """Random phases under the amplitude spectrum of natural images, 1 / f^a with a about 1 (Field 1987), with a few
    correlated colour directions.
    """
    side = size // 2
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    stretch = rng.uniform(0.6, 1.6)
    amplitude = (fx * fx * stretch + fy * fy / stretch + (0.7 / side) ** 2) ** (-rng.uniform(0.4, 0.8))
    phases = rng.uniform(0, 2 * np.pi, (3, *amplitude.shape))
    noise = np.fft.irfft2(amplitude * np.exp(1j * phases), s=(side, side)).transpose(1, 2, 0)
    noise = noise / noise.std(axis=(0, 1)) * [1.0, rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.3)]
    # Luminance, then blue against yellow, then green against red: how colours vary in photographs.
    directions = np.array([[0.58, 0.58, 0.58], [0.7, 0.0, -0.7], [0.4, -0.82, 0.4]])
    image = _color(rng) + noise @ directions * rng.uniform(25, 70)
    return cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def _dead_leaves(rng: np.random.Generator, size: int) -> Floats:
    """Shapes that hide each other, radii with density r^-3: the edges and scales of natural images (Lee, Mumford and
    Huang 2001), which is what pre-training on noise found to matter (Baradad et al. 2021).
    """
    image = np.empty((size, size, 3), np.float32)
    palette = np.stack([_color(rng) for _ in range(rng.integers(3, 9))])
    image[:] = palette[0]
    smallest, largest = 6.0, size * 0.45
    u = rng.random(rng.integers(120, 260))
    radii = 1 / np.sqrt(1 / smallest**2 - u * (1 / smallest**2 - 1 / largest**2))
    kind, angle = rng.integers(4), rng.uniform(0, 180)
    for radius in np.sort(radii)[::-1]:
        center = rng.uniform(-0.1 * size, 1.1 * size, 2)
        color = (palette[rng.integers(len(palette))] * rng.uniform(0.6, 1.25)).tolist()
        rotation = angle + rng.normal(0, 15)
        shape = kind if kind < 3 else rng.integers(3)
        if shape == 0:
            axes = (max(int(radius), 1), max(int(radius * rng.uniform(0.4, 1)), 1))
            cv2.ellipse(image, _point(center), axes, rotation, 0, 360, color, -1, cv2.LINE_AA)
        elif shape == 1:
            extent = (float(2 * radius), float(2 * radius * rng.uniform(0.2, 1)))
            corners = cv2.boxPoints((tuple(map(float, center)), extent, rotation))
            cv2.fillConvexPoly(image, corners.astype(np.int32), color, cv2.LINE_AA)
        else:
            hull = cv2.convexHull((center + rng.normal(0, radius, (6, 2))).astype(np.int32))
            cv2.fillConvexPoly(image, hull, color, cv2.LINE_AA)
    texture = _fractal(rng, size, 7, rng.uniform(0.6, 0.95))
    return image * (1 + rng.uniform(0.05, 0.2) * texture)[..., None]


def _studio(rng: np.random.Generator, size: int) -> Floats:
    """A wall, a cloth or a green screen behind people at cameras: one colour with folds, corners, bright lamps."""
    kind = rng.random()
    if kind < 0.35:
        color = np.full(3, rng.uniform(190, 255))
    elif kind < 0.6:
        color = np.array([rng.uniform(40, 120), rng.uniform(100, 190), rng.uniform(30, 90)])
    else:
        color = _color(rng)
    image = np.empty((size, size, 3), np.float32)
    image[:] = color
    for _ in range(rng.integers(0, 4)):  # planes that meet
        normal, offset = rng.normal(size=2), rng.uniform(-0.4, 0.4) * size
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) - size / 2
        beyond = (x * normal[0] + y * normal[1]) / np.linalg.norm(normal) > offset
        image[beyond] *= rng.uniform(0.75, 1.12)
    image *= (1 + rng.uniform(0.02, 0.15) * _fractal(rng, size, 3, 0.5, 3))[..., None]
    for _ in range(rng.integers(0, 3)):
        corner, extent = rng.integers(-20, size, 2), rng.integers(10, size // 3, 2)
        lamp = rng.random() < 0.5
        paint = np.full(3, 255.0) if lamp else _color(rng) * 0.5
        corners = cv2.boxPoints((tuple(map(float, corner)), tuple(map(float, extent)), float(rng.uniform(0, 90))))
        cv2.fillConvexPoly(image, corners.astype(np.int32), paint.tolist(), cv2.LINE_AA)
    return image


def _bokeh(rng: np.random.Generator, size: int) -> Floats:
    """Lights out of focus."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = _color(rng) * rng.uniform(0.1, 0.7)
    image *= (1 + 0.3 * _fractal(rng, size, 3))[..., None]
    radius = rng.uniform(0.01, 0.07) * size
    glow = np.zeros_like(image)
    for _ in range(rng.integers(8, 60)):
        disk = np.zeros((size, size), np.uint8)
        center, r = rng.integers(0, size, 2), max(int(radius * rng.uniform(0.6, 1.4)), 1)
        low, high = np.maximum(center - r - 2, 0), np.minimum(center + r + 3, size)
        window = disk[low[1] : high[1], low[0] : high[0]]
        cv2.circle(window, _point(center - low), r, 255, -1, cv2.LINE_AA)
        light = (_color(rng) + rng.uniform(0, 120)) * rng.uniform(0.2, 0.9) / 255
        glow[low[1] : high[1], low[0] : high[0]] += window[..., None] * light.astype(np.float32)
    return image + glow


def _screen(rng: np.random.Generator, size: int) -> Floats:
    """Windows and lines of text, as on screens, posters and pages."""
    image = np.empty((size, size, 3), np.uint8)
    image[:] = _color(rng).astype(np.uint8)
    for _ in range(rng.integers(1, 4)):
        corner, extent = rng.integers(-size // 4, size * 3 // 4, 2), rng.integers(size // 4, size, 2)
        dark = rng.random() < 0.3
        page = rng.uniform(15, 60, 3) if dark else rng.uniform(215, 255, 3)
        ink = (rng.uniform(150, 255, 3) if dark else rng.uniform(0, 110, 3)).tolist()
        end = corner + extent
        cv2.rectangle(image, _point(corner), _point(end), page.tolist(), -1)
        cv2.rectangle(image, _point(corner), _point((end[0], corner[1] + 10)), _color(rng).tolist(), -1)
        step, scale = int(rng.integers(8, 22)), rng.uniform(0.25, 0.7)
        for line in range(corner[1] + 18, min(end[1], size), step):
            if rng.random() < 0.15:
                continue
            letters = "".join(chr(c) for c in rng.integers(97, 123, rng.integers(4, 30)))
            cv2.putText(image, letters, (int(corner[0]) + 6, int(line)), int(rng.integers(0, 4)), scale, ink, 1)
        if rng.random() < 0.5:
            low = corner + rng.integers(0, size // 3, 2)
            cv2.rectangle(image, _point(low), _point(low + rng.integers(15, size // 3, 2)), _color(rng).tolist(), -1)
    return _turned(rng, image.astype(np.float32), rng.normal(0, 25), rng.uniform(1.0, 1.6))


def _interior(rng: np.random.Generator, size: int) -> Floats:
    """A room in perspective: back wall, floor, ceiling and side walls, shelves and frames on them."""
    image = np.empty((size, size, 3), np.float32)
    vanishing = rng.uniform(0.25, 0.75, 2) * size
    half = rng.uniform(0.1, 0.35, 2) * size
    low, high = vanishing - half, vanishing + half
    far = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    near = vanishing + (far - vanishing) * 12
    wall, floor = _color(rng), _color(rng) * 0.8
    image[:] = wall
    for side in range(4):
        corners = np.array([far[side], far[(side + 1) % 4], near[(side + 1) % 4], near[side]]).astype(np.int32)
        color = (wall * 1.1, wall * 0.8, floor, wall * 0.9)[side]
        cv2.fillConvexPoly(image, corners, color.tolist(), cv2.LINE_AA)
        for _ in range(rng.integers(0, 5)):  # things on the side walls shrink towards the vanishing point
            a, b = sorted(rng.uniform(1.0, 4.0, 2))
            u, v = sorted(rng.uniform(0, 1, 2))
            edge = far[side] - vanishing, far[(side + 1) % 4] - vanishing
            first, second = edge[0] + u * (edge[1] - edge[0]), edge[0] + v * (edge[1] - edge[0])
            quad = vanishing + np.array([first * a, second * a, second * b, first * b])
            cv2.fillConvexPoly(image, quad.astype(np.int32), _color(rng).tolist(), cv2.LINE_AA)
    for _ in range(rng.integers(1, 6)):
        corner = low + rng.uniform(0, 0.8, 2) * 2 * half
        extent = rng.uniform(0.05, 0.5, 2) * half
        paint = np.full(3, 250.0) if rng.random() < 0.3 else _color(rng)
        cv2.rectangle(image, _point(corner), _point(corner + extent), paint.tolist(), -1)
    image *= (1 + 0.12 * _fractal(rng, size, 6, 0.75))[..., None]
    return image


def _people(rng: np.random.Generator, size: int) -> Floats:
    """Skin-coloured heads, arms and bodies over a room or a wall: colour alone must not find the hand."""
    behind = (_room, _studio, _interior, _spectral)[rng.integers(4)]
    image: Floats = np.clip(behind(rng, size), 0, 255).astype(np.float32)
    if rng.random() < 0.6:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(1, 6))
    for _ in range(rng.integers(1, 4)):
        _draw_person(rng, image, rng.uniform(0.12, 0.5) * size, rng.uniform(0, size, 2))
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.0))
    return image * (1 + 0.15 * _fractal(rng, size, 4))[..., None]


def _draw_person(rng: np.random.Generator, image: Floats, scale: float, center: Floats) -> None:
    """A head with shoulders and perhaps an arm, in place; `scale` is the head's height over 1.8, px."""
    skin, cloth, hair = skin_color(rng), _color(rng), skin_color(rng) * rng.uniform(0.1, 0.8)
    tilt = rng.normal(0, 15)
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))

    def at(x: float, y: float) -> tuple[int, int]:  # in heads, upright, from the middle of the face
        return int(center[0] + scale * (c * x - s * y)), int(center[1] + scale * (s * x + c * y))

    def blob(x: float, y: float, width: float, height: float, color: Floats) -> None:
        axes = (max(int(scale * width), 1), max(int(scale * height), 1))
        cv2.ellipse(image, at(x, y), axes, tilt, 0, 360, color.tolist(), -1, cv2.LINE_AA)

    bare = rng.random() < 0.25  # bare shoulders
    blob(0, 2.2, 1.4, 1.2, skin * 0.95 if bare else cloth)
    cv2.line(image, at(0, 0.3), at(0, 1.25), (skin * 0.85).tolist(), max(int(scale * 0.55), 1), cv2.LINE_AA)
    long_hair = rng.uniform(-0.25, 0.3)
    blob(0, long_hair, 0.85, 1.0 + abs(long_hair), hair)
    for side in (-1, 1):
        blob(side * 0.68, 0.05, 0.1, 0.17, skin * 0.85)
    blob(0, 0, 0.68, 0.9, skin)
    yaw = rng.normal(0, 0.12)  # looking aside; the cheek away from the light is darker
    light = rng.choice([-1, 1])
    for step in range(4):
        blob(
            light * 0.06 * (step + 1),
            -0.03 * step,
            0.6 - 0.09 * step,
            0.82 - 0.1 * step,
            skin * (1 + 0.035 * (step + 1)),
        )
    blob(0, -0.75, 0.55, 0.28, hair)
    for side in (-1, 1):
        x = side * 0.27 + yaw
        blob(x, -0.12, 0.13, 0.07, skin * 0.82)
        blob(x, -0.12, 0.11, 0.05, np.full(3, 225.0))
        blob(x + 0.3 * yaw, -0.12, 0.05, 0.05, np.array([45.0, 35, 30]))
        cv2.line(image, at(x - 0.14, -0.27), at(x + 0.14, -0.28), (hair * 0.8).tolist(), max(int(scale * 0.05), 1))
    cv2.line(image, at(yaw, -0.05), at(yaw * 1.3 + 0.03, 0.22), (skin * 0.86).tolist(), max(int(scale * 0.06), 1))
    blob(yaw, 0.24, 0.12, 0.05, skin * 0.8)
    lips = skin * np.array([0.85, 0.6, 0.62])
    blob(yaw, 0.47, 0.22, 0.05 + 0.05 * rng.random(), lips)
    if rng.random() < 0.6:
        _draw_limb(
            rng, image, skin * rng.uniform(0.85, 1.0), np.array(at(1.2 * light, 1.8)), scale * rng.uniform(0.15, 0.28)
        )


def _draw_limb(rng: np.random.Generator, image: Floats, skin: Floats, start: Floats, radius: float) -> None:
    """An arm from `start` (2,) out of the picture, in place: round, so brighter along one side."""
    size = image.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    end = start + direction * 2 * size
    bend = start + direction * size * rng.uniform(0.2, 0.6) + rng.normal(0, 0.15, 2) * size
    across = np.array([-direction[1], direction[0]])
    for share in (1.0, 0.8, 0.55, 0.3):
        color = (skin * (0.72 + 0.32 * (1 - share))).tolist()
        shift = across * radius * (1 - share) * 0.6
        points = np.stack([start + shift, bend + shift, end + shift]).astype(np.int32)
        cv2.polylines(image, [points], False, color, max(int(2 * radius * share), 1), cv2.LINE_AA)


def draw_distractors(rng: np.random.Generator, background: Image) -> Image:
    """(S, S, 3) uint8 -> the same with none to three things that look like a hand at a glance and are none."""
    image = background.astype(np.float32)
    size = image.shape[0]
    for _ in range(rng.integers(0, 4)):
        kind, center = rng.random(), rng.uniform(0.15, 0.85, 2) * size
        skin = skin_color(rng)
        if kind < 0.3:
            _draw_person(rng, image, rng.uniform(0.12, 0.8) * size, center)
        elif kind < 0.55:
            _draw_limb(rng, image, skin, rng.uniform(-0.3, 1.3, 2) * size, rng.uniform(0.03, 0.2) * size)
        elif kind < 0.7:  # a lump in a skin colour: a shoulder, a knee, dough
            hull = cv2.convexHull((center + rng.normal(0, rng.uniform(0.05, 0.25) * size, (9, 2))).astype(np.int32))
            for share in (1.0, 0.8, 0.6):
                inner = (center + (hull[:, 0] - center) * share).astype(np.int32)
                cv2.fillConvexPoly(image, inner, (skin * (0.75 + 0.3 * (1 - share))).tolist(), cv2.LINE_AA)
        elif kind < 0.85:  # rods side by side: sausages, pencils, toes, a fence
            color = skin if rng.random() < 0.6 else _color(rng)
            angle, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.07) * size
            along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
            for rod in range(rng.integers(2, 9)):
                start = center + across * rod * width * 1.15 + along * rng.normal(0, 0.02) * size
                length = along * rng.uniform(0.1, 0.5) * size
                for share in (1.0, 0.6):
                    paint = (color * (0.7 + 0.5 * (1 - share))).tolist()
                    cv2.line(
                        image, _point(start), _point(start + length), paint, max(int(width * share), 1), cv2.LINE_AA
                    )
        else:  # an object: a box or a bottle in shaded stripes
            color, angle = _color(rng), float(rng.uniform(0, 180))
            extent = rng.uniform(0.1, 0.6, 2) * size
            for share in (1.0, 0.75, 0.5, 0.25):
                corners = cv2.boxPoints(
                    (tuple(map(float, center)), (float(extent[0] * share), float(extent[1])), angle)
                )
                cv2.fillConvexPoly(
                    image, corners.astype(np.int32), (color * (0.6 + 0.5 * (1 - share))).tolist(), cv2.LINE_AA
                )
    grain = cv2.resize(rng.standard_normal((size // 4, size // 4)).astype(np.float32), (size, size))
    image *= (1 + 0.03 * grain)[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


# Never in training: for `Backgrounds(held_out=True)`.


def _mosaic(rng: np.random.Generator, size: int) -> Floats:
    """Cells around random points, each with a colour of its own."""
    points = rng.uniform(0, size, (rng.integers(12, 90), 2)).astype(np.float32)
    y, x = np.mgrid[0:size:2, 0:size:2].astype(np.float32)
    squared = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    cells = squared.argmin(axis=2).astype(np.uint8)
    palette = np.stack([_color(rng) for _ in range(len(points))])
    image = palette[cells] * (1 - 0.3 * np.sqrt(squared.min(axis=2)) / size)[..., None]
    return cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)


def _tiles(rng: np.random.Generator, size: int) -> Floats:
    """A tiled floor in perspective up to a horizon, and a graded sky."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    horizon = size * rng.uniform(-0.2, 0.6)
    depth = size / np.maximum(y - horizon, 1.0)
    angle = rng.uniform(0, np.pi)
    u, v = (x - size / 2) / size * depth * 4, depth * 3
    u, v = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    odd = ((np.floor(u) + np.floor(v)) % 2)[..., None]
    floor = _color(rng) * odd + _color(rng) * (1 - odd)
    sky = _mix(_color(rng), _color(rng), y / size)
    return np.where((y > horizon)[..., None], floor, sky).astype(np.float32)


def _waves(rng: np.random.Generator, size: int) -> Floats:
    """Interfering waves in three colours: silk, water, marble."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    total = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(3, 8)):
        k = rng.normal(0, 12, 2)
        total += rng.uniform(0.3, 1) * np.sin(k[0] * x + k[1] * y + rng.uniform(0, 6.28) + total)
    image = _mix(_color(rng), _color(rng), total * 0.25 + 0.5)
    return _mix(image, _color(rng), np.clip(total, 0, 1) * 0.5)


Families = tuple[tuple[Callable[[np.random.Generator, int], Floats], float], ...]

_FAMILIES: Families = (
    (_gradient, 0.5),
    (_clouds, 0.6),
    (_planks, 0.8),
    (_room, 1.2),
    (_clutter, 1.0),
    (_fabric, 0.6),
    (_foliage, 1.2),
    (_people, 2.0),
    (_spectral, 1.2),
    (_dead_leaves, 1.8),
    (_studio, 1.6),
    (_bokeh, 0.5),
    (_screen, 0.8),
    (_interior, 1.4),
)
_HELD_OUT_FAMILIES: Families = ((_mosaic, 1.0), (_tiles, 1.0), (_waves, 1.0))
