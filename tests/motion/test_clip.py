"""A clip through the whole journey, with an ideal network (marker_hands.py): log, overlay, animation, resuming."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from full_disk import disk_with
from marker_hands import MarkerEngine, draw, hand_at
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.detect import GivenBoxes
from handmesh.errors import ConfigError, DataError, ExportError, ImageError
from handmesh.files.image import encode_image
from handmesh.files.video import ClipSource, FolderSource, Frame
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import JOINT_NAMES, Handedness, both_sides, builtin_hand
from handmesh.motion.clip import VideoOptions, convert_clip, follow_video
from handmesh.motion.follow import HandFollower
from handmesh.motion.log import hand_of, read_frames, read_header, read_tracks, record_of
from handmesh.motion.smoothing import Smoothing
from handmesh.predict import Predictor
from handmesh.system.atomic import write_atomically

COUNT = 36
HIDDEN = range(12, 22)


def place(index):
    return hand_at(90 + 3 * index, 170, 48, 0.02 * index)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A hand that moves, and for ten frames is not there."""
    folder = tmp_path_factory.mktemp("wave")
    for index in range(COUNT):
        image = draw([] if index in HIDDEN else [place(index)])
        write_atomically(folder / f"{index:03d}.png", encode_image(image))
    return folder


def convert(pictures, out, options=None, **more):
    predictor = Predictor(MarkerEngine())
    wanted = options or VideoOptions(codec="mp4v", bvh=True)
    return convert_clip(FolderSource(pictures, 25.0), out, predictor, options=wanted, **more), predictor.engine


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    result, _ = convert(pictures, out)
    return out, result


@pytest.mark.parametrize("fails", [False, True])
def test_the_clip_is_closed_in_the_end(fails, pictures, tmp_path, monkeypatch):
    """Of a path nobody else could: its file stayed open until the source was collected."""
    closed = []
    monkeypatch.setattr(FolderSource, "close", lambda self: closed.append(self))
    side, options = "both" if fails else "auto", VideoOptions(overlay=False, animation=False)
    with pytest.raises(ConfigError) if fails else nullcontext():
        convert_clip(pictures, tmp_path, Predictor(MarkerEngine()), handedness=side, options=options)
    assert len(closed) == 1


def test_it_writes_what_it_says(whole):
    out, result = whole
    assert result.frames == COUNT
    assert result.frames_with_hands >= COUNT - len(HIDDEN)
    assert result.hands == 1
    assert {path.name for path in result.files} == {"hands.jsonl", "overlay.mp4", "hand.glb", "right_hand_1.bvh"}
    assert all(path.stat().st_size > 1000 for path in result.files)
    assert len(list(iter(ClipSource(out / "overlay.mp4").read, None))) == COUNT


def test_the_log_says_where_the_hand_is(whole):
    out, _ = whole
    header = read_header(out / "hands.jsonl")
    assert (header["width"], header["height"], header["fps"]) == (320, 240, 25.0)
    items = list(read_frames(out / "hands.jsonl"))
    assert [item["frame"] for item in items] == list(range(COUNT))
    assert items[7]["time"] == pytest.approx(7 / 25)
    assert json.loads((out / "hands.jsonl").read_bytes().splitlines()[-1]) == {"end": True, "frames": COUNT}
    hand = items[0]["hands"][0]
    manual = (Path(__file__).parents[2] / "docs" / "how_to" / "video.md").read_text(encoding="utf-8")
    described = manual.partition("### hands.jsonl")[2].partition("### hand.glb")[0]
    assert [name for name in (*header, *hand) if f"`{name}`" not in described] == []
    assert (hand["id"], hand["handedness"]) == (1, "right")
    np.testing.assert_allclose(hand["keypoints_px"][0], place(0)[0], atol=1.5)
    # The numbers belong together: parameters give the joints, and the camera draws them near their keypoints.
    K = np.array(header["intrinsics_px"])
    for item in items:
        for hand in item["hands"]:
            posed = builtin_hand().shaped(hand["betas"]).posed(matrix_from_vector(hand["pose"]))
            np.testing.assert_allclose(posed.joints + hand["translation"], hand["joints"], atol=1e-5)
            drawn = np.array(hand["joints"]) @ K.T
            drawn = drawn[:, :2] / drawn[:, 2:]
            assert np.abs(drawn - hand["keypoints_px"]).max() < 6, "weak perspective differs from the pinhole by depth"


def test_a_clip_is_followed_in_python_as_the_command_does(pictures, whole):
    followed = list(follow_video(pictures, Predictor(MarkerEngine()), fps=25.0))
    logged = list(read_frames(whole[0] / "hands.jsonl"))
    assert [frame.index for frame, _ in followed] == [item["frame"] for item in logged]
    for (_, hands), item in zip(followed, logged, strict=True):
        assert list(hands) == [hand["id"] for hand in item["hands"]]
        for hand, record in zip(hands.values(), item["hands"], strict=True):
            np.testing.assert_allclose(hand.keypoints_image(), record["keypoints_px"], atol=0.01)
    assert any(hands for _, hands in followed)


TIP = JOINT_NAMES.index("index_tip")


class DoubtfulEngine(MarkerEngine):
    """Takes the index finger's tip for misplaced, and more so from one picture to the next."""

    def __init__(self):
        super().__init__()
        self.record["model"]["joint_confidence_head"] = True

    def _answer(self, crop):
        answer = list(super()._answer(crop))
        answer[7] = np.where(np.arange(21) == TIP, 0.25 - 0.001 * self.crop_count, 0.9)
        return tuple(answer)


@pytest.mark.parametrize("smoothing", [Smoothing(), None])
def test_a_followed_finger_that_is_unsure_is_said_and_drawn_paler(smoothing, pictures, tmp_path):
    """The log had no `joint_scores`, and so the overlay, which is drawn from it, took all joints for sure."""
    options = VideoOptions(overlay=False, animation=False, smoothing=smoothing)
    convert_clip(pictures, tmp_path, Predictor(DoubtfulEngine()), options=options)
    logged = [hand for item in read_frames(tmp_path / "hands.jsonl") for hand in item["hands"]]
    followed = follow_video(pictures, Predictor(DoubtfulEngine()), smoothing=smoothing)
    hands = [hand for _, hands in followed for hand in hands.values()]
    models = both_sides(builtin_hand())
    assert len(hands) == len(logged) > COUNT // 2
    for hand, record in zip(hands, logged, strict=True):
        assert int(hand.joint_scores.argmin()) == TIP
        np.testing.assert_allclose(record["joint_scores"], hand.joint_scores, atol=1e-4)
        drawn = hand_of(record, hand.intrinsics, models)
        assert np.ptp(drawn.mesh.color, axis=0).max() > 50, "it is paler at that finger"
        np.testing.assert_allclose(drawn.mesh.color, hand.mesh.color, atol=1)
    assert len({record["joint_scores"][TIP] for record in logged}) > COUNT // 2, "each frame has its own"
    sure = next(hand for _, hands in follow_video(pictures, Predictor(MarkerEngine())) for hand in hands.values())
    assert "joint_scores" not in record_of(1, sure, models)


def test_two_runs_do_not_write_to_one_folder(pictures, whole, tmp_path):
    """Frames were in the log twice, and both runs ended with words of a full disk or of times that do not grow."""
    refused = []

    def begin_another(done, _):
        if done == COUNT // 2:
            for restart in (False, True):
                with pytest.raises(ExportError, match=r"Another run is writing to .*give another folder"):
                    convert(pictures, tmp_path, restart=restart)
                refused.append(restart)

    result, _ = convert(pictures, tmp_path, progress=begin_another)
    assert refused == [False, True]
    assert result.frames == COUNT
    assert (tmp_path / "hands.jsonl").read_bytes() == (whole[0] / "hands.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole[0].iterdir()}, "no lock is left"


def test_a_clip_is_converted_by_its_name(pictures, tmp_path):
    options = VideoOptions(overlay=False, animation=False)
    assert convert_clip(pictures, tmp_path / "out", Predictor(MarkerEngine()), options=options).frames == COUNT
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["hands.jsonl"]


def test_a_clips_camera_is_given_as_a_photos(pictures, tmp_path):
    """`convert_clip` took nothing but a function, `follow_video` no K, and neither a folder's name as text."""
    options = VideoOptions(overlay=False, animation=False)
    camera = Intrinsics(900, 900, 100, 120)
    for given in (camera, camera.matrix, lambda width, height: camera):
        out = f"{tmp_path / type(given).__name__}"
        convert_clip(pictures, out, Predictor(MarkerEngine()), intrinsics=given, options=options)
        np.testing.assert_allclose(read_header(Path(out) / "hands.jsonl")["intrinsics_px"], camera.matrix)
    _, hands = next(follow_video(pictures, Predictor(MarkerEngine()), intrinsics=camera.matrix))
    assert hands[1].intrinsics == camera
    (hand,) = HandFollower(Predictor(MarkerEngine()))(draw([place(0)]), 0.0, camera.matrix).values()
    assert hand.intrinsics == camera


@pytest.mark.parametrize("clip", [None, b"clip.mp4", ["clip.mp4"]])
def test_what_is_no_clip_is_refused(clip, tmp_path):
    message = rf"Cannot read a clip from {type(clip).__name__}; give a file"
    with pytest.raises(ImageError, match=message):
        follow_video(clip, Predictor(MarkerEngine()))
    with pytest.raises(ImageError, match=message):
        convert_clip(clip, tmp_path / "out", Predictor(MarkerEngine()))


def test_a_cameras_number_may_be_a_number():
    with pytest.raises(ImageError, match=r"[Cc]amera 99"):
        follow_video(99, Predictor(MarkerEngine()))


def test_a_camera_is_followed_without_waiting():
    """No frame of it waits until a new hand's side is certain; and it is let go when nobody wants more."""

    class Camera:
        live, closed, taken = True, False, 0

        def read(self):
            self.taken += 1
            return Frame(self.taken - 1, self.taken / 25, draw([place(self.taken)]), 0.0)

        def close(self):
            self.closed = True

    camera = Camera()
    frames = follow_video(camera, Predictor(MarkerEngine(heads=True)))
    frame, hands = next(frames)
    assert (frame.index, len(hands), camera.taken) == (0, 1, 1)
    frames.close()
    assert camera.closed


def test_a_record_is_the_hand(pictures):
    (hand,) = Predictor(MarkerEngine())(draw([place(3)]), handedness="left")
    hand = replace(hand, handedness_source="found", handedness_score=0.87)
    models = both_sides(builtin_hand())
    again = hand_of(json.loads(json.dumps(record_of(1, hand, models))), hand.intrinsics, models)
    assert (again.handedness, again.handedness_source, again.handedness_score) == (Handedness.LEFT, "found", 0.87)
    np.testing.assert_allclose(again.vertices, hand.vertices, atol=2e-6)
    np.testing.assert_allclose(again.vertices_image(), hand.vertices_image(), atol=0.02)
    np.testing.assert_allclose(again.vertices_cam(), hand.vertices_cam(), atol=1e-5)


def test_tracks_are_the_animated_hands(whole):
    (track,) = read_tracks(whole[0] / "hands.jsonl")
    assert track.handedness == Handedness.RIGHT
    assert (np.diff(track.frames) > 1).any(), "it was not seen for a while"
    assert track.rotations.shape == (len(track.times), 16, 3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("when", [1, 9, 17])
def test_a_run_that_was_killed_goes_on_and_ends_the_same(pictures, whole, tmp_path, when):
    def kill(done, _):
        if done == when:
            raise Killed

    with pytest.raises(Killed):
        convert(pictures, tmp_path, progress=kill)
    assert {path.name for path in tmp_path.iterdir()} == {"hands.jsonl", ".hands.jsonl.resume"}
    with open(tmp_path / "hands.jsonl", "ab") as log:
        log.write(b'{"frame":99,"ti')  # a line that was being written
    result, _ = convert(pictures, tmp_path)
    assert result.resumed_at == when
    assert result.frames == COUNT
    for name in ("hands.jsonl", "hand.glb", "right_hand_1.bvh"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """A left hand that comes in the fifth picture, and in its first three looks like a right one."""
    folder = tmp_path_factory.mktemp("mistaken")
    for index in range(COUNT):
        side = "right" if index < 7 else "left"
        hands = [hand_at(90 + 3 * index, 170, 48, 0.02 * index, side)] if index >= 4 else []
        write_atomically(folder / f"{index:03d}.png", encode_image(draw(hands)))
    return folder


def convert_mistaken(pictures, out, **more):
    engine = MarkerEngine(heads=True)
    options = VideoOptions(overlay=False)
    return convert_clip(FolderSource(pictures, 25.0), out, Predictor(engine), options=options, **more)


def test_no_hand_begins_as_the_other_one(mistaken, tmp_path):
    """Live, its side is put right after some frames; a clip can be followed again. Killed and gone on with, too."""
    live = HandFollower(Predictor(MarkerEngine(heads=True)), smoothing=Smoothing())
    sides = [
        [h.handedness for h in live(f.image, f.time).values()] for f in iter(FolderSource(mistaken, 25.0).read, None)
    ]
    assert sides[4] == [Handedness.RIGHT]
    assert sides[-1] == [Handedness.LEFT]

    result = convert_mistaken(mistaken, tmp_path / "whole")
    frames = list(read_frames(tmp_path / "whole" / "hands.jsonl"))
    found = [[(hand["id"], hand["handedness"]) for hand in item["hands"]] for item in frames]
    assert found == [[]] * 4 + [[(1, "left")]] * (COUNT - 4)
    assert result.hands == 1

    for when in (2, 5, 12):

        def kill(done, _, when=when):
            if done == when:
                raise Killed

        with pytest.raises(Killed):
            convert_mistaken(mistaken, tmp_path / "killed", progress=kill)
        assert convert_mistaken(mistaken, tmp_path / "killed").resumed_at == when
        for name in ("hands.jsonl", "hand.glb"):
            assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        shutil.rmtree(tmp_path / "killed")


def test_smoothing_starts_anew_with_the_other_side(mistaken):
    """Else a mirrored pose would swing over through poses that no hand takes."""
    raw, smooth = (HandFollower(Predictor(MarkerEngine(heads=True)), smoothing=s) for s in (None, Smoothing()))
    before = Handedness.RIGHT
    for frame in iter(FolderSource(mistaken, 25.0).read, None):
        one, other = (live(frame.image, frame.time).get(1) for live in (raw, smooth))
        if one is not None and one.handedness != before:
            np.testing.assert_allclose(other.vertices, one.vertices, atol=1e-5)
            return
    raise AssertionError("the side was not put right")


def test_a_finished_run_is_only_drawn_again(pictures, whole):
    out, _ = whole
    before = (out / "hands.jsonl").read_bytes()
    result, engine = convert(pictures, out, VideoOptions(codec="mp4v", skeleton=True, animation=False))
    assert engine.crop_count == 0
    assert result.resumed_at == COUNT
    assert (out / "hands.jsonl").read_bytes() == before


def test_the_folder_of_another_run_is_refused(pictures, whole):
    with pytest.raises(DataError, match=r"setting \(handedness: auto, now left\).*--restart"):
        convert(pictures, whole[0], handedness="left")


def test_a_full_disk_is_one_clear_error(pictures, tmp_path):
    """Closing the log failed once more and hid the message behind a traceback."""
    with disk_with(5000), pytest.raises(ExportError, match=r"hands\.jsonl: File too large"):
        convert(pictures, tmp_path, VideoOptions(overlay=False))


def test_smoothing_can_be_off(pictures):
    live = HandFollower(Predictor(MarkerEngine(noise=0.03)), smoothing=None)
    steady = HandFollower(Predictor(MarkerEngine(noise=0.03)), smoothing=VideoOptions().smoothing)
    poses = [[h(draw([place(0)]), i / 30)[1].pose for i in range(20)] for h in (live, steady)]
    jitter = [np.abs(np.diff(values, n=2, axis=0)).mean() for values in poses]
    assert jitter[1] < 0.5 * jitter[0]


def test_a_known_camera_is_used(pictures, tmp_path):
    camera = Intrinsics(900, 900, 160, 120)
    options = replace(VideoOptions(), overlay=False, animation=False)
    convert(pictures, tmp_path, options, intrinsics=lambda width, height: camera)
    header = read_header(tmp_path / "hands.jsonl")
    assert header["intrinsics_source"] == "given"
    assert header["intrinsics_px"][0][0] == 900


@pytest.mark.parametrize("option", ["--fov", "--focal"])
def test_a_camera_that_is_given_looks_through_the_middle(option, pictures, tmp_path):
    """Width and height were once exchanged on the way from the command line: right for square clips alone."""
    arguments = ["video", str(pictures), "--out", str(tmp_path / "out"), "--no-overlay", "--no-glb", option, "70"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    K = np.array(read_header(tmp_path / "out" / "hands.jsonl")["intrinsics_px"])
    assert K[:2, 2].tolist() == [159.5, 119.5]


def test_what_cannot_be_meant_opens_no_camera_and_makes_no_folder(pictures, tmp_path, monkeypatch):
    """A camera was opened first, and stayed open with its light on."""
    with pytest.raises(ConfigError, match="up"):
        convert(pictures, tmp_path / "out", handedness="up")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("handmesh.motion.clip.open_source", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(ConfigError, match="up"):
        follow_video("0", Predictor(MarkerEngine()), handedness="up")


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(pictures, fps):
    """0 was a ZeroDivisionError, and below it time ran backwards."""
    with pytest.raises(ConfigError, match="fps"):
        follow_video(pictures, Predictor(MarkerEngine()), fps=fps)


def test_another_clip_of_the_same_name_and_size_is_refused(pictures, tmp_path):
    """Else it would be given the hands of the one before it."""
    clip = tmp_path / "take"
    shutil.copytree(pictures, clip)
    convert(clip, tmp_path / "out")
    write_atomically(clip / "003.png", encode_image(draw([hand_at(200, 100, 48, 1.0)])))
    with pytest.raises(DataError, match=r"another clip.*clip_digest"):
        convert(clip, tmp_path / "out")


def test_a_run_that_ended_before_its_first_frame_stands_in_nobodys_way(pictures, tmp_path):
    """A box outside of the picture was refused, and then the right one, for "another setting"."""
    options = VideoOptions(overlay=False, animation=False)
    for wrong in ([(900.0, 900.0, 950.0, 950.0)], [(-9e9, 0.0, 9e9, 9.0)]):
        with pytest.raises(ConfigError, match="Box"):
            convert(pictures, tmp_path, options, detector=GivenBoxes(wrong), settings={"boxes": str(wrong)})
    convert(pictures, tmp_path, options)
    with pytest.raises(DataError, match="another clip"):
        convert(pictures, tmp_path, options, handedness="left")


def test_what_an_earlier_run_made_does_not_stay_beside_the_log_of_another(pictures, tmp_path):
    """`--restart --no-overlay` left the overlay, and the .bvh of hands that were no more."""
    result, _ = convert(pictures, tmp_path)
    (tmp_path / "notes.bvh").write_text("somebody's")
    assert {"overlay.mp4", "hand.glb", "right_hand_1.bvh"} <= {path.name for path in result.files}
    options = VideoOptions(overlay=False, animation=False)
    convert(pictures, tmp_path, options, handedness="left", restart=True)
    assert {path.name for path in tmp_path.iterdir()} == {"hands.jsonl", ".hands.jsonl.resume", "notes.bvh"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_clip_of_a_few_frames_has_its_hand(count, tmp_path):
    """A clip of one or two frames had "a hand in 2", and a hand.glb without one."""
    (tmp_path / "clip").mkdir()
    for index in range(count):
        write_atomically(tmp_path / "clip" / f"{index}.png", encode_image(draw([place(index)])))
    result, _ = convert(tmp_path / "clip", tmp_path / "out")
    assert (result.frames, result.frames_with_hands, result.hands, result.brief_hands) == (count, count, 1, 0)
    assert (tmp_path / "out" / "right_hand_1.bvh").is_file()


def test_a_hand_that_was_hardly_seen_is_counted(tmp_path):
    (tmp_path / "clip").mkdir()
    for index in range(8):
        image = encode_image(draw([place(index)] if index < 2 else []))
        write_atomically(tmp_path / "clip" / f"{index}.png", image)
    predictor = Predictor(MarkerEngine(heads=True))
    options = VideoOptions(overlay=False)
    result = convert_clip(FolderSource(tmp_path / "clip"), tmp_path / "out", predictor, options=options)
    assert (result.frames_with_hands, result.hands, result.brief_hands) == (2, 0, 1)


def test_an_image_that_cannot_be_read_is_left_out_and_said(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "clip")
    (tmp_path / "clip" / "004.png").write_bytes(b"no image")
    result, _ = convert(tmp_path / "clip", tmp_path / "out")
    assert result.frames == COUNT - 1
    assert [item["time"] for item in read_frames(tmp_path / "out" / "hands.jsonl")][3:5] == [3 / 25, 5 / 25]
    (remark,) = result.remarks
    assert "left out: 1" in remark
    assert "004.png" in remark
    for file in (tmp_path / "clip").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"000\.png"):
        convert(tmp_path / "clip", tmp_path / "none")


class Tape:
    """What OpenCV reads of a clip: a picture at each time, None where it cannot be decoded."""

    def __init__(self, times):
        self.times, self.now = iter(times), 0.0

    def read(self):
        time = next(self.times, None)
        self.now = self.now if time is None else time
        return time is not None, np.zeros((240, 320, 3), np.uint8)

    def get(self, _):
        return 1000 * self.now


def test_time_stamps_that_jump_are_cut_and_said(whole):
    """One jump by an hour made 181 s of work of 30 frames, and an hour of overlay."""
    source = ClipSource(whole[0] / "overlay.mp4")
    source._capture.release()
    source._capture, source.frame_count = Tape([0, 0.04, 3600.0, 3600.04, None, 3600.12, 3604.12, None, None]), 8
    times = [frame.time for frame in iter(source.read, None)]
    assert times == pytest.approx([0, 0.04, 5.04, 5.08, 5.16, 9.16])
    jumps, damaged = source.remarks
    assert "by more than 5 s, 1 times; 3595.0 s were cut" in jumps
    assert "left out: 1" in damaged
