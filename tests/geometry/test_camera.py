import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handmesh.errors import ConfigError
from handmesh.geometry.camera import Intrinsics, WeakPerspectiveCamera, hand_origin_cam
from handmesh.geometry.crop import CropTransform


def points_like_a_hand(seed: int, thickness: float = 1.0) -> np.ndarray:
    """(100, 3) metres, about 18 cm long, origin off its middle as MANO's is."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(100, 3)) * (0.05, 0.025, 0.01) @ Rotation.random(rng=rng).as_matrix().T
    return points * (1, 1, thickness) + (0.03, -0.05, 0.04)


# Weak perspective


def test_the_translation_is_in_metres_inside_the_scale():
    camera = WeakPerspectiveCamera.from_vector(np.array([5.0, 0.1, -0.2]))
    np.testing.assert_allclose(
        camera.project(np.array([[0.0, 0.0, 9.0], [0.02, 0.04, -1.0]])), [[0.5, -1], [0.6, -0.8]]
    )


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 4), (0,)])
def test_numpy_and_torch_alike(batch):
    rng = np.random.default_rng(0)
    vector, points = rng.normal(size=(*batch, 3)), rng.normal(size=(*batch, 21, 3))
    expected = vector[..., None, :1] * (points[..., :2] + vector[..., None, 1:])
    camera = WeakPerspectiveCamera.from_vector(vector)
    np.testing.assert_allclose(camera.project(points), expected)
    np.testing.assert_array_equal(camera.to_vector(), vector)
    from_torch = WeakPerspectiveCamera.from_vector(torch.from_numpy(vector))
    np.testing.assert_allclose(from_torch.project(torch.from_numpy(points)).numpy(), expected)
    np.testing.assert_array_equal(from_torch.to_vector().numpy(), vector)


def test_to_vector_copies_and_passes_gradients():
    vector = torch.randn(4, 3, requires_grad=True)
    camera = WeakPerspectiveCamera.from_vector(vector)
    again = camera.to_vector()
    again.sum().backward()
    assert vector.grad is not None
    np.testing.assert_array_equal(vector.grad.numpy(), 1)
    array = np.ones(3)
    WeakPerspectiveCamera.from_vector(array).to_vector()[:] = 7
    np.testing.assert_array_equal(array, 1)


# Intrinsics


def test_projects_as_its_matrix_does():
    camera = Intrinsics(480.0, 500.0, 112.5, 100.0)
    points = np.random.default_rng(1).normal(size=(2, 5, 3)) + np.array([0, 0, 5])
    homogeneous = points @ camera.matrix.T
    np.testing.assert_allclose(camera.project(points), homogeneous[..., :2] / homogeneous[..., 2:])
    assert Intrinsics.from_matrix(camera.matrix.tolist()) == camera
    assert camera.source == "given"


def test_a_ray_is_seen_where_it_was_asked_for():
    camera = Intrinsics(480.0, 500.0, 112.5, 100.0)
    for distance in (0.1, 3.0):
        np.testing.assert_allclose(camera.project(distance * camera.ray((13.0, 201.0))), (13.0, 201.0))


def test_points_behind_the_camera_are_nowhere():
    projected = Intrinsics(500, 500, 0, 0).project([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0], [0.1, 0.1, 1.0]])
    assert np.isnan(projected[:2]).all()
    assert np.isfinite(projected[2]).all()


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (333, 333)])
def test_a_field_of_view_reaches_from_edge_to_edge(width, height):
    fov = math.radians(70)
    camera = Intrinsics.from_fov(fov, width, height)
    longest = int(np.argmax((width, height)))
    point = np.array([0.0, 0.0, 1.0])
    point[longest] = math.tan(fov / 2)
    assert camera.project(point)[longest] == pytest.approx(max(width, height) - 0.5)
    assert camera.project(-point + (0, 0, 2))[longest] == pytest.approx(-0.5)
    assert camera.source == "field of view"


def test_exif_equivalence_is_by_diagonal():
    """A 36 x 24 mm sensor is its own equivalent; cut to another shape, what counts is the diagonal."""
    full_frame = Intrinsics.from_exif_focal_35mm(50.0, 3600, 2400)
    assert full_frame.fx == full_frame.fy == pytest.approx(5000)
    phone = Intrinsics.from_exif_focal_35mm(26.0, 4000, 3000)
    diagonal_angle = 2 * math.atan(2500 / phone.fx)
    assert diagonal_angle == pytest.approx(2 * math.atan(43.2666 / 2 / 26), rel=1e-5)
    assert phone == Intrinsics.from_exif_focal_35mm(26.0, 4000, 3000)
    assert phone.source == "exif"


def test_the_default_is_a_normal_lens_and_says_that_it_is_a_guess():
    camera = Intrinsics.default_for(640, 480)
    assert camera == Intrinsics(800, 800, 319.5, 239.5, "default")
    assert camera.fx == pytest.approx(Intrinsics.from_exif_focal_35mm(43.2666, 640, 480).fx, rel=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [np.eye(4), [[1, 2], [3, 4]], [[500, 3, 0], [0, 500, 0], [0, 0, 1]], 2 * np.eye(3), np.full((3, 3), math.nan)],
)
def test_what_is_no_camera_matrix_is_refused(matrix):
    with pytest.raises(ConfigError, match="wanted"):
        Intrinsics.from_matrix(matrix)


@pytest.mark.parametrize("call", [
    lambda: Intrinsics(0, 500, 1, 1),
    lambda: Intrinsics(math.inf, 500, 1, 1),
    lambda: Intrinsics.from_fov(math.pi, 10, 10),
    lambda: Intrinsics.from_fov(70, 10, 10),
    lambda: Intrinsics.from_exif_focal_35mm(0, 10, 10),
])  # fmt: skip
def test_impossible_cameras_are_refused(call):
    with pytest.raises(ConfigError, match="wanted"):
        call()


@pytest.mark.parametrize("point", [(319.5, 239.5), (0.0, 0.0), (639.0, 100.0), (-2000.0, 5000.0)])
def test_facing_turns_the_point_onto_the_axis_the_shortest_way(point):
    camera = Intrinsics(500.0, 520.0, 319.5, 239.5)
    R = camera.virtual_camera_rotation(point)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(R) == pytest.approx(1)
    ray = camera.ray(point)
    np.testing.assert_allclose(R @ ray, (0, 0, np.linalg.norm(ray)), atol=1e-12)
    # The shortest turn is by the angle between ray and axis, about an axis across both.
    vector = Rotation.from_matrix(R).as_rotvec()
    assert np.linalg.norm(vector) == pytest.approx(math.acos(ray[2] / np.linalg.norm(ray)), abs=1e-7)
    assert vector[2] == pytest.approx(0, abs=1e-12)


# From the crop to space

CROPS = [
    CropTransform((310.0, 250.0), 200.0),
    CropTransform((100.0, 80.0), 150.0, rotation=0.8),
    CropTransform((500.0, 400.0), 180.0, mirror=True),
    CropTransform((550.0, 90.0), 333.0, rotation=-2.0, mirror=True),
]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("reference_depth", [0.0, 0.04])
def test_a_flat_hand_lands_in_space_where_the_crop_shows_it(crop, reference_depth):
    """With all points in the reference plane the two cameras agree exactly, wherever the crop is."""
    camera = WeakPerspectiveCamera.from_vector(np.array([6.0, 0.03, -0.04]))
    intrinsics = Intrinsics(700.0, 700.0, 319.5, 239.5)
    points = points_like_a_hand(0) * (1, 1, 0) + (0, 0, reference_depth)
    origin = hand_origin_cam(camera, crop, intrinsics, reference_depth)
    projected = intrinsics.project(crop.vectors_to_image(points) + origin)
    np.testing.assert_allclose(projected, crop.to_image(camera.project(points)), atol=1e-9)


@pytest.mark.parametrize("crop", CROPS)
def test_a_small_hand_in_facing_axes_lands_where_the_crop_shows_it(crop):
    """Depth moves its points along their rays, so all that is left is how an off-axis picture plane stretches things.

    It stretches outward by 1 / cos of the angle; shared between both directions, that is the square root for each.
    """
    intrinsics = Intrinsics(700.0, 700.0, 319.5, 239.5)
    A = intrinsics.virtual_camera_rotation(crop.center).T
    points = points_like_a_hand(1) * 0.01
    camera = WeakPerspectiveCamera.from_vector(np.array([6.0, 3e-4, -4e-4]))
    origin = hand_origin_cam(camera, crop, intrinsics, float(points[:, 2].mean()), A)
    seen = intrinsics.project(crop.vectors_to_image(points) @ A.T + origin)
    wanted = crop.to_image(camera.project(points))
    stretch = A[2, 2] ** -0.5 - 1
    offset = np.linalg.norm(wanted - crop.center, axis=1)
    assert np.linalg.norm(seen - wanted, axis=1).max() < (stretch + 0.005) * offset.max()


@pytest.mark.parametrize("crop", CROPS)
def test_a_known_hand_in_space_is_found_again(crop):
    """Project a hand by pinhole, fit the crop's camera to what is seen, and ask where the hand is."""
    intrinsics = Intrinsics(700.0, 690.0, 319.5, 239.5)
    A = intrinsics.virtual_camera_rotation(crop.center).T
    points = points_like_a_hand(2, thickness=0.3)
    true_origin = 0.7 * intrinsics.ray(crop.center) - A @ points.mean(axis=0)
    seen = crop.to_ndc(intrinsics.project(points @ A.T + true_origin))

    in_crop = crop.vectors_to_crop(points)
    xy = in_crop[:, :2] - in_crop[:, :2].mean(axis=0)
    scale = (xy * (seen - seen.mean(axis=0))).sum() / (xy**2).sum()
    translation = seen.mean(axis=0) / scale - in_crop[:, :2].mean(axis=0)
    camera = WeakPerspectiveCamera(np.float64(scale), translation)

    origin = hand_origin_cam(camera, crop, intrinsics, float(points[:, 2].mean()), A)
    distance = np.linalg.norm(true_origin)
    assert np.linalg.norm(origin - true_origin) < 0.05 * distance
    # The direction is far better known than the distance.
    middle, true_middle = A @ points.mean(axis=0) + origin, A @ points.mean(axis=0) + true_origin
    cosine = middle @ true_middle / np.linalg.norm(middle) / np.linalg.norm(true_middle)
    assert math.acos(min(cosine, 1)) < math.radians(0.5)


def test_twice_the_focal_length_is_twice_as_far():
    camera, crop = WeakPerspectiveCamera.from_vector(np.array([6.0, 0.0, 0.0])), CropTransform((200.0, 200.0), 100.0)
    near, far = (hand_origin_cam(camera, crop, Intrinsics(f, f, 200.0, 200.0)) for f in (500.0, 1000.0))
    np.testing.assert_allclose(near, [0, 0, 2 * 500 / (100 * 6)])
    np.testing.assert_allclose(far, 2 * near)
