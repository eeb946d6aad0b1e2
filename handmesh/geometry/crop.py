"""The square crop: one map between the photograph and the network's view, for points, pixels and directions.

*image* points are (x, y) pixels with pixel centres at integers, so a photograph spans -0.5 to width - 0.5. *ndc* spans
[-1, 1] over the crop from edge to edge, x right and y down, whatever its resolution: at resolution S the centre of
pixel column i is at ``(2 i + 1) / S - 1``.

Directions: the network describes the hand in the axes of the crop it sees. Turned into the crop, a vector of the
camera's axes (x right, y down, z forward) is first turned by ``rotation`` about z, from x towards y (the picture in the
crop looks turned clockwise), then, when ``mirror`` is set, its x is negated: ``v_crop = M @ Rz(rotation) @ v_image``
with ``M = diag(-1, 1, 1)`` or the identity. Pixels move by the same map, so turning points back and projecting them is
projecting them and mapping the result back.

A rotation R that takes a model at rest into the crop becomes ``Rz^T @ M @ R @ M``: under a mirror the model is the
other hand, ``HandArrays.mirrored()``, at rest. Joints further down the tree are relative to their parents, so they see
the mirror alone, ``M @ R @ M``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import ConfigError

Floats = NDArray[np.floating[Any]]

# From this ratio of image pixels to crop pixels on, block means reduce the image first, which takes a third of the time
# of sampling all of it, and far less for a photograph of 12 megapixels.
_MIN_BLOCK = 2
# Up to this ratio the image is sampled as it is: bilinear sampling looks at every pixel, if not equally hard.
_MAX_STEP = 1.25

FARTHEST_PX = 1e9  # no pixel of a picture lies further out; with larger numbers sums of coordinates lose pixels

_MIRROR, _NO_MIRROR = np.diag([-1.0, 1.0, 1.0]), np.eye(3)


@dataclass(frozen=True)
class CropTransform:
    """A square of the photograph. Methods named `to_image` undo those named `to_ndc` or `to_crop`, and so on."""

    center: tuple[float, float]  # image pixels
    size: float  # side of the square, image pixels
    rotation: float = 0.0  # radians about the viewing axis, from x (right) towards y (down)
    mirror: bool = False  # left-right, after turning: a left hand looks like a right one

    def __post_init__(self) -> None:
        numbers = (*self.center, self.size, self.rotation)
        if not (self.size > 0 and all(abs(number) <= FARTHEST_PX for number in numbers)):  # false for what is no number
            raise ConfigError(
                f"A crop of size {self.size} px around {self.center}, rotation {self.rotation}, is no square of the "
                f"image: give finite numbers below {FARTHEST_PX:,.0f} and a size above zero."
            )

    @classmethod
    def around_box(
        cls, box: ArrayLike, margin: float = 1.25, rotation: float = 0.0, mirror: bool = False
    ) -> CropTransform:
        """The square with the box's centre whose side is `margin` times the box's longer side.

        `box` is x0, y0, x1, y1 in image pixels. Raises ConfigError when it is empty or not finite.
        """
        x0, y0, x1, y1 = (float(edge) for edge in np.asarray(box, dtype=np.float64).reshape(4))
        if not (x1 > x0 and y1 > y0):
            raise ConfigError(f"Box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty: wanted x0 < x1 and y0 < y1, in pixels.")
        return cls(((x0 + x1) / 2, (y0 + y1) / 2), margin * max(x1 - x0, y1 - y0), rotation, mirror)

    @classmethod
    def around_points(
        cls, points_image: Floats, margin: float = 1.25, rotation: float = 0.0, mirror: bool = False
    ) -> CropTransform:
        """The square, turned by `rotation`, around (N, 2) image points: `margin` times their extent along its axes.

        The extent is taken in the turned axes, so that turning the photograph turns the crop and changes nothing in
        it. Raises ConfigError when the points are not finite or all the same.
        """
        axes = cls((0.0, 0.0), 1.0, rotation).crop_from_image_axes[:2, :2]
        turned = points_image @ axes.T
        low, high = turned.min(axis=0), turned.max(axis=0)
        x, y = (low + high) / 2 @ axes
        return cls((float(x), float(y)), margin * float((high - low).max()), rotation, mirror)

    @classmethod
    def whole_image(cls, width: int, height: int, rotation: float = 0.0, mirror: bool = False) -> CropTransform:
        """The smallest upright square that holds the whole photograph; it is padded along its shorter side."""
        return cls(((width - 1) / 2, (height - 1) / 2), float(max(width, height)), rotation, mirror)

    @property
    def upright(self) -> CropTransform:
        """The same square without rotation and mirror: the crop that belongs to results turned back to image axes."""
        return CropTransform(self.center, self.size)

    # Points

    @cached_property
    def ndc_from_image(self) -> NDArray[np.float64]:
        """(2, 3) affine map."""
        matrix = np.empty((2, 3))
        matrix[:, :2] = 2 / self.size * self.crop_from_image_axes[:2, :2]
        matrix[:, 2] = -matrix[:, :2] @ self.center
        return matrix

    @cached_property
    def image_from_ndc(self) -> NDArray[np.float64]:
        """(2, 3) affine map."""
        matrix = np.empty((2, 3))
        matrix[:, :2] = self.size / 2 * self.crop_from_image_axes[:2, :2].T
        matrix[:, 2] = self.center
        return matrix

    def to_ndc(self, points_image: Floats) -> Floats:
        """(*B, 2) image pixels -> (*B, 2) ndc."""
        return points_image @ self.ndc_from_image[:, :2].T + self.ndc_from_image[:, 2]

    def to_image(self, points_ndc: Floats) -> Floats:
        """(*B, 2) ndc -> (*B, 2) image pixels."""
        return points_ndc @ self.image_from_ndc[:, :2].T + self.image_from_ndc[:, 2]

    # Directions

    @cached_property
    def crop_from_image_axes(self) -> NDArray[np.float64]:
        """(3, 3) orthogonal, determinant -1 under a mirror: a vector in camera axes -> the same in the crop's axes."""
        c, s = math.cos(self.rotation), math.sin(self.rotation)
        x = -1.0 if self.mirror else 1.0
        return np.array([[x * c, -x * s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])

    @property
    def _mirror_matrix(self) -> NDArray[np.float64]:
        return _MIRROR if self.mirror else _NO_MIRROR

    def vectors_to_image(self, vectors_crop: Floats) -> Floats:
        """(*B, 3) or (*B, 2) in the crop's axes -> the same vectors in the camera's axes.

        For points of the hand frame, and for a weak-perspective camera's translation. Turned back about the hand's
        origin, with the translation turned too, ``upright`` projects them to where they were.
        """
        return vectors_crop @ self._axes(vectors_crop)

    def vectors_to_crop(self, vectors_image: Floats) -> Floats:
        """(*B, 3) or (*B, 2) in the camera's axes -> the same vectors in the crop's axes."""
        return vectors_image @ self._axes(vectors_image).T

    def _axes(self, vectors: Floats) -> NDArray[np.float64]:
        dimensions = vectors.shape[-1]
        assert dimensions in (2, 3), vectors.shape
        return self.crop_from_image_axes[:dimensions, :dimensions]

    def rotation_to_image(self, rotation_crop: Floats) -> Floats:
        """(*B, 3, 3) orientation of a hand in the crop -> its orientation in the photograph."""
        return self.crop_from_image_axes.T @ rotation_crop @ self._mirror_matrix

    def rotation_to_crop(self, rotation_image: Floats) -> Floats:
        """(*B, 3, 3) orientation of a hand in the photograph -> its orientation in the crop."""
        return self.crop_from_image_axes @ rotation_image @ self._mirror_matrix

    def pose_to_image(self, pose_crop: Floats) -> Floats:
        """(*B, J, 3, 3), the orientation and then parent-relative rotations, from the crop to the photograph.

        A hand model turns about its root joint, not about the origin: posed with the result, it is the hand turned
        back by `vectors_to_image` up to a shift (none when `rotation` is 0).
        """
        joints = self._mirror_matrix @ pose_crop[..., 1:, :, :] @ self._mirror_matrix
        return np.concatenate([self.rotation_to_image(pose_crop[..., :1, :, :]), joints], axis=-3)

    def pose_to_crop(self, pose_image: Floats) -> Floats:
        """(*B, J, 3, 3), the orientation and then parent-relative rotations, from the photograph to the crop."""
        joints = self._mirror_matrix @ pose_image[..., 1:, :, :] @ self._mirror_matrix
        return np.concatenate([self.rotation_to_crop(pose_image[..., :1, :, :]), joints], axis=-3)

    # Pixels

    def warp(self, image: NDArray[Any], resolution: int, border: int = cv2.BORDER_CONSTANT) -> NDArray[Any]:
        """The crop's pixels: (H, W[, C]) of uint8 or float32 -> (resolution, resolution[, C]), same dtype, C <= 4.

        Bilinear; outside the photograph it is black, or what OpenCV's `border` mode (constant or replicate) makes of
        its edge. Where the crop shrinks the image, every output pixel is about the mean over the area it covers (plain
        bilinear sampling would skip pixels: of one-pixel stripes it makes moire).
        """
        # Only what lies under the crop. For a mirrored one that is turned over: computed as the mirrored photograph's
        # crop is, it has the same pixels to the last bit.
        shrink = self.size / resolution
        x0, y0, x1, y1 = self._bounds(image, margin=2 * math.ceil(shrink))
        part = image[y0:y1, x0:x1]
        x, y = self.center
        center, rotation = (x - x0, y - y0), self.rotation
        if self.mirror:
            part = cv2.flip(part, 1)
            center, rotation = (x1 - 1 - x, y - y0), -self.rotation
        if shrink >= _MIN_BLOCK:
            factor = int(shrink)
            part = _block_means(part, factor, border)
            center = ((center[0] - (factor - 1) / 2) / factor, (center[1] - (factor - 1) / 2) / factor)
            shrink /= factor
        if shrink > _MAX_STEP:
            # Means over 2 x 2 pixels in place of the image: what lies between two samples counts for both.
            part = cv2.copyMakeBorder(part, 1, 1, 1, 1, border)
            part = cv2.blur(part, (2, 2), anchor=(0, 0), borderType=border)
            center = (center[0] + 0.5, center[1] + 0.5)
        pixels_from_image = resolution / 2 * CropTransform(center, shrink * resolution, rotation).ndc_from_image
        pixels_from_image[:, 2] += (resolution - 1) / 2
        size = (resolution, resolution)
        return cv2.warpAffine(part, pixels_from_image, size, flags=cv2.INTER_LINEAR, borderMode=border)

    def _bounds(self, image: NDArray[Any], margin: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1: the image's pixels under the crop and `margin` around it, at least one, ends excluded."""
        height, width = image.shape[:2]
        (x, y), half = self.center, self.size / 2 * (abs(math.cos(self.rotation)) + abs(math.sin(self.rotation)))
        # Rounded first: an edge at a whole number is at one in the mirrored photograph, too.
        x0 = min(max(math.floor(round(x - half, 6)) - margin, 0), width - 1)
        y0 = min(max(math.floor(round(y - half, 6)) - margin, 0), height - 1)
        x1 = max(min(math.ceil(round(x + half, 6)) + 1 + margin, width), x0 + 1)
        y1 = max(min(math.ceil(round(y + half, 6)) + 1 + margin, height), y0 + 1)
        return x0, y0, x1, y1


def _block_means(image: NDArray[Any], factor: int, border: int) -> NDArray[Any]:
    """Means over factor x factor blocks; what the last ones lack counts as everything outside the image does."""
    height, width = image.shape[:2]
    missing_x, missing_y = -width % factor, -height % factor
    # Padding is fast, and fine where it adds little: a row of 400,000 pixels would become 1,700 of them.
    if (height + missing_y) * (width + missing_x) > 2 * height * width:
        return _block_sums(image, factor, border)
    if missing_x or missing_y:
        image = cv2.copyMakeBorder(image, 0, missing_y, 0, missing_x, border)
    size = (image.shape[1] // factor, image.shape[0] // factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _block_sums(image: NDArray[Any], factor: int, border: int) -> NDArray[Any]:
    """As `_block_means` without padding: each axis is summed by itself, and what is missing is added as a number."""
    sums = image
    for axis in np.argsort(image.shape[:2])[::-1]:  # the longer one first: it leaves less for the other
        side = image.shape[axis]
        edge = np.take(sums, [-1], axis=axis).astype(np.float64)
        starts = np.arange(0, side, factor) if factor < side else np.zeros(1, int)
        sums = np.add.reduceat(sums, starts, axis=axis, dtype=np.float64)
        if border == cv2.BORDER_REPLICATE:
            np.moveaxis(sums, axis, 0)[-1:] += float(-side % factor) * np.moveaxis(edge, axis, 0)
    means = sums / factor / factor
    if image.dtype == np.uint8:  # as OpenCV rounds: a half up in 2 x 2 blocks, to even in others
        means = np.floor(means + 0.5) if factor == 2 else np.rint(means)
    return means.astype(image.dtype)
