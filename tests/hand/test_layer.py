"""Oracles: smplx's own layer, and skinning written out joint by joint, vertex by vertex, in numpy."""

import contextlib
import copy
import io
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import (
    FINGERTIP_VERTICES,
    JOINT_NAMES,
    JOINTS_FROM_MANO,
    MANO_PARENTS,
    HandArrays,
    Handedness,
    builtin_hand,
)
from handmesh.hand.layer import HandModel
from handmesh.model.rotation import matrix_from_6d
from handmesh.runtime.onnx import session_of


@pytest.fixture(scope="module", params=list(Handedness))
def arrays(request: pytest.FixtureRequest) -> HandArrays:
    return builtin_hand(request.param)


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel(builtin_hand())


def random_hands(*batch: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(*batch, 16, 3, generator=generator, dtype=dtype)
    return torch.from_numpy(matrix_from_vector(vectors)).to(dtype), torch.randn(
        *batch, 10, generator=generator, dtype=dtype
    )


def skinned(arrays: HandArrays, rotations: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One hand, straight from the papers' equations: 4x4 transforms along the tree, blended per vertex."""
    shaped = arrays.v_template + arrays.shapedirs @ betas
    rest = arrays.J_regressor @ shaped
    posed = shaped + arrays.posedirs @ (rotations[1:] - np.eye(3)).ravel()
    world = []
    for joint, parent in enumerate(MANO_PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = rest[joint] - (rest[parent] if joint else 0)
        world.append(world[parent] @ local if joint else local)
    vertices = np.zeros_like(posed)
    for joint, transform in enumerate(world):
        moved = (posed - rest[joint]) @ transform[:3, :3].T + transform[:3, 3]
        vertices += arrays.weights[:, joint, None] * moved
    joints16 = arrays.J_regressor @ vertices
    return vertices, np.concatenate([joints16, vertices[list(FINGERTIP_VERTICES)]])[list(JOINTS_FROM_MANO)]


def test_equals_skinning_written_out(arrays):
    rotations, betas = random_hands(2, dtype=torch.float64)
    vertices, joints = HandModel(arrays).double()(rotations, betas)
    for index in range(2):
        expected = skinned(arrays, rotations[index].numpy(), betas[index].numpy())
        np.testing.assert_allclose(vertices[index].numpy(), expected[0], atol=1e-7)  # arrays are stored as float32
        np.testing.assert_allclose(joints[index].numpy(), expected[1], atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_smplx(arrays, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of smplx's own making
        smplx = pytest.importorskip("smplx", reason='smplx is not installed: pip install -e ".[test]"')
        from smplx.utils import Struct

        struct = Struct(**{field.name: getattr(arrays, field.name) for field in fields(arrays)})
        struct.kintree_table = struct.kintree_table.copy()  # smplx writes into it
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how many betas it found
            layer = smplx.MANOLayer(
                model_path="", data_struct=struct, is_rhand=True, dtype=dtype, num_betas=10, use_compressed=False
            )
    rotations, betas = random_hands(5, dtype=dtype)
    theirs = layer(betas=betas, global_orient=rotations[:, :1], hand_pose=rotations[:, 1:]).vertices
    vertices, joints = HandModel(arrays).to(dtype)(rotations, betas)
    torch.testing.assert_close(vertices, theirs, atol=1e-6, rtol=0)
    regressed = torch.einsum("jv,bvc->bjc", torch.from_numpy(arrays.J_regressor).to(dtype), theirs)
    for name in ("wrist", "middle_mcp", "pinky_dip", "thumb_cmc"):
        mano_index = JOINTS_FROM_MANO[JOINT_NAMES.index(name)]
        torch.testing.assert_close(joints[:, JOINT_NAMES.index(name)], regressed[:, mano_index], atol=1e-6, rtol=0)


def test_at_rest_it_is_the_template(arrays):
    vertices, joints = HandModel(arrays)(torch.eye(3).expand(16, 3, 3), torch.zeros(10))
    np.testing.assert_allclose(vertices.numpy(), arrays.v_template, atol=1e-7)
    tips = [JOINT_NAMES.index(f"{finger}_tip") for finger in ("thumb", "index", "middle", "ring", "pinky")]
    np.testing.assert_allclose(joints[tips].numpy(), arrays.v_template[list(FINGERTIP_VERTICES)], atol=1e-7)


def test_joints_come_from_the_posed_mesh(model):
    """FreiHAND's definition: a bent hand's regressed joints are not those of the kinematic chain."""
    rotations, betas = random_hands()
    _, joints = model(rotations, betas)
    arrays = builtin_hand()
    shaped = arrays.v_template + arrays.shapedirs @ betas.double().numpy()
    rest = arrays.J_regressor @ shaped
    R = rotations.double().numpy()
    chain_index_pip = R[0] @ R[1] @ (rest[2] - rest[1]) + R[0] @ (rest[1] - rest[0]) + rest[0]
    distance = np.linalg.norm(joints[JOINT_NAMES.index("index_pip")].numpy() - chain_index_pip)
    assert 1e-5 < distance < 0.02


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,)])
def test_any_batch_shape_is_the_single_hand_repeated(model, batch):
    rotations, betas = random_hands(*batch)
    vertices, joints = model(rotations, betas)
    assert vertices.shape == (*batch, 778, 3)
    assert joints.shape == (*batch, 21, 3)
    for index in np.ndindex(*batch):
        single = model(rotations[index], betas[index])
        torch.testing.assert_close(vertices[index], single[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(joints[index], single[1], atol=1e-6, rtol=0)


def test_orientation_turns_the_hand_about_its_root(model):
    rotations, betas = random_hands(dtype=torch.float64)
    double = copy.deepcopy(model).double()
    turn = torch.from_numpy(matrix_from_vector([0.3, -1.0, 2.0]))
    turned = torch.cat([turn @ rotations[:1], rotations[1:]])
    root = (double.rest_joints + (betas @ double.rest_joint_basis).view(16, 3))[0]
    for before, after in zip(double(rotations, betas), double(turned, betas), strict=True):
        torch.testing.assert_close((before - root) @ turn.mT + root, after)


def test_a_mirrored_model_in_a_mirrored_pose_is_the_mirror_image(model):
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    rotations, betas = random_hands(2)
    left = HandModel(builtin_hand(Handedness.LEFT))
    for right_points, left_points in zip(
        model(rotations, betas), left(mirror @ rotations @ mirror, betas), strict=True
    ):
        torch.testing.assert_close(left_points, right_points @ mirror, atol=1e-6, rtol=0)


def test_faces_look_outward(arrays):
    model = HandModel(arrays)
    assert model.faces.dtype == np.int32
    vertices = model(torch.eye(3).expand(16, 3, 3), torch.zeros(10))[0].double().numpy()
    centred = vertices - vertices.mean(axis=0)
    a, b, c = (centred[model.faces[:, corner]] for corner in range(3))
    assert np.einsum("fc,fc->", a, np.cross(b, c)) / 6 > 1e-4  # m^3: open at the wrist, yet far from zero


def test_gradients_are_the_true_ones(model):
    double = copy.deepcopy(model).double()
    rotations, betas = (tensor.requires_grad_() for tensor in random_hands(1, dtype=torch.float64))
    picked = torch.linspace(0, 777, 5).long()

    def some_points(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        vertices, joints = double(R, b)
        return torch.cat([vertices[:, picked], joints[:, ::5]], dim=1)

    assert torch.autograd.gradcheck(some_points, (rotations, betas))


def test_autocast_does_not_move_vertices(model):
    rotations, betas = random_hands(2)
    expected = model(rotations, betas)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(rotations, betas)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_input_of_another_precision_is_converted(model):
    rotations, betas = random_hands(2, dtype=torch.float64)
    assert model(rotations, betas)[0].dtype == torch.float32
    assert copy.deepcopy(model).double()(rotations.float(), betas.float())[0].dtype == torch.float64


def test_a_state_dict_holds_no_hand(model):
    """A checkpoint must never contain MANO."""
    assert model.state_dict() == {}
    assert list(model.parameters()) == []


def test_sha256_names_the_arrays(model):
    arrays = builtin_hand()
    assert model.sha256 == arrays.sha256
    assert HandModel(replace(arrays, v_template=arrays.v_template * 1.01)).sha256 != model.sha256


# One graph


class FromSixD(torch.nn.Module):
    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        self.hand = hand

    def forward(self, sixd: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vertices, joints = self.hand(matrix_from_6d(sixd), betas)
        return vertices, joints


def test_compiles_as_one_graph_with_its_gradient(model):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (2, 5):
        rotations, betas = (tensor.requires_grad_() for tensor in random_hands(batch))
        gradients = []
        for function in (compiled, model):
            vertices, joints = function(rotations, betas)
            gradients.append(torch.autograd.grad(vertices.square().sum() + joints.sum(), (rotations, betas)))
        torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_exports_with_any_batch_to_torch_and_onnx(model):
    batch = torch.export.Dim("batch")
    network = FromSixD(model).eval()
    example = (torch.randn(2, 16, 6), torch.randn(2, 10))
    exported = torch.export.export(network, example, dynamic_shapes=({0: batch}, {0: batch}))
    program = torch.onnx.export(exported, dynamo=True, verbose=False)
    assert program is not None
    program.save(buffer := io.BytesIO())
    session = session_of(buffer.getvalue(), threads=1)
    for count in (1, 3):
        sixd, betas = torch.randn(count, 16, 6), torch.randn(count, 10)
        expected = network(sixd, betas)
        torch.testing.assert_close(exported.module()(sixd, betas), expected)
        names = [entry.name for entry in session.get_inputs()]
        results = session.run(None, dict(zip(names, (sixd.numpy(), betas.numpy()), strict=True)))
        for found, wanted in zip(results, expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
