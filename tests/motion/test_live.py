"""The live loop without a camera or a window: a folder of pictures, and a screen that is a list."""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from marker_hands import MarkerEngine, draw, hand_at
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.cli.webcam import _Reporter, _say_frame
from handmesh.errors import ConfigError, ImageError
from handmesh.files.image import encode_image, read_image
from handmesh.files.mesh import encode_hands
from handmesh.files.video import ClipSource, FolderSource, Frame
from handmesh.motion.benchmark import benchmark
from handmesh.motion.follow import HandFollower
from handmesh.motion.live import LivePipeline, LiveResult, run_headless
from handmesh.motion.log import read_frames, read_tracks
from handmesh.motion.smoothing import Smoothing
from handmesh.motion.window import KEYS, Hud, LiveOptions, check_display, run_window, with_ids
from handmesh.predict import Predictor, as_mesh_hand
from handmesh.system.atomic import write_atomically

COUNT = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    for index in range(COUNT):
        write_atomically(folder / f"{index:03d}.png", encode_image(draw([hand_at(100 + 5 * index, 170)], (640, 240))))
    return folder


def pipeline_of(pictures, predictor):
    live = HandFollower(predictor, smoothing=Smoothing())
    return LivePipeline(FolderSource(pictures), live, newest=False)


def run(pictures, keys, out, **options):
    """The pictures that were shown; `keys` are pressed one after the other, one each picture."""
    predictor = Predictor(MarkerEngine())
    shown, said, pressed = [], [], iter(keys)

    def show(picture):
        shown.append(picture)
        return ord(next(pressed, " "))

    pipeline = pipeline_of(pictures, predictor)
    count = run_window(pipeline, predictor, LiveOptions(out=out, **options), say=said.append, show=show)
    assert count == len(shown)
    assert not pipeline._results._thread.is_alive()
    return shown, said


def test_it_draws_hands_and_ends_with_the_pictures(pictures, tmp_path):
    shown, _ = run(pictures, "", tmp_path)
    assert len(shown) == COUNT
    plain = draw([hand_at(100, 170)], (640, 240))
    x, y = 100, 140  # on the palm
    assert np.abs(shown[0][y, x].astype(int) - plain[y, x]).sum() > 60
    assert list(tmp_path.iterdir()) == []


def test_keys(pictures, tmp_path):
    shown, said = run(pictures, "mf" + "c    c" + "s" + "h" + "   q", tmp_path)
    assert len(shown) == 14
    assert np.abs(shown[0].astype(int) - shown[1]).max() > 40, "mesh, then bones"
    right = shown[2][:, 320:]
    assert (right != 96).any(axis=-1).sum() > 2000, "mirrored, the hand is on the right"
    recording = tmp_path / "recording_001"
    assert {path.name for path in recording.iterdir()} >= {"overlay.mp4", "hands.jsonl", "hand.glb"}
    items = list(read_frames(recording / "hands.jsonl"))
    assert len(items) == 5
    assert items[0]["time"] == 0
    assert all(item["hands"] for item in items)
    assert ClipSource(recording / "overlay.mp4").read().image.shape == (240, 640, 3)
    assert (read_image(tmp_path / "screenshot_001.png") == shown[8]).all()
    assert len(said) == 2


def test_a_recording_of_two_pictures_has_its_hand(pictures, tmp_path):
    """Its hand.glb was empty: a clip of two frames has its hand."""
    run(pictures, "c cq", tmp_path)
    (track,) = read_tracks(tmp_path / "recording_001" / "hands.jsonl")
    assert len(track.frames) == 2
    assert (tmp_path / "recording_001" / "hand.glb").stat().st_size > 10_000


def test_a_recording_is_finished_when_the_pictures_end(pictures, tmp_path):
    run(pictures, "c", tmp_path)
    assert len(list(read_frames(tmp_path / "recording_001" / "hands.jsonl"))) == COUNT - 1


def test_headless(pictures):
    seen = []
    count = run_headless(pipeline_of(pictures, Predictor(MarkerEngine())), max_frames=5, seen=seen.append)
    assert count == 5
    assert [result.frame.index for result in seen] == list(range(5))
    assert all(list(result.hands) == [1] for result in seen)


def live_result(time, hands):
    return LiveResult(Frame(0, time, draw([]), 0.0), hands, 0.01)


def test_a_line_of_json_has_what_the_file_of_a_photo_has(capsys):
    """It had the score and not those of the joints, nor how the side is known."""
    (hand,) = Predictor(MarkerEngine(heads=True))(draw([hand_at(100, 170, side="left")]))
    hand = replace(hand, joint_scores=np.linspace(0, 1, 21, dtype=np.float32))
    _say_frame(live_result(0.5, {7: hand}))
    (line,) = json.loads(capsys.readouterr().out)["hands"]
    (file,) = json.loads(encode_hands([as_mesh_hand(hand)], ".json"))["hands"]
    assert line.pop("id") == 7
    assert (line["handedness"], line["handedness_source"]) == ("left", "found")
    assert {"joint_scores", "handedness_score", "source", "keypoints_px", "joints"} < line.keys() < file.keys()
    for name, value in line.items():
        same = np.testing.assert_array_equal if isinstance(value, str) else np.testing.assert_allclose
        same(value, file[name], **({} if isinstance(value, str) else {"rtol": 1e-5, "atol": 1e-6}))


def test_what_is_seen_is_said_once_a_second_however_slow_the_network_is(capsys):
    """It counted pictures at the source's rate: of a camera's 30, followed at 5, each sixth second was said."""
    say = _Reporter()
    for number in range(16):
        say(live_result(number / 5, {}))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0.00", "1.00", "2.00", "3.00"]


def test_the_benchmark_counts_every_stage(tmp_path):
    for index in range(130):
        write_atomically(tmp_path / f"{index:03d}.png", encode_image(draw([hand_at(100, 100)], (160, 120))))
    predictor = Predictor(MarkerEngine())
    live = HandFollower(predictor, smoothing=None)
    found = benchmark(FolderSource(tmp_path), live, predictor)
    assert found.frames == found.followed == 130
    assert 1 <= found.crops_per_frame < 1.3
    assert min(found.stages_ms.values()) > 0
    assert found.loop_fps > 0


def test_the_hud_is_readable():
    hud = Hud("a network")
    for _ in range(3):
        hud.tick(captured=0.0)
    picture = np.full((240, 640, 3), 128, np.uint8)
    hud.draw(picture, ["one line"])
    assert picture.max() == 255
    assert picture.min() < 30


@pytest.mark.parametrize("width", [320, 448, 640, 1920])
def test_the_hud_fits_the_picture(width):
    """All keys are named, in letters that can be read, however narrow the picture is: none runs out of it."""
    picture = np.full((400, width, 3), 128, np.uint8)
    Hud("onnxruntime 1.32.0 float32 on cpu").draw(picture, ["either hand: right", KEYS])
    assert (picture[:, -3:] == 128).all()
    rows = np.flatnonzero((picture == 255).any(axis=(1, 2)))
    assert np.diff(rows, prepend=0).max() < 40
    assert 30 < np.ptp(rows) < 200


def test_ids_can_be_read_in_a_mirror_too():
    """Above the hand where it then is; they were in mirror writing. A camera is shown mirrored from the start."""
    image = draw([hand_at(100, 170), hand_at(400, 170)], (640, 240))
    hands = Predictor(MarkerEngine())(image, boxes=[(60, 90, 140, 250), (360, 90, 440, 250)])
    grey = np.full((240, 640, 3), 96, np.uint8)

    def word(columns, mirror):
        """(H, 60) from where it begins in these columns, and where that is."""
        written = (with_ids(grey, dict(enumerate(hands)), mirror=mirror) != 96).any(axis=-1)[:, columns]
        begin = int(written.any(axis=0).argmax())
        return written[:, begin : begin + 60], columns.start + begin

    plain, x0 = word(slice(0, 320), False)
    mirrored, x0_mirrored = word(slice(320, 640), True)
    np.testing.assert_array_equal(plain, mirrored)
    assert plain.any()
    assert x0 == pytest.approx(hands[0].box[0], abs=5)
    assert x0_mirrored == pytest.approx(639 - hands[0].box[2], abs=5)


def test_what_breaks_in_a_thread_is_raised(tmp_path):
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ImageError, match="damaged"):
        run(tmp_path, "", tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are named by the environment on Linux")
def test_without_a_display_it_says_so(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConfigError, match="--headless"):
        check_display()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are named by the environment on Linux")
def test_a_display_that_is_not_there_does_not_abort_us(monkeypatch):
    """Qt ends the process when it cannot reach its display (exit code 134): a child asks first."""
    monkeypatch.setitem(os.environ, "DISPLAY", ":87")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConfigError, match=r"No window can be opened on this display \(qt\..*:87.*\)"):
        check_display()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["webcam", "--benchmark"], "goes with --headless"),
        (["webcam", "--headless", "--guide", "--box", "1,2,3,4"], "give one of them"),
        (["webcam", "--headless", "--guide", "--max-hands", "1"], "--guide waits for one hand, --max-hands"),
        (["webcam", "--headless", "--detector", "none", "--max-hands", "2"], "--detector none takes the picture for"),
        (["webcam", "--headless", "--skeleton", "--no-mirror"], "--skeleton and --mirror are of the window"),
        (["webcam", "--headless", "--out", "handmesh_out"], "--out is of the window, and --headless opens none"),
        (["webcam", "--headless", "--source", "nothing.mp4"], "No video at nothing.mp4"),
        (["video", "nothing.mp4"], "No video at nothing.mp4"),
        (["video", "nothing.mp4", "--codec", "divx"], "wanted one of auto"),
        (["video", "nothing.mp4", "--no-overlay", "--codec", "auto"], "--codec is of overlay.mp4, and --no-overlay"),
        (["video", "nothing.mp4", "--no-overlay", "--skeleton"], "--skeleton is of overlay.mp4, and --no-overlay"),
        (["video", "nothing.mp4", "--no-glb", "--skin-only"], "--skin-only is of hand.glb, and --no-glb"),
        (["video", "nothing.mp4", "--fps", "30"], "--fps is of a folder of photographs, and nothing.mp4 is none"),
        (["video", "nothing.mp4", "--smooth", "-1"], "smoothing strength"),
        (["video", "nothing.mp4", "--detector", "none", "--max-hands", "2"], "--detector none takes the picture for"),
        (["video", "nothing.mp4", "--box", "1,2,3,4", "--max-hands", "2"], "--box gives one hand for each box"),
        (["predict", "x.jpg", "--detector", "yolo"], "wanted handmesh, none, mediapipe"),
        (["predict", "x.jpg", "--detector", "palm.onnx", "--box", "1,2,3,4"], "give one of them"),
    ],
)
def test_mistakes_are_named(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert message in str(result.exception)
