"""The shipped hand: what tools for MANO rely on, what anatomy demands, and that the generator still makes it."""

import dataclasses
import sys

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from handmesh.builtin_hand import generate as builtin_hand
from handmesh.errors import AssetError
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import (
    FINGER_NAMES,
    FINGERTIP_VERTICES,
    MANO_JOINT_NAMES,
    MANO_PARENTS,
    HandArrays,
    Handedness,
    anatomy,
)
from handmesh.hand import builtin_hand as shipped_hand

# The two lists of closing triangles that public code adds to a MANO hand (manotorch's; HaMeR's uses a fan).
CLOSING_TRIANGLES = np.array(
    [
        *([92, 38, 122], [234, 92, 122], [239, 234, 122], [279, 239, 122], [215, 279, 122], [215, 122, 118]),
        *([215, 118, 117], [215, 117, 119], [215, 119, 120], [215, 120, 108], [215, 108, 79], [215, 79, 78]),
        *([215, 78, 121], [214, 215, 121]),
    ]
)


@pytest.fixture(scope="module")
def hand() -> HandArrays:
    return shipped_hand()


def closed(hand: HandArrays, vertices: np.ndarray, fan: bool = True) -> trimesh.Trimesh:
    if not fan:
        return trimesh.Trimesh(vertices, np.vstack([hand.faces, CLOSING_TRIANGLES]), process=False)
    loop = np.array(builtin_hand.WRIST_LOOP)
    cap = np.stack([np.roll(loop, 1), loop, np.full(16, 778)], axis=1)
    vertices = np.vstack([vertices, vertices[loop].mean(axis=0)])
    return trimesh.Trimesh(vertices, np.vstack([hand.faces, cap]), process=False)


def posed(hand: HandArrays, name: str) -> np.ndarray:
    return hand.shaped().posed(anatomy.pose_from_angles(hand, anatomy.POSES[name])).vertices


def test_the_surface_is_a_disc_with_a_16_edge_boundary(hand):
    edges = np.sort(np.concatenate([hand.faces[:, [0, 1]], hand.faces[:, [1, 2]], hand.faces[:, [2, 0]]]), axis=1)
    unique, owners = np.unique(edges, axis=0, return_counts=True)
    assert owners.max() == 2
    assert (owners == 1).sum() == 16
    assert 778 - len(unique) + 1538 == 1  # Euler characteristic of a disc
    assert set(np.unique(hand.faces)) == set(range(778))


def test_the_wrist_loop_is_the_one_public_code_closes(hand):
    loop = anatomy.boundary_loop(hand.faces)[::-1]
    wanted = np.array(builtin_hand.WRIST_LOOP)
    np.testing.assert_array_equal(np.roll(loop, -int(np.flatnonzero(loop == wanted[0])[0])), wanted)


@pytest.mark.parametrize("fan", [True, False])
@pytest.mark.parametrize("side", list(Handedness))
def test_public_closing_faces_make_it_watertight_and_outward(side, fan):
    hand = shipped_hand(side)
    mesh = closed(hand, hand.v_template, fan)
    if side is Handedness.LEFT:
        mesh.faces[1538:] = mesh.faces[1538:, ::-1]
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    # Positive means outward; the order of magnitude catches millimetres taken for metres.
    assert 300 < mesh.volume * 1e6 < 450


def test_triangles_are_well_shaped(hand):
    corners = hand.v_template[hand.faces]
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    quality = 4 * np.sqrt(3) * area / (sides**2).sum(axis=1)  # 1 for equilateral
    assert quality.mean() > 0.93
    assert quality.min() > 0.4
    assert sides.min() > 0.002
    assert sides.max() < 0.020


def test_joints_and_tree_are_manos(hand):
    assert hand.parents == MANO_PARENTS
    assert hand.kintree_table[0, 0] == 4294967295
    np.testing.assert_array_equal(hand.kintree_table[1], np.arange(16))
    assert (hand.bs_type, hand.bs_style) == ("lrotmin", "lbs")
    for finger in range(5):
        chain = np.vstack([hand.J[anatomy.FINGER_ROOTS[finger] :][:3], anatomy.fingertips(hand)[finger]])
        reach = np.linalg.norm(chain - hand.J[0], axis=1)
        assert (np.diff(reach) > 0.008).all()  # each joint lies farther out


def test_right_hand_has_fingers_minus_x_palm_minus_y_thumb_plus_z(hand):
    middle, index, pinky, thumb = (
        hand.J[MANO_JOINT_NAMES.index(name)] for name in ("middle_mcp", "index_mcp", "pinky_mcp", "thumb_mcp")
    )
    assert middle[0] < hand.J[0, 0] - 0.07
    assert index[2] > pinky[2] + 0.04
    assert thumb[2] > index[2]
    # Curled fingers go to the palm side.
    assert posed(hand, "fist")[list(FINGERTIP_VERTICES[1:])].mean(axis=0)[1] < middle[1] - 0.015


def test_fingertip_ids_of_every_public_table_lie_on_their_tips(hand):
    for finger, tip in zip(FINGER_NAMES, FINGERTIP_VERTICES, strict=True):
        joint = anatomy.FINGER_ROOTS[FINGER_NAMES.index(finger)] + 2
        others = builtin_hand.OTHER_FINGERTIP_VERTICES[finger]
        assert (hand.weights[[tip, *others]].argmax(axis=1) == joint).all()
        gaps = np.linalg.norm(hand.v_template[list(others)] - hand.v_template[tip], axis=1)
        assert gaps.max() < 0.006
        mine = hand.v_template[hand.weights.argmax(axis=1) == joint]
        along = hand.v_template[tip] - hand.J[joint]
        assert ((mine - hand.J[joint]) @ along).max() < 1.02 * along @ along  # the tip is the farthest point


def test_regressor_rows_are_convex_and_give_the_joints(hand):
    assert hand.J_regressor.min() >= 0
    np.testing.assert_allclose(hand.J_regressor.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(hand.J_regressor @ hand.v_template, hand.J, atol=1e-12)
    # Joints lie inside the hand.
    mesh = closed(hand, hand.v_template)
    depth = cKDTree(mesh.sample(4000, seed=0)).query(hand.J)[0]
    assert (depth > 0.004).all()


def test_weights_are_convex_with_four_influences_at_most(hand):
    assert hand.weights.min() >= 0
    np.testing.assert_allclose(hand.weights.sum(axis=1), 1, atol=1e-12)
    assert (hand.weights > 0).sum(axis=1).max() <= 4
    assert (np.bincount(hand.weights.argmax(axis=1), minlength=16) >= 8).all()


def test_adult_proportions(hand):
    """Published adults: hand length 183 +- 10 (men), 166 +- 8 (women); breadth at the knuckles 84 +- 4, 75 +- 4."""
    assert 0.158 < np.linalg.norm(hand.v_template[443] - hand.J[0]) < 0.193
    level = np.abs(hand.v_template[:, 0] - hand.J[[1, 7], 0].mean()) < 0.006
    knuckles = hand.v_template[level & (hand.weights[:, 13:].sum(axis=1) < 0.3)]
    breadth = np.ptp(knuckles[:, 2])
    assert 0.071 < breadth < 0.092


def test_shape_directions_have_the_spread_of_adults(hand):
    """Independent standard normal betas give about the published spread of lengths: 7.1 % of the length."""
    assert len(builtin_hand.SHAPE_NAMES) == 10
    assert len(set(builtin_hand.SHAPE_NAMES)) == 10
    joints = hand.J_regressor @ np.moveaxis(hand.shapedirs, -1, 0)
    axis = np.array([-1.0, 0, 0])
    length_change = (np.moveaxis(hand.shapedirs, -1, 0)[:, 443] - joints[:, 0]) @ axis
    length = (hand.v_template[443] - hand.J[0]) @ axis
    assert 0.055 < np.linalg.norm(length_change) / length < 0.085
    named = dict(zip(builtin_hand.SHAPE_NAMES, np.moveaxis(hand.shapedirs, -1, 0), strict=True))
    assert named["size"][443] @ axis > 0.008
    tips = dict(zip(FINGER_NAMES, FINGERTIP_VERTICES, strict=True))
    thumb = np.linalg.norm(named["thumb length"], axis=1)
    assert thumb[tips["thumb"]] > 0.004
    assert thumb[tips["index"]] < 1e-4
    assert named["index against ring and little finger"][tips["index"]] @ axis > 0.002
    assert named["index against ring and little finger"][tips["ring"]] @ axis < -0.002


@pytest.mark.parametrize("sign", [-1, 1])
def test_every_shape_keeps_the_surface_sound(hand, sign):
    for direction in range(10):
        betas = np.zeros(10)
        betas[direction] = 3 * sign
        mesh = closed(hand, hand.v_template + hand.shapedirs @ betas)
        assert mesh.volume > 0.5 * 300e-6, builtin_hand.SHAPE_NAMES[direction]
        rest_normals = trimesh.Trimesh(hand.v_template, hand.faces, process=False).face_normals
        agreement = (mesh.face_normals[:1538] * rest_normals).sum(axis=1)
        assert (agreement < 0).sum() <= 4, builtin_hand.SHAPE_NAMES[direction]


@pytest.mark.parametrize("pose", sorted(anatomy.POSES))
def test_poses_keep_the_volume(hand, pose):
    """Flesh does not vanish: a fist made by skinning alone loses 12 %."""
    ratio = closed(hand, posed(hand, pose)).volume / closed(hand, hand.v_template).volume
    assert 0.92 < ratio < 1.04


def test_pose_correctives_earn_their_place(hand):
    bare = dataclasses.replace(hand, posedirs=np.zeros_like(hand.posedirs))
    rest = closed(hand, hand.v_template).volume
    with_offsets, without = (abs(closed(each, posed(each, "fist")).volume / rest - 1) for each in (hand, bare))
    assert with_offsets < 0.6 * without


def test_pose_space_is_orthonormal_and_led_by_closing_the_hand(hand):
    np.testing.assert_allclose(hand.hands_components @ hand.hands_components.T, np.eye(45), atol=1e-12)
    first = np.vstack([np.zeros(3), hand.hands_components[0].reshape(15, 3)])
    flexion = np.einsum("ji,ji->j", first, anatomy.flexion_axes(hand)[:, 0])
    assert (flexion[1:13] > 0.1).all()  # every finger joint bends the same way
    assert hand.hands_coeffs.shape == (1554, 45)


def test_example_poses_are_poses_of_hands(hand):
    vectors = (hand.hands_coeffs @ hand.hands_components + hand.hands_mean).reshape(-1, 15, 3)
    axes = anatomy.flexion_axes(hand)
    bend = np.einsum("nji,ji->nj", vectors[:, :12], axes[1:13, 0])
    assert np.degrees(bend.min()) > -25
    assert np.degrees(bend.max()) < 110
    assert np.degrees(bend).std() > 20  # open hands and fists
    # A few directions explain most of it, as in people (Santello et al. 1998: two explain 80 % of grasps).
    spread = np.linalg.svd(vectors.reshape(len(vectors), 45) - vectors.reshape(-1, 45).mean(axis=0), compute_uv=False)
    assert (spread[:3] ** 2).sum() / (spread**2).sum() > 0.6


def test_mean_pose_is_the_relaxed_hand(hand):
    pose = np.concatenate([np.eye(3)[None], matrix_from_vector(hand.hands_mean.reshape(15, 3))])
    np.testing.assert_allclose(pose, anatomy.pose_from_angles(hand, anatomy.POSES["relaxed"]), atol=2e-3)


def test_the_left_hand_is_the_exact_mirror():
    right, left = shipped_hand(Handedness.RIGHT), shipped_hand(Handedness.LEFT)
    np.testing.assert_array_equal(left.v_template, right.v_template * [-1, 1, 1])
    np.testing.assert_array_equal(left.mirrored().posedirs, right.posedirs)
    assert closed(right, right.v_template).volume > 0


def test_file_is_small():
    assert builtin_hand.SHIPPED.stat().st_size < 700_000


def test_missing_scikit_image_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(AssetError, match=r'pip install -e "\.\[hand\]"'):
        builtin_hand.generate()


def test_measuring_agrees_with_trimesh_and_finds_penetration(hand):
    flat = builtin_hand.measure(hand, anatomy.pose_from_angles(hand, anatomy.POSES["flat"]))
    assert flat.volume_cm3 == pytest.approx(closed(hand, hand.v_template).volume * 1e6)
    assert flat.penetrating_vertices == 0
    assert flat.folded_edges <= 4  # creases of the webs
    # Fingers bent through the palm.
    through = anatomy.pose_from_angles(hand, anatomy.hand_angles(middle=(130, 60, 20)))
    assert builtin_hand.measure(hand, through).penetrating_vertices > 20


@pytest.mark.parametrize("pose", ["relaxed", "spread", "fist", "point"])
def test_everyday_poses_are_sound(hand, pose):
    """Creases of a fist fold and touch; an open hand must not."""
    quality = builtin_hand.measure(hand, anatomy.pose_from_angles(hand, anatomy.POSES[pose]))
    tight = pose in ("fist", "point")
    assert quality.folded_edges <= (30 if tight else 4)
    assert quality.penetrating_vertices <= (90 if tight else 4)


def test_a_missing_file_is_one_line_and_exit_code_one(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert builtin_hand.main(["--check", "--out", str(tmp_path / "none.npz")]) == 1
    assert "No hand model at" in caplog.text


def test_contact_sheet_shows_a_hand_in_every_cell(hand, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert builtin_hand.main(["--sheet", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    sheet = builtin_hand.contact_sheet(hand, cell=64)
    assert sheet.shape == (64 * len(anatomy.POSES), 6 * 64, 3)
    cells = sheet.reshape(len(anatomy.POSES), 64, 6, 64, 3).swapaxes(1, 2)
    covered = (cells < 240).any(axis=-1).mean(axis=(2, 3))
    assert (covered > 0.04).all()
    assert (covered < 0.6).all()
