"""Hands in the forms of other projects: there and back they are the same, by those projects' own definitions."""

from __future__ import annotations

import html
import json
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from marker_hands import MarkerEngine, draw, hand_at

import handmesh
from handmesh.errors import ConfigError, DataError, ExportError
from handmesh.files.image import encode_image
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import Handedness, builtin_hand
from handmesh.hand.anatomy import POSES, flexion_axes, pose_from_angles
from handmesh.hand.fit import FitStart
from handmesh.hand.layer import HandModel
from handmesh.model.rotation import matrix_from_6d
from handmesh.predict import HandPrediction, Predictor
from handmesh.predict.prediction import as_mesh_hand

SIZE = (320, 240)


@pytest.fixture(scope="module", params=list(Handedness))
def hand(request) -> HandPrediction:
    """A grasping hand somewhat off the middle of the picture."""
    (found,) = Predictor(MarkerEngine())(draw([hand_at(120, 170, 48, 0.3)]), handedness=request.param, focal=400)
    model = builtin_hand(request.param)
    pose = pose_from_angles(model, POSES["grasp"])
    pose[0] = found.pose[0]
    betas = np.linspace(-1, 1, 10)
    posed = model.shaped(betas).posed(pose)
    arrays = {"pose": pose, "betas": betas, "vertices": posed.vertices, "joints": posed.joints}
    return HandPrediction(
        **{name: getattr(found, name) for name in found.__dataclass_fields__ if name not in arrays},
        **{name: array.astype(np.float32) for name, array in arrays.items()},
    )


@pytest.mark.parametrize("convention", ["MANOLayer", "MANO"])
def test_smplx_and_back_is_the_same_mesh(convention, hand):
    parameters = hand.to_smplx()
    given = parameters["axis_angle"] if convention == "MANO" else parameters
    pose, betas = handmesh.from_smplx(given["global_orient"], given["hand_pose"], parameters["betas"])
    assert (pose.shape, betas.shape) == ((1, 16, 3, 3), (1, 10))
    mesh = handmesh.load_hand("builtin", hand.handedness).shaped(betas).posed(pose).vertices
    np.testing.assert_allclose(mesh[0], hand.vertices, atol=1e-6)


def test_poses_relative_to_the_mean_pose_are_the_same_hand(hand):
    """smplx's MANO adds the mean to its 45 numbers unless it is told not to; MANOLayer never does."""
    mean = np.random.default_rng(0).normal(0, 0.3, 45)
    flat, relative = hand.to_smplx(), hand.to_smplx(mean)
    np.testing.assert_allclose(relative["axis_angle"]["hand_pose"] + mean, flat["axis_angle"]["hand_pose"], atol=1e-6)
    np.testing.assert_array_equal(relative["hand_pose"], flat["hand_pose"])
    given = relative["axis_angle"]
    pose, _ = handmesh.from_smplx(given["global_orient"], given["hand_pose"], hands_mean=mean)
    np.testing.assert_allclose(pose[0], hand.pose, atol=1e-6)
    with pytest.raises(DataError, match="rotation matrices, which smplx takes as absolute"):
        handmesh.from_smplx(flat["global_orient"], flat["hand_pose"], hands_mean=mean)
    with pytest.raises(DataError, match=r"hands_mean is \(15, 3\), wanted \(45,\)"):
        hand.to_smplx(mean.reshape(15, 3))


def test_the_layer_poses_what_was_predicted(hand):
    """As docs/reference/outputs.md does for losses on PyTorch3D's meshes."""
    layer = HandModel(builtin_hand(hand.handedness))
    pose = torch.from_numpy(hand.pose[:, :2]).reshape(1, 16, 6).clone().requires_grad_()
    axes = torch.from_numpy(hand.cam_from_hand_axes()).float()
    vertices, _ = layer(matrix_from_6d(pose), torch.from_numpy(hand.betas)[None])
    in_camera = vertices @ axes.T + torch.from_numpy(hand.origin_cam())
    np.testing.assert_allclose(in_camera[0].detach().numpy(), hand.vertices_cam(), atol=1e-5)
    in_camera.sum().backward()
    assert pose.grad.abs().sum() > 0


def test_smplx_parameters_that_cannot_be_read_are_refused():
    with pytest.raises(DataError, match=r"hand_pose is \(1, 6\).*use_pca=False"):
        handmesh.from_smplx(np.zeros((1, 3)), np.zeros((1, 6)))
    with pytest.raises(DataError, match=r"global_orient is \(2, 3\), wanted"):
        handmesh.from_smplx(np.zeros((2, 3)), np.zeros((1, 45)))
    with pytest.raises(DataError, match=r"betas are \(10,\), wanted \(1, 10\)"):
        handmesh.from_smplx(np.zeros((1, 3)), np.zeros((1, 45)), np.zeros(10))
    pose, betas = handmesh.from_smplx(np.zeros(3), np.zeros(45))
    assert (pose.shape, betas.shape) == ((16, 3, 3), (10,))


def test_mediapipe_and_back_is_where_it_was(hand):
    there = hand.to_mediapipe(SIZE)
    assert there.handedness == {"right": "Right", "left": "Left"}[hand.handedness]
    back = handmesh.from_mediapipe(
        there.hand_landmarks, SIZE, hand_world_landmarks=there.hand_world_landmarks, handedness=there.handedness
    )
    np.testing.assert_allclose(back.points, hand.keypoints_image(), atol=1e-4)
    assert back.handedness == hand.handedness
    np.testing.assert_allclose(back.joints.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(back.joints - back.joints[0], hand.joints - hand.joints[0], atol=1e-6)


def test_mediapipes_depth_is_in_units_of_x(hand):
    """Seen from the front, its landmarks are the hand's shape: x, y and z of one scale, z from the wrist."""
    landmarks = hand.to_mediapipe(SIZE).hand_landmarks
    shape = landmarks * (SIZE[0], SIZE[1], SIZE[0])
    assert landmarks[0, 2] == 0
    shape -= shape[0]
    ratios = np.linalg.norm(shape[1:], axis=-1) / np.linalg.norm(hand.joints[1:] - hand.joints[0], axis=-1)
    np.testing.assert_allclose(ratios, ratios.mean(), rtol=1e-4)


def test_mediapipes_own_landmarks_are_read(hand):
    """Both of its interfaces: a list of landmarks, and an object that has one."""
    there = hand.to_mediapipe(SIZE)
    landmarks = [SimpleNamespace(x=x, y=y, z=z) for x, y, z in there.hand_landmarks]
    for given in (landmarks, SimpleNamespace(landmark=landmarks), there.hand_landmarks[:, :2]):
        points = handmesh.from_mediapipe(given, SIZE).points
        np.testing.assert_allclose(points, hand.keypoints_image(), atol=1e-4)
    # A landmark at the picture's corner lies half a pixel before the centre of its first pixel.
    corner = handmesh.from_mediapipe(np.zeros((21, 3)), SIZE).points
    np.testing.assert_array_equal(corner, np.full((21, 2), -0.5))
    with pytest.raises(DataError, match=r"hand_landmarks are \(20, 3\), wanted the 21 landmarks"):
        handmesh.from_mediapipe(there.hand_landmarks[1:], SIZE)
    with pytest.raises(ConfigError, match="Handedness 'Both'"):
        handmesh.from_mediapipe(landmarks, SIZE, handedness="Both")
    for size in (None, (0, 3), (3,), "ab"):
        with pytest.raises(ConfigError, match=r"wanted the photograph's \(width, height\) in pixels"):
            hand.to_mediapipe(size)


def test_what_mediapipe_saw_is_fitted_by_our_hand(hand):
    there = hand.to_mediapipe(SIZE)
    seen = handmesh.from_mediapipe(
        there.hand_landmarks, SIZE, hand_world_landmarks=there.hand_world_landmarks, handedness=there.handedness
    )
    model = handmesh.load_hand("builtin", seen.handedness)
    flat = FitStart(np.concatenate([hand.pose[:1], np.tile(np.eye(3), (15, 1, 1))]), np.zeros(10))
    fit = handmesh.fit_hand(seen.points, seen.scores, joints=seen.joints, hand=model, start=flat)
    assert fit.error < 0.01
    known = hand.joint_angles()["middle_pip"].flexion
    curl = handmesh.JointAngles(*_angles(model, fit.pose)).flexion
    assert known > 0.7
    assert curl == pytest.approx(known, abs=0.25)


def _angles(model, pose) -> list[float]:
    from handmesh.hand import MANO_JOINT_NAMES
    from handmesh.hand.anatomy import angles_from_pose

    return angles_from_pose(flexion_axes(model), pose)[MANO_JOINT_NAMES.index("middle_pip")].tolist()


def test_openpose_and_back_is_where_it_was(hand):
    person = json.loads(json.dumps(hand.to_openpose()))
    other = {"right": "left", "left": "right"}[hand.handedness]
    assert person[f"hand_{other}_keypoints_2d"] == []
    (back,) = handmesh.from_openpose(person)
    np.testing.assert_allclose(back.points, hand.keypoints_image(), atol=1e-4)
    np.testing.assert_allclose(back.scores, hand.score)
    assert (back.handedness, back.joints) == (hand.handedness, None)


def test_openpose_says_of_each_joint_whether_it_is_known(hand):
    numbers = np.column_stack([hand.keypoints_image(), np.full(21, 0.8)])
    numbers[[3, 7]] = 0  # how OpenPose writes what it did not find
    person = {"hand_left_keypoints_2d": numbers.ravel().tolist(), "hand_right_keypoints_2d": [0.0] * 63}
    (found,) = handmesh.from_openpose(person)
    (by_row,) = handmesh.from_openpose({"hand_left_keypoints_2d": numbers.tolist()})  # refused: 63 numbers, not 63
    np.testing.assert_array_equal(by_row.points, found.points)
    assert found.handedness == Handedness.LEFT
    assert np.flatnonzero(np.isnan(found.points).any(axis=-1)).tolist() == [3, 7]
    assert handmesh.from_openpose({}) == []
    with pytest.raises(DataError, match="hand_left_keypoints_2d has 60 numbers, wanted x, y, score of 21 joints: 63"):
        handmesh.from_openpose({"hand_left_keypoints_2d": [0.5] * 60})
    for whole in (
        {"version": 1.3, "people": [person]},
        [person],
        "photo_keypoints.json",
    ):  # of the first it said: no hand
        with pytest.raises(DataError, match=r"Not one person .*people"):
            handmesh.from_openpose(whole)


def test_pytorch3d_sees_the_hand_where_the_photo_has_it(hand):
    pytest.importorskip("pytorch3d", reason="PyTorch3D is not installed: it has no wheel, see its INSTALL.md")
    mesh, cameras = hand.to_pytorch3d(SIZE)
    np.testing.assert_array_equal(mesh.faces_packed().numpy(), hand.faces)
    on_screen = cameras.transform_points_screen(mesh.verts_packed()).numpy()
    np.testing.assert_allclose(on_screen[:, :2] - 0.5, hand.intrinsics.project(hand.vertices_cam()), atol=0.01)


def test_the_documents_losses_on_pytorch3d_meshes_bring_the_hand_to_a_mask(tmp_path, monkeypatch):
    pytest.importorskip("pytorch3d", reason="PyTorch3D is not installed: it has no wheel, see its INSTALL.md")
    page = (Path(__file__).parents[2] / "docs" / "reference" / "outputs.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import torch\nfrom pytorch3d.*?)```", page, re.DOTALL)
    photo = handmesh.read_image(Path(handmesh.__file__).parent / "assets" / "samples" / "horns.jpg")[::4, ::4].copy()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(encode_image(photo, ".jpg"))
    height, width = photo.shape[:2]
    start, loop, rest = code.partition("for _ in range(100):")
    names: dict[str, Any] = {"height": height, "width": width, "errors": []}
    exec(start, names)
    bent = names["hand"].pose.copy()
    bent[1] = bent[1] @ matrix_from_vector(np.array([0.0, 0.0, 0.3]))  # the index finger from its knuckle on
    vertices, _ = names["layer"](torch.from_numpy(bent)[None], names["betas"])
    there = names["structures"].Meshes(vertices @ names["axes"].T + names["origin"], names["mesh"].faces_padded())
    names["mask"] = (names["draw"](there)[..., 3] > 0.5).float()
    compared = "(silhouette - mask).square().mean()"
    assert compared in rest
    exec(loop.replace("100", "12") + rest + f"    errors.append(float({compared}.detach()))\n", names)
    assert names["errors"][-1] < 0.8 * names["errors"][0], names["errors"]


def test_without_pytorch3d_the_error_says_how_to_get_it(hand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch3d", None)
    with pytest.raises(ConfigError, match=r"INSTALL\.md"):
        hand.to_pytorch3d(SIZE)


# ------------------------------------------------------------------------------------------------- in a notebook


def test_a_notebook_shows_a_hand_by_its_name_alone(hand):
    (page,) = re.findall(r'<iframe srcdoc="([^"]*)"', hand._repr_html_())
    inside = re.search(r'<script id="hands"[^>]*>(.*?)</script>', html.unescape(page), re.DOTALL)
    (shown,) = json.loads(inside[1])["hands"]
    assert (shown["name"], shown["handedness"]) == (as_mesh_hand(hand).name, hand.handedness)


def test_show_is_in_the_notebook_where_there_is_one(hand, monkeypatch):
    displayed = []
    shell = SimpleNamespace(kernel=object())
    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, displayed.append
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    hand.show()
    assert displayed == [hand._repr_html_()]


def test_show_is_in_the_browser_elsewhere(hand, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))  # a terminal's
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handmesh.show_hands([hand, hand])
    (page,) = tmp_path.glob("handmesh-*/hands.html")
    assert opened == [page.as_uri()]
    assert "<!doctype html" in page.read_text()
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    with pytest.raises(ExportError, match=r"no browser to show hands in.*hands\.html") as refused:
        hand.show()
    assert Path(str(refused.value).split()[-1].rstrip(".")).is_file()
