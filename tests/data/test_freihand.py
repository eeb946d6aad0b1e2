"""FreiHAND without FreiHAND: a synthetic set in its exact layout goes through everything that the real one will."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from handmesh.config.load import parse_config
from handmesh.data.augment import CropJitter
from handmesh.data.check import ZERO_SCORES_CM, check, check_freihand
from handmesh.data.crops import BOX, BOX_FROM_TEST_LABELS, FRAME, METRO, PROTOCOLS, crop_protocol, crop_sample
from handmesh.data.formats import freihand, json_arrays
from handmesh.data.formats.freihand import (
    ABOUT,
    SPLITS,
    FreiHand,
    available_splits,
    decode_mano,
    encode_mano,
    prepare,
    read_json_array,
    root_from_mano,
    split_by_annotation,
)
from handmesh.data.formats.like_freihand import write_like_freihand
from handmesh.data.sample import PhotoLabels, RawSample, hand_labels
from handmesh.data.show import show
from handmesh.data.sources import freihand_source, freihand_test_set
from handmesh.data.stream import training_batches
from handmesh.errors import DataError
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.crop import CropTransform
from handmesh.hand import FINGERTIP_VERTICES, Handedness, builtin_hand
from handmesh.hand.definitions import mano_joints
from handmesh.hand.layer import HandModel
from handmesh.synth import Backgrounds

HAND = builtin_hand()
N, M = 6, 3  # annotations, test images


@pytest.fixture(scope="session")
def backgrounds() -> Backgrounds:
    return Backgrounds(0, count=2)


@pytest.fixture(scope="session")
def source(tmp_path_factory, backgrounds) -> Path:
    """A set in FreiHAND's layout; tests copy what they change."""
    return write_like_freihand(tmp_path_factory.mktemp("set") / "FreiHAND", N, M, backgrounds=backgrounds)


@pytest.fixture(scope="session")
def prepared(source, tmp_path_factory) -> Path:
    return prepare(source, tmp_path_factory.mktemp("prepared") / "out")


@pytest.fixture
def own_source(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "FreiHAND"))


@pytest.fixture
def own_prepared(prepared, source, tmp_path) -> Path:
    """A copy to damage; its images are packed, so that it stands alone."""
    return prepare(source, tmp_path / "own", pack=True)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ------------------------------------------------------------------ large JSON files


SHAPES = [(), (3,), (1, 61), (3, 3), (21, 3)]


@pytest.mark.parametrize("piece", [7, 64, 1000, 1 << 22])
@pytest.mark.parametrize("shape", SHAPES)
def test_streamed_numbers_are_jsons_numbers_wherever_the_pieces_end(piece, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(json_arrays, "PIECE_BYTES", piece)
    rng = np.random.default_rng(0)
    path = tmp_path / "numbers.json"
    for count in (0, 1, 2, 5):
        numbers = rng.normal(size=(count, *shape)) * 10.0 ** rng.integers(-9, 9, (count, *shape))
        for separators in ((",", ":"), (", ", ": ")):
            path.write_text(json.dumps(numbers.tolist(), separators=separators) + "\n")
            np.testing.assert_array_equal(read_json_array(path, shape), numbers)


def test_values_that_are_not_finite_are_passed_on(tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text("[[NaN, Infinity, -Infinity], [1, 2, 3]]")
    np.testing.assert_array_equal(read_json_array(path, (3,)), [[np.nan, np.inf, -np.inf], [1, 2, 3]])


@pytest.mark.parametrize("piece", [5, 1 << 22])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ('{"a": 1}', "holds a dict where lists are wanted"),
        ("7", "starts with '7'"),
        ("[1,2,3]", "frame 0"),
        ("[[1,2],[3,4]]", "frame 0"),
        ("[[1,2,3],[4,5,6,7]]", "frame 1"),
        ("[[1,2,3],[]]", "frame 1"),
        ("[[[1,2,3]]]", "frame 0"),
        ("[[1,2,3] [4,5,6]]", "frame 0|frame 1"),
        ("[[1,2,3],[4,5,6],]", "frame 2"),
        ("[[1,2,3],[4,null,6]]", "frame 1"),
        ('[[1,2,3],[4,"a",6]]', "frame 1"),
        ("[[1,2,3],[4,,6]]", r"has '' where a number should be \(frame 1\)"),
        ("[[1,2 3,4],[4,5,6]]", r"'2 3' where a number should be \(frame 0\)"),
        ("[[1,,2 3],[4,5,6]]", r"frame 0"),
        ("[[1,2,3],[4,5.5.5,6]]", r"'5.5.5' where a number should be \(frame 1\)"),
        ("[[1,2,3],[4,0x12,6]]", "frame 1"),
        ("[[1,2,3],[4,5,6]],", "goes on after its end"),
        ("[[1,2,3],[4,5,6]]]", "goes on after its end"),
        ("[[1,2,3],[4,5,6]] 1", "goes on after its end"),
        ("[[1,2,3]," + "9" * 5000, "wanted a JSON list of frames of 3 numbers"),
        ("[,]", "frame 0"),
    ],
)
def test_anything_but_frames_of_the_shape_is_refused_by_name(text, message, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(json_arrays, "PIECE_BYTES", piece)
    path = tmp_path / "numbers.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_json_array(path, (3,))
    assert str(path) in str(caught.value)


def test_every_cut_off_file_is_refused(tmp_path):
    text = json.dumps(np.random.default_rng(0).normal(size=(3, 2, 2)).tolist())
    path = tmp_path / "numbers.json"
    for end in range(len(text)):
        path.write_text(text[:end])
        with pytest.raises(DataError, match="completely"):
            read_json_array(path, (2, 2))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json cannot be read: No such file"):
        read_json_array(tmp_path / "none.json", (3,))


# ------------------------------------------------------------------ the synthetic set itself


def annotations(source: Path, split: str, name: str) -> np.ndarray:
    return np.array(json.loads((source / f"{split}_{name}.json").read_text()))


def test_a_synthetic_set_has_freihands_layout(source):
    names = {path.relative_to(source).as_posix() for path in source.rglob("*")}
    assert {f"training/rgb/{i:08d}.jpg" for i in range(4 * N)} <= names
    assert {f"training/mask/{i:08d}.jpg" for i in range(N)} <= names
    assert {f"evaluation/rgb/{i:08d}.jpg" for i in range(M)} <= names
    for split, count in (("training", N), ("evaluation", M)):
        shapes = {"K": (3, 3), "scale": (), "xyz": (21, 3), "verts": (778, 3), "mano": (1, 61)}
        for name, shape in shapes.items():
            assert annotations(source, split, name).shape == (count, *shape), name


def test_synthetic_labels_agree_as_freihands_do(source):
    """Joints are regressed from the mesh, scale is a bone, and the toolbox's way of decoding MANO gives the mesh."""
    model = HandModel(HAND).double()
    for split in ("training", "evaluation"):
        K, scale, xyz, verts, mano = (
            annotations(source, split, name) for name in ("K", "scale", "xyz", "verts", "mano")
        )
        assert (K[:, :2, 2] == 112).all()
        np.testing.assert_allclose(scale, np.linalg.norm(xyz[:, 9] - xyz[:, 10], axis=-1), rtol=1e-14)
        np.testing.assert_allclose(xyz[:, 0], HAND.J_regressor[0] @ verts, atol=1e-12)
        np.testing.assert_allclose(xyz[:, [4, 8, 12, 16, 20]], verts[:, list(FINGERTIP_VERTICES)], atol=1e-12)
        # freihand/utils/model.py: axis-angle, the mean added; root from uv and scale at joint 9.
        for index in range(len(K)):
            p = mano[index, 0]
            vectors = np.concatenate([p[:3], p[3:48] + HAND.hands_mean]).reshape(16, 3)
            rotations = np.stack([cv2.Rodrigues(vector)[0] for vector in vectors])
            vertices, joints = model(torch.tensor(rotations), torch.tensor(p[48:58]))
            focal = (K[index, 0, 0] + K[index, 1, 1]) / 2
            root = np.array([p[58] - 112, p[59] - 112, focal]) / p[60]
            np.testing.assert_allclose((vertices - joints[9]).numpy() + root, verts[index], atol=1e-6)


def test_pictures_show_what_the_labels_say(source):
    """Projected vertices lie on the mask, and the four versions differ outside of it more than on it."""
    for index in range(N):
        K, verts = annotations(source, "training", "K")[index], annotations(source, "training", "verts")[index]
        pixels = verts @ K.T
        pixels = np.round(pixels[:, :2] / pixels[:, 2:]).astype(int)
        mask = cv2.imread(str(source / f"training/mask/{index:08d}.jpg"), cv2.IMREAD_GRAYSCALE) > 127
        assert mask[pixels[:, 1], pixels[:, 0]].mean() > 0.6  # what is in front of a hand cuts into its mask
        versions = [cv2.imread(str(source / f"training/rgb/{index + v * N:08d}.jpg")).astype(float) for v in range(4)]
        assert versions[0].shape == (224, 224, 3)
        change = np.std(versions, axis=0).mean(axis=-1)
        assert change[mask].mean() < change[~mask].mean()


def test_a_synthetic_set_is_written_whole_or_not_at_all(tmp_path, backgrounds):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_like_freihand(tmp_path / "set", 1, 1, backgrounds=backgrounds, progress=stop)
    assert not (tmp_path / "set").exists()
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write_like_freihand(tmp_path / "set", 1, 1, backgrounds=backgrounds)
    with pytest.raises(DataError, match="at least one"):
        write_like_freihand(tmp_path / "other", 0, 1, backgrounds=backgrounds)


# ------------------------------------------------------------------ prepare


def test_prepared_arrays_are_the_jsons_numbers(source, prepared):
    assert available_splits(prepared) == ("training", "evaluation")
    for split in ("training", "evaluation"):
        arrays = FreiHand(prepared, split).arrays
        for name in ("K", "scale", "xyz", "mano"):
            np.testing.assert_array_equal(arrays[name], annotations(source, split, name))
        np.testing.assert_array_equal(arrays["verts"], annotations(source, split, "verts").astype(np.float32))
        assert isinstance(arrays["verts"], np.memmap)


def test_running_again_touches_nothing(source, tmp_path):
    out = prepare(source, tmp_path / "out", pack=True)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    said: list[str] = []
    assert prepare(source, tmp_path / "out", pack=True, progress=lambda what, *_: said.append(what)) == out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert not said


def test_images_may_be_deleted_once_they_are_packed(own_source):
    prepare(own_source, pack=True)
    before = FreiHand(own_source).image_bytes(5)
    shutil.rmtree(own_source / "training")
    prepare(own_source)
    assert FreiHand(own_source).image_bytes(5) == before
    assert FreiHand(own_source).mask(5).any()


def test_packed_images_stay_packed(own_source):
    """Prepared again without --pack, the packed files were forgotten and left lying about."""
    out = prepare(own_source, pack=True)
    before = listing(out)
    prepare(own_source)
    assert listing(out) == before
    changed = own_source / "training" / "rgb" / "00000000.jpg"
    changed.write_bytes((own_source / "training" / "rgb" / "00000001.jpg").read_bytes())
    prepare(own_source)
    assert FreiHand(out).image_bytes(0) == changed.read_bytes()


def test_the_result_may_lie_behind_a_link(own_source, tmp_path):
    """As on clusters, whose fast disks are elsewhere; and with what macOS leaves in folders that it has unpacked."""
    elsewhere = tmp_path / "a" / "fast" / "disk"
    elsewhere.mkdir(parents=True)
    (own_source / "prepared").symlink_to(elsewhere)
    (own_source / "training" / "rgb" / "._00000000.jpg").write_bytes(b"Mac OS X")
    prepare(own_source)
    assert FreiHand(own_source).image_bytes(1) == (own_source / "training" / "rgb" / "00000001.jpg").read_bytes()


def test_what_has_changed_is_done_again_and_nothing_else(own_source, tmp_path):
    out = prepare(own_source, tmp_path / "out")
    scale = (annotations(own_source, "training", "scale") * 2).tolist()
    (own_source / "training_scale.json").write_text(json.dumps(scale))
    said: list[str] = []
    prepare(own_source, tmp_path / "out", progress=lambda what, *_: said.append(what))
    assert set(said) == {"training_scale.json"}
    np.testing.assert_array_equal(FreiHand(out).arrays["scale"], scale)


@pytest.mark.parametrize("top", ["", "FreiHAND_pub_v2/"])
def test_zips_give_what_their_folder_gives(top, source, prepared, tmp_path):
    """The official archives: training and the evaluation's images in one, the evaluation's labels in the other."""
    archives = tmp_path / "archives"
    archives.mkdir()
    first = zipfile.ZipFile(archives / "FreiHAND_pub_v2.zip", "w", zipfile.ZIP_DEFLATED)
    second = zipfile.ZipFile(archives / "FreiHAND_pub_v2_eval.zip", "w")
    with first, second:
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            name = path.relative_to(source).as_posix()
            target = second if name.startswith("evaluation") and name not in ("evaluation_K.json",) else first
            target.write(path, top + name)
        second.writestr("../evil.txt", "climbs out")
        second.writestr(f"{top}evaluation/anno/00000000.json", "{}")
    out = prepare(archives)
    assert out == archives / "prepared"
    assert not (tmp_path / "evil.txt").exists()
    for split in ("training", "evaluation"):
        zipped, plain = FreiHand(archives, split), FreiHand(prepared, split)
        for name, values in plain.arrays.items():
            np.testing.assert_array_equal(zipped.arrays[name], values)
        assert [zipped.image_bytes(i) for i in range(len(plain))] == [plain.image_bytes(i) for i in range(len(plain))]
    assert FreiHand(archives).image_bytes(2, "mask") == (source / "training/mask/00000002.jpg").read_bytes()
    assert FreiHand(archives).meta["hand"]["sha256"] == HAND.sha256
    for archive in archives.glob("*.zip"):
        archive.unlink()
    prepare_again = FreiHand(archives, "training")  # the archives may go
    assert prepare_again.image(0).shape == (224, 224, 3)


def test_a_run_that_was_killed_anywhere_is_completed_by_the_next(source, tmp_path, monkeypatch):
    monkeypatch.setattr(freihand, "_PACK_BATCH", 4)
    monkeypatch.setattr(json_arrays, "PIECE_BYTES", 30_000)
    whole = listing(prepare(source, tmp_path / "whole", pack=True))
    steps: list[str] = []
    prepare(source, tmp_path / "counted", pack=True, progress=lambda what, *_: steps.append(what))

    class Killed(BaseException):
        pass

    for step in range(0, len(steps), 5):
        out, seen = tmp_path / f"out{step}", []

        def kill(what: str, done: int, total: int, seen: list[str] = seen, step: int = step) -> None:
            seen.append(what)
            if len(seen) == step + 1:
                raise Killed

        with pytest.raises(Killed):
            prepare(source, out, pack=True, progress=kill)
        assert not (out / "meta.json").exists()
        with pytest.raises(DataError, match="run `handmesh data prepare"):
            FreiHand(out)
        resumed: list[str] = []
        prepare(source, out, pack=True, progress=lambda what, *_, resumed=resumed: resumed.append(what))
        assert listing(out) == whole
        interrupted = seen[-1]
        assert not set(resumed) & (set(seen) - {interrupted}), "what was finished is not done again"
        if not interrupted.endswith(".json"):  # of the images, only those after the last mark are read again
            assert (seen + resumed).count(interrupted) == steps.count(interrupted)


def test_a_run_after_a_finished_one_goes_on_too_where_it_was(own_source):
    """Killed after it had packed the training set, the next one packed it again: in place of what the killed run had
    finished it counted what the one before had.
    """
    prepare(own_source)

    class Killed(BaseException):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if what.startswith("evaluation"):
            raise Killed

    with pytest.raises(Killed):
        prepare(own_source, pack=True, progress=kill)
    said: list[str] = []
    prepare(own_source, pack=True, progress=lambda what, *_: said.append(what))
    assert not [what for what in said if what.startswith("training")]
    assert FreiHand(own_source).image_bytes(5) == (own_source / "training" / "rgb" / "00000005.jpg").read_bytes()


def test_bytes_after_the_last_mark_are_written_again(source, tmp_path, monkeypatch):
    """Killed between the images and their mark, or with half a mark: neither may end up in the pack."""
    monkeypatch.setattr(freihand, "_PACK_BATCH", 4)
    whole = listing(prepare(source, tmp_path / "whole", pack=True))

    class Killed(BaseException):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if what == "training/rgb" and done == 8:
            raise Killed

    out = tmp_path / "out"
    with pytest.raises(Killed):
        prepare(source, out, pack=True, progress=kill)
    with open(out / "training_rgb.bin.partial", "ab") as file:
        file.write(b"half an image")
    with open(out / "training_rgb.bin.partial-ends", "ab") as file:
        file.write(b"abc")
    prepare(source, out, pack=True)
    assert listing(out) == whole


@pytest.mark.parametrize("limit", [3_000, 40_000, 100_000])
def test_a_full_disk_is_one_clear_error_and_room_completes_the_run(limit, source, tmp_path):
    resource = pytest.importorskip("resource", reason="limits on the size of files are POSIX")
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DataError, match=r"the disk is full.*make room"):
            prepare(source, out, pack=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (out / "meta.json").exists()
    prepare(source, out, pack=True)
    assert listing(out) == listing(prepare(source, tmp_path / "whole", pack=True))


def test_too_small_a_disk_is_noticed_before_the_work(source, tmp_path, monkeypatch):
    monkeypatch.setattr(freihand.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"0\.0 GB left"):
        prepare(source, tmp_path / "out")


def test_another_level_of_brackets_does_not_matter(own_source):
    expected = {name: annotations(own_source, "training", name) for name in ("mano", "scale")}
    (own_source / "training_mano.json").write_text(json.dumps(expected["mano"][:, 0].tolist()))
    (own_source / "training_scale.json").write_text(json.dumps(expected["scale"][:, None].tolist()))
    prepare(own_source)
    for name, values in expected.items():
        np.testing.assert_array_equal(FreiHand(own_source).arrays[name], values)


def test_one_split_alone_is_enough(own_source):
    for path in own_source.glob("training*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert available_splits(prepare(own_source)) == ("evaluation",)
    with pytest.raises(DataError, match="has no training set, only evaluation"):
        FreiHand(own_source, "training")


def test_labels_that_come_later_are_added(own_source):
    """The evaluation's labels are in an archive of their own, which people fetch later."""
    later = own_source / "evaluation_xyz.json"
    aside = later.rename(own_source / "aside.json")
    prepare(own_source)
    assert "xyz" not in FreiHand(own_source, "evaluation").arrays
    aside.rename(later)
    prepare(own_source)
    assert FreiHand(own_source, "evaluation").arrays["xyz"].shape == (M, 21, 3)


def test_the_real_set_in_a_synthetic_ones_place_is_manos(own_source, tmp_path):
    """Its labels went on being those of the hand that was drawn there before: so they were learnt, and scored."""
    out = prepare(own_source, tmp_path / "fast")
    assert FreiHand(out).labelled_hand.name == "builtin"
    (own_source / ABOUT).unlink()
    assert FreiHand(prepare(own_source, out)).labelled_hand.name == "mano"


def test_of_a_set_that_is_kept_the_hand_is_kept(own_source):
    """Of the training set, prepared and deleted, nobody else knows it any more."""
    out = prepare(own_source, pack=True)
    for path in (*own_source.glob("training*"), own_source / ABOUT):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert (
        FreiHand(prepare(own_source)).labelled_hand.name == FreiHand(out, "evaluation").labelled_hand.name == "builtin"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "training/rgb/00000007.jpg").unlink(), "23 images, wanted 24"),
        (
            lambda root: (root / "training/rgb/00000023.jpg").rename(root / "training/rgb/00000099.jpg"),
            "00000023.jpg is missing",
        ),
        (lambda root: shutil.rmtree(root / "evaluation/rgb"), "no evaluation/rgb/: unpack"),
        (lambda root: (root / "training_K.json").unlink(), "not training_K.json"),
        (lambda root: (root / "training_scale.json").write_text("[0.03]"), "do not belong together: .*scale 1"),
        (lambda root: (root / "training_xyz.json").write_text("[[1, 2]]"), "frames of 21 x 3 numbers"),
        (lambda root: [path.write_text("[]") for path in root.glob("training_*.json")], "K.json is an empty list"),
        (lambda root: (root / "handmesh.json").write_text("{"), "handmesh.json cannot be read"),
    ],
)
def test_incomplete_sets_are_refused(damage, message, own_source):
    damage(own_source)
    with pytest.raises(DataError, match=message):
        prepare(own_source)
    assert not (own_source / "prepared" / "meta.json").exists()


def test_places_without_freihand_are_told_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"lmb\.informatik"):
        prepare(tmp_path)
    with pytest.raises(DataError, match="There is nothing at"):
        prepare(tmp_path / "nowhere")


@pytest.mark.parametrize("end", [0.3, 0.99])
def test_a_broken_download_is_said_to_be_one(end, source, tmp_path):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.write(source / "training_K.json", "training_K.json")
    path = tmp_path / "FreiHAND_pub_v2.zip"
    path.write_bytes(whole.getvalue()[: int(end * len(whole.getvalue()))])
    with pytest.raises(DataError, match="downloaded completely"):
        prepare(tmp_path)


def test_a_damaged_archive_is_noticed(source, tmp_path):
    path = tmp_path / "FreiHAND_pub_v2.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(source / "training_K.json", "training_K.json")
    content = bytearray(path.read_bytes())
    at = content.find(b"[[[") + 40
    content[at : at + 1] = b"7" if content[at : at + 1] != b"7" else b"8"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged.*download it again"):
        prepare(tmp_path)


# ------------------------------------------------------------------ reading


def test_the_four_versions_share_their_labels(source, prepared):
    data = FreiHand(prepared)
    assert (len(data), data.annotation_count, data.versions) == (4 * N, N, ("gs", "hom", "sample", "auto"))
    for index in (2, 2 + N, 2 + 2 * N, 2 + 3 * N):
        assert data.annotation_of(index) == 2
        np.testing.assert_array_equal(data[index].labels.hand.joints, annotations(source, "training", "xyz")[2])
        np.testing.assert_array_equal(data.mask(index), data.mask(2))
        assert data.image_bytes(index) == (source / f"training/rgb/{index:08d}.jpg").read_bytes()
    assert [data.version_of(index) for index in (0, N, 4 * N - 1)] == ["gs", "hom", "auto"]
    decoded = cv2.imread(str(source / "training/rgb/00000009.jpg"))[..., ::-1]
    np.testing.assert_array_equal(data.image(9), decoded)
    assert not data[0].for_scoring
    assert FreiHand(prepared, "evaluation")[0].for_scoring
    with pytest.raises(IndexError):
        data[4 * N]
    with pytest.raises(DataError, match=r"has no training/rgb/00000024\.jpg"):
        data.image_bytes(4 * N)


def test_pose_labels_are_the_hand_that_was_drawn(prepared):
    model = HandModel(HAND).double()
    for split in ("training", "evaluation"):
        data = FreiHand(prepared, split, HAND)
        for index in range(0, len(data), 3):
            labels = data[index].labels.hand
            vertices, joints = model(torch.tensor(labels.pose), torch.tensor(labels.betas))
            difference = labels.vertices - vertices.numpy()
            np.testing.assert_allclose(difference, np.broadcast_to(difference[:1], (778, 3)), atol=1e-6)
            np.testing.assert_allclose(labels.joints - joints.numpy(), difference[:21] * 0 + difference[0], atol=1e-6)
    assert not FreiHand(prepared)[0].labels.hand.pose_known, "without a hand there is no pose"


def test_another_hands_pose_labels_are_refused(prepared):
    with pytest.raises(DataError, match="belong to the hand 'builtin'"):
        FreiHand(prepared, "training", HAND.mirrored())


def test_encoding_undoes_decoding():
    rng = np.random.default_rng(0)
    K = np.array([[480.0, 0, 112], [0, 481, 112], [0, 0, 1]])
    vectors, betas, root = rng.normal(0, 0.6, (16, 3)), rng.normal(size=10), np.array([0.03, -0.05, 0.7])
    mano = encode_mano(vectors, betas, root, K, HAND.hands_mean)
    assert mano.shape == (1, 61)
    pose, decoded_betas, root_keypoint, scale = decode_mano(mano, HAND.hands_mean)
    np.testing.assert_allclose(pose, [cv2.Rodrigues(vector)[0] for vector in vectors], atol=1e-12)
    np.testing.assert_array_equal(decoded_betas, betas)
    np.testing.assert_allclose(root_from_mano(root_keypoint, scale, K), root, atol=1e-12)
    assert scale == pytest.approx(480.5 / 0.7)
    stack = np.stack([mano, mano])
    np.testing.assert_array_equal(decode_mano(stack, HAND.hands_mean)[0][1], pose)


@pytest.mark.parametrize("pack", [False, True])
def test_a_set_can_be_sent_to_another_process(pack, source, tmp_path):
    data = FreiHand(prepare(source, tmp_path / "out", pack=pack), "training", HAND)
    first = data[3]
    sent = pickle.dumps(data)
    assert len(sent) < 10_000, "the arrays stay on disk"
    again = pickle.loads(sent)[3]
    np.testing.assert_array_equal(again.image, first.image)
    np.testing.assert_array_equal(again.labels.hand.pose, first.labels.hand.pose)


def test_damaged_files_are_named(own_prepared):
    data = FreiHand(own_prepared)
    (own_prepared / "training_rgb.bin").write_bytes(b"x" * 1_000_000)
    with pytest.raises(DataError, match=r"training/rgb/00000000\.jpg is damaged"):
        data.image(0)
    np.save(own_prepared / "training_K.npy", np.zeros((N, 3, 4)))
    with pytest.raises(DataError, match=r"training_K\.npy is \(6, 3, 4\), wanted \(6, 3, 3\)"):
        FreiHand(own_prepared).labels(0)
    (own_prepared / "training_K.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="cannot be read"):
        FreiHand(own_prepared).labels(0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_no_photograph_is_on_both_sides_of_a_split(share, prepared):
    data = FreiHand(prepared)
    kept, held_out = split_by_annotation(data, share, seed=1)
    assert sorted([*kept, *held_out]) == list(range(4 * N))
    assert not {i % N for i in kept} & {i % N for i in held_out}
    assert len(held_out) == 4 * round(share * N)
    for first, second in zip((kept, held_out), split_by_annotation(data, share, seed=1), strict=True):
        np.testing.assert_array_equal(first, second)
    assert any(not np.array_equal(kept, split_by_annotation(data, 0.5, seed=seed)[0]) for seed in range(2, 6))


def test_a_split_can_leave_versions_out(prepared):
    data = FreiHand(prepared)
    kept, held_out = split_by_annotation(data, 0.5, versions=("gs", "auto"))
    assert {i // N for i in [*kept, *held_out]} == {0, 3}
    with pytest.raises(DataError, match="no version 'color'"):
        split_by_annotation(data, versions=("color",))
    with pytest.raises(DataError, match="cannot be held out"):
        split_by_annotation(data, 1.0)


# ------------------------------------------------------------------ crops


def virtual_camera(sample: RawSample, crop: CropTransform) -> np.ndarray:
    """(3, 3) from the photograph's axes to those the labels of the crop are in, straight from the definition."""
    assert sample.labels.intrinsics is not None
    ray = sample.labels.intrinsics.ray(crop.center)
    axis = np.cross(ray, [0, 0, 1.0])
    sine, cosine = np.linalg.norm(axis) / np.linalg.norm(ray), ray[2] / np.linalg.norm(ray)
    facing = cv2.Rodrigues(axis / max(np.linalg.norm(axis), 1e-15) * math.atan2(sine, cosine))[0]
    c, s = math.cos(crop.rotation), math.sin(crop.rotation)
    mirror = np.diag([-1.0 if crop.mirror else 1.0, 1, 1])
    return mirror @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ facing


@pytest.mark.parametrize("name", ["frame", "metro", "box"])
def test_cropped_labels_are_what_the_turned_camera_sees(name, prepared):
    """Turned back and projected by the photograph's own camera, they fall on the keypoints of the crop."""
    data = FreiHand(prepared, "training", HAND)
    rng, jitter = np.random.default_rng(0), CropJitter(shift=0.3, no_rotation_prob=0.3)
    for index in range(0, len(data), 2):
        sample = data[index]
        crop = jitter(PROTOCOLS[name].crop(sample), rng)
        cropped = crop_sample(sample, crop, 64)
        crop_from_cam = virtual_camera(sample, crop)
        back = cropped.labels.joints.astype(float) @ crop_from_cam
        np.testing.assert_allclose(back, sample.labels.hand.joints, atol=1e-6)
        pixels = crop.to_ndc(sample.labels.intrinsics.project(back))
        np.testing.assert_allclose(cropped.labels.keypoints, pixels, atol=1e-4)
        np.testing.assert_allclose(cropped.labels.vertices @ crop_from_cam, sample.labels.hand.vertices, atol=1e-6)
        np.testing.assert_allclose(cropped.labels.pose[0], crop_from_cam @ sample.labels.hand.pose[0], atol=1e-6)
        np.testing.assert_allclose(cropped.labels.pose[1:], sample.labels.hand.pose[1:], atol=1e-6)
        assert cropped.labels.keypoints_known.all()
        assert all(
            (
                cropped.labels.joints_known,
                cropped.labels.vertices_known,
                cropped.labels.pose_known,
                cropped.labels.betas_known,
            )
        )


def test_facing_makes_labels_fit_a_weak_perspective_camera_better(prepared):
    """In a crop far off the axis, labels in the photograph's own axes would show another side of the hand."""
    data = FreiHand(prepared, "training", HAND)

    def residual(points: np.ndarray, keypoints: np.ndarray) -> float:
        A = np.zeros((42, 3))
        A[:, 0], A[:21, 1], A[21:, 2] = points[:, :2].T.ravel(), 1, 1
        solution = np.linalg.lstsq(A, keypoints.T.ravel(), rcond=None)[0]
        return float(np.abs(A @ solution - keypoints.T.ravel()).mean())

    better = []
    for index in range(N):
        sample = data[index]
        K = np.array([[300.0, 0, -200], [0, 300, 112], [0, 0, 1]])  # the same hand seen far beside the axis
        away = sample.labels.hand.joints + np.array([0.9 * sample.labels.hand.joints[0, 2], 0, 0])
        hand = sample.labels.hand._replace(joints=away)
        moved = replace(sample, labels=PhotoLabels(hand, intrinsics=Intrinsics.from_matrix(K)))
        crop = BOX.crop(moved)
        cropped = crop_sample(moved, crop, 64)
        plain = crop.vectors_to_crop(away)
        better.append(
            (residual(cropped.labels.joints, cropped.labels.keypoints), residual(plain, cropped.labels.keypoints))
        )
    with_turn, without = np.mean(better, axis=0)
    assert with_turn < 0.6 * without


def test_the_frame_is_the_image_and_metro_its_central_180_pixels(prepared):
    data = FreiHand(prepared, "evaluation")
    for index in range(M):
        sample = data[index]
        np.testing.assert_array_equal(crop_sample(sample, FRAME.crop(sample), 224).image, sample.image)
        metro = crop_sample(sample, METRO.crop(sample), 180)
        np.testing.assert_array_equal(metro.image, sample.image[22:202, 22:202])


def test_boxes_of_test_labels_are_used_only_when_asked_for_by_name(prepared):
    test_image, training_image = FreiHand(prepared, "evaluation")[0], FreiHand(prepared)[0]
    with pytest.raises(DataError, match="box-from-test-labels"):
        BOX.crop(test_image)
    by_name = crop_protocol(BOX_FROM_TEST_LABELS)
    assert by_name.remark is not None
    assert "test set's own labels" in by_name.remark
    assert all(PROTOCOLS[name].remark is None for name in ("frame", "metro", "box"))
    crop = by_name.crop(test_image)
    keypoints = crop.to_ndc(test_image.labels.keypoints_or_projection()[0])
    assert np.abs(keypoints).max() == pytest.approx(1 / 1.25), "the box fills its share of the crop"
    detected = replace(test_image, labels=replace(test_image.labels, box=np.array([10.0, 20, 110, 90])))
    assert BOX.crop(detected).center == (60, 55), "a detector's box is nobody's label"
    BOX.crop(training_image)
    with pytest.raises(DataError, match="'tight': wanted one of frame, metro, box"):
        crop_protocol("tight")


def mirrored(sample: RawSample) -> RawSample:
    """The photograph in a mirror: a left hand, its labels worked out by hand."""
    labels, width = sample.labels, sample.image.shape[1]
    flip = np.array([-1.0, 1, 1])
    F = np.diag(flip)
    K = labels.intrinsics.matrix
    K[0, 2] = width - 1 - K[0, 2]
    return RawSample(
        sample.name,
        np.ascontiguousarray(sample.image[:, ::-1]),
        PhotoLabels(
            labels.hand._replace(
                joints=labels.hand.joints * flip,
                vertices=labels.hand.vertices * flip,
                pose=F @ labels.hand.pose @ F,
                right=np.array(False),
            ),
            intrinsics=Intrinsics.from_matrix(K),
        ),
    )


def test_a_left_hand_becomes_the_right_hand_in_the_mirror(prepared):
    """A mirrored photograph of a left hand is the photograph of the right one, labels and pixels."""
    data = FreiHand(prepared, "training", HAND)
    for index in range(N):
        right, left = data[index], mirrored(data[index])
        for protocol in (FRAME, METRO, BOX):
            expected = crop_sample(right, protocol.crop(right), 56)
            found = crop_sample(left, protocol.crop(left), 56)
            assert protocol.crop(left).mirror
            np.testing.assert_allclose(found.image.astype(float), expected.image.astype(float), atol=2)
            for one, other in zip(found.labels, expected.labels, strict=True):
                np.testing.assert_allclose(one.astype(float), other.astype(float), atol=1e-5)
        # And posed in the left hand's model, its labels are its mesh.
        vertices, _ = HandModel(builtin_hand(Handedness.LEFT)).double()(
            torch.tensor(left.labels.hand.pose), torch.tensor(left.labels.hand.betas)
        )
        shift = left.labels.hand.vertices - vertices.numpy()
        np.testing.assert_allclose(shift, np.broadcast_to(shift[:1], shift.shape), atol=1e-6)


def test_missing_labels_become_flags(prepared):
    sample = FreiHand(prepared)[0]
    bare = replace(sample, labels=PhotoLabels())
    cropped = crop_sample(bare, FRAME.crop(bare), 64)
    assert not any(value.any() for name, value in cropped.labels._asdict().items() if name.endswith("known"))
    full = crop_sample(sample, FRAME.crop(sample), 64)
    for name, value in cropped.labels._asdict().items():
        assert (value.shape, value.dtype) == (getattr(full.labels, name).shape, getattr(full.labels, name).dtype), name
        assert np.isfinite(value.astype(float)).all()
    np.testing.assert_array_equal(cropped.labels.pose, np.broadcast_to(np.eye(3), (16, 3, 3)))
    with pytest.raises(DataError, match="no box, and no keypoints to make one from"):
        BOX.crop(bare)


def test_unknown_keypoints_keep_out_of_boxes(prepared):
    sample = FreiHand(prepared)[0]
    keypoints = np.array(sample.labels.keypoints_or_projection()[0])
    keypoints[5] = 1e6
    hand = hand_labels(keypoints=keypoints, keypoints_known=~np.isin(np.arange(21), [5, 6]), dtype=np.float64)
    partial = replace(sample, labels=PhotoLabels(hand))
    known = np.delete(keypoints, [5, 6], axis=0)
    np.testing.assert_allclose(partial.labels.hand_box(), [*known.min(axis=0), *known.max(axis=0)])
    cropped = crop_sample(partial, BOX.crop(partial), 64)
    assert (~cropped.labels.keypoints_known).nonzero()[0].tolist() == [5, 6]
    assert (cropped.labels.keypoints[[5, 6]] == 0).all()


@pytest.mark.parametrize("crop", ["metro", "box"])
def test_our_hand_learns_where_its_own_joints_are(crop, own_source, prepared, stand_in_mano, caplog):
    """The published labels are MANO's joints, and were taken for ours: knuckles 10 to 12 mm off."""
    for split in SPLITS:
        file = own_source / f"{split}_xyz.json"
        file.write_text(json.dumps(mano_joints(json.loads(file.read_text())).tolist()))
    (own_source / ABOUT).unlink()  # as the published set, it does not say whose hand it is: MANO's
    prepare(own_source)
    tree = {"freihand": {"directory": str(own_source), "crop": crop, "validation": 0.5}}
    config = parse_config({"data": tree, "model": {"resolution": 64}}, "test")
    training, watched = freihand_source(config.data.freihand, config, HAND)
    assert "moved from where MANO has them" in caplog.text
    ours = FreiHand(prepared, "training")
    for source in (training, *watched):
        for position, index in enumerate(source.indices):
            found = source.sample(position, 64)
            expected = crop_sample(ours[index], source.protocol.crop(source.data[index]), 64)
            np.testing.assert_array_equal(found.image, expected.image)
            np.testing.assert_allclose(found.labels.joints, expected.labels.joints, atol=1e-6)
            np.testing.assert_allclose(found.labels.keypoints, expected.labels.keypoints, atol=1e-5)
            assert found.labels.keypoints_known.all()
            assert not found.labels.vertices_known
    if crop == "metro":  # which does not depend on labels
        found, expected = (
            source.example(0, np.random.default_rng(0), 64)
            for source in (training, replace(training, data=ours, mano_joints=False))
        )
        np.testing.assert_allclose(found.labels.joints, expected.labels.joints, atol=1e-6)
        np.testing.assert_allclose(found.labels.keypoints, expected.labels.keypoints, atol=1e-5)
        assert freihand_test_set(config.data.freihand, config, HAND).mano_joints
    assert not freihand_source(config.data.freihand, config, stand_in_mano)[0].mano_joints


def test_jitter_is_metros(prepared):
    crop = CropTransform((111.5, 111.5), 180.0)
    rng = np.random.default_rng(0)
    crops = [CropJitter()(crop, rng) for _ in range(4000)]
    sizes = np.array([c.size for c in crops])
    turns = np.degrees([c.rotation for c in crops])
    assert (sizes.min(), sizes.max()) == (135, 225)
    assert (turns == 0).mean() == pytest.approx(0.6, abs=0.03)
    turned = turns[turns != 0]
    assert np.abs(turned).max() == pytest.approx(180)
    assert np.percentile(np.abs(turned), 68.3) == pytest.approx(90, rel=0.08), "a normal one of 90 degrees"
    assert {c.center for c in crops} == {(111.5, 111.5)}
    shifted = [CropJitter(shift=0.1)(crop, rng) for _ in range(200)]
    assert max(np.abs(np.subtract(c.center, crop.center)).max() / c.size for c in shifted) == pytest.approx(0.1)


# ------------------------------------------------------------------ check and show


def verdicts(folder: Path) -> dict[str, bool | None]:
    return {row.subject: row.passed for row in check(folder)}


def test_a_sound_set_passes_every_check(prepared):
    rows = check(prepared)
    assert all(row.passed is not False for row in rows), [row for row in rows if row.passed is False]
    subjects = {row.subject for row in rows}
    for claim in ("principal points", "scale = |joint 9 - joint 10|", "joints regressed from vertices"):
        assert f"training: {claim}" in subjects
        assert f"evaluation: {claim}" in subjects
    zero = next(row for row in rows if row.subject == "evaluation: all-zero prediction, joints")
    xyz = FreiHand(prepared, "evaluation").arrays["xyz"]
    plain = np.linalg.norm(xyz, axis=-1).mean()
    aligned = np.linalg.norm(xyz - xyz.mean(axis=1, keepdims=True), axis=-1).mean()  # all points on the mean
    assert zero.found == f"{100 * plain:.2f} / {100 * aligned:.2f} cm"
    assert zero.passed is None
    assert ZERO_SCORES_CM["xyz"] == (70.79, 4.73)


DAMAGES: dict[str, tuple[str, Any]] = {
    "principal points": ("K", lambda K: K + np.eye(3)[0, :, None] @ [[0, 0, 0.5]]),
    "cameras": ("K", lambda K: K * [[1.1, 1, 1], [1, 1, 1], [1, 1, 1]]),
    "scale = |joint 9 - joint 10|": ("scale", lambda scale: scale * 1.01),
    "joints regressed from vertices": ("xyz", lambda xyz: xyz + 0.002),
    "MANO parameters, decoded again": ("mano", lambda mano: mano * ([1.0] * 48 + [0.5] * 10 + [1.0] * 3)),
    "depth": ("verts", lambda verts: 1000 * verts),
    "values": ("mano", lambda mano: np.where(np.arange(61) == 50, np.nan, mano)),
    "joints in the image": ("xyz", lambda xyz: xyz + 1.0),
    "vertices on the mask": ("verts", lambda verts: verts + np.array([0.1, 0, 0])),
}


@pytest.mark.parametrize("claim", DAMAGES)
def test_every_check_can_fail(claim, own_prepared):
    name, damage = DAMAGES[claim]
    path = own_prepared / f"training_{name}.npy"
    array = np.load(path)
    np.save(path, damage(array).astype(array.dtype))
    found = verdicts(own_prepared)
    assert found[f"training: {claim}"] is False
    assert all(passed is not False for subject, passed in found.items() if subject.startswith("evaluation"))


def test_hands_behind_the_camera_are_counted_with_an_example(own_prepared):
    path = own_prepared / "training_xyz.npy"
    xyz = np.load(path)
    xyz[[1, 2], 3] *= -1  # one joint of each
    np.save(path, xyz)
    depth = next(row for row in check(own_prepared) if row.subject == "training: depth")
    assert depth.passed is False
    assert f"2 annotations, such as 00000001 (xyz, {xyz[1, 3, 2]:.3f} m)" in depth.found


def test_a_wrong_order_of_joints_is_caught(own_prepared):
    """InterHand's order, little finger first, looks like a hand and is none."""
    path = own_prepared / "training_xyz.npy"
    xyz = np.load(path)
    np.save(path, xyz[:, [0, *range(17, 21), *range(13, 17), *range(9, 13), *range(5, 9), *range(1, 5)]])
    assert verdicts(own_prepared)["training: joints regressed from vertices"] is False


def test_a_synthetic_set_of_mano_is_not_taken_for_the_real_one(stand_in_mano, backgrounds, tmp_path):
    """It was asked for 32,560 annotations, since its hand is called mano as the real one's is."""
    folder = tmp_path / "FreiHAND"
    write_like_freihand(folder, 2, 1, hand=stand_in_mano, backgrounds=backgrounds)
    prepare(folder)
    assert FreiHand(folder).mano_joints
    rows = check(folder)
    assert all(row.passed is not False for row in rows), [row for row in rows if row.passed is False]
    (decoded,) = (row for row in rows if row.subject == "training: MANO parameters, decoded again")
    assert decoded.passed
    theirs = check_freihand(folder, hand=builtin_hand())
    (decoded,) = (row for row in theirs if row.subject == "training: MANO parameters, decoded again")
    assert decoded.passed is None
    assert "of the hand mano" in decoded.found


def test_the_real_set_is_held_to_its_real_counts(own_source, monkeypatch, tmp_path):
    """Without handmesh.json it claims to be FreiHAND; and without MANO some claims cannot be checked."""
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "none"))
    (own_source / "handmesh.json").unlink()
    found = {row.subject: row for row in check(prepare(own_source))}
    assert found["training: annotations"].passed is False
    assert found["training: annotations"].wanted == "32560"
    regressed = found["training: joints regressed from vertices"]
    assert regressed.passed is None
    assert "handmesh mano add" in regressed.found
    (tmp_path / "none").mkdir()
    HAND.save(tmp_path / "none" / "MANO_RIGHT.npz")
    found = {row.subject: row for row in check(own_source)}
    assert found["training: joints regressed from vertices"].passed
    assert found["training: MANO parameters, decoded again"].passed
    zero = found["evaluation: all-zero prediction, joints"]
    assert zero.passed is None, "three images cannot score what 3,960 do"


def test_a_check_that_finds_the_wrong_test_set_fails(prepared, tmp_path):
    """3,960 frames, but not FreiHAND's: the all-zero prediction scores otherwise. Two rows said FAIL and the exit code
    0, for a comparison of numpy's is no `bool`, and its `False` is not `False`.
    """
    stand_in, count = tmp_path / "prepared", 3960
    stand_in.mkdir()
    ours = FreiHand(prepared, "evaluation")
    for name, values in ours.arrays.items():
        np.save(stand_in / f"evaluation_{name}.npy", np.resize(values, (count, *values.shape[1:])))
    picture = ours.image_bytes(0)
    (stand_in / "evaluation_rgb.bin").write_bytes(picture)
    ends = np.full(count + 1, len(picture))
    ends[0] = 0
    np.save(stand_in / "evaluation_rgb.index.npy", ends)
    images = {"rgb": {"count": count, "packed": "evaluation_rgb.bin", "index": "evaluation_rgb.index.npy"}}
    split = {"annotations": count, "arrays": list(ours.arrays), "images": images}
    meta = {**ours.meta, "splits": {"evaluation": split}, "hand": {"name": "mano", "sha256": None}, "files": {}}
    (stand_in / "meta.json").write_text(json.dumps(meta))
    rows = {row.subject: row for row in check(stand_in, 1)}
    for name in ("joints", "vertices"):
        assert rows[f"evaluation: all-zero prediction, {name}"].passed is False
    checked = run("data", "check", stand_in, "--count", "1")
    assert checked.exit_code == 1
    assert " 0 failed" not in checked.output


def test_a_photograph_cut_in_half_is_found(own_source):
    """OpenCV fills up what is missing, and says nothing."""
    path = own_source / "training" / "rgb" / "00000003.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    prepare(own_source)
    (decoded,) = (row for row in check(own_source, None) if row.subject == f"training: {4 * N} images decoded")
    assert decoded.passed is False
    assert "00000003.jpg" in decoded.found


@pytest.fixture
def torn_source(own_source) -> Path:
    """Two photographs were cut in half while they were copied, one of them in a file of full size."""
    rgb = own_source / "training" / "rgb"
    for number, filled in ((3, False), (10, True)):
        whole = (rgb / f"{number:08d}.jpg").read_bytes()
        half = whole[: len(whole) // 2]
        (rgb / f"{number:08d}.jpg").write_bytes(half.ljust(len(whole), b"\0") if filled else half)
    return prepare(own_source).parent


def freihand_run(directory: Path, **settings: Any) -> list[Any]:
    """The batches of one epoch."""
    tree = {"freihand": {"directory": str(directory), "validation": 0}, **settings}
    small = {"model": {"resolution": 64}, "batch_size": 4, "steps": N, "loader_workers": 0}
    config = parse_config({"data": tree, **small}, "test")
    source, _ = freihand_source(config.data.freihand, config, HAND)
    return list(training_batches([source], config, 0))


def test_a_run_never_learns_from_half_a_photograph(torn_source):
    """OpenCV, which read them, fills up with grey: a run learnt that, unless `data check --all` was asked before."""
    with pytest.raises(DataError, match=r"training/rgb/000000(03|10)\.jpg is damaged: copy it again"):
        freihand_run(torn_source)


def test_a_run_goes_on_without_torn_photographs_if_it_is_told_to(torn_source, caplog):
    assert len(freihand_run(torn_source, skip_bad_images=True)) == N
    assert "2 images could not be read and were skipped: " in caplog.messages[-1]
    assert all(f"training/rgb/{number:08d}.jpg" in caplog.messages[-1] for number in (3, 10))


def test_labels_of_the_test_set_are_said_to_come_in_the_second_archive(own_source):
    for name in ("xyz", "verts", "mano"):
        (own_source / f"evaluation_{name}.json").unlink()
    (own_source / "handmesh.json").unlink()
    (labels,) = (row for row in check(prepare(own_source)) if row.subject == "evaluation: labels")
    assert labels.passed is False
    assert labels.found == "missing xyz, verts, mano: they come in a second archive, FreiHAND_pub_v2_eval.zip"


def test_checking_what_is_not_prepared_says_how_to(source, tmp_path):
    with pytest.raises(DataError, match="run `handmesh data prepare"):
        check(tmp_path)


@pytest.mark.parametrize("look", [check, show])
def test_a_name_at_which_there_is_nothing_is_not_to_be_prepared(look, tmp_path):
    with pytest.raises(DataError, match=r"There is nothing at .*labels\.jsonl"):
        look(tmp_path / "labels.jsonl")


def test_the_python_block_of_the_page_runs(own_source, monkeypatch):
    """It read `sample.labels.joints`, and the labels of a photograph have a hand and a camera."""
    page = (Path(__file__).parents[2] / "docs" / "how_to" / "data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    prepare(own_source)
    monkeypatch.chdir(own_source.parent)
    found: dict[str, Any] = {}
    exec(block.replace('"mano"', '"builtin"').replace("40_000", str(N + 1)), found)
    assert found["sample"].labels.hand.pose_known
    assert len(found["train"]) + len(found["validation"]) == 4 * N


def test_sheets_show_all_versions_with_their_labels(prepared, source):
    sheet = show(prepared, 8, seed=1)
    assert sheet.shape == (224, 8 * 224, 3)
    data = FreiHand(prepared)
    tile = show(prepared, indices=[2])
    image = data.image(2)
    changed = np.abs(tile.astype(int) - image).max(axis=-1) > 30
    keypoints = data[2].labels.keypoints_or_projection()[0].round().astype(int)
    assert changed[keypoints[:, 1], keypoints[:, 0]].all(), "a dot on every joint"
    assert changed[:180].mean() < 0.15, "and the photograph around it"
    mesh = show(prepared, 3, split="evaluation", protocol="metro", mesh=True)
    assert mesh.shape == (224, 3 * 224, 3)
    with pytest.raises(DataError, match="no 'test' set"):
        show(prepared, split="test")


# ------------------------------------------------------------------ the commands


def run(*arguments: str | Path) -> Any:
    from handmesh.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_from_nothing_to_a_checked_set(tmp_path, monkeypatch, backgrounds):
    monkeypatch.setattr("handmesh.synth.Backgrounds", lambda *_, **__: backgrounds)
    folder = tmp_path / "set"
    made = run("synth", "--like-freihand", folder, "--count", "2", "--evaluation", "1")
    assert made.exit_code == 0, made.output
    assert run("data", "prepare", folder).exit_code == 0
    checked = run("data", "check", folder)
    assert checked.exit_code == 0, checked.output
    assert "0 failed" in checked.output
    assert run("data", "show", folder, "--out", tmp_path / "new" / "sheet.png", "--count", "4").exit_code == 0
    assert cv2.imread(str(tmp_path / "new" / "sheet.png")).shape == (224, 4 * 224, 3)
    scale = folder / "prepared" / "training_scale.npy"
    np.save(scale, np.load(scale) * 2)
    assert run("data", "check", folder).exit_code == 1


def test_what_comes_next_is_what_was_prepared(source, tmp_path):
    """Of a zip that was named it was the zip, which was then read as a JSONL file."""
    with zipfile.ZipFile(tmp_path / "FreiHAND.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in source.rglob("*"):
            archive.write(path, path.relative_to(source))
    said = run("data", "prepare", tmp_path / "FreiHAND.zip").output
    *_, command = said.partition("next: handmesh ")
    assert run(*command.split()).exit_code == 0, said


@pytest.mark.parametrize(
    "arguments",
    [
        ("synth",),
        ("synth", "--like-freihand", "a", "--out", "b"),
        ("synth", "--like-freihand", "a", "--size", "128"),
        ("synth", "--out", "a", "--evaluation", "3"),
        ("synth", "--like-freihand", "a", "--hand-model", "smplx"),
        ("data", "show", "a", "--out", "sheet.txt"),
        ("data", "check", "nowhere"),
        ("data", "prepare", "nowhere"),
        ("mano", "add", "nowhere.pkl"),
    ],
)
def test_mistakes_are_errors_of_ours(arguments, tmp_path, monkeypatch):
    from handmesh.errors import HandMeshError

    monkeypatch.chdir(tmp_path)
    assert isinstance(run(*arguments).exception, HandMeshError)
    assert not list(tmp_path.iterdir())
