"""Pictures for the detector: what is known of them stays true through every turn, mirror and cut."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from handmesh.config.data import SyntheticData
from handmesh.config.detector import DetectorData, SceneSource
from handmesh.data.scenes import UNLISTED, SceneMixture, read_scenes
from handmesh.errors import DataError
from handmesh.hand.grid import STRIDE, decode, encode
from handmesh.synth.crowd import draw_crowd
from handmesh.synth.dataset import render_pack

BACK = np.full((256, 256, 3), 40, np.uint8)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return render_pack(tmp_path_factory.mktemp("crowd") / "pack", count=6, seed=3, size=96)


def as_photo(path, keypoints, scale=1):
    """A photograph with a green dot at each wrist and a red one at each middle knuckle; as many times 400 px wide."""
    image = np.full((300 * scale, 400 * scale, 3), 90, np.uint8)
    for hand in keypoints:
        cv2.circle(image, tuple(np.rint(hand[0]).astype(int).tolist()), 6 * scale, (0, 255, 0), -1)
        cv2.circle(image, tuple(np.rint(hand[9]).astype(int).tolist()), 6 * scale, (255, 0, 0), -1)
    cv2.imwrite(str(path), image[..., ::-1])


def a_hand(x, y, size=80.0):
    """(21, 2): wrist below, fingers above, as wide as high."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (21, 2))
    points[0], points[9], points[1], points[2] = (0, 0.5), (0, -0.1), (-0.5, 0), (0.5, -0.5)
    return points * size + (x, y)


def a_mixture(folder, rows, **settings):
    path = folder / "scenes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SceneSource(path=path)
    shares = {"crowds": 0.0, "photographs": 1.0, "mosaics": 0.0} | settings
    data = DetectorData(scenes=(source,), effects=0.0, **shares)
    return SceneMixture(data, 256, 5, None, ((source, read_scenes(path)),))


def test_a_crowd_knows_where_its_hands_are_and_what_hides_them(pack):
    rng = np.random.default_rng(1)
    sides, seen = [], []
    for _ in range(12):
        image, hands = draw_crowd(rng, BACK, 3, (0.2, 0.5), lambda r: pack[int(r.integers(len(pack)))])
        assert image.shape == BACK.shape
        assert len(hands) == 3
        for hand in hands:
            sides.append(hand.right)
            seen.append(hand.seen)
            points = np.rint(hand.keypoints).astype(int)
            inside = ((points >= 0) & (points < 256)).all(axis=1)
            assert hand.seen <= inside.mean() + 1e-9
            if inside.any() and hand.seen > 0.9:
                drawn = (image[points[inside, 1], points[inside, 0]] != 40).any(axis=1)
                assert drawn.mean() > 0.8, "something lies where the keypoints are"
    assert 0.2 < np.mean(sides) < 0.8
    assert min(seen) < 0.9 < max(seen)


def test_a_crowd_has_pairs_as_of_one_person(pack):
    """Near each other, as large, and one of each side: seldom among hands drawn one by one."""
    rng = np.random.default_rng(2)
    pairs = []
    for _ in range(60):
        _, (first, second) = draw_crowd(rng, BACK, 2, (0.05, 1.0), lambda r: pack[int(r.integers(len(pack)))])
        extents = [float(np.ptp(hand.keypoints, axis=0).max()) for hand in (first, second)]
        apart = float(np.linalg.norm(first.keypoints.mean(axis=0) - second.keypoints.mean(axis=0)))
        if 0.7 < extents[0] / extents[1] < 1.4 and apart < 1.2 * max(extents):
            pairs.append(first.right != second.right)
    assert len(pairs) >= 6
    assert np.mean(pairs) > 0.6


@pytest.mark.parametrize(("kind", "scale"), [("photographs", 1), ("mosaics", 1), ("photographs", 3)])
def test_labels_follow_the_photograph_through_turns_and_mirrors(tmp_path, kind, scale):
    """Photographs over 512 px were reduced, and their labels were not."""
    hand = a_hand(200, 150) * scale
    as_photo(tmp_path / "a.png", [hand], scale)
    rows = [{"image": "a.png", "hands": [{"handedness": "right", "keypoints": hand.tolist()}]}]
    mixture = a_mixture(tmp_path, rows, photographs=float(kind == "photographs"), mosaics=float(kind == "mosaics"))
    checked = missed = 0
    for g in range(40):
        sample = mixture[g]
        rows_, columns = np.nonzero(sample.target.taught > 0.999)
        for row, column in zip(rows_, columns, strict=True):
            left, up, right, down = STRIDE * np.exp(sample.target.box[:, row, column])
            x, y = STRIDE * (np.array([column, row]) + 0.5) - 0.5
            cut = sample.image[max(int(y - up), 0) : int(y + down) + 1, max(int(x - left), 0) : int(x + right) + 1]
            if cut.shape[0] < 24 or left + x < 256 > x + right > 256:
                continue
            green = np.argwhere((cut[..., 1] > 180) & (cut[..., 0] < 90))
            red = np.argwhere((cut[..., 0] > 180) & (cut[..., 1] < 90))
            if len(green) < 3 or len(red) < 3:
                missed += 1
                continue
            dy, dx = red.mean(axis=0) - green.mean(axis=0)
            turn = -np.pi / 2 - np.arctan2(dy, dx)
            cosine, sine = sample.target.direction[:, row, column]
            assert np.cos(turn) * cosine + np.sin(turn) * sine > 0.94, "the hand points where it is said to"
            checked += 1
    assert checked >= 5
    assert missed < checked, "and lies where it is said to"


def test_what_a_list_does_not_say_teaches_little(tmp_path):
    hand = a_hand(90, 150, 60)
    as_photo(tmp_path / "a.png", [hand])
    listed = {"image": "a.png", "hands": [{"handedness": "left", "keypoints": hand.tolist()}]}
    weights = {}
    for name, row in (
        ("listed", listed),
        ("complete", {**listed, "complete": True}),
        ("doubtful", {**listed, "doubtful": [[200, 0, 399, 299]]}),
        ("background", {**listed, "background": [[200, 0, 399, 299]]}),
        ("none", {"image": "a.png", "no_hand": True}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.png").write_bytes((tmp_path / "a.png").read_bytes())
        mixture = a_mixture(folder, [row])
        weights[name] = np.concatenate([mixture[g].weight.ravel() for g in range(8)])
    assert np.isclose(weights["listed"], UNLISTED).any()
    assert (weights["complete"] == 1).all()
    assert (weights["none"] == 1).all()
    assert (weights["doubtful"] == 0).any()
    assert (weights["background"] == 1).mean() > (weights["listed"] == 1).mean()


def test_a_sample_depends_on_its_number_alone(tmp_path, pack):
    hand = a_hand(200, 150)
    as_photo(tmp_path / "a.png", [hand])
    rows = [{"image": "a.png", "hands": [{"handedness": "right", "keypoints": hand.tolist()}]}]
    mixture = a_mixture(tmp_path, rows, crowds=0.5, mosaics=0.5, synthetic=SyntheticData())
    mixture.pack = pack
    first = [mixture[g] for g in (3, 4, 5)]
    again = [mixture[g] for g in (5, 4, 3)][::-1]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.weight, other.weight)


@pytest.mark.parametrize(
    "line",
    ["{", '{"hands": []}', '{"image": "a.png", "hands": [{"keypoints": [[1, 2]], "handedness": "left"}]}',
     '{"image": "a.png", "hands": [{"keypoints": 3, "handedness": "left"}]}', '["a.png"]',
     '{"image": "a.png", "doubtful": [[1, 2, 3]]}'],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "scenes.jsonl"
    path.write_text('{"image": "a.png", "no_hand": true}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        read_scenes(path)


def test_a_list_without_photographs_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_scenes(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no photograph"):
        read_scenes(tmp_path / "empty.jsonl")


def test_the_target_of_a_sample_reads_as_its_hands(tmp_path):
    """What training asks for, the detector would read as those hands: encode and decode are each other's reverse."""
    hand = a_hand(200, 150)
    as_photo(tmp_path / "a.png", [hand])
    rows = [{"image": "a.png", "hands": [{"handedness": "right", "keypoints": hand.tolist()}]}]
    target = next(
        sample.target for g in range(20) if (sample := a_mixture(tmp_path, rows)[g]).target.taught.max() > 0.999
    )
    grid = np.concatenate(
        [np.where(target.center > 0.999, 9, -9)[None], target.box, target.direction, 9 * (2 * target.right[None] - 1)]
    )
    assert len(decode(grid.astype(np.float32), 0.5)) == 1
    assert encode([], 4, 4).taught.max() == 0
