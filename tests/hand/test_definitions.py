"""Our joints where MANO has them, and the reverse."""

import numpy as np
import pytest

from handmesh.errors import DataError
from handmesh.hand import JOINT_NAMES, builtin_hand
from handmesh.hand.definitions import joints_from_mano, mano_joints

AT_REST = builtin_hand().joints_of(builtin_hand().v_template)


def length(joints: np.ndarray, *names: str) -> float:
    first, second = (joints[JOINT_NAMES.index(name)] for name in names)
    return 1000 * float(np.linalg.norm(first - second))


@pytest.mark.parametrize(
    ("finger", "bones"),
    [
        # mm: the first two bones of MANO's mean shape, as its joints are published
        ("thumb", (30.8, 27.1)),
        ("index", (33.0, 22.2)),
        ("middle", (31.7, 23.3)),
        ("ring", (28.8, 24.8)),
        ("pinky", (21.1, 18.9)),
    ],
)
def test_bones_are_as_long_as_manos(finger, bones):
    names = (
        ("thumb_cmc", "thumb_mcp", "thumb_ip")
        if finger == "thumb"
        else [f"{finger}_{n}" for n in ("mcp", "pip", "dip")]
    )
    moved = mano_joints(AT_REST)
    assert [length(moved, names[0], names[1]), length(moved, names[1], names[2])] == pytest.approx(bones, abs=0.5)
    tip = JOINT_NAMES.index(f"{finger}_tip")
    np.testing.assert_array_equal(moved[tip], AT_REST[tip])


def test_the_reverse_is_exact_in_space_and_in_a_picture():
    joints = np.random.default_rng(0).normal(size=(4, 21, 3))
    np.testing.assert_allclose(joints_from_mano(mano_joints(joints)), joints, atol=1e-12)
    np.testing.assert_allclose(mano_joints(joints[..., :2]), mano_joints(joints)[..., :2])


def test_a_joint_that_is_not_known_spoils_its_finger_and_nothing_else():
    joints = np.random.default_rng(1).normal(size=(21, 2))
    lacking = joints.copy()
    lacking[JOINT_NAMES.index("ring_pip")] = np.nan
    moved, whole = joints_from_mano(lacking), joints_from_mano(joints)
    spoilt = {name for name, known in zip(JOINT_NAMES, np.isfinite(moved).all(axis=1), strict=True) if not known}
    assert spoilt == {"ring_mcp", "ring_pip", "ring_dip"}
    others = [index for index, name in enumerate(JOINT_NAMES) if name not in spoilt]
    np.testing.assert_allclose(moved[others], whole[others])


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match="wanted"):
        mano_joints(np.zeros((16, 3)))
