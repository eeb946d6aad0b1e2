"""Oracles: the definition written out in numpy, scipy's Rotation, PyTorch3D where it is installed."""

import io

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handmesh.geometry import rotation
from handmesh.geometry.rotation import (
    geodesic_angle,
    matrix_from_6d,
    matrix_from_vector,
    sixd_from_matrix,
    vector_from_matrix,
)

BATCHES = [(), (1,), (3,), (2, 4), (0,)]


def assert_rotations(R: torch.Tensor, atol: float) -> None:
    identity = torch.eye(3, dtype=R.dtype).expand_as(R)
    torch.testing.assert_close(R.mT @ R, identity, atol=atol, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones_like(R[..., 0, 0]), atol=atol, rtol=0)


def random_rotations(*batch: int) -> torch.Tensor:
    count = int(np.prod(batch))
    return torch.from_numpy(Rotation.random(count, rng=np.random.default_rng(0)).as_matrix()).reshape(*batch, 3, 3)


# 6D


def test_the_six_numbers_are_the_first_two_rows():
    """Golden, non-symmetric: rows (0, 2, 0) and (1, 5, 2). Columns or interleaving give other rotations."""
    first, second = np.array([0.0, 2.0, 0.0]), np.array([1.0, 5.0, 2.0])
    x = first / np.linalg.norm(first)  # (0, 1, 0)
    y = second - (second @ x) * x  # (1, 0, 2)
    y = y / np.linalg.norm(y)
    expected = np.stack([x, y, np.cross(x, y)])
    np.testing.assert_allclose(expected, np.array([[0, 1, 0], [1, 0, 2], [2, 0, -1]]) / [[1], [5**0.5], [5**0.5]])

    result = matrix_from_6d(torch.tensor([0, 2, 0, 1, 5, 2], dtype=torch.float64))
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-15)
    assert np.abs(expected - expected.T).max() > 0.5  # or rows could not be told from columns


def test_agrees_with_pytorch3d():
    transforms = pytest.importorskip("pytorch3d.transforms", reason="PyTorch3D is not installed (build it from source)")
    sixd = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(matrix_from_6d(sixd), transforms.rotation_6d_to_matrix(sixd))
    R = random_rotations(50)
    torch.testing.assert_close(sixd_from_matrix(R), transforms.matrix_to_rotation_6d(R))


@pytest.mark.parametrize("batch", BATCHES)
def test_any_six_numbers_give_a_rotation(batch):
    """Batches of exactly three included: a cross product without a named dimension runs along the batch there."""
    sixd = torch.randn(*batch, 6, dtype=torch.float64)
    R = matrix_from_6d(sixd)
    assert R.shape == (*batch, 3, 3)
    assert_rotations(R, atol=1e-14)
    along_first_row = (R[..., 0, :] * sixd[..., :3]).sum(dim=-1)
    torch.testing.assert_close(along_first_row, torch.linalg.vector_norm(sixd[..., :3], dim=-1))


@pytest.mark.parametrize("batch", BATCHES)
def test_matrix_to_6d_and_back(batch):
    R = random_rotations(*batch)
    torch.testing.assert_close(matrix_from_6d(sixd_from_matrix(R)), R)


DEGENERATE = {
    "zeros": [0, 0, 0, 0, 0, 0],
    "tiny": [1e-30, 2e-30, -1e-30, 3e-30, 0, 1e-30],
    "collinear": [1, 2, 3, 2, 4, 6],
    "opposite": [1, 2, 3, -1, -2, -3],
    "collinear on x": [5, 0, 0, 1, 0, 0],
    "nearly collinear": [1, 2, 3, 1, 2, 3.00001],
    "just independent": [1, 2, 3, 1, 2, 3.01],
    "huge": [1e20, -2e20, 5e19, 3e20, 1e20, 2e20],
    "huge and tiny": [1e20, 0, 0, 0, 1e-30, 0],
    "first zero": [0, 0, 0, 1, 2, 3],
    "second zero": [1, 2, 3, 0, 0, 0],
    "at the threshold": [1e-4, 0, 0, 1e-4, 1e-7, 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_numbers_give_a_rotation_and_a_bounded_gradient(name, copies, dtype):
    sixd = torch.tensor([DEGENERATE[name]] * copies, dtype=dtype, requires_grad=True)
    R = matrix_from_6d(sixd)
    assert_rotations(R, atol=1e-6)
    (R * torch.arange(9.0, dtype=dtype).view(3, 3)).sum().backward()
    assert sixd.grad is not None
    assert sixd.grad.abs().max() < 1e9  # 9 entries of up to 8, times about 1e7


def test_not_a_number_is_not_hidden():
    assert matrix_from_6d(torch.full((6,), float("nan"))).isnan().any()


def test_gradients_are_the_true_ones():
    sixd = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(matrix_from_6d, sixd)
    # Directions do not depend on length, so pulling along the row itself changes nothing.
    matrix_from_6d(sixd).sum().backward()
    assert sixd.grad is not None
    assert (sixd.grad[:, :3] * sixd[:, :3] + sixd.grad[:, 3:] * sixd[:, 3:]).sum(dim=-1).abs().max() < 1e-12


@pytest.mark.parametrize("function", [matrix_from_6d, matrix_from_vector])
def test_half_precision_and_autocast_are_computed_in_float32(function):
    numbers = torch.randn(20, 6 if function is matrix_from_6d else 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        R = function(numbers)
        angles = geodesic_angle(R, function(numbers))
    assert_rotations(R, atol=1e-6)
    assert angles.dtype == torch.float32
    assert angles.max() < 1e-6
    for half in (torch.bfloat16, torch.float16):
        R = function(numbers.to(half))
        assert R.dtype == torch.float32
        assert_rotations(R, atol=1e-6)


# Rotation vectors


def random_vectors(*batch: int) -> torch.Tensor:
    rng = np.random.default_rng(1)
    axes = rng.normal(size=(*batch, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    return torch.from_numpy(axes * rng.uniform(0, np.pi, (*batch, 1)))


@pytest.mark.parametrize("batch", BATCHES)
def test_rotation_vectors_agree_with_scipy(batch):
    vectors = random_vectors(*batch)
    expected = Rotation.from_rotvec(vectors.reshape(-1, 3).numpy()).as_matrix().reshape(*batch, 3, 3)
    R = matrix_from_vector(vectors)
    np.testing.assert_allclose(R.numpy(), expected, atol=1e-14)
    torch.testing.assert_close(vector_from_matrix(R), vectors)


ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 0.0099, 0.0101, 1.0, np.pi / 2, 3.0, np.pi - 1e-4, np.pi - 1e-8, np.pi]


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, -1, 0), (0, 0, 1), (1, 2, -3), (-1, 1e-3, 0)])
def test_rotation_vectors_are_exact_at_every_angle(axis, angle):
    vector = torch.tensor(axis, dtype=torch.float64)
    vector *= angle / torch.linalg.vector_norm(vector)
    R = matrix_from_vector(vector)
    np.testing.assert_allclose(R.numpy(), Rotation.from_rotvec(vector.numpy()).as_matrix(), rtol=0, atol=1e-15)
    back = vector_from_matrix(R)
    sign = -1 if angle > 3.1415 and (back * vector).sum() < 0 else 1  # at half a turn both axes are right
    np.testing.assert_allclose(sign * back.numpy(), vector.numpy(), rtol=1e-14, atol=1e-14)


def test_more_than_half_a_turn_comes_back_as_less_the_other_way():
    vector = vector_from_matrix(matrix_from_vector(torch.tensor([0.0, 0.0, 1.5 * np.pi], dtype=torch.float64)))
    np.testing.assert_allclose(vector.numpy(), [0, 0, -np.pi / 2], atol=1e-14)


def test_at_zero_the_gradient_is_the_cross_product_matrix():
    jacobian = torch.autograd.functional.jacobian(matrix_from_vector, torch.zeros(3, dtype=torch.float64))
    for axis in range(3):
        expected = np.cross(np.eye(3)[axis], np.eye(3)).T
        np.testing.assert_array_equal(jacobian[..., axis].numpy(), expected)
    inverse = torch.autograd.functional.jacobian(vector_from_matrix, torch.eye(3, dtype=torch.float64))
    np.testing.assert_allclose(torch.einsum("ars,rsb->ab", inverse, jacobian).numpy(), np.eye(3), atol=1e-15)


@pytest.mark.parametrize("length", [1e-9, 9.9e-3, 1.01e-2, 1.0, 3.1])
def test_rotation_vector_gradients(length):
    vector = random_vectors(3)
    vector = (vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True) * length).requires_grad_()
    assert torch.autograd.gradcheck(matrix_from_vector, vector)
    assert torch.autograd.gradcheck(lambda v: vector_from_matrix(matrix_from_vector(v)), vector)


@pytest.mark.parametrize("vector", [(0, 0, 0), (1e-30, 0, 0), (-1e-8, -1e-8, -1e-8), (np.pi, 0, 0), (1e-3, 1e-3, 0)])
def test_float32_gradients_stay_finite(vector):
    """smplx adds 1e-8 to the vector before dividing by its length, and divides by zero at (-1e-8, -1e-8, -1e-8)."""
    tensor = torch.tensor(vector, dtype=torch.float32, requires_grad=True)
    R = matrix_from_vector(tensor)
    (R.sum() + vector_from_matrix(R).sum() + geodesic_angle(R, torch.eye(3))).backward()
    assert tensor.grad is not None
    assert tensor.grad.abs().max() < 100


# Angles


@pytest.mark.parametrize("angle", ANGLES)
def test_geodesic_angle_is_the_angle_between(angle):
    base = random_rotations(4)
    turn = matrix_from_vector(torch.tensor([0.6, 0, -0.8], dtype=torch.float64) * angle)
    np.testing.assert_allclose(geodesic_angle(base, base @ turn).numpy(), angle, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(geodesic_angle(turn @ base, base).numpy(), angle, rtol=1e-12, atol=1e-15)


def test_geodesic_angle_has_a_gradient_of_slope_one_and_none_at_zero():
    direction = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    for angle, slope in ((1e-7, 1.0), (1.0, 1.0), (3.0, 1.0), (0.0, 0.0)):
        t = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
        geodesic_angle(torch.eye(3, dtype=torch.float64), matrix_from_vector(t * direction)).backward()
        assert t.grad is not None
        assert t.grad.item() == pytest.approx(slope, abs=1e-6)


# One graph


class EveryFunction(torch.nn.Module):
    def forward(self, sixd: torch.Tensor) -> tuple[torch.Tensor, ...]:
        R = matrix_from_6d(sixd)
        vector = vector_from_matrix(R)
        return R, vector, geodesic_angle(matrix_from_vector(vector * 0.5), R), sixd_from_matrix(R)


def test_compiles_as_one_graph():
    sixd = torch.randn(5, 6, dtype=torch.float64)
    compiled = torch.compile(EveryFunction(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(sixd), EveryFunction()(sixd))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_exports_to_onnx_with_any_batch():
    onnxruntime = pytest.importorskip("onnxruntime")
    batch = torch.export.Dim("batch")
    model = EveryFunction().eval()
    exported = torch.export.export(model, (torch.randn(4, 6),), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    program = torch.onnx.export(exported, dynamo=True, verbose=False)
    assert program is not None
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue())
    for count in (1, 3, 7):
        sixd = torch.cat([torch.randn(count - 1, 6), torch.zeros(1, 6)])
        expected = model(sixd)
        torch.testing.assert_close(exported.module()(sixd), expected)
        results = session.run(None, {session.get_inputs()[0].name: sixd.numpy()})
        for found, wanted in zip(results, expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=2e-6)


def test_only_the_documented_names_are_public():
    public = {name for name, value in vars(rotation).items() if callable(value) and not name.startswith("_")}
    documented = {
        "geodesic_angle", "matrix_from_6d", "matrix_from_vector", "sixd_from_matrix", "vector_from_matrix"
    }  # fmt: skip
    assert {name for name in public if getattr(rotation, name).__module__ == rotation.__name__} == documented
