"""How much worse are hands in bad pictures?  python benchmarks/corruptions.py HANDS [--model M ...] [--crop frame]

ImageNet-C's fifteen corruptions at five strengths (Hendrycks and Dietterich, ICLR 2019; FastViT's table 7 has them for
classification), on a test set of `handmesh evaluate`: photographs with labels, or renders by `handmesh synth --out`.
Printed are the errors of clean pictures and, for each corruption, those of each strength and their mean over the clean
error; OUT.json keeps all of it, OUT.svg draws the mean over all corruptions against the strength.

The arithmetic is our own, with the published strengths. What is in pixels there is of 224 px pictures, and grows with
the picture here. Three differ on purpose: frost is drawn, as its photographs may not be passed on; elastic transforms
leave out the random affine map, which would move the labels; pictures are not saved as JPEG files afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh import metrics
from handmesh.data.sample import RawSample
from handmesh.evaluate.inference import predict_set
from handmesh.evaluate.report import _Axes, _ticks
from handmesh.evaluate.scores import score_keypoints
from handmesh.evaluate.sets import EvaluationSet, open_evaluation_set
from handmesh.runtime.engine import open_engine

Picture = NDArray[np.float32]  # (H, W, 3), 0 to 1
Rng = np.random.Generator
STRENGTHS = (1, 2, 3, 4, 5)


def corrupted(image: NDArray[np.uint8], name: str, strength: int, rng: Rng) -> NDArray[np.uint8]:
    """(H, W, 3) RGB with one of `CORRUPTIONS` at a strength of 1 to 5."""
    function, levels = CORRUPTIONS[name]
    scale = max(image.shape[:2]) / 224
    result = function(image.astype(np.float32) / 255, levels[strength - 1], rng, scale)
    return np.clip(result * 255, 0, 255).round().astype(np.uint8)


def _gaussian_noise(x: Picture, deviation: float, rng: Rng, _: float) -> Picture:
    return x + rng.normal(0, deviation, x.shape).astype(np.float32)


def _shot_noise(x: Picture, photons: float, rng: Rng, _: float) -> Picture:
    return (rng.poisson(x * photons) / photons).astype(np.float32)


def _impulse_noise(x: Picture, share: float, rng: Rng, _: float) -> Picture:
    draw = rng.random(x.shape)
    return np.where(draw < share / 2, 0, np.where(draw < share, 1, x)).astype(np.float32)


def _disk(radius: float, softness: float) -> Picture:
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(disk / disk.sum(), (0, 0), softness)


def _defocus_blur(x: Picture, level: tuple[float, float], _: Rng, scale: float) -> Picture:
    radius, softness = level
    return cv2.filter2D(x, -1, _disk(radius * scale, softness * scale), borderType=cv2.BORDER_REFLECT)


def _glass_blur(x: Picture, level: tuple[float, float, int], rng: Rng, scale: float) -> Picture:
    """Pixels are taken from beside them, over and over, between two slight blurs."""
    softness, reach, times = level
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(times):
        x = cv2.GaussianBlur(x, (0, 0), softness * scale) if _ == 0 else x
        limit = max(1, round(reach * scale))
        down, right = rng.integers(-limit, limit + 1, (2, height, width)).astype(np.float32)
        x = cv2.remap(x, columns + right, rows + down, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
    return cv2.GaussianBlur(x, (0, 0), softness * scale)


def _smear(x: Picture, radius: float, deviation: float, angle: float) -> Picture:
    """Along a line of twice the radius, with weights that fall as half a Gaussian: ImageMagick's motion blur."""
    reach = round(2 * radius)
    steps = np.arange(reach + 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    rows, columns = (reach + np.round(steps * along).astype(int) for along in (math.sin(angle), math.cos(angle)))
    kernel[rows, columns] = np.exp(-((steps / deviation) ** 2) / 2)
    return cv2.filter2D(x, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _motion_blur(x: Picture, level: tuple[float, float], rng: Rng, scale: float) -> Picture:
    radius, deviation = level
    return _smear(x, radius * scale, deviation * scale, float(rng.uniform(-math.pi / 4, math.pi / 4)))


def _zoomed(x: Picture, factor: float) -> Picture:
    height, width = x.shape[:2]
    center = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(center, 0, factor)
    return cv2.warpAffine(x, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _zoom_blur(x: Picture, level: tuple[float, float], _: Rng, __: float) -> Picture:
    largest, step = level
    factors = np.arange(1, largest, step)
    return np.mean([x, *(_zoomed(x, float(factor)) for factor in factors)], axis=0)


def _snow(x: Picture, level: tuple[float, ...], rng: Rng, scale: float) -> Picture:
    mean, deviation, zoom, threshold, radius, softness, kept = level
    layer = rng.normal(mean, deviation, x.shape[:2]).astype(np.float32)
    layer = _zoomed(layer, zoom * scale)
    layer[layer < threshold] = 0
    layer = _smear(np.clip(layer, 0, 1), radius * scale, softness * scale, float(rng.uniform(-0.75, -0.25)) * math.pi)
    gray = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    pale = kept * x + (1 - kept) * np.maximum(x, gray * 1.5 + 0.5)
    return pale + layer[..., None] + np.rot90(layer, 2)[..., None]


def _plasma(shape: tuple[int, ...], decay: float, rng: Rng) -> NDArray[np.float32]:
    """Noise of every size of cell, each half as large as the last and weaker by the square of `decay`; 0 to 1.

    The square, because the published fractal draws each level's noise from that level's range and multiplies by it.
    """
    height, width = shape[:2]
    total, weight = np.zeros((height, width), np.float32), 1.0
    for level in range(1, 9):
        cells = rng.random((2**level, 2**level)).astype(np.float32)
        total += weight * cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
        weight /= decay**2
    return (total - total.min()) / np.ptp(total)


def _frost(x: Picture, level: tuple[float, float], rng: Rng, _: float) -> Picture:
    """Pale blue needles: ridges of plasma, sharpened."""
    kept, strength = level
    ridges = 1 - np.abs(2 * _plasma(x.shape, math.sqrt(1.4), rng) - 1)
    ice = ridges[..., None] ** 3 * np.array([0.85, 0.93, 1.0], np.float32)
    return kept * x + strength * ice.astype(np.float32)


def _fog(x: Picture, level: tuple[float, float], rng: Rng, _: float) -> Picture:
    strength, decay = level
    brightest = float(x.max())
    return (x + strength * _plasma(x.shape, decay, rng)[..., None]) * brightest / (brightest + strength)


def _brightness(x: Picture, added: float, _: Rng, __: float) -> Picture:
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _contrast(x: Picture, factor: float, _: Rng, __: float) -> Picture:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * factor + mean


def _elastic_transform(x: Picture, level: tuple[float, float], rng: Rng, scale: float) -> Picture:
    strength, smoothness = (value * 244 * scale for value in level)
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    shifts = [
        strength * cv2.GaussianBlur(rng.uniform(-1, 1, (height, width)).astype(np.float32), (0, 0), smoothness)
        for _ in range(2)
    ]
    return cv2.remap(x, columns + shifts[0], rows + shifts[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _pixelate(x: Picture, share: float, _: Rng, scale: float) -> Picture:
    height, width = x.shape[:2]
    small = cv2.resize(
        x,
        (max(1, round(width * min(1, share / scale))), max(1, round(height * min(1, share / scale)))),
        interpolation=cv2.INTER_AREA,
    )
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _jpeg_compression(x: Picture, quality: float, _: Rng, __: float) -> Picture:
    pixels = np.clip(x * 255, 0, 255).round().astype(np.uint8)
    encoded, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    assert encoded
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255


# name -> how, and the published strengths 1 to 5
CORRUPTIONS: dict[str, tuple[Callable[[Picture, Any, Rng, float], Picture], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": (_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (_zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": (
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (_frost, ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    # Displacement and its smoothness, of 244 px: the published number, by an oversight of its authors.
    "elastic_transform": (_elastic_transform, ((2, 0.7), (2, 0.08), (0.05, 0.01), (0.07, 0.01), (0.12, 0.01))),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7)),
}


@dataclass(frozen=True, eq=False)
class CorruptedSet(EvaluationSet):
    """The same set, its pictures corrupted, each by random numbers of its own."""

    corruption: str = ""
    strength: int = 0

    def sample(self, index: int) -> RawSample:
        sample = super().sample(index)
        rng = np.random.default_rng((index, self.strength, sorted(CORRUPTIONS).index(self.corruption)))
        image = corrupted(sample.image, self.corruption, self.strength, rng)
        return RawSample(sample.name, image, sample.labels, for_scoring=sample.for_scoring)


def score(data: EvaluationSet, engine: Any, protocol: str) -> dict[str, float]:
    """PA-MPJPE in mm where joints are known, and the 2D error over the box."""
    answers = predict_set(data, engine, protocol)
    scores: dict[str, float] = {}
    if data.in_space:
        scores["pa_mpjpe_mm"] = 1000 * float(
            metrics.pa_rigid_mean_error(data.truth.joints, answers.points.joints).mean()
        )
    if data.keypoints is not None:
        known = None if data.in_space else data.visible
        scores["box_error"] = score_keypoints(data.keypoints, answers.keypoints, known=known)["box_error"]
    return scores


def with_corruption(data: EvaluationSet, corruption: str, strength: int) -> CorruptedSet:
    values = {field.name: getattr(data, field.name) for field in fields(EvaluationSet)}
    return CorruptedSet(**values, corruption=corruption, strength=strength)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hands", type=Path, help="a test set as `handmesh evaluate --data` takes it")
    parser.add_argument("--model", nargs="+", default=["handmesh_t8"])
    parser.add_argument("--crop", default="frame")
    parser.add_argument("--count", type=int, default=200, help="the first images of the set")
    parser.add_argument("--out", type=Path, default=Path("corruptions"), help="OUT.json and OUT.svg")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for model in args.model:
        engine = open_engine(model)
        data = open_evaluation_set(args.hands, engine.hand).first(args.count)
        clean = score(data, engine, args.crop)
        print(f"\n{Path(model).stem}, {len(data)} pictures, crop {args.crop}, clean: {clean}")
        measure = next(iter(clean))
        print(f"| {measure} | " + " | ".join(map(str, STRENGTHS)) + " | mean over clean |\n| --- |" + " --- |" * 6)
        rows = {}
        for name in CORRUPTIONS:
            rows[name] = [score(with_corruption(data, name, strength), engine, args.crop) for strength in STRENGTHS]
            values = [row[measure] for row in rows[name]]
            cells = [f"{value:.3g}" for value in values] + [f"{np.mean(values) / clean[measure]:.2f}"]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        every = np.array([[row[measure] for row in row_of] for row_of in rows.values()])
        means = every.mean(axis=0)
        cells = [f"{value:.3g}" for value in means] + [f"{every.mean() / clean[measure]:.2f}"]
        print("| all | " + " | ".join(cells) + " |")
        results[Path(model).stem] = {"clean": clean, "corrupted": rows, "mean": {measure: means.tolist()}}
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1))
    args.out.with_suffix(".svg").write_text(curve(results))


def curve(results: dict[str, Any]) -> str:
    """An SVG of the mean error against the strength, 0 for clean pictures, a line for each model."""
    lines = []
    for model, result in results.items():
        ((measure, means),) = result["mean"].items()
        lines.append((model, [result["clean"][measure], *means]))
    top = _ticks(0, max(max(values) for _, values in lines))
    axes = _Axes((0, 5), (0, top[-1]))
    axes.grid(range(6), top, f"strength of the corruption; {measure}")
    for number, (model, values) in enumerate(lines):
        points = " ".join(f"{axes.px(step):.1f},{axes.py(value):.1f}" for step, value in enumerate(values))
        color = f"hsl({137 * number % 360},60%,45%)"
        axes.add(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2" />')
        axes.text(axes.px(5), axes.py(values[-1]) - 4, model, "end")
    style = "<style>text{font:10px sans-serif}.grid-line{stroke:#ccc}</style>"
    return (
        axes.svg("Mean error against the strength")
        .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
        .replace(">", f">{style}", 1)
    )


if __name__ == "__main__":
    main()
