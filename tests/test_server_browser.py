"""The page as a person meets it, in headless Chromium: photos, turning, downloads, mistakes, the camera, a phone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from browser import CHROMIUM, Page, chromium
from server_harness import running, settings

import handmesh
from handmesh.engine import open_engine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

SAMPLES = Path(handmesh.__file__).parent / "assets" / "samples"
MAX_BYTES = 300_000
FOUND = "/hand found|Perhaps/.test(document.getElementById('status').textContent)"


@pytest.fixture(scope="module")
def server():
    with running(settings(max_body_bytes=MAX_BYTES), open_engine()) as one:
        yield one


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> Path:
    """A clip for the browser's fake camera: a hand that sways, 640 x 480, as YUV4MPEG2."""
    path = tmp_path_factory.mktemp("camera") / "hand.y4m"
    hand = cv2.resize(cv2.imread(str(SAMPLES / "rest.jpg")), (480, 480))
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W640 H480 F15:1 Ip A1:1 C420jpeg\n")
        for shift in (70, 80, 90, 80):
            frame = np.full((480, 640, 3), 90, np.uint8)
            frame[:, shift : shift + 480] = hand
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).tobytes())
    return path


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def browser(camera, profile):
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with chromium(profile, *fake, f"--use-file-for-fake-video-capture={camera}") as page:
        yield page


@pytest.fixture
def page(server, browser) -> Page:
    """The page, just opened."""
    browser.errors.clear()
    browser.requested.clear()
    browser.resize(1280, 800)
    browser.open(server.url + "/")
    return browser


def picture(page: Page) -> np.ndarray:
    """(H, W, 3) what is on the screen."""
    image = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image.astype(int)


def changed(before: np.ndarray, after: np.ndarray) -> float:
    """The share of pixels that look different."""
    return float((np.abs(before - after).max(axis=-1) > 24).mean())


def until_still(page: Page) -> np.ndarray:
    """The screen once nothing moves any more."""
    before = picture(page)
    for _ in range(40):
        after = picture(page)
        if changed(before, after) == 0:
            return after
        before = after
    raise AssertionError("the page does not come to rest")


def choose(page: Page, name: str = "palm.jpg") -> None:
    page.choose(SAMPLES / name)
    page.wait_for(FOUND)


def test_a_photo_is_answered_with_the_mesh_over_it(page, server):
    choose(page)
    with_mesh = until_still(page)
    page.click("#show-mesh + span")
    without = until_still(page)
    share = changed(with_mesh, without)
    assert 0.02 < share < 0.6, "the mesh covers the hand, not the page"
    page.click("#show-bones + span")
    assert 0.001 < changed(without, until_still(page)) < share, "bones cover less than the mesh"
    assert page.errors == []
    foreign = [url for url in page.requested if not url.startswith((server.url, "blob:", "data:"))]
    assert foreign == [], "nothing comes from elsewhere"


def test_dragging_turns_the_hand_and_reset_brings_it_back(page):
    choose(page)
    before = until_still(page)
    page.drag((470, 400), (620, 440))
    turned = until_still(page)
    assert changed(before, turned) > 0.02
    page.click("[data-action=reset]")
    page.run("document.activeElement.blur()")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=470, y=400)
    assert changed(before, until_still(page)) < 0.01


def test_downloads_are_whole_files(page, profile):
    choose(page, "left_gun.jpg")
    page.wait_for("!document.getElementById('downloads').disabled")
    folder = profile / "downloads"
    found = {}
    for format in ("glb", "obj", "json", "png"):
        page.click(f"[data-format={format}]")
        until = time.monotonic() + 20
        while not (files := [file for file in folder.glob(f"*.{format}") if file.stat().st_size]):
            assert time.monotonic() < until, f"no .{format} came: {list(folder.glob('*'))}, {page.errors}"
            time.sleep(0.05)
        found[format] = files[0]
    vertices = {len(trimesh.load(found[format], force="mesh", process=False).vertices) for format in ("glb", "obj")}
    assert vertices == {778}
    (hand,) = json.loads(found["json"].read_text())["hands"]
    assert hand["handedness"] == "left"
    assert cv2.imread(str(found["png"])).shape == cv2.imread(str(SAMPLES / "left_gun.jpg")).shape


@pytest.mark.parametrize("kind", ["text", "large"])
def test_mistakes_are_told_in_plain_words(page, tmp_path, kind):
    """No picture, or one that is too large for this server: said so in words, and the page goes on."""
    path = tmp_path / "photo.jpg"
    if kind == "text":
        path.write_text("no picture")
    else:
        noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
        cv2.imwrite(str(path), noise)
        assert path.stat().st_size > MAX_BYTES
    page.choose(path)
    page.wait_for("!document.getElementById('notice').hidden")
    said = page.run("document.getElementById('notice').innerText")
    assert len(said) > 20
    assert not any(word in said for word in ("undefined", "Error:", "object", "null", "{"))
    choose(page)


def test_the_camera_is_followed_and_switched_off(page):
    page.click("#camera")
    page.wait_for("document.getElementById('status').textContent === 'Following the hand.'")
    page.wait_for("/frames/.test(document.getElementById('live-rate').textContent)")
    page.click("#camera")
    page.wait_for("document.getElementById('app').dataset.mode !== 'live'")
    assert page.run("document.getElementById('video').srcObject") is None
    assert page.errors == []


def test_a_phone_has_room_for_everything(page):
    """360 px wide: nothing sticks out to the side, whatever is shown."""
    page.resize(360, 740, mobile=True)
    assert page.run("document.documentElement.scrollWidth") == 360
    choose(page)
    assert page.run("document.documentElement.scrollWidth") == 360
    page.click("#camera")
    page.wait_for("document.getElementById('status').textContent === 'Following the hand.'")
    outside = page.run(
        "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.scrollWidth > b.clientWidth + 1)"
        ".map(b => b.textContent.trim() || b.ariaLabel)"
    )
    assert outside == [], "buttons whose words stick out"
    page.click("#camera")


def test_it_is_dark_where_dark_is_wished_for(page):
    light = picture(page).mean()
    page.prefer(color_scheme="dark")
    dark = picture(page).mean()
    page.prefer(color_scheme="light")
    assert light > 150
    assert dark < 90
