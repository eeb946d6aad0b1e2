"""Poses and views that real hands took."""

from __future__ import annotations

import json

import numpy as np
import pytest
import real_poses as make_real_poses

from handmesh.config.scenes import TrainingScenes
from handmesh.geometry.rotation import matrix_from_vector, vector_from_matrix
from handmesh.hand import Handedness, builtin_hand
from handmesh.hand.anatomy import hand_angles, pose_from_angles
from handmesh.synth.pose_prior import PosePrior
from handmesh.synth.real_poses import RealPoseArrays, RealPoses, palm_axes, real_pose_arrays, thinned
from handmesh.synth.scene import SceneRenderer, view_rotation


def pose_of(*fingers: tuple[float, ...], view: np.ndarray | None = None) -> np.ndarray:
    """(16, 3, 3) with the palm's orientation that a view gives."""
    pose = pose_from_angles(builtin_hand(), hand_angles(*fingers))
    rotation = view_rotation(np.array([0.2, -0.1, -1.0]), 0.7) if view is None else view
    pose[0] = rotation @ palm_axes(builtin_hand())
    return pose


def test_what_ships_is_a_set_of_hands_with_its_origin():
    arrays = RealPoseArrays.load()
    assert len(arrays.fingers) == len(arrays.views) >= 1000
    assert any("MIT" in source for source in arrays.sources)
    flexions = np.degrees(arrays.fingers[:, :, 0])
    assert np.percentile(flexions, 1) > -40
    assert np.percentile(flexions, 99) < 125
    assert np.percentile(flexions, 90) > 60  # fists are among them


def test_a_pose_comes_back_as_it_was():
    """Through the anatomical axes, the fit's own pose and orientation."""
    pose = pose_of((5, 10, 20), (80, 90, 50), (10, 5, 2))
    arrays = real_pose_arrays([(pose, Handedness.RIGHT)])
    real = RealPoses(PosePrior(builtin_hand()), builtin_hand(), arrays)
    np.testing.assert_allclose(real._rotations(arrays.fingers[0])[1:], pose[1:], atol=1e-12)
    np.testing.assert_allclose(matrix_from_vector(arrays.views[0]) @ palm_axes(builtin_hand()), pose[0], atol=1e-12)


def test_a_left_hand_is_the_right_hand_in_the_mirror():
    """The same joints, drawn mirrored: x the other way round."""
    right = pose_of((5, 10, 20), (60, 20, 10))
    mirror = np.diag([-1.0, 1.0, 1.0])
    left = mirror @ right @ mirror
    seen_left = builtin_hand(Handedness.LEFT).shaped().posed(left).joints
    seen_right = builtin_hand().shaped().posed(right).joints
    np.testing.assert_allclose(seen_left @ mirror, seen_right, atol=1e-6)
    both = real_pose_arrays([(right, Handedness.RIGHT), (left, Handedness.LEFT)])
    np.testing.assert_allclose(both.fingers[0], both.fingers[1], atol=1e-9)
    np.testing.assert_allclose(both.views[0], both.views[1], atol=1e-9)


def test_samples_vary_about_the_poses_and_keep_their_views():
    arrays = real_pose_arrays([(pose_of((5, 10, 20), (70, 80, 40)), Handedness.RIGHT)])
    real = RealPoses(PosePrior(builtin_hand()), builtin_hand(), arrays)
    rng = np.random.default_rng(0)
    turned, bent = [], []
    for _ in range(60):
        sampled, view = real.sample(rng)
        off = vector_from_matrix(view @ matrix_from_vector(arrays.views[0]).T)
        turned.append(np.linalg.norm(off))
        difference = np.swapaxes(real._rotations(arrays.fingers[0]), 1, 2) @ sampled.rotations
        bent.append(np.linalg.norm(vector_from_matrix(difference), axis=1).max())
    assert 0.05 < np.median(turned) < 0.5
    assert 0.05 < np.median(bent) < 0.5
    assert real.prior.penetration(sampled.rotations) <= max(
        real.prior.settings.penetration, real.prior.penetration(real._rotations(arrays.fingers[0]))
    )


def test_thinning_keeps_what_is_unlike_and_one_of_what_is_alike():
    rng = np.random.default_rng(0)
    views = [view_rotation(rng.normal(size=3), 0.0) for _ in range(5)]
    poses = [pose_of((0, 5 * n), (15.0 * n, 10.0 * n), view=views[n]) for n in range(5)]
    crowd = [(poses[n % 5] if n >= 5 else poses[n], Handedness.RIGHT) for n in range(50)]
    kept = thinned(real_pose_arrays(crowd, sources=["somewhere"]), 5)
    assert len(kept.fingers) == 5
    assert len(np.unique(kept.fingers[:, 0, 0].round(3))) == 5
    assert kept.sources == ("somewhere",)


def test_the_roll_in_the_picture_makes_no_other_pose():
    poses = [pose_of(view=view_rotation(np.array([0.3, 0.2, -1]), angle)) for angle in (0.0, 1.0, -2.0)]
    kept = thinned(real_pose_arrays([(pose, Handedness.RIGHT) for pose in poses]), 3)
    assert len(kept.fingers) == 1


@pytest.mark.parametrize("form", [vector_from_matrix, np.array, lambda pose: vector_from_matrix(pose).ravel()])
def test_the_file_is_made_from_labels(form, tmp_path, monkeypatch):
    """In each form that labels have a pose in: of matrices, which `handmesh synth --out` writes, none was made."""
    pose = pose_of((5, 10, 20), (70, 80, 40))
    lines = [
        {"image": "a.jpg", "handedness": "right", "pose": form(pose).tolist()},
        {"image": "b.jpg", "keypoints": None},
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "poses.npz"
    monkeypatch.setattr(
        "sys.argv", ["real_poses", str(tmp_path / "labels.jsonl"), "--out", str(out), "--source", "me; CC0"]
    )
    make_real_poses.main()
    arrays = RealPoseArrays.load(out)
    assert arrays.sources == ("me; CC0",)
    np.testing.assert_allclose(arrays.fingers, real_pose_arrays([(pose, Handedness.RIGHT)]).fingers, atol=2e-3)


def test_scenes_show_real_poses_when_asked():
    scene = SceneRenderer(builtin_hand(), TrainingScenes(real_poses=1.0, occluder=0, second_hand=0), size=64)
    sample = scene.render_foreground(np.random.default_rng(3))
    assert sample.facts["pose"] == "real"
    assert sample.facts["view"] == "real"
    usual = SceneRenderer(builtin_hand(), TrainingScenes(), size=64).render_foreground(np.random.default_rng(3))
    assert usual.facts["pose"] != "real"


@pytest.mark.parametrize("share", [-0.1, "much"])
def test_a_wrong_share_is_refused(share):
    with pytest.raises(ValueError, match="real_poses"):
        TrainingScenes(real_poses=share)
