"""Looking at a data set: a contact sheet with the labels drawn on the photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.data.crops import CropProtocol, crop_protocol
from handmesh.data.formats import holds_photos, open_photos
from handmesh.data.formats.freihand import FreiHand, available_splits
from handmesh.data.sample import RawData, RawSample
from handmesh.draw.colors import HAND_COLORS
from handmesh.draw.render import overlay
from handmesh.draw.sheet import captioned, contact_sheet
from handmesh.draw.skeleton import draw_skeleton
from handmesh.errors import AssetError, ConfigError, DataError
from handmesh.geometry.crop import CropTransform
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import Handedness
from handmesh.hand.models import load_hand

TILE = 224  # px


def show(
    path: Path,
    count: int = 24,
    seed: int = 0,
    *,
    split: str | None = None,
    protocol: str | None = None,
    mesh: bool = False,
    hand: str = "builtin",
    indices: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """A sheet of `count` random samples (or of `indices`) of a prepared FreiHAND or of `FORMATS`, RGB.

    Cropped by a `CropProtocol`'s name: by default the frame for FreiHAND, the box around the hand for others.
    With `mesh`, labelled vertices are drawn instead of bones, where they and the camera are known, with the triangles
    of `hand` (FreiHAND's are known). For FreiHAND, of which `split` is a part, each photograph stands with all its
    versions. Raises DataError when there is nothing to show.
    """
    path = Path(path)
    if holds_photos(path):
        if split is not None:
            raise DataError(f"{path} has no {split!r} set: it is no FreiHAND, and has no parts.")
        photos = open_photos(path)
        chosen = _choose(len(photos), count, seed) if indices is None else list(indices)
        faces = load_hand(hand).faces if mesh else None
        return _sheet(photos, chosen, crop_protocol(protocol or "box"), faces, lenient=protocol is None)
    splits = available_splits(path)
    if split not in (None, *splits):
        raise DataError(f"{path} has no {split!r} set, only {', '.join(splits)}.")
    data = FreiHand(path, next(name for name in splits if split in (None, name)))
    if indices is None:
        # All versions of one photograph side by side: that they share their labels is worth seeing.
        bases = _choose(data.annotation_count, -(-count // len(data.versions)), seed)
        offsets = data.annotation_count * np.arange(len(data.versions))
        indices = [int(base + offset) for base in bases for offset in offsets][:count]
    return _sheet(data, indices, crop_protocol(protocol or "frame"), _faces_of(data) if mesh else None)


def _faces_of(data: FreiHand) -> NDArray[np.int32]:
    """The triangles of the hand that was labelled: its vertices mean nothing in another's."""
    try:
        return load_hand(data.labelled_hand.name).faces
    except (AssetError, ConfigError) as error:
        raise DataError(f"{data.path} does not hold the mesh's triangles, its hand model does. {error}") from error


def _choose(total: int, count: int, seed: int) -> list[int]:
    chosen = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    return np.sort(chosen).tolist()


def _sheet(
    data: RawData,
    indices: Sequence[int],
    protocol: CropProtocol,
    faces: NDArray[np.int32] | None = None,
    *,
    lenient: bool = False,
) -> NDArray[np.uint8]:
    """`lenient`: where the protocol finds no box, the whole image."""
    if not indices:
        raise DataError("There are no samples to show.")
    return contact_sheet(draw_sample(data[index], protocol, faces, lenient=lenient) for index in indices)


def draw_sample(
    sample: RawSample, protocol: CropProtocol, faces: NDArray[np.int32] | None = None, *, lenient: bool = False
) -> NDArray[np.uint8]:
    """(224, 224, 3): the crop, not mirrored, with box, bones or mesh, and a caption."""
    labels = sample.labels
    if lenient and labels.hand_box() is None:
        protocol = crop_protocol("frame")
    crop = replace(protocol.crop(sample), mirror=False)
    tile = np.ascontiguousarray(crop.warp(np.ascontiguousarray(sample.image), TILE))
    if faces is not None and labels.hand.vertices_known and labels.intrinsics is not None:
        tile = _draw_mesh(tile, sample, crop, faces)
    elif (seen := labels.keypoints_or_projection()) is not None:
        tile = draw_skeleton(tile, _pixels(crop, np.nan_to_num(seen[0])), visible=seen[1])
    if labels.box is not None:
        x0, y0, x1, y1 = labels.box
        corners = _pixels(crop, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])).round().astype(np.int32)
        cv2.polylines(tile, [corners], True, (255, 255, 255), 1, cv2.LINE_AA)
    return captioned(tile, _caption(sample))


def _pixels(crop: CropTransform, points_image: NDArray[Any]) -> NDArray[Any]:
    return (crop.to_ndc(points_image) + 1) * (TILE / 2) - 0.5


def _draw_mesh(
    tile: NDArray[np.uint8], sample: RawSample, crop: CropTransform, faces: NDArray[np.int32]
) -> NDArray[np.uint8]:
    labels = sample.labels
    vertices = labels.hand.vertices
    assert labels.intrinsics is not None
    if labels.handedness == Handedness.LEFT:
        faces = faces[:, ::-1]
    pixels = _pixels(crop, labels.intrinsics.project(vertices))
    vertices_image = np.column_stack([pixels, vertices[:, 2]])
    normals = vertex_normals(vertices, faces)
    color = HAND_COLORS[labels.handedness]
    return overlay(tile, vertices_image, faces, normals=normals, color=color, opacity=0.8)


def _caption(sample: RawSample) -> str:
    """Short enough for a tile: the number and version of a FreiHAND image, or the end of a path."""
    stem = Path(sample.name).stem
    side = " L" if sample.labels.handedness == Handedness.LEFT else ""
    return f"{stem[-24:]}{side}"
