"""Oracles: the definition written out in numpy, PyTorch3D where it is installed."""

import io

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handmesh.model.rotation import matrix_from_6d
from handmesh.runtime.onnx import session_of

BATCHES = [(), (1,), (3,), (2, 4), (0,)]


def assert_rotations(R: torch.Tensor, atol: float) -> None:
    identity = torch.eye(3, dtype=R.dtype).expand_as(R)
    torch.testing.assert_close(R.mT @ R, identity, atol=atol, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones_like(R[..., 0, 0]), atol=atol, rtol=0)


def random_rotations(*batch: int) -> torch.Tensor:
    count = int(np.prod(batch))
    return torch.from_numpy(Rotation.random(count, rng=np.random.default_rng(0)).as_matrix()).reshape(*batch, 3, 3)


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
    torch.testing.assert_close(R[..., :2, :].flatten(start_dim=-2), transforms.matrix_to_rotation_6d(R))


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
    torch.testing.assert_close(matrix_from_6d(R[..., :2, :].flatten(start_dim=-2)), R)


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


def test_half_precision_and_autocast_are_computed_in_float32():
    sixd = torch.randn(20, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        R = matrix_from_6d(sixd)
    torch.testing.assert_close(R, matrix_from_6d(sixd), atol=0, rtol=0)
    for half in (torch.bfloat16, torch.float16):
        R = matrix_from_6d(sixd.to(half))
        assert R.dtype == torch.float32
        assert_rotations(R, atol=1e-6)


# One graph


class Rotations(torch.nn.Module):
    def forward(self, sixd: torch.Tensor) -> torch.Tensor:
        return matrix_from_6d(sixd)


def test_compiles_as_one_graph():
    sixd = torch.randn(5, 6, dtype=torch.float64)
    compiled = torch.compile(Rotations(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(sixd), Rotations()(sixd))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_exports_to_onnx_with_any_batch():
    batch = torch.export.Dim("batch")
    model = Rotations().eval()
    exported = torch.export.export(model, (torch.randn(4, 6),), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    program = torch.onnx.export(exported, dynamo=True, verbose=False)
    assert program is not None
    program.save(buffer)
    session = session_of(buffer.getvalue(), threads=1)
    for count in (1, 3, 7):
        sixd = torch.cat([torch.randn(count - 1, 6), torch.zeros(1, 6)])
        expected = model(sixd)
        torch.testing.assert_close(exported.module()(sixd), expected)
        (found,) = session.run(None, {session.get_inputs()[0].name: sixd.numpy()})
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)
