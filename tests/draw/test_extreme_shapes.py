"""Photographs of one row or column, of odd and prime sides, and of the longest side there is, drawn on and exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from handmesh.draw.render import ImageMesh, overlay_meshes, render_meshes
from handmesh.draw.skeleton import draw_skeleton
from handmesh.errors import ExportError, ImageError
from handmesh.files.image import MAX_ASPECT, MAX_SIDE, encode_image, read_image
from handmesh.files.mesh import MESH_SUFFIXES
from handmesh.files.video import VideoWriter
from handmesh.geometry.camera import Intrinsics, WeakPerspectiveCamera
from handmesh.geometry.crop import CropTransform
from handmesh.hand import Handedness, builtin_hand
from handmesh.hand.anatomy import flexion_axes
from handmesh.predict import HandPrediction, save_hands

HAND = builtin_hand()
SIDES = st.sampled_from([1, 2, 3, 7, 32, 33, 97, 389, 521, 4001, MAX_SIDE])
SIZES = st.tuples(SIDES, SIDES).filter(lambda size: size[0] * size[1] <= 500_000)
PHOTOS = SIZES.filter(lambda size: max(size) <= MAX_ASPECT * min(size))


def prediction(center: tuple[float, float], size: float, shape: tuple[int, int]) -> HandPrediction:
    """A flat hand in a crop of a photograph of this width and height."""
    joints = HAND.joints_of(HAND.v_template)
    return HandPrediction(
        handedness=Handedness.RIGHT,
        handedness_source="given",
        handedness_score=1.0,
        score=0.9,
        joint_scores=None,
        box=(0.0, 0.0, float(shape[0]), float(shape[1])),
        crop=CropTransform(center, size),
        camera=WeakPerspectiveCamera(np.float32(6.5), np.zeros(2, np.float32)),
        pose=np.tile(np.eye(3, dtype=np.float32), (16, 1, 1)),
        betas=np.zeros(10, np.float32),
        vertices=(HAND.v_template - joints[0]).astype(np.float32),
        joints=(joints - joints[0]).astype(np.float32),
        faces=HAND.faces,
        source="box",
        intrinsics=Intrinsics.default_for(*shape),
        flexion_axes=flexion_axes(HAND).astype(np.float32),
    )


@st.composite
def hands_in_photos(draw: st.DrawFn, sizes: st.SearchStrategy[tuple[int, int]]) -> tuple[HandPrediction, np.ndarray]:
    """A hand of any size, in, around or far beyond a photograph; and the photograph."""
    width, height = draw(sizes)
    center = tuple(draw(st.floats(-1, 2)) * side for side in (width, height))
    hand = prediction(center, draw(st.floats(0.01, 3)) * max(width, height), (width, height))
    return hand, np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)


def stretched(points: np.ndarray, factor: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # zero times infinity
        return points * factor


@hypothesis_settings(max_examples=60, deadline=None)
@given(hands_in_photos(SIZES), st.integers(0, 40), st.integers(0, 40))
def test_a_picture_is_the_corner_of_any_larger_one(drawn, right, below):
    """Whatever its shape: the renderer works in bands of rows, within the mesh's box."""
    hand, image = drawn
    height, width = image.shape[:2]
    picture = render_meshes([hand.mesh], (width, height))
    larger = render_meshes([hand.mesh], (width + right, height + below))
    np.testing.assert_array_equal(picture, larger[:height, :width])


@hypothesis_settings(max_examples=60, deadline=None)
@given(hands_in_photos(SIZES), st.sampled_from([1.0, 1e3, 1e9, np.inf, np.nan]))
def test_overlays_change_what_the_mesh_covers_and_nothing_else(drawn, stretch):
    hand, image = drawn
    mesh = ImageMesh(stretched(hand.mesh.vertices_image, stretch), hand.faces, hand.mesh.normals)
    before = image.copy()
    covered = render_meshes([mesh], image.shape[1::-1])[..., 3] > 0
    over = overlay_meshes(image, [mesh])
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(over[~covered], image[~covered])


@hypothesis_settings(max_examples=60, deadline=None)
@given(hands_in_photos(SIZES), st.sampled_from([1.0, 1e3, 1e9, np.inf, np.nan]))
def test_skeletons_are_drawn_on_any_shape(drawn, stretch):
    """OpenCV's coordinates are integers, of 32 bits."""
    hand, image = drawn
    over = draw_skeleton(image, stretched(hand.keypoints_image(), stretch))
    assert (over.shape, over.dtype) == (image.shape, np.uint8)
    if not np.isfinite(stretch):
        np.testing.assert_array_equal(over, image)


@pytest.mark.parametrize("suffix", [".png", ".jpg", *MESH_SUFFIXES])
@hypothesis_settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=hands_in_photos(PHOTOS))
def test_every_export_of_a_hand_in_any_photograph_is_read_again(suffix, drawn, tmp_path):
    hand, image = drawn
    path = tmp_path / f"hand{suffix}"
    save_hands(path, [hand, replace(hand, handedness=Handedness.LEFT)], image)
    if suffix in (".png", ".jpg"):
        assert read_image(path).shape == image.shape
    elif suffix == ".json":
        json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    elif suffix == ".npz":
        with np.load(path) as stored:
            assert all(np.isfinite(stored[name]).all() for name in stored.files if stored[name].dtype.kind == "f")
    elif suffix == ".html":
        assert path.stat().st_size > 10_000
    else:
        scene = trimesh.load(path, process=False)
        meshes = list(scene.geometry.values()) if isinstance(scene, trimesh.Scene) else [scene]
        assert all(np.isfinite(mesh.vertices).all() for mesh in meshes)
        assert sum(len(mesh.faces) for mesh in meshes) == 2 * len(HAND.faces)


@pytest.mark.parametrize("shape", [(1, MAX_SIDE), (MAX_SIDE, 1), (1, 1)])
def test_pictures_of_the_longest_side_are_encoded_or_refused(shape):
    """A JPEG has 65,500 pixels a side at most, as its library has it, and a WebP 16,383."""
    image = np.zeros((*shape, 3), np.uint8)
    assert encode_image(image, "png").startswith(b"\x89PNG")
    for kind in ("jpeg", "webp"):
        if shape == (1, 1):
            assert encode_image(image, kind)
        else:
            with pytest.raises(ExportError, match=f"Cannot write a {shape[1]} x {shape[0]} image as {kind}"):
                encode_image(image, kind)
    with pytest.raises(ImageError, match="no photograph is more than 100 times as long as wide"):
        read_image(np.zeros((*((1, MAX_SIDE) if shape == (1, 1) else shape), 3), np.uint8))


@pytest.mark.parametrize("size", [(1, 100), (100, 1), (1, 1)])
def test_videos_that_no_encoder_takes_are_refused_for_their_size(size, tmp_path):
    """It said that there was no encoder here."""
    with pytest.raises(ExportError, match=f"no encoder for mp4v that takes pictures of {size[0]} x {size[1]}"):
        VideoWriter(tmp_path / "clip.mp4", size, 10.0, "mp4v")
    assert list(Path(tmp_path).iterdir()) == []
