"""Cameras, and the one table of frames and units.

FRAMES AND UNITS

======= ============ =================================================================================================
frame   unit         axes and origin
======= ============ =================================================================================================
hand    metre        axes of a camera that faces the centre of the crop (x right, y down, z forward), with the
                     predicted orientation applied; origin at the hand model's own origin. In a turned or mirrored crop
                     these are the crop's axes, until ``CropTransform.vectors_to_image`` turns them back. From the
                     camera of the full image they differ by ``Intrinsics.virtual_camera_rotation(crop.center)``: what
                     a hand looks like in a crop depends on where the camera would have to look, not on where it did.
cam     metre        OpenCV camera of the full image: x right, y down, z forward, origin at the optical centre
image   pixel        (x, y), x right, y down, pixel centres at integers: the image spans -0.5 to width - 0.5
ndc     -            [-1, 1] over the square crop, x right, y down, edge to edge whatever the resolution
======= ============ =================================================================================================

Lengths are metres and angles radians; names that end in ``_mm``, ``_ms`` or ``_px`` say otherwise. Colours are RGB.
A map is named by where it goes, ``target_from_source``.

The network predicts a weak-perspective camera for its crop, ``ndc = scale * (xy_hand + translation)``: the
translation is in metres, inside the scale (METRO's form; HMR-like code has it outside). It is exact for overlays. A
position in space follows from it only with the full image's `Intrinsics`; see `hand_origin_cam`.

This module needs neither torch nor a network. WeakPerspectiveCamera works on numpy arrays and torch tensors alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import ConfigError
from handmesh.geometry.crop import CropTransform

Array = Any  # numpy.ndarray | torch.Tensor

# Diagonal of the 36 x 24 mm frame that "35 mm equivalent" refers to (CIPA DCG-001), in millimetres.
_DIAGONAL_35MM = math.hypot(36.0, 24.0)
# Of a focal length: beyond them is a mistake, and places in space are no float32 any more, or none at all.
_MIN_PX, _MAX_PX = 1e-6, 1e9

IntrinsicsSource = Literal["given", "field of view", "exif", "default"]


@dataclass(frozen=True, eq=False)
class WeakPerspectiveCamera:
    """``ndc = scale * (xy_hand + translation)``, for one crop or a batch of them."""

    scale: Array  # (*B,)    ndc per metre
    translation: Array  # (*B, 2)  metres

    @classmethod
    def from_vector(cls, vector: Array) -> WeakPerspectiveCamera:
        """(*B, 3): scale, t_x, t_y, as the network gives it."""
        return cls(scale=vector[..., 0], translation=vector[..., 1:])

    def to_vector(self) -> Array:
        """(*B, 3): scale, t_x, t_y."""
        vector = self.translation[..., [0, 0, 1]]  # a copy, in numpy as in torch
        vector[..., 0] = self.scale
        return vector

    def project(self, points_hand: Array) -> Array:
        """(*B, N, 3) metres in the hand frame -> (*B, N, 2) ndc."""
        return self.scale[..., None, None] * (points_hand[..., :2] + self.translation[..., None, :])


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera of a full image, without skew or distortion. All in pixels; `source` says how it is known."""

    fx: float
    fy: float
    cx: float
    cy: float
    source: IntrinsicsSource = "given"

    def __post_init__(self) -> None:
        values = self.fx, self.fy, self.cx, self.cy
        if not (self.fx > _MIN_PX and self.fy > _MIN_PX and all(abs(value) < _MAX_PX for value in values)):
            raise ConfigError(
                f"Camera with focal lengths ({self.fx}, {self.fy}) and principal point ({self.cx}, {self.cy}) px: "
                f"wanted numbers below {_MAX_PX:g} and focal lengths above zero, from {_MIN_PX:g} on."
            )

    @classmethod
    def of(cls, known: Intrinsics | ArrayLike) -> Intrinsics:
        """From K, as `from_matrix`; an `Intrinsics` is itself."""
        return known if isinstance(known, Intrinsics) else cls.from_matrix(known)

    @classmethod
    def from_matrix(cls, matrix: ArrayLike) -> Intrinsics:
        """From K = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]. Raises ConfigError for any other form.

        A principal point counted from the image's corner, not from the centre of its first pixel, is half a pixel
        larger than ours.
        """
        wanted = "wanted [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels"
        try:
            K = np.asarray(matrix, dtype=np.float64)
        except (TypeError, ValueError):
            raise ConfigError(f"Camera matrix {matrix!r}: {wanted}.") from None
        if K.shape != (3, 3):
            raise ConfigError(f"Camera matrix of shape {K.shape}: {wanted}.")
        pinhole = [[K[0, 0], 0, K[0, 2]], [0, K[1, 1], K[1, 2]], [0, 0, 1]]
        # FreiHAND's and other calibrations keep rounding noise where zeros belong.
        if not np.allclose(K, pinhole, rtol=0, atol=1e-6 * max(1.0, abs(K[0, 0]))):
            raise ConfigError(f"Camera matrix {K.tolist()} has skew or is not normalised: {wanted}.")
        return cls(float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]), "given")

    @classmethod
    def from_fov(cls, fov: float, width: int, height: int) -> Intrinsics:
        """From the angle (radians) that the image's longer side spans, so that turning a photo changes nothing."""
        if not 0 < fov < math.pi:
            raise ConfigError(f"Field of view {fov:g}: wanted an angle in radians between 0 and pi.")
        return cls._centred(max(width, height) / 2 / math.tan(fov / 2), width, height, "field of view")

    @classmethod
    def from_exif_focal_35mm(cls, focal_35mm: float, width: int, height: int) -> Intrinsics:
        """From EXIF's FocalLengthIn35mmFilm, for a photograph that was not cropped since.

        The equivalence is between diagonals, that of the image and the 43.27 mm of a 36 x 24 mm frame.
        """
        if not focal_35mm > 0:
            # EXIF 2.3: 0 means unknown.
            raise ConfigError(f"35 mm equivalent focal length {focal_35mm:g}: wanted millimetres above zero.")
        return cls._centred(focal_35mm / _DIAGONAL_35MM * math.hypot(width, height), width, height, "exif")

    @classmethod
    def default_for(cls, width: int, height: int) -> Intrinsics:
        """When nothing is known: a focal length equal to the image's diagonal, the "normal" lens (43 mm equivalent).

        Nothing better can be said of a photograph of unknown history: it lies between a phone's main camera (26 mm,
        0.6 diagonals) and a portrait lens or a cropped photo, and full-body work uses the same guess (Kissos et al.,
        "Beyond Weak Perspective", 2020). Distances scale with it: they come out 1.7 times too far for an uncropped
        phone photo. Directions, sizes and overlays hardly change.
        """
        return cls._centred(math.hypot(width, height), width, height, "default")

    @classmethod
    def _centred(cls, focal: float, width: int, height: int, source: IntrinsicsSource) -> Intrinsics:
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2, source)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """K, (3, 3): ``z * (x_image, y_image, 1) = K @ point_cam``."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def project(self, points_cam: ArrayLike) -> NDArray[np.float64]:
        """(*B, 3) metres -> (*B, 2) image pixels; not-a-number for points that are not in front of the camera."""
        points = np.asarray(points_cam, dtype=np.float64)
        depth = points[..., 2:]
        rays = points[..., :2] / np.where(depth > 0, depth, np.nan)
        return rays * (self.fx, self.fy) + (self.cx, self.cy)

    def ray(self, point_image: ArrayLike) -> NDArray[np.float64]:
        """(2,) image pixels -> (3,) the point at depth 1 that is seen there, in the cam frame."""
        x, y = np.asarray(point_image, dtype=np.float64)
        return np.array([(x - self.cx) / self.fx, (y - self.cy) / self.fy, 1.0])

    def virtual_camera_rotation(self, point_image: ArrayLike) -> NDArray[np.float64]:
        """(3, 3) virtual camera from cam: the rotation that brings an image point, a crop's centre, onto the axis.

        A crop is the view of a virtual camera at the same place that looks at the crop's centre: the real one, turned
        the shortest way. A hand off the real camera's axis is seen from another side than that camera's axes say; in
        the virtual camera's axes it looks as its crop shows it. The third row is the direction of the point; the others
        follow from Rodrigues' formula for the rotation between two unit vectors.
        """
        x, y, z = direction = (ray := self.ray(point_image)) / np.linalg.norm(ray)
        rotation = np.eye(3)
        rotation[:2, :2] -= np.outer(direction[:2], direction[:2]) / (1 + z)
        rotation[:2, 2] = -x, -y
        rotation[2] = direction
        return rotation


def hand_origin_cam(
    camera: WeakPerspectiveCamera,
    crop: CropTransform,
    intrinsics: Intrinsics,
    reference_depth: float = 0.0,
    cam_from_hand_axes: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(3,) metres: where the hand frame's origin lies in the cam frame.

    ``points_cam = A @ crop.vectors_to_image(points_hand) + hand_origin_cam(...)``, for points as predicted in `crop` by
    a `camera` of one crop (scale () and translation (2,)).

    `reference_depth` is the z in the hand frame of the plane in which the two cameras agree; give the mean z of the
    vertices, since the weak-perspective camera fits the hand as a whole while the model's origin may lie several
    centimetres nearer or farther. `cam_from_hand_axes` is A, (3, 3): how the hand's axes, turned back upright, lie in
    the camera: ``intrinsics.virtual_camera_rotation(crop.center).T``, or None for the identity, where the hand's axes
    are the camera's own (FreiHAND's labels as they are published).

    Derivation. With ``t`` the translation turned to image axes, b the side of the crop in pixels and c its centre, the
    weak-perspective camera draws a point (X, Y, Z) of the turned-back hand at ``c + (b / 2) * scale * (XY + t)``.

    * It draws ``q = (-t, reference_depth)`` at c, so q must lie on the ray ``r = ((c - p) / f, 1)`` of the pinhole:
      ``A @ q + T = z * r``, hence ``T = z * r - A @ q``.
    * Around c the pinhole moves by ``(f / z) * [I | -r_xy] @ A[:, :2]`` pixels per metre of XY, the other camera by
      ``(b / 2) * scale``. With equal areas, ``z = 2 / (b * scale) * sqrt(fx * fy * det([I | -r_xy] @ A[:, :2]))``;
      where A is the identity that is ``2 f / (b * scale)``, and the cameras agree exactly in the reference plane.

    A point at another depth differs by perspective, which the weak-perspective camera ignores.
    """
    A = np.eye(3) if cam_from_hand_axes is None else cam_from_hand_axes
    translation = crop.vectors_to_image(np.asarray(camera.translation, dtype=np.float64))
    ray = intrinsics.ray(crop.center)
    enlargement = np.linalg.det(np.column_stack([np.eye(2), -ray[:2]]) @ A[:, :2])
    depth = 2 * math.sqrt(intrinsics.fx * intrinsics.fy * enlargement) / (crop.size * float(camera.scale))
    return depth * ray - A @ (-translation[0], -translation[1], reference_depth)
