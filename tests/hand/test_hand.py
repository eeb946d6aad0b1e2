from dataclasses import fields

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handmesh.errors import AssetError
from handmesh.hand import (
    BONES,
    FINGER_NAMES,
    FINGERTIP_NAMES,
    FINGERTIP_VERTICES,
    JOINT_NAMES,
    JOINT_PARENTS,
    JOINTS_FROM_MANO,
    MANO_JOINT_NAMES,
    MANO_PARENTS,
    HandArrays,
    Handedness,
    builtin_hand,
)
from handmesh.hand.skeleton import MANO_LEVELS

NAMES = [field.name for field in fields(HandArrays)]
ARRAY_NAMES = [name for name in NAMES if not name.startswith("bs_")]


@pytest.fixture(scope="module")
def right() -> HandArrays:
    return builtin_hand()


def as_dict(hand: HandArrays) -> dict:
    return {name: getattr(hand, name) for name in NAMES}


# Orders


def test_the_21_joints_are_freihands():
    """16 joints and 5 tips -> 21, the index list of FreiHAND's and HaMeR's code."""
    expected = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
    assert expected == JOINTS_FROM_MANO
    assert sorted(JOINTS_FROM_MANO) == list(range(21))


def test_both_trees_tell_the_same_family():
    """A joint's parent has the same name in both orders, and fingers run wrist, three joints, tip."""
    for joint, parent in enumerate(MANO_PARENTS[1:], start=1):
        joint21 = JOINT_NAMES.index(MANO_JOINT_NAMES[joint])
        assert JOINT_NAMES[JOINT_PARENTS[joint21]] == MANO_JOINT_NAMES[parent]
    for finger, tip in zip(FINGER_NAMES, FINGERTIP_NAMES, strict=True):
        assert JOINT_NAMES[JOINT_PARENTS[JOINT_NAMES.index(tip)]].startswith(finger)
    assert len(BONES) == 20
    assert all(parent < joint for parent, joint in BONES)


def test_levels_go_from_each_parent_to_its_children():
    numbers, parent_of = np.arange(len(MANO_PARENTS)), {}
    for joints, parents in MANO_LEVELS:
        parent_of |= zip(numbers[joints], np.broadcast_to(numbers[parents], numbers[joints].shape), strict=True)
    assert parent_of == dict(enumerate(MANO_PARENTS[1:], start=1))


def test_each_tip_vertex_is_the_far_end_of_its_own_finger(right):
    for finger, vertex in zip(FINGER_NAMES, FINGERTIP_VERTICES, strict=True):
        last_joint = max(i for i, name in enumerate(MANO_JOINT_NAMES) if name.startswith(finger))
        assert right.weights[vertex].argmax() == last_joint
        distances = np.linalg.norm(right.v_template - right.J[MANO_PARENTS[last_joint]], axis=1)
        own = right.weights.argmax(axis=1) == last_joint
        assert distances[vertex] > distances[own].max() - 0.006  # tip ids in use differ by up to 5 mm


def test_the_right_hand_lies_as_documented(right):
    """Fingers towards -x, palm towards -y, thumb towards +z."""
    index = {name: i for i, name in enumerate(MANO_JOINT_NAMES)}
    assert right.v_template[FINGERTIP_VERTICES[2], 0] < right.J[index["middle_mcp"], 0] < right.J[index["wrist"], 0]
    assert right.J[index["thumb_ip"], 2] > right.J[index["index_mcp"], 2] > right.J[index["pinky_mcp"], 2]
    # Bending a finger (about +z) brings its tip to the palm's side.
    bone = right.v_template[FINGERTIP_VERTICES[2]] - right.J[index["middle_mcp"]]
    quarter_turn_about_z = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert (quarter_turn_about_z @ bone)[1] < -0.05


# The arrays


def test_faces_and_parents_in_convenient_types(right):
    assert right.parents == MANO_PARENTS
    assert right.faces.dtype == np.int32
    np.testing.assert_array_equal(right.faces, right.f)


def test_mirrored_twice_is_unchanged(right):
    twice = right.mirrored().mirrored()
    for name in NAMES:
        np.testing.assert_array_equal(getattr(twice, name), getattr(right, name), err_msg=name)
    assert twice.sha256 == right.sha256


def test_the_left_hand_has_the_right_ones_poses_in_a_mirror(right):
    """The same coefficients of its pose components are the mirrored rotations, F R F with F = diag(-1, 1, 1)."""
    left, flip = right.mirrored(), np.diag([-1.0, 1.0, 1.0])
    coefficients = np.random.default_rng(0).normal(size=(3, 45))
    of_left, of_right = (
        Rotation.from_rotvec((hand.hands_mean + coefficients @ hand.hands_components).reshape(-1, 3)).as_matrix()
        for hand in (left, right)
    )
    np.testing.assert_allclose(of_left, flip @ of_right @ flip, atol=1e-9)


def test_the_left_hand_is_another_hand_and_its_faces_look_outward(right):
    left = builtin_hand(Handedness.LEFT)
    assert left.sha256 != right.sha256
    np.testing.assert_array_equal(left.v_template, right.v_template * (-1, 1, 1))

    def volume(hand: HandArrays) -> float:
        a, b, c = np.moveaxis((hand.v_template - hand.v_template.mean(axis=0))[hand.faces], 1, 0)
        return float(np.einsum("ni,ni->", a, np.cross(b, c)) / 6)

    assert volume(left) == pytest.approx(volume(right))
    assert volume(right) > 1e-4  # m^3: the wrist is open, a closed hand has 3 to 4 of these


def test_the_builtin_hand_is_made_once():
    assert builtin_hand() is builtin_hand()
    assert builtin_hand(Handedness.LEFT) is builtin_hand(Handedness.LEFT)


def test_save_and_load(right, tmp_path):
    right.mirrored().save(tmp_path / "left.npz")
    loaded = HandArrays.load(tmp_path / "left.npz")
    for name in NAMES:
        found, wanted = getattr(loaded, name), getattr(right.mirrored(), name)
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert np.asarray(found).dtype == np.asarray(wanted).dtype
    assert loaded.sha256 == right.mirrored().sha256


@pytest.mark.parametrize("name", ["v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights"])
def test_sha256_sees_every_array_that_shapes_an_answer(right, name):
    arrays = as_dict(right)
    changed = arrays[name].copy()
    changed.flat[5] += 1 if name == "f" else 1e-9
    assert HandArrays.from_mapping(arrays | {name: changed}, "test").sha256 != right.sha256


# Refusals: the message names the file and the key


@pytest.mark.parametrize("name", ARRAY_NAMES)
def test_a_missing_key_is_named(right, name):
    arrays = as_dict(right)
    del arrays[name]
    with pytest.raises(AssetError, match=rf"hand\.npz.* missing {name}\b"):
        HandArrays.from_mapping(arrays, "hand.npz")


@pytest.mark.parametrize("name", ARRAY_NAMES)
def test_a_wrong_shape_is_named(right, name):
    wrong = getattr(right, name)[..., :-1]
    with pytest.raises(AssetError, match=rf"hand\.npz: {name} is .*wanted"):
        HandArrays.from_mapping(as_dict(right) | {name: wrong}, "hand.npz")


@pytest.mark.parametrize("name", ARRAY_NAMES)
def test_a_wrong_kind_of_number_is_named(right, name):
    array = getattr(right, name)
    wrong = array.astype(float) if array.dtype.kind in "iu" else array.astype(int)
    with pytest.raises(AssetError, match=rf"hand\.npz: {name} is"):
        HandArrays.from_mapping(as_dict(right) | {name: wrong}, "hand.npz")


@pytest.mark.parametrize("name", [name for name in ARRAY_NAMES if name not in ("f", "kintree_table")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named(right, name, value):
    wrong = np.array(getattr(right, name))
    if wrong.size == 0:
        pytest.skip(f"the built-in hand has an empty {name}")
    wrong.flat[0] = value
    with pytest.raises(AssetError, match=f"{name} .*not finite"):
        HandArrays.from_mapping(as_dict(right) | {name: wrong}, "hand.npz")


def test_a_face_without_its_vertex_is_refused(right):
    wrong = right.f.copy()
    wrong[7, 1] = 778
    with pytest.raises(AssetError, match="vertex 778"):
        HandArrays.from_mapping(as_dict(right) | {"f": wrong}, "hand.npz")


def test_another_tree_is_refused(right):
    wrong = right.kintree_table.copy()
    wrong[0, 5] = 1
    with pytest.raises(AssetError, match="joint tree"):
        HandArrays.from_mapping(as_dict(right) | {"kintree_table": wrong}, "hand.npz")


@pytest.mark.parametrize("name", ["weights", "J_regressor"])
def test_weights_that_do_not_sum_to_one_are_refused(right, name):
    with pytest.raises(AssetError, match=f"rows of {name}"):
        HandArrays.from_mapping(as_dict(right) | {name: getattr(right, name) * 1.01}, "hand.npz")


def test_files_that_cannot_be_read_are_named(right, tmp_path):
    with pytest.raises(AssetError, match=r"nowhere\.npz"):
        HandArrays.load(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(AssetError, match=r"text\.npz"):
        HandArrays.load(tmp_path / "text.npz")
    right.save(tmp_path / "whole.npz")
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(AssetError, match=r"cut\.npz"):
        HandArrays.load(tmp_path / "cut.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(AssetError, match=r"empty\.npz"):
        HandArrays.load(tmp_path / "empty.npz")


def test_objects_in_an_npz_are_never_unpickled(right, tmp_path):
    class Bomb:
        def __reduce__(self) -> tuple:
            return (pytest.fail, ("unpickled",))

    arrays = as_dict(right) | {"v_template": np.array([Bomb()], dtype=object)}
    np.savez(tmp_path / "bomb.npz", **arrays)
    with pytest.raises(AssetError, match=r"bomb\.npz"):
        HandArrays.load(tmp_path / "bomb.npz")
