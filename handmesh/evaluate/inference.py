"""A trained model over a whole test set: crop protocols, test-time augmentation, and hands in camera coordinates.

    data = open_evaluation_set(Path("FreiHAND"))
    answers = predict_set(data, open_engine("model.safetensors"), "frame")
    evaluation = evaluate(data.truth, answers.points)

Protocols decide what the network sees, and scores of different protocols are not comparable: "frame" (the whole image,
as FastViT and most others), "metro" (its central 180 / 224, as METRO and Mesh Graphormer), "box" (around a given box),
"box-from-test-labels" (around the true keypoints: an oracle), and "predict" (the whole image, then closer looks at what
was found, as `handmesh predict` does).

Test-time augmentation follows METRO (microsoft/MeshTransformer, docs/EXP.md): the crop is seen at several scales and
turns, each answer is aligned to that of the plain crop (rotations only, joints and vertices each on their own), and
all of them and the plain one once more are averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh import metrics
from handmesh.data.crops import PROTOCOLS, crop_protocol
from handmesh.errors import ConfigError, DataError
from handmesh.evaluate.official_files import HandPoints
from handmesh.evaluate.sets import EvaluationSet
from handmesh.geometry.camera import Intrinsics, WeakPerspectiveCamera, hand_origin_cam
from handmesh.geometry.crop import CropTransform
from handmesh.hand import HandOutput
from handmesh.predict import BOX_MARGIN, Predictor
from handmesh.runtime.engine import Engine

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]  # (images done, images in all)

PREDICT = "predict"
PROTOCOL_NAMES = (*PROTOCOLS, PREDICT)

_BATCH = 16  # images whose crops run together


@dataclass(frozen=True)
class Views:
    """How test-time augmentation looks at each hand: every scale with every turn."""

    name: str
    scales: tuple[float, ...]  # of the crop's side
    rotations: tuple[float, ...]  # radians

    @property
    def passes(self) -> int:
        """Runs of the network per hand, the plain one included."""
        return len(self.looks()) + (0 if self.has_plain() else 1)

    def looks(self) -> list[tuple[float, float]]:
        """(scale, rotation) of each, the plain one first if it is among them."""
        return sorted(
            ((scale, rotation) for scale in self.scales for rotation in self.rotations),
            key=lambda look: look != (1.0, 0.0),
        )

    def has_plain(self) -> bool:
        """Whether the plain crop is one of the views."""
        return (1.0, 0.0) in self.looks()


SINGLE = Views("none", (1.0,), (0.0,))
METRO_VIEWS = Views("metro", (0.7, 0.8, 0.9, 1.0, 1.1), tuple(math.radians(10 * step) for step in range(-9, 10)))
SMALL_VIEWS = Views("small", (0.9, 1.0, 1.1), tuple(math.radians(30 * step) for step in (-1, 0, 1)))


def parse_views(text: str) -> Views:
    """The views named "none", "small" or "metro", or "SCALES:DEGREES", two lists with commas. Raises ConfigError."""
    for views in (SINGLE, SMALL_VIEWS, METRO_VIEWS):
        if text == views.name:
            return views
    scales, colon, degrees = text.partition(":")
    try:
        views = Views(
            text,
            tuple(float(part) for part in scales.split(",")),
            tuple(math.radians(float(part)) for part in degrees.split(",")),
        )
    except ValueError:
        colon = ""
    if not colon or not all(0.1 <= scale <= 10 for scale in views.scales):
        raise ConfigError(
            f"--tta {text!r}: wanted none, small, metro, or scales and degrees such as 0.9,1,1.1:-15,0,15."
        )
    return views


class ModelAnswers(NamedTuple):
    """What a model says about a test set."""

    points: HandPoints  # metres; in the cam frame where `in_camera`, else about the hand's own origin
    keypoints: Array  # (N, 21, 2) px
    in_camera: bool  # the set knows its cameras
    passes: int  # runs of the network per image
    seconds_per_image: float  # reading, cropping and all passes
    remark: str | None  # what every report of these scores has to say


def predict_set(
    data: EvaluationSet,
    engine: Engine,
    protocol: str = "frame",
    *,
    margin: float | None = None,
    views: Views = SINGLE,
    passes: int = 3,
    progress: Progress | None = None,
) -> ModelAnswers:
    """Run a model over a test set under a protocol of PROTOCOL_NAMES.

    `margin`: crop side over the box's longer side, for the box protocols and "predict"; None for the protocol's own.
    `passes`: looks of protocol "predict". Raises DataError for an unknown protocol or a set that has no boxes,
    ImageError for an image that cannot be read, ConfigError for views with protocol "predict".
    """
    if protocol not in PROTOCOL_NAMES:
        raise DataError(f"Protocol {protocol!r}: wanted one of {', '.join(PROTOCOL_NAMES)}.")
    started = time.perf_counter()
    count = len(data)
    joints, keypoints = np.empty((count, 21, 3)), np.empty((count, 21, 2))
    vertices = np.empty((count, len(engine.hand.v_template), 3))
    if protocol == PREDICT:
        if views is not SINGLE:
            raise ConfigError('Protocol "predict" chooses its own crops: test-time augmentation goes with the others.')
        predictor = Predictor(engine, passes=passes, margin=BOX_MARGIN if margin is None else margin)
        for index in range(count):
            found = _look(data, index, predictor)
            joints[index], vertices[index], keypoints[index] = found
            if progress is not None:
                progress(index + 1, count)
        network_passes, remark = passes, None
    else:
        chosen = crop_protocol(protocol)
        if margin is not None:
            chosen = replace(chosen, margin=margin)
        for start in range(0, count, _BATCH):
            end = min(start + _BATCH, count)
            samples = [data.sample(index) for index in range(start, end)]
            crops = [chosen.crop(sample) for sample in samples]
            images = [sample.image for sample in samples]
            cameras = [data.camera(index) for index in range(start, end)]
            found = _seen(engine, images, crops, cameras, views)
            joints[start:end], vertices[start:end], keypoints[start:end] = found
            if progress is not None:
                progress(end, count)
        network_passes, remark = views.passes, chosen.remark
    return ModelAnswers(
        points=HandPoints(joints, vertices),
        keypoints=keypoints,
        in_camera=data.intrinsics is not None,
        passes=network_passes,
        seconds_per_image=(time.perf_counter() - started) / count,
        remark=remark,
    )


def _look(data: EvaluationSet, index: int, predictor: Predictor) -> tuple[Array, Array, Array]:
    sample, camera = data.sample(index), data.camera(index)
    hand = predictor(sample.image, handedness=data.handedness[index], intrinsics=camera)[0]
    if camera is None:
        return np.asarray(hand.joints), np.asarray(hand.vertices), np.asarray(hand.keypoints_image())
    return np.asarray(hand.joints_cam()), np.asarray(hand.vertices_cam()), np.asarray(hand.keypoints_image())


def _seen(
    engine: Engine,
    images: list[NDArray[np.uint8]],
    crops: list[CropTransform],
    cameras: list[Intrinsics | None],
    views: Views,
) -> tuple[Array, Array, Array]:
    """(B, 21, 3) joints, (B, V, 3) vertices, (B, 21, 2) keypoints: the mean over all views."""
    plain = _run(engine, images, crops, cameras)
    looks = views.looks()
    if looks == [(1.0, 0.0)]:
        return plain
    totals = [part.copy() for part in plain]  # METRO counts the plain answer once as the reference ...
    for scale, rotation in looks:
        if (scale, rotation) == (1.0, 0.0):  # ... and once as a view
            answer = plain
        else:
            turned = [replace(c, size=c.size * scale, rotation=c.rotation + rotation) for c in crops]
            answer = _run(engine, images, turned, cameras)
        for index in (0, 1):
            totals[index] += metrics.align_rigid_similarity(plain[index], answer[index])
        totals[2] += answer[2]
    joints, vertices, keypoints = (total / (len(looks) + 1) for total in totals)
    return joints, vertices, keypoints


def _run(
    engine: Engine, images: list[NDArray[np.uint8]], crops: list[CropTransform], cameras: list[Intrinsics | None]
) -> tuple[Array, Array, Array]:
    """One pass over a batch of crops, turned back to each photograph and placed in front of its camera."""
    pixels = [crop.warp(image, engine.resolution) for image, crop in zip(images, crops, strict=True)]
    output: HandOutput = engine(np.stack(pixels))
    joints, vertices, keypoints = [], [], []
    for index, (crop, known) in enumerate(zip(crops, cameras, strict=True)):
        camera = WeakPerspectiveCamera.from_vector(np.asarray(output.camera[index], np.float64))
        found = np.asarray(output.joints[index], np.float64)
        mesh = np.asarray(output.vertices[index], np.float64)
        keypoints.append(crop.to_image(camera.project(found)))
        axes, origin = np.eye(3), np.zeros(3)
        if known is not None:
            axes = known.virtual_camera_rotation(crop.center).T
            origin = hand_origin_cam(camera, crop, known, float(mesh[:, 2].mean()), axes)
        joints.append(crop.vectors_to_image(found) @ axes.T + origin)
        vertices.append(crop.vectors_to_image(mesh) @ axes.T + origin)
    return np.stack(joints), np.stack(vertices), np.stack(keypoints)
