"""A trained model over a whole test set: crop protocols, test-time augmentation, and hands in camera coordinates.

    data = open_evaluation_set(Path("FreiHAND"))
    answers = predict_set(data, open_engine("model.safetensors"), "frame")
    evaluation = evaluate(data.truth, answers.points)

Protocols decide what the network sees, and scores of different protocols are not comparable: "frame" (the whole image,
as FreiHAND's own baselines and most demos), "metro" (its central 180 / 224, as METRO and those who follow it), "box"
(around a given box), "box-from-test-labels" (around the true keypoints: an oracle), "frame-then-box" and
"metro-then-box" (two iterations: a box crop around the keypoints that the model itself found in the first crop; no
label of the test set is used), and "predict" (the whole image, then crops around what was found, as
`handmesh predict --detector none` does). Under each of them the `Predictor` turns back what the network says. For a set
whose joints are MANO's, those of our own hand are then moved to where MANO has them (`handmesh.hand.definitions`).

Test-time augmentation follows METRO (microsoft/MeshTransformer, docs/EXP.md): the crop is seen at several scales and
rotations, each answer is aligned to that of the plain crop (rotations only, joints and vertices each on their own), and
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
from handmesh.data.crops import BOX, FRAME, METRO, PROTOCOLS, crop_protocol
from handmesh.errors import ConfigError, DataError
from handmesh.evaluate.official_files import HandPoints
from handmesh.evaluate.sets import EvaluationSet
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.crop import CropTransform
from handmesh.hand import JOINT_COUNT
from handmesh.hand.definitions import mano_joints
from handmesh.hand.models import has_mano_joints
from handmesh.predict import BOX_MARGIN, HandPrediction, Predictor
from handmesh.runtime.engine import Engine

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]  # (images done, images in all)

PREDICT = "predict"
_THEN_BOX = "-then-box"
TWO_ITERATIONS = (f"{FRAME.name}{_THEN_BOX}", f"{METRO.name}{_THEN_BOX}")
PROTOCOL_NAMES = (*PROTOCOLS, *TWO_ITERATIONS, PREDICT)

_BATCH = 16  # images whose crops run together


@dataclass(frozen=True)
class Views:
    """The crops that test-time augmentation makes of each hand: every scale with every rotation."""

    name: str
    scales: tuple[float, ...]  # of the crop's side
    rotations: tuple[float, ...]  # radians

    @property
    def passes(self) -> int:
        """Runs of the network per hand, the plain one included."""
        return len(self.augmentations()) + (0 if PLAIN in self.augmentations() else 1)

    def augmentations(self) -> list[tuple[float, float]]:
        """(scale, rotation) of each, the plain one first if it is among them."""
        every = [(scale, rotation) for scale in self.scales for rotation in self.rotations]
        return sorted(every, key=lambda augmentation: augmentation != PLAIN)


PLAIN = (1.0, 0.0)  # the scale and rotation of the crop as it is
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

    points: HandPoints  # metres; in the cam frame where the set knows its cameras, else about the hand's own origin
    keypoints: Array  # (N, 21, 2) px
    passes: int  # runs of the network per image
    seconds_per_image: float  # reading, cropping and all passes
    remark: str | None  # what every report of these scores has to say
    first: HandPoints | None = None  # of a protocol of two iterations, what the model said in the first crop
    moved: bool = False  # whether all joints and keypoints were moved from our own hand's places to MANO's


def predict_set(
    data: EvaluationSet,
    engine: Engine,
    protocol: str = "frame",
    *,
    margin: float | None = None,
    views: Views = SINGLE,
    passes: int | None = None,
    progress: Progress | None = None,
) -> ModelAnswers:
    """Run a model over a test set under a protocol of PROTOCOL_NAMES.

    `margin`: crop side over the box's longer side, for the box protocols and "predict"; None for the protocol's own.
    `passes` of protocol "predict", as of `Predictor`; None: 3. `views` are of the last crop of the others. Raises
    DataError for an unknown protocol or a set that has no boxes, ImageError for an image that cannot be read,
    ConfigError for what the protocol would ignore.
    """
    if protocol not in PROTOCOL_NAMES:
        raise DataError(f"Protocol {protocol!r}: wanted one of {', '.join(PROTOCOL_NAMES)}.")
    started = time.perf_counter()
    count = len(data)
    joints, keypoints = np.empty((count, JOINT_COUNT, 3)), np.empty((count, JOINT_COUNT, 2))
    vertices = np.empty((count, len(engine.hand.v_template), 3))
    first_joints, first_vertices = np.empty_like(joints), np.empty_like(vertices)
    twice = protocol in TWO_ITERATIONS
    if passes is not None and protocol != PREDICT:
        raise ConfigError(
            f'Protocol "{protocol}" says itself how often a hand is looked at: passes go with protocol "{PREDICT}".'
        )
    if margin is not None and protocol in (FRAME.name, METRO.name):
        raise ConfigError(f'Protocol "{protocol}" has no box: a margin goes with the box protocols and "{PREDICT}".')
    if protocol == PREDICT and views is not SINGLE:
        raise ConfigError('Protocol "predict" chooses its own crops: test-time augmentation goes with the others.')
    passes = 3 if passes is None else passes
    predictor = Predictor(engine, passes=passes, margin=BOX_MARGIN if margin is None else margin)
    if protocol == PREDICT:
        for index in range(count):
            camera = data.camera(index)
            hands = predictor(
                data.sample(index).image, handedness=data.handedness[index], intrinsics=camera, min_score=0
            )
            joints[index], vertices[index], keypoints[index] = (part[0] for part in _points(hands, [camera]))
            if progress is not None:
                progress(index + 1, count)
        network_passes, remark = passes, None
    else:
        chosen = crop_protocol(protocol.removesuffix(_THEN_BOX))
        if margin is not None:
            chosen = replace(chosen, margin=margin)
        for start in range(0, count, _BATCH):
            end = min(start + _BATCH, count)
            samples = [data.sample(index) for index in range(start, end)]
            crops = [chosen.crop(sample) for sample in samples]
            images = [sample.image for sample in samples]
            cameras = [data.camera(index) for index in range(start, end)]
            if twice:
                hands = predictor.predict_crops(images, crops, intrinsics=cameras)
                first_joints[start:end], first_vertices[start:end], _ = _points(hands, cameras)
                crops = [_second_crop(*pair, margin) for pair in zip(hands, crops, strict=True)]
            found = _mean_over_views(predictor, images, crops, cameras, views)
            joints[start:end], vertices[start:end], keypoints[start:end] = found
            if progress is not None:
                progress(end, count)
        network_passes, remark = views.passes + twice, chosen.remark
    moved = data.mano_joints and not has_mano_joints(engine.hand.sha256)
    if moved:
        joints, keypoints = mano_joints(joints), mano_joints(keypoints)
        first_joints = mano_joints(first_joints) if twice else first_joints
    return ModelAnswers(
        points=HandPoints(joints, vertices),
        keypoints=keypoints,
        passes=network_passes,
        seconds_per_image=(time.perf_counter() - started) / count,
        remark=remark,
        first=HandPoints(first_joints, first_vertices) if twice else None,
        moved=moved,
    )


def _second_crop(hand: HandPrediction, first: CropTransform, margin: float | None) -> CropTransform:
    """Around what was found in the first crop; that crop again where what was found is no place for a hand in it."""
    x0, y0, x1, y1 = hand.box
    inside = np.abs(first.to_ndc(np.array([(x0 + x1) / 2, (y0 + y1) / 2]))).max() < 1
    if not (inside and 0.05 * first.size < max(x1 - x0, y1 - y0) < 2 * first.size):
        return first
    return CropTransform.around_box(hand.box, BOX.margin if margin is None else margin, mirror=first.mirror)


def _mean_over_views(
    predictor: Predictor,
    images: list[NDArray[np.uint8]],
    crops: list[CropTransform],
    cameras: list[Intrinsics | None],
    views: Views,
) -> tuple[Array, Array, Array]:
    """As `_points`: the mean over all views."""

    def answers(crops: list[CropTransform]) -> tuple[Array, Array, Array]:
        return _points(predictor.predict_crops(images, crops, intrinsics=cameras), cameras)

    plain = answers(crops)
    augmentations = views.augmentations()
    if augmentations == [PLAIN]:
        return plain
    totals = [part.copy() for part in plain]  # METRO counts the plain answer once as the reference ...
    for scale, rotation in augmentations:
        if (scale, rotation) == PLAIN:  # ... and once as a view
            answer = plain
        else:
            answer = answers([replace(c, size=c.size * scale, rotation=c.rotation + rotation) for c in crops])
        for index in (0, 1):
            totals[index] += metrics.align_rigid_similarity(plain[index], answer[index])
        totals[2] += answer[2]
    joints, vertices, keypoints = (total / (len(augmentations) + 1) for total in totals)
    return joints, vertices, keypoints


def _points(hands: list[HandPrediction], cameras: list[Intrinsics | None]) -> tuple[Array, Array, Array]:
    """(B, 21, 3) joints, (B, V, 3) vertices, (B, 21, 2) keypoints: in front of the camera where it is known."""
    placed = [
        (hand.joints, hand.vertices) if camera is None else (hand.joints_cam(), hand.vertices_cam())
        for hand, camera in zip(hands, cameras, strict=True)
    ]
    joints, vertices = (np.stack(parts).astype(np.float64) for parts in zip(*placed, strict=True))
    return joints, vertices, np.stack([hand.keypoints_image() for hand in hands]).astype(np.float64)
