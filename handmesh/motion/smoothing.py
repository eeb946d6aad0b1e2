"""Steady hands in a moving picture: One-Euro filters on rotations, place and size, and a shape that settles.

The One-Euro filter (Casiez, Roussel, Vogel: "1 Euro Filter", CHI 2012) is a low pass whose cut-off frequency grows with
speed: a resting hand is held still, a fast one is followed with little lag. It works with real time stamps, so uneven
frame rates need no care. On rotations the same filter runs on SO(3): differences are rotation vectors, a step goes
along the geodesic.

What is filtered is chosen so that the parts do not disturb each other: the 16 rotations of the pose; the middle of the
21 joints in the image and the hand's size there, not camera and shape, which trade against each other; and the shape,
which is one per person and so is averaged over the first seconds and then kept. The mesh is posed again from these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import ConfigError
from handmesh.geometry.camera import WeakPerspectiveCamera
from handmesh.geometry.rotation import matrix_from_vector, vector_from_matrix
from handmesh.hand import BETA_COUNT, MANO_JOINT_NAMES, HandArrays, Handedness, ShapedHand, both_sides
from handmesh.predict import HandPrediction

Array = NDArray[np.float64]

_MIDDLE_MCP = MANO_JOINT_NAMES.index("middle_mcp")


@dataclass(frozen=True)
class Smoothing:
    """How hard to smooth; the defaults are measured in docs/how_to/video.md. Frequencies in hertz."""

    rotation_cutoff: float = 1.5  # of a resting hand: lower is steadier and later
    rotation_speed: float = 1.2  # added hertz per rad/s: higher follows fast turns sooner
    place_cutoff: float = 2.0
    place_speed: float = 4.0  # added hertz per hand length per second
    shape_seconds: float = 3.0  # the shape is the mean over this long, then it is kept; 0: each frame has its own
    gap_seconds: float = 0.3  # a hand not seen for longer starts anew, but keeps its shape

    def __post_init__(self) -> None:
        positive = ("rotation_cutoff", "place_cutoff", "gap_seconds")
        for name in (*positive, "rotation_speed", "place_speed", "shape_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and (value > 0 if name in positive else value >= 0)):
                wanted = "above zero" if name in positive else "from zero on"
                raise ConfigError(f"Smoothing: {name} is {value}, wanted a finite number {wanted}.")

    @classmethod
    def of_strength(cls, strength: float) -> Smoothing:
        """1 is the default, 2 half its cut-off frequencies, 0.5 twice. Raises ConfigError outside 0.05 to 20."""
        if not 0.05 <= strength <= 20:
            raise ConfigError(f"A smoothing strength is from 0.05 to 20 (1 is normal), found {strength:g}.")
        usual = cls()
        return replace(
            usual,
            rotation_cutoff=usual.rotation_cutoff / strength,
            rotation_speed=usual.rotation_speed / strength,
            place_cutoff=usual.place_cutoff / strength,
            place_speed=usual.place_speed / strength,
        )


def smoothing_factor(cutoff: ArrayLike, dt: float) -> Array:
    """The share of the new value in a first-order low pass, for a step of `dt` seconds (Casiez et al., equation 5)."""
    angle = 2 * math.pi * np.asarray(cutoff, np.float64) * dt
    return angle / (angle + 1)


# Of the speed's own low pass, hertz: the value of the paper.
_SPEED_CUTOFF = 1.0


class _Filter:
    """What One-Euro filters remember: their last answer and its speed."""

    def __init__(self, cutoff: float, speed: float) -> None:
        """`cutoff` hertz at rest; `speed` hertz per unit of speed."""
        self.cutoff, self.speed = cutoff, speed
        self.value: Array | None = None
        self.rate: Array = np.zeros(0)

    def state(self) -> dict[str, Any]:
        """Plain values, from which `restore` goes on bit for bit."""
        return {"value": None if self.value is None else self.value.tolist(), "rate": self.rate.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.value = None if state["value"] is None else np.array(state["value"], np.float64)
        self.rate = np.array(state["rate"], np.float64)


class OneEuro(_Filter):
    """A One-Euro filter for a vector; the speed is the norm of its change, so that no axis lags behind another."""

    def __call__(self, value: ArrayLike, dt: float, unit: ArrayLike = 1.0) -> Array:
        """(N,) after `dt` seconds; its speed is taken in `unit`. The first value is passed on as it is."""
        new = np.asarray(value, np.float64)
        if self.value is None:
            self.value, self.rate = new, np.zeros_like(new)
            return new
        if dt > 0:
            rate = (new - self.value) / dt
            self.rate = self.rate + smoothing_factor(_SPEED_CUTOFF, dt) * (rate - self.rate)
            share = smoothing_factor(
                self.cutoff + self.speed * float(np.linalg.norm(self.rate / np.asarray(unit, np.float64))), dt
            )
            self.value = self.value + share * (new - self.value)
        return self.value


class RotationOneEuro(_Filter):
    """One-Euro filters for (N, 3, 3) rotations, each with its own speed, (N, 3) rad/s in the rotated frame's axes."""

    def __call__(self, value: ArrayLike, dt: float) -> Array:
        """(N, 3, 3) after `dt` seconds. The first value is passed on as it is."""
        new = np.asarray(value, np.float64)
        if self.value is None:
            self.value, self.rate = new, np.zeros(new.shape[:-1])
            return new
        if dt > 0:
            step = vector_from_matrix(self.value.swapaxes(-1, -2) @ new)
            self.rate = self.rate + smoothing_factor(_SPEED_CUTOFF, dt) * (step / dt - self.rate)
            speed = np.linalg.norm(self.rate, axis=-1, keepdims=True)
            share = smoothing_factor(self.cutoff + self.speed * speed, dt)
            self.value = self.value @ matrix_from_vector(share * step)
        return self.value


class HandSmoother:
    """The filters of one hand."""

    def __init__(self, model: HandArrays, settings: Smoothing) -> None:
        self._model, self._settings = model, settings
        self._start()
        self.time: float | None = None
        self.shape: Array = np.zeros(BETA_COUNT)
        self.shape_seconds = 0.0  # how long the shape was averaged
        self.shape_count = 0

    def _start(self) -> None:
        self._pose = RotationOneEuro(self._settings.rotation_cutoff, self._settings.rotation_speed)
        self._place = OneEuro(self._settings.place_cutoff, self._settings.place_speed)

    def __call__(self, hand: HandPrediction, time: float) -> HandPrediction:
        """The hand at `time` seconds, which never runs backwards; two calls for one time are one too many."""
        dt = 0.0 if self.time is None else time - self.time
        if self.time is not None and not 0 < dt <= self._settings.gap_seconds:
            self._start()
        betas = self._settle(hand.betas, min(max(dt, 0.0), self._settings.gap_seconds))
        self.time = time

        # Place and size in the image. Speed counts in the hand's own length there, so that near hands are treated as
        # far ones: that from wrist to middle knuckle, since shape and camera alone are known only up to each other.
        pixels_per_metre = float(hand.camera.scale) * hand.crop.size / 2
        length_px = pixels_per_metre * _palm_length(self._model.shaped(hand.betas))
        center = hand.crop.to_image(hand.camera.project(hand.joints)).astype(np.float64).mean(axis=0)
        place = self._place([*center, math.log(length_px)], dt, unit=(length_px, length_px, 1.0))
        center, length_px = place[:2], math.exp(place[2])

        pose = self._pose(hand.pose, dt)
        shaped = self._model.shaped(betas)
        posed = shaped.posed(pose)
        scale = 2 / hand.crop.size * length_px / _palm_length(shaped)
        middle = posed.joints[:, :2].mean(axis=0)
        translation = hand.crop.to_ndc(center) / scale - middle
        camera = WeakPerspectiveCamera(np.float32(scale), translation.astype(np.float32))
        keypoints = hand.crop.to_image(camera.project(posed.joints))
        (x0, y0), (x1, y1) = keypoints.min(axis=0), keypoints.max(axis=0)
        return replace(
            hand,
            box=(float(x0), float(y0), float(x1), float(y1)),
            camera=camera,
            pose=pose.astype(np.float32),
            betas=betas.astype(np.float32),
            vertices=posed.vertices.astype(np.float32),
            joints=posed.joints.astype(np.float32),
        )

    def _settle(self, betas: NDArray[np.float32], dt: float) -> Array:
        """The mean of the shapes so far, and from some time on what it then was."""
        if not self._settings.shape_seconds:
            return betas.astype(np.float64)
        self.shape_seconds += dt
        if not self.shape_count or self.shape_seconds <= self._settings.shape_seconds:
            self.shape_count += 1
            self.shape = self.shape + (betas - self.shape) / self.shape_count
        return self.shape

    def state(self) -> dict[str, Any]:
        return {
            "pose": self._pose.state(),
            "place": self._place.state(),
            "time": self.time,
            "shape": self.shape.tolist(),
            "shape_seconds": self.shape_seconds,
            "shape_count": self.shape_count,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._pose.restore(state["pose"])
        self._place.restore(state["place"])
        self.time, self.shape = state["time"], np.array(state["shape"], np.float64)
        self.shape_seconds, self.shape_count = state["shape_seconds"], state["shape_count"]


def _palm_length(hand: ShapedHand) -> float:
    """Metres from wrist to middle knuckle at rest."""
    return float(np.linalg.norm(hand.joints[_MIDDLE_MCP] - hand.joints[0]))


class Smoother:
    """Smooths hands that have ids. Not for several threads at once."""

    def __init__(self, hand: HandArrays, settings: Smoothing | None = None) -> None:
        """`hand`: the right hand that predictions are made of, `Engine.hand`."""
        self.settings = settings or Smoothing()
        self._models = both_sides(hand)
        self._hands: dict[tuple[int, Handedness], HandSmoother] = {}

    def __call__(self, id: int, hand: HandPrediction, time: float) -> HandPrediction:
        """The hand `id` at `time` seconds, smoothed. A hand whose side is now said to be the other starts anew."""
        key = (id, hand.handedness)
        if key not in self._hands:
            self._hands[key] = HandSmoother(self._models[hand.handedness], self.settings)
        return self._hands[key](hand, time)

    def keep(self, ids: set[int]) -> None:
        """Forget all other hands: without this, memory grows with every hand that comes and goes."""
        self._hands = {key: hand for key, hand in self._hands.items() if key[0] in ids}

    def state(self) -> list[dict[str, Any]]:
        """Plain values, from which `restore` goes on bit for bit."""
        return [{"id": id, "handedness": str(side), **smoother.state()} for (id, side), smoother in self._hands.items()]

    def restore(self, state: list[dict[str, Any]]) -> None:
        self._hands = {}
        for item in state:
            side = Handedness(item["handedness"])
            smoother = HandSmoother(self._models[side], self.settings)
            smoother.restore(item)
            self._hands[item["id"], side] = smoother
