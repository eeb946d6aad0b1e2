"""Every example runs, as a reader would run it, and what it writes is right."""

from __future__ import annotations

import ast
import base64
import csv
import functools
import http.server
import json
import runpy
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, chromium, write_camera
from marker_hands import MarkerEngine, draw, hand_at
from PIL import Image
from server_harness import running, settings

import handmesh
from handmesh.detect.hands import HandDetector
from handmesh.files.image import encode_image, read_image
from handmesh.files.video import VideoWriter
from handmesh.hand import JOINT_NAMES, builtin_hand
from handmesh.model.bundled import bundled_model_path
from handmesh.predict import Predictor, load_predictor

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SAMPLES = ROOT / "handmesh" / "assets" / "samples"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs an example in an empty folder that has a photo in it; its globals."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLES / "palm.jpg", "photo.jpg")

    def one(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return one


@functools.cache
def bundled():
    return load_predictor(threads=1)


@pytest.fixture
def one_predictor(monkeypatch):
    """The bundled model once for all examples."""
    monkeypatch.setattr(handmesh, "load_predictor", lambda **_: bundled())


@pytest.fixture
def markers(monkeypatch):
    """A network that reads dots, for clips whose every frame is known."""
    monkeypatch.setattr(handmesh, "load_predictor", lambda **_: Predictor(MarkerEngine()))


def write_clip(path, places):
    writer = VideoWriter(path, (320, 240), 10.0, "mp4v")
    for index, (x, y) in enumerate(places):
        writer.write(draw([hand_at(x, y)]), index / 10)
    writer.close()


def test_photo_to_mesh(run, one_predictor, capsys):
    run("photo_to_mesh.py", "photo.jpg")
    assert "right" in capsys.readouterr().out
    assert Path("hand_0.glb").stat().st_size > 10_000
    drawn, photo = read_image("hand_0.png"), read_image("photo.jpg")
    (hand,) = bundled()("photo.jpg")
    rows, columns = (np.abs(drawn.astype(int) - photo).max(axis=-1) > 20).nonzero()
    silhouette = hand.vertices_image()[:, :2]
    assert np.allclose([columns.min(), rows.min()], silhouette.min(axis=0), atol=3)
    assert np.allclose([columns.max(), rows.max()], silhouette.max(axis=0), atol=3)


def test_a_photo_without_a_hand_is_said(run, one_predictor, capsys):
    cv2.imwrite("wall.png", np.full((200, 200, 3), 120, np.uint8))
    run("photo_to_mesh.py", "wall.png")
    assert capsys.readouterr().out.startswith("No hand found")


def test_plain_onnxruntime_agrees_with_handmesh(run):
    """Its own crop, resampled by Pillow: the keypoints of the first pass, within a pixel."""
    photo = read_image(SAMPLES / "palm.jpg")
    (hand,) = bundled()(photo, handedness="right")
    box = [round(float(edge)) for edge in hand.box]
    found = run("plain_onnxruntime.py", bundled_model_path().with_suffix(".onnx"), "photo.jpg", *box)["keypoints"]
    one_pass = Predictor(bundled().engine, passes=1, margin=1.5, refine=False)
    (hand,) = one_pass(photo, boxes=[box], handedness="right")
    off = found - hand.keypoints_image()
    assert np.abs(off).max() < 1
    assert np.abs(off.mean(axis=0)).max() < 0.25  # a crop that counts from pixels' corners is half of one off
    assert Path("keypoints.png").is_file()

    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(photo).transpose(Image.Transpose.ROTATE_90).save("phone.png", exif=turned)
    Image.fromarray(photo).save("upright.png")
    upright, phone = (
        run("plain_onnxruntime.py", bundled_model_path().with_suffix(".onnx"), name, *box)["keypoints"]
        for name in ("upright.png", "phone.png")
    )
    np.testing.assert_array_equal(phone, upright)  # boxes are of the photo as people see it


def test_clip_to_glb(run, markers):
    from pygltflib import GLTF2

    write_clip("clip.mp4", [(140 + 5 * step, 150) for step in range(8)])
    run("clip_to_glb.py", "clip.mp4", "out")
    scene = GLTF2().load("out/hand.glb")
    assert len(scene.animations) == 1
    assert len(scene.skins[0].joints) == 16
    assert not Path("out/overlay.mp4").exists()


def test_a_pinch_draws_where_it_is_and_no_further(run, markers, monkeypatch):
    """The flat hand's tips are apart, so the limits are moved instead of the fingers."""
    start, end = (100, 150), (180, 150)
    write_clip("clip.mp4", np.linspace(start, end, 9))
    example = run("pinch_to_draw.py", "clip.mp4", "open.png")
    assert not is_drawn("open.png").any()
    flat = builtin_hand().shaped().posed(np.tile(np.eye(3), (16, 1, 1))).joints
    gap = np.linalg.norm(flat[JOINT_NAMES.index("thumb_tip")] - flat[JOINT_NAMES.index("index_tip")])
    main = example["main"]
    monkeypatch.setitem(main.__globals__, "CLOSED", 1.05 * gap)
    monkeypatch.setitem(main.__globals__, "OPEN", 1.1 * gap)
    main("clip.mp4", "drawing.png")
    stroke = is_drawn("drawing.png").nonzero()
    assert np.ptp(stroke[1]) == pytest.approx(end[0] - start[0], abs=25)
    assert np.ptp(stroke[0]) < 20


def is_drawn(path):
    return (np.abs(read_image(path).astype(int) - (255, 200, 40)) < 40).all(axis=-1)


def test_http_client(run, capsys):
    with running(settings(), predictor=bundled()) as server:
        run("http_client.py", server.url, "photo.jpg", "photo.jpg")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("photo.jpg: right hand" in line for line in lines)


def test_http_client_says_what_the_server_refuses(run, capsys):
    Path("text.jpg").write_text("no photo")
    with running(settings(), predictor=bundled()) as server:
        run("http_client.py", server.url, "text.jpg", "photo.jpg")
    refused, found = capsys.readouterr().out.splitlines()
    assert refused.startswith("text.jpg: ")
    assert "hand, score" in found


def test_live_viewer(run, markers, capsys):
    pytest.importorskip("viser", reason="needs viser: pip install viser")
    write_clip("clip.mp4", [(140, 150)] * 4)
    run("live_viewer.py", "clip.mp4", "0")
    assert "1 hands in the last frame" in capsys.readouterr().out


@contextmanager
def served(folder):
    """A web server of static files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")

needs_packages = pytest.mark.skipif(
    not (EXAMPLES / "browser" / "node_modules").is_dir(), reason="needs `npm install` in examples/browser"
)
SAID = "document.querySelector('#said').textContent"


@needs_chromium
@needs_packages
def test_the_model_in_a_browser_agrees_with_python(tmp_path):
    """The same crop: the same vertices, to a hundredth of a millimetre. The same photo: the same hands."""
    dist = EXAMPLES / "browser" / "dist"
    subprocess.run([sys.executable, EXAMPLES / "browser" / "build.py"], check=True, capture_output=True)
    left, right = (read_image(SAMPLES / name) for name in ("left_gun.jpg", "spread.jpg"))
    expected = Predictor(bundled().engine, detector=HandDetector(), refine=False)(photo := np.hstack([left, right]))
    assert [hand.handedness for hand in expected] == ["left", "right"]
    crop = cv2.resize(left, (bundled().engine.resolution,) * 2, interpolation=cv2.INTER_AREA)
    pixels = base64.b64encode(np.dstack([crop, np.full(crop.shape[:2], 255, np.uint8)]).tobytes()).decode()
    (dist / "photo.png").write_bytes(encode_image(photo, ".png"))
    picture = "fetch('photo.png').then((r) => r.blob()).then(createImageBitmap)"
    with served(dist) as address, chromium(tmp_path / "profile") as page:
        page.open(f"{address}/index.html", ready="window.handmesh !== undefined")
        vertices = page.run(
            f"handmesh.run(Uint8Array.from(atob('{pixels}'), (c) => c.charCodeAt(0))).then((a) => [...a.vertices.data])"
        )
        found = page.run(f"{picture}.then((image) => handmesh.show(image))")
        said = page.run(SAID)
        followed = page.run(
            f"{picture}.then(async (image) => handmesh.follow(image, (await handmesh.find(image)).reverse()))"
        )
        errors, requested = page.errors, page.requested
    (dist / "photo.png").unlink()
    assert 1000 * np.abs(np.reshape(vertices, (-1, 3)) - bundled().engine(crop[None]).vertices[0]).max() < 0.01
    assert said.startswith("2 hands: left ")
    for hands, near in (
        (found, 2),
        (followed[::-1], 8),
    ):  # px, of hands of 200 to 250: followed ones have crops of their own
        assert [hand["left"] for hand in hands] == [True, False]
        for hand, same in zip(hands, expected, strict=True):
            assert np.linalg.norm(np.array(hand["keypoints"])[:, :2] - same.keypoints_image(), axis=1).mean() < near
    assert [error for error in errors if "favicon" not in error] == []
    assert all(one.startswith((address, "blob:", "data:")) for one in requested)


@needs_chromium
@needs_packages
def test_the_page_in_a_browser_shows_what_was_asked_for_last(tmp_path):
    """A slow photo came over a later one, a camera over all; of a file that is no picture nothing was said."""
    subprocess.run([sys.executable, EXAMPLES / "browser" / "build.py"], check=True, capture_output=True)
    line, cut, camera = (tmp_path / name for name in ("line.png", "cut.jpg", "camera.y4m"))
    line.write_bytes(encode_image(read_image(SAMPLES / "palm.jpg")[:1], ".png"))
    cut.write_bytes((SAMPLES / "palm.jpg").read_bytes()[:400])
    write_camera(camera, SAMPLES / "palm.jpg", 5, [80] * 5)
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with (
        served(EXAMPLES / "browser" / "dist") as address,
        chromium(tmp_path / "profile", *fake, f"--use-file-for-fake-video-capture={camera}") as page,
    ):
        page.open(f"{address}/index.html", ready="window.handmesh !== undefined")
        shown = f"document.querySelector('#picture').height === 1 && {SAID}.startsWith('No hand found')"

        page.run(
            "(open => { MediaDevices.prototype.getUserMedia = async function (wanted) { return window.stream = await "
            "open.call(this, wanted); }; })(MediaDevices.prototype.getUserMedia)"
        )

        def start_camera():
            page.click("#camera")
            page.wait_for(f"{SAID}.endsWith('frames/s')")
            assert page.run(f"{SAID}.startsWith('1 hand: right')")

        page.run(
            "void (window.slow = handmesh.show(new OffscreenCanvas(9, 9), new Promise((end) => (window.found = end))))"
        )
        page.choose(line, "#photo")
        page.wait_for(shown)
        page.run("found([]), slow")
        assert page.run(shown)
        page.choose(cut, "#photo")
        page.wait_for(f"{SAID}.startsWith('cut.jpg: ')")
        start_camera()
        page.choose(line, "#photo")
        page.wait_for(shown)
        time.sleep(1)
        assert page.run(shown)
        start_camera()
        page.run("stream.getTracks().forEach((track) => { track.stop(); track.dispatchEvent(new Event('ended')); })")
        page.wait_for("!document.querySelector('#camera').disabled")
        assert page.run(SAID) == "The camera has ended."
        errors = page.errors
    assert [error for error in errors if "favicon" not in error] == []


@needs_chromium
@pytest.mark.skipif(not (EXAMPLES / "three" / "node_modules").is_dir(), reason="needs `npm install` in examples/three")
def test_three_js_plays_the_animated_hand(run, markers, tmp_path):
    """Its skin moves as the clip's hand does: to the right."""
    write_clip("clip.mp4", [(100 + 10 * step, 150) for step in range(10)])
    run("clip_to_glb.py", "clip.mp4", "out")
    shutil.copytree(EXAMPLES / "three", tmp_path / "page", symlinks=True)
    shutil.copy("out/hand.glb", tmp_path / "page")
    at = (  # the page plays on while it waits, so nothing is awaited after the time is set
        "(async () => { const { Vector3 } = await import('three'); let skin;"
        " player.mixer.setTime(%s); player.hands.updateMatrixWorld(true);"
        " player.hands.traverse((node) => { if (node.isSkinnedMesh) skin = node; });"
        " return skin.getVertexPosition(0, new Vector3()).applyMatrix4(skin.matrixWorld).toArray(); })()"
    )
    with served(tmp_path / "page") as address, chromium(tmp_path / "profile") as page:
        page.open(f"{address}/index.html", ready="window.player !== undefined")
        before, after = page.run(at % 0.1), page.run(at % 0.8)
        errors = page.errors
    assert after[0] - before[0] > 0.05  # metres
    assert abs(after[1] - before[1]) < 0.02
    assert [error for error in errors if "favicon" not in error] == []


def test_folder_to_joint_angles(run, one_predictor):
    """The row of each sample photo; a finger that points is straight where a curled one is bent."""
    Path("photos").mkdir()
    Path("photos/手").mkdir()
    shutil.copy(SAMPLES / "left_gun.jpg", "photos")
    shutil.copy(SAMPLES / "point.jpg", "photos/手")
    Path("photos/cut.jpg").write_bytes((SAMPLES / "palm.jpg").read_bytes()[:5000])
    run("folder_to_joint_angles.py", "photos", "angles.csv")
    left, right = csv.DictReader(Path("angles.csv").read_text(encoding="utf-8").splitlines())
    assert (left["photo"], left["hand"], right["hand"]) == ("left_gun.jpg", "left", "right")
    assert Path(right["photo"]) == Path("手/point.jpg")
    assert len(right) == 3 + 15
    assert float(right["index_pip"]) < 30 < float(right["ring_pip"])


def run_notebook(name, folder, monkeypatch, until=None):
    """Its cells in order and in one namespace; what the last lines of them show. `until`: where to stop."""
    monkeypatch.chdir(folder)
    namespace, shown = {"__name__": "__main__"}, []
    for cell in json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs"), "notebooks are kept without what they gave"
        if cell["cell_type"] != "code":
            continue
        too_long = [line for line in "".join(cell["source"]).splitlines() if len(line) > 88]
        assert too_long == [], "cut off in a notebook's column"
        if until is not None and until in "".join(cell["source"]):
            break
        *lines, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(lines, []), name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), namespace))
        else:
            exec(compile(ast.Module([last], []), name, "exec"), namespace)
    return namespace, shown


def test_the_notebook_of_the_start(tmp_path, monkeypatch, one_predictor):
    namespace, shown = run_notebook("start.ipynb", tmp_path, monkeypatch)
    assert any(isinstance(one, Image.Image) for one in shown)
    assert "<iframe" in namespace["hand"]._repr_html_()
    assert json.loads((tmp_path / "hand.json").read_text())["hands"][0]["handedness"] == "right"


@pytest.mark.slow
def test_the_notebook_of_tuning(tmp_path, monkeypatch):
    _, shown = run_notebook("finetune.ipynb", tmp_path, monkeypatch)
    before, after = shown[-2]
    assert 0 < before < 1
    assert 0 < after < 1
    assert shown[-1], "the tuned model finds the hand"


@pytest.mark.slow
def test_finetune(run, tmp_path, monkeypatch, capsys):
    """On the labels that the notebook makes."""
    run_notebook("finetune.ipynb", tmp_path, monkeypatch, until="train(config")
    small = ["steps=4", "batch_size=4", "data.synthetic.count=8", "evaluation_count=8", "evaluate_every=4"]
    run("finetune.py", "labels.jsonl", "runs/mine", *small, "loader_workers=0")
    printed = capsys.readouterr().out
    assert "photos0_keypoint_box_error: 0." in printed
    assert Path("runs/mine/deploy.safetensors").is_file()
