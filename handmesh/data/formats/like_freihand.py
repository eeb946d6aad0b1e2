"""A synthetic data set in FreiHAND's own folder layout: for tests, for newcomers, for trying a pipeline on real bytes.

Everything that handmesh (or any other FreiHAND code) reads from the real set is there: four versions of each training
photograph, masks, and the JSON files with their units, nesting and numbering. Like FreiHAND's second release, pictures
are re-projected so that the principal point is exactly (112, 112), with black where the first camera saw nothing.
Left out, as nothing needs them: evaluation_errors.json and the folders of dense annotations (anno, colormap, ...).

The hands are synthetic (`handmesh.synth`) and their parameters are those of the hand model that drew them, named in
``handmesh.json`` by its SHA-256: the MANO parameters in ``*_mano.json`` are meant for that hand.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.data.formats.freihand import ABOUT, IMAGE_SIZE, SPLITS, VERSIONS, encode_mano
from handmesh.errors import DataError
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.rotation import vector_from_matrix
from handmesh.hand import JOINT_NAMES, HandArrays, builtin_hand
from handmesh.hand.models import name_of
from handmesh.synth import (
    Backgrounds,
    CameraEffects,
    SceneRenderer,
    SceneSettings,
    SyntheticSample,
    camera_effects,
    composite,
    place_on_background,
    sample_generator,
)

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# Drawn larger than it is kept: the hand takes a third of a 224 px picture, as in FreiHAND (some 60 to 110 px).
_RENDER_SIZE = 320
_HAND_PIXELS = (65.0, 115.0)  # the longer side of the keypoints' box
_PRINCIPAL_POINT = (112.0, 112.0)
# FreiHAND's cameras stand 0.3 to 1.05 m away and look at the hand; ours up to 1.5 m.
_SCENES = SceneSettings(room_views=0.0, crop_share=(0.40, 0.48), off_center=0.02, off_axis=0.10)
_ROOT = JOINT_NAMES.index("middle_mcp")
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]


def write_like_freihand(
    directory: Path,
    training: int,
    evaluation: int,
    seed: int = 0,
    *,
    hand: HandArrays | None = None,
    hand_name: str | None = None,
    backgrounds: Backgrounds | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `training` annotations with 4 x `training` images, and `evaluation` test images, into a new folder.

    The folder appears under its name when all is done. `hand` is a right hand's model, by default the built-in one;
    `hand_name` is what the data set calls it; None: as `HAND_MODELS` does. Raises DataError when the folder exists or
    cannot be written.
    """
    directory = Path(directory)
    if directory.exists():
        raise DataError(f"{directory} exists already: choose a new folder, or delete it.")
    if training < 1 or evaluation < 1:
        raise DataError(f"Wanted at least one training and one evaluation image, found {training} and {evaluation}.")
    hand = builtin_hand() if hand is None else hand
    partial = directory.with_name(f"{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        backgrounds = Backgrounds(seed) if backgrounds is None else backgrounds
        renderer = SceneRenderer(hand, _SCENES, _RENDER_SIZE, backgrounds=backgrounds)
        counts = {"training": training, "evaluation": evaluation}
        done = 0
        for split, count in counts.items():
            for folder in ("rgb", "mask") if split == "training" else ("rgb",):
                (partial / split / folder).mkdir(parents=True)
            annotations: dict[str, list[Any]] = {name: [] for name in ("K", "scale", "xyz", "verts", "mano")}
            for index in range(count):
                rng = sample_generator(seed, index + SPLITS.index(split) * 2**32)
                frame = _Frame(renderer.render_foreground(rng), rng, hand)
                for name, value in frame.annotation().items():
                    annotations[name].append(value)
                _write_images(partial / split, index, count, frame, rng, backgrounds, training=split == "training")
                done += 1
                if progress is not None:
                    progress(done, training + evaluation)
            for name, values in annotations.items():
                (partial / f"{split}_{name}.json").write_text(json.dumps(values), encoding="utf-8")
        about = {
            "about": "Synthetic hands in FreiHAND's folder layout, made by `handmesh synth --like-freihand`.",
            "hand": hand_name or name_of(hand.sha256) or "another hand",
            "hand_sha256": hand.sha256,
            "seed": seed,
        }
        (partial / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        os.replace(partial, directory)
    except OSError as error:
        raise DataError(f"{directory} cannot be written: {error.strerror or error}.") from error
    logger.info("%s: %d training annotations, %d evaluation images", directory, training, evaluation)
    return directory


class _Frame:
    """A render seen by a camera that turned to the hand: principal point in the middle, labels turned with it."""

    def __init__(self, sample: SyntheticSample, rng: np.random.Generator, hand: HandArrays) -> None:
        old_K = sample.intrinsics.astype(np.float64)
        box = np.concatenate([sample.keypoints.min(axis=0), sample.keypoints.max(axis=0)]).astype(np.float64)
        center = (box[:2] + box[2:]) / 2
        rotation = Intrinsics.from_matrix(old_K).virtual_camera_rotation(center)
        enlargement = rng.uniform(*_HAND_PIXELS) / float((box[2:] - box[:2]).max())
        # fx and fy of real cameras differ by up to 0.2 %.
        focal = old_K[0, 0] * enlargement * np.exp(rng.normal(0, 0.0005, 2))
        self.K = np.array([[focal[0], 0, _PRINCIPAL_POINT[0]], [0, focal[1], _PRINCIPAL_POINT[1]], [0, 0, 1.0]])
        homography = self.K @ rotation @ np.linalg.inv(old_K)

        def warped(image: NDArray[Any], border: int) -> NDArray[Any]:
            size, flags = (IMAGE_SIZE, IMAGE_SIZE), cv2.INTER_LINEAR
            return cv2.warpPerspective(image, homography, size, flags=flags, borderMode=border)

        self.foreground = warped(sample.image, cv2.BORDER_REPLICATE)
        self.alpha = warped(sample.alpha, cv2.BORDER_REPLICATE)
        self.mask = warped(sample.mask, cv2.BORDER_CONSTANT)
        self.seen = warped(np.full(sample.alpha.shape, 255, np.uint8), cv2.BORDER_CONSTANT)

        # Labels from the parameters in float64, not from the render's float32.
        self.hand = hand
        pose = sample.pose.astype(np.float64)
        pose[0] = rotation @ pose[0]
        self.vectors = vector_from_matrix(pose)
        self.betas = sample.betas.astype(np.float64)
        shaped = hand.shaped(self.betas)
        # The model turns about its root joint, so what the turn does to the rest is told by the wrist's place.
        old_pose = sample.pose.astype(np.float64)
        wrist = shaped.joints[0]
        assert np.abs(old_pose[1:] - pose[1:]).max() == 0
        translation = rotation @ (wrist + sample.translation.astype(np.float64)) - wrist
        self.vertices = shaped.posed(pose).vertices + translation
        self.joints = hand.joints_of(self.vertices)

    def annotation(self) -> dict[str, Any]:
        mano = encode_mano(self.vectors, self.betas, self.joints[_ROOT], self.K, self.hand.hands_mean)
        scale = float(np.linalg.norm(self.joints[_ROOT] - self.joints[_ROOT + 1]))
        return {
            "K": self.K.tolist(),
            "scale": scale,
            "xyz": self.joints.tolist(),
            "verts": self.vertices.tolist(),
            "mano": mano.tolist(),
        }


def _write_images(
    folder: Path,
    index: int,
    count: int,
    frame: _Frame,
    rng: np.random.Generator,
    backgrounds: Backgrounds,
    *,
    training: bool,
) -> None:
    for version, name in enumerate(VERSIONS if training else VERSIONS[:1]):
        image = _version(name if training else "evaluation", frame, rng, backgrounds)
        seen = cv2.bitwise_and(image, cv2.cvtColor(frame.seen, cv2.COLOR_GRAY2BGR))
        _write_jpeg(folder / "rgb" / f"{version * count + index:08d}.jpg", seen[..., ::-1])
    if training:
        _write_jpeg(folder / "mask" / f"{index:08d}.jpg", cv2.cvtColor(frame.mask, cv2.COLOR_GRAY2BGR))


def _version(name: str, frame: _Frame, rng: np.random.Generator, backgrounds: Backgrounds) -> NDArray[np.uint8]:
    """(224, 224, 3) RGB. In front of a green screen; harmonised, resampled, or recoloured on another background."""
    foreground, alpha = frame.foreground, frame.alpha
    if name == "gs":
        green = np.array([rng.uniform(20, 60), rng.uniform(120, 190), rng.uniform(30, 80)])
        shade = cv2.resize(rng.uniform(0.7, 1.1, (3, 3)), (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC)
        screen = np.clip(green * shade[..., None], 0, 255).astype(np.uint8)
        return composite(foreground, alpha, screen)
    background = backgrounds.sample(rng, IMAGE_SIZE)
    if name in ("sample", "auto"):  # other colours of the same hand, as those two versions have
        gains = rng.uniform(0.8, 1.2, 3) if name == "sample" else rng.uniform(0.7, 1.0) * np.ones(3)
        tinted = np.clip(foreground * gains, 0, alpha[..., None]).astype(np.uint8)
        return composite(tinted, alpha, background)
    return camera_effects(rng, place_on_background(rng, foreground, alpha, background), CameraEffects())


def _write_jpeg(path: Path, image: NDArray[Any]) -> None:
    encoded, data = cv2.imencode(".jpg", np.ascontiguousarray(image), _JPEG)
    assert encoded
    path.write_bytes(data.tobytes())
