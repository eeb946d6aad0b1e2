import math
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handmesh.errors import ConfigError
from handmesh.geometry import crop as crop_module
from handmesh.geometry.crop import FARTHEST_PX, CropTransform
from handmesh.hand import JOINT_NAMES, upright_rotation

CROPS = [
    CropTransform((60.0, 50.0), 80.0),
    CropTransform((60.3, 49.1), 81.7, rotation=0.7),
    CropTransform((55.2, 51.9), 64.0, mirror=True),
    CropTransform((64.4, 47.3), 70.5, rotation=-2.1, mirror=True),
]


def pixel(points_ndc: np.ndarray, resolution: int) -> np.ndarray:
    """Where the documented rule puts an ndc point: column i is centred at (2 i + 1) / S - 1."""
    return ((points_ndc + 1) * resolution - 1) / 2


# Points


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 4), (0,)])
def test_there_and_back_again(crop, batch):
    points = np.random.default_rng(0).uniform(-100, 200, (*batch, 2))
    np.testing.assert_allclose(crop.to_image(crop.to_ndc(points)), points, atol=1e-11)


@pytest.mark.parametrize("crop", CROPS)
def test_the_square_is_where_it_says(crop):
    np.testing.assert_allclose(crop.to_image(np.zeros(2)), crop.center)
    corners = crop.to_image(np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]))
    np.testing.assert_allclose(np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1), crop.size)


def test_rotation_goes_from_x_to_y_and_mirroring_comes_after():
    right = np.array([10.0, 0.0])  # of the centre, in the image
    turned = CropTransform((0.0, 0.0), 20.0, rotation=math.pi / 6)
    np.testing.assert_allclose(turned.to_ndc(right), [math.cos(math.pi / 6), math.sin(math.pi / 6)])
    mirrored = CropTransform((0.0, 0.0), 20.0, rotation=math.pi / 6, mirror=True)
    np.testing.assert_allclose(mirrored.to_ndc(right), [-math.cos(math.pi / 6), math.sin(math.pi / 6)])


def test_around_box():
    crop = CropTransform.around_box((10, 20, 50, 40), margin=1.5)
    assert crop == CropTransform((30.0, 30.0), 60.0)


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
def test_around_points_follows_a_turned_photograph(angle):
    """Turn the points, and ask for the crop turned back: the points lie in the crop as before."""
    points = np.random.default_rng(3).uniform(0, 100, (21, 2))
    crop = CropTransform.around_points(points, 1.3, rotation=0.2)
    ndc = crop.to_ndc(points)
    np.testing.assert_allclose([ndc.min(axis=0) + ndc.max(axis=0)], 0, atol=1e-12)
    assert np.ptp(ndc, axis=0).max() == pytest.approx(2 / 1.3)
    c, s = math.cos(angle), math.sin(angle)
    turned = points @ np.array([[c, -s], [s, c]]).T
    turned_crop = CropTransform.around_points(turned, 1.3, rotation=0.2 - angle)
    np.testing.assert_allclose(turned_crop.to_ndc(turned), ndc, atol=1e-12)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (3, 7), (5, 5)])
def test_whole_image_touches_the_edges_of_its_longer_side(width, height):
    crop = CropTransform.whole_image(width, height)
    top_left, bottom_right = crop.to_ndc(np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]]))
    np.testing.assert_allclose(top_left, -bottom_right)
    assert bottom_right.max() == pytest.approx(1)
    assert bottom_right.min() == pytest.approx(min(width, height) / max(width, height))


def test_upright_puts_the_middle_knuckle_above_the_wrist():
    keypoints = np.random.default_rng(4).uniform(0, 100, (21, 2))
    for mirror in (False, True):
        crop = CropTransform.around_points(keypoints, rotation=upright_rotation(keypoints), mirror=mirror)
        ndc = crop.to_ndc(keypoints)
        dx, dy = ndc[JOINT_NAMES.index("middle_mcp")] - ndc[JOINT_NAMES.index("wrist")]
        assert dx == pytest.approx(0, abs=1e-12)
        assert dy < 0


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 0, 1, 5), (0, 0, math.nan, 5)])
def test_an_empty_box_is_refused_by_its_numbers(box):
    with pytest.raises(ConfigError, match="empty"):
        CropTransform.around_box(box)


@pytest.mark.parametrize("size", [0.0, -3.0, math.nan, math.inf])
def test_a_crop_needs_a_size(size):
    with pytest.raises(ConfigError, match="size"):
        CropTransform((0.0, 0.0), size)


# Directions


@pytest.mark.parametrize("crop", CROPS)
def test_turning_points_back_and_projecting_is_projecting_and_mapping_back(crop):
    rng = np.random.default_rng(1)
    points, scale, translation = rng.normal(0, 0.08, (778, 3)), 6.5, rng.normal(0, 0.05, 2)
    in_image = crop.to_image(scale * (points[:, :2] + translation))
    back, translation_back = crop.vectors_to_image(points), crop.vectors_to_image(translation)
    np.testing.assert_allclose(crop.upright.to_image(scale * (back[:, :2] + translation_back)), in_image, atol=1e-9)


@pytest.mark.parametrize("crop", CROPS)
def test_vectors_and_rotations_there_and_back(crop):
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(2, 5, 3))
    np.testing.assert_allclose(crop.vectors_to_image(crop.vectors_to_crop(vectors)), vectors, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(crop.vectors_to_crop(vectors), axis=-1), np.linalg.norm(vectors, axis=-1))
    np.testing.assert_array_equal(crop.vectors_to_crop(vectors)[..., 2], vectors[..., 2])  # depth is depth
    pose = np.linalg.qr(rng.normal(size=(2, 16, 3, 3)))[0]
    np.testing.assert_allclose(crop.pose_to_image(crop.pose_to_crop(pose)), pose, atol=1e-14)
    np.testing.assert_allclose(crop.rotation_to_image(crop.rotation_to_crop(pose)), pose, atol=1e-14)
    # A rotation stays one under a mirror too: conjugated, not just flipped.
    np.testing.assert_allclose(np.linalg.det(crop.pose_to_image(pose)), np.linalg.det(pose))


@pytest.mark.parametrize("crop", CROPS)
def test_rotations_turn_back_with_the_chain_of_points_they_move(crop):
    """A finger bent and turned in the crop, turned back, is a finger of the model at rest (mirrored with the crop)."""
    rng = np.random.default_rng(3)
    pose = np.linalg.qr(rng.normal(size=(2, 3, 3)))[0]
    pose *= np.linalg.det(pose)[:, None, None]  # proper: an odd dimension flips with the sign
    bones = rng.normal(size=(2, 3))
    rest_flip = np.array([-1.0, 1.0, 1.0]) if crop.mirror else np.ones(3)

    def fingertip(rotations: np.ndarray, rest: np.ndarray) -> np.ndarray:
        return rotations[0] @ (rest[0] + rotations[1] @ rest[1])

    turned_back = crop.vectors_to_image(fingertip(pose, bones))
    np.testing.assert_allclose(fingertip(crop.pose_to_image(pose), bones * rest_flip), turned_back, atol=1e-14)


# Pixels


def drawn_dot(width: int, height: int, center: np.ndarray, sigma: float) -> np.ndarray:
    x, y = np.arange(width) - center[0], np.arange(height)[:, None] - center[1]
    return (255 * np.exp(-(x**2 + y**2) / (2 * sigma**2))).astype(np.float32)


def centroid(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return np.array([(image.sum(axis=0) @ np.arange(width)), (image.sum(axis=1) @ np.arange(height))]) / image.sum()


@pytest.mark.parametrize("rotation", [0.0, 0.5, -2.0, math.pi / 2])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("resolution", [224, 223, 64, 17])
@pytest.mark.parametrize("size", [97.0, 200.5, 400.0])
def test_a_drawn_dot_lands_where_to_ndc_says(rotation, mirror, resolution, size):
    """To OpenCV's step of 1/32 pixel, enlarged and shrunk up to 24 times, for odd sizes, turned and mirrored."""
    dot = np.array([171.37, 128.81])
    image = drawn_dot(301, 243, dot, sigma=max(3.0, 1.5 * size / resolution))
    crop = CropTransform((160.2, 120.7), size, rotation, mirror)
    expected = pixel(crop.to_ndc(dot), resolution)
    found = centroid(crop.warp(image, resolution))
    np.testing.assert_allclose(found, expected, atol=1 / 32)


def test_a_whole_image_at_its_own_size_is_the_image():
    image = np.random.default_rng(5).integers(0, 256, (65, 65, 3), dtype=np.uint8)
    crop = CropTransform.whole_image(65, 65)
    np.testing.assert_array_equal(crop.warp(image, 65), image)
    mirrored = CropTransform.whole_image(65, 65, mirror=True)
    np.testing.assert_array_equal(mirrored.warp(image, 65), image[:, ::-1])
    np.testing.assert_array_equal(mirrored.warp(image[:, ::-1], 65), image)


@pytest.mark.parametrize("width", [160, 157])
@pytest.mark.parametrize("size", [25.0, 47.3, 80.0, 99.0, 161.7, 300.0])
@pytest.mark.parametrize("border", [cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE])
def test_the_mirrored_photograph_has_the_same_pixels_in_the_mirrored_crop(width, size, border):
    """To the last bit: a left hand gets the answer that the right one in the mirror gets."""
    image = np.random.default_rng(4).integers(0, 256, (120, width, 3), dtype=np.uint8)
    for center in [(70.0, 50.5), (151.3, 8.0), ((width - 1) / 2, 59.5)]:
        crop = CropTransform(center, size, rotation=0.6)
        other = CropTransform((width - 1 - center[0], center[1]), size, rotation=-0.6, mirror=True)
        found = other.warp(np.ascontiguousarray(image[:, ::-1]), 32, border)
        np.testing.assert_array_equal(found, crop.warp(image, 32, border))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shrinking_by_a_whole_factor_takes_block_means(factor):
    image = np.random.default_rng(7).integers(0, 256, (16 * factor, 16 * factor, 3), dtype=np.uint8)
    blocks = image.reshape(16, factor, 16, factor, 3).mean(axis=(1, 3))
    found = CropTransform.whole_image(16 * factor, 16 * factor).warp(image, 16)
    np.testing.assert_allclose(found, blocks, atol=0.5 + 1e-6)  # rounded to whole grey levels


@pytest.mark.parametrize("rotation", [0.0, 0.4])
@pytest.mark.parametrize("shrink", [1.9, 2.5, 3.7, 5.3, 8.3])
def test_shrinking_does_not_alias(shrink, rotation):
    """One-pixel checks hold nothing that a smaller picture can show: it must come out grey, not as moire."""
    y, x = np.mgrid[:700, :700]
    checks = ((x + y) % 2 * 255).astype(np.uint8)
    crop = CropTransform((350.3, 349.8), 48 * shrink, rotation)
    assert crop.warp(checks, 48).std() < 127.5 / 10
    plain = cv2.warpAffine(checks, 24 * crop.ndc_from_image + [[0, 0, 23.5]], (48, 48), flags=cv2.INTER_LINEAR)
    assert plain.std() > 127.5 / 4, "the case is no test: plain bilinear sampling does not alias here either"


def test_outside_the_photograph_is_black():
    white = np.full((40, 60), 255, np.uint8)
    for size in (100.0, 2000.0):
        warped = CropTransform((30.0, 20.0), size).warp(white, 50)
        assert warped[0].max() == 0
        assert warped[:, 0].max() == 0
        assert warped.astype(float).sum() / 255 * (size / 50) ** 2 == pytest.approx(40 * 60, rel=0.06)
        assert CropTransform((1e5, -1e5), size).warp(white, 50).max() == 0


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("size", [20.0, 50.0, 300.0])
def test_warp_keeps_type_and_channels_and_leaves_the_image_alone(channels, dtype, size):
    image = np.random.default_rng(8).integers(0, 256, (61, 83, *channels)).astype(dtype)
    before = image.copy()
    warped = CropTransform((40.0, 30.0), size, 0.3).warp(image, 24)
    assert warped.shape == (24, 24, *channels)
    assert warped.dtype == dtype
    np.testing.assert_array_equal(image, before)


# Shapes that no camera takes


@pytest.mark.parametrize("shape", [(1, 400_000, 3), (400_000, 1, 3), (1, 1_000_000), (65_535, 31, 3)])
def test_a_line_of_pixels_takes_no_more_than_it_has(shape):
    """A row of 400,000 pixels was padded to as many rows as a block has: 2^31 bytes, and a segmentation fault."""
    image = np.full(shape, 200, np.uint8)
    tracemalloc.start()
    for rotation in (0.0, 0.7):
        CropTransform.whole_image(shape[1], shape[0], rotation).warp(image, 224)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * image.nbytes + 5_000_000


@pytest.mark.parametrize("border", [cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE])
@pytest.mark.parametrize("shape", [(1, 501), (501, 1), (7, 900, 3), (31, 31, 3), (3, 2), (97, 13, 4)])
@pytest.mark.parametrize("factor", [2, 3, 7, 40])
def test_blocks_without_padding_are_those_with(shape, factor, border):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    padded = cv2.copyMakeBorder(image, 0, -shape[0] % factor, 0, -shape[1] % factor, border)
    size = (padded.shape[1] // factor, padded.shape[0] // factor)
    expected = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
    found = crop_module._block_sums(image, factor, border)
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
    real = crop_module._block_sums(image.astype(np.float32), factor, border)
    np.testing.assert_allclose(
        real, cv2.resize(padded.astype(np.float32), size, interpolation=cv2.INTER_AREA).reshape(real.shape), rtol=1e-4
    )


SIDES = st.sampled_from([1, 2, 3, 5, 7, 97, 251, 65_535])


@settings(max_examples=150, deadline=None)
@given(
    height=SIDES,
    width=SIDES,
    center=st.tuples(*[st.floats(-FARTHEST_PX, FARTHEST_PX) | st.floats(-300, 300)] * 2),
    size=st.floats(1e-6, FARTHEST_PX) | st.floats(1, 2000),
    rotation=st.floats(-10, 10),
    mirror=st.booleans(),
    resolution=st.sampled_from([1, 31, 64]),
)
def test_any_crop_of_any_shape_is_cut_out(height, width, center, size, rotation, mirror, resolution):
    """No crash, no cv2.error, no pixel that is brighter than the image's."""
    if height * width > 700_000:
        height = 7
    image = np.full((height, width, 3), 180, np.uint8)
    warped = CropTransform(center, size, rotation, mirror).warp(image, resolution)
    assert warped.shape == (resolution, resolution, 3)
    assert warped.max() <= 180


@pytest.mark.parametrize(("center", "size"), [((1e10, 0), 5), ((0, 0), 1e12), ((math.nan, 0), 5), ((0, 0), math.inf)])
def test_a_crop_beyond_all_pictures_is_refused(center, size):
    with pytest.raises(ConfigError, match="no square"):
        CropTransform(center, size)
