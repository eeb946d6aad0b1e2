"""The page as a person meets it, in headless Chromium: photos, turning, downloads, mistakes, the camera, a phone."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest
import trimesh
from browser import CHROMIUM, Page, chromium, write_camera
from handmesh_server.stream import Frame, StreamOptions, encode_frame
from marker_hands import MarkerEngine, draw, hand_at
from server_harness import DotEngine, running, settings, wait_until

import handmesh
from handmesh.files.image import read_image
from handmesh.files.video import ClipSource, VideoWriter
from handmesh.motion.log import read_frames
from handmesh.predict import Predictor, load_predictor
from handmesh.runtime.engine import open_engine

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
    """A clip for the browser's fake camera: a hand that sways."""
    path = tmp_path_factory.mktemp("camera") / "hand.y4m"
    write_camera(path, SAMPLES / "rest.jpg", 15, (70, 80, 90, 80))
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
    """The screen once what was asked for is drawn, and nothing moves any more."""
    page.run("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    before = picture(page)
    for _ in range(40):
        after = picture(page)
        if changed(before, after) == 0:
            return after
        before = after
    raise AssertionError("the page does not come to rest")


def choose(page: Page, name: str = "palm.jpg") -> None:
    choose_path(page, SAMPLES / name)


def choose_path(page: Page, path: Path) -> None:
    page.choose(path)
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


def image_point(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the photo is on the screen, while the view is as it was at first."""
    left, top, width, height = page.run(
        "(r => [r.x, r.y, r.width, r.height])(document.getElementById('lines').getBoundingClientRect())"
    )
    scale = min(width / PHOTO[0], height / PHOTO[1])
    return (
        left + (width - scale * PHOTO[0]) / 2 + scale * (x + 0.5),
        top + (height - scale * PHOTO[1]) / 2 + scale * (y + 0.5),
    )


PHOTO = (384, 384)  # width and height of the samples


def test_a_photo_may_be_dropped(page):
    page.drop(SAMPLES / "palm.jpg", (400, 300))
    page.wait_for(FOUND)
    assert not page.run("document.getElementById('drop').classList.contains('over')")
    assert page.errors == []


def test_of_two_photos_the_last_one_is_shown(page):
    """The first, large and so longer in the reading, took the place of the one that was chosen after it."""
    page.run(
        "{ const usual = createImageBitmap; window.createImageBitmap = async (file, ...more) => {"
        "if (file.name === 'palm.jpg') await new Promise((done) => (window.readOn = done));"
        "return usual(file, ...more); }; }"
    )
    page.choose(SAMPLES / "palm.jpg")
    choose(page, "left_gun.jpg")
    page.run("readOn(); new Promise((drawn) => setTimeout(drawn, 500))")
    page.wait_for(FOUND)
    assert page.run("document.getElementById('status').textContent") == "Left hand found."


def test_a_photo_may_be_pasted(page, tmp_path):
    path = tmp_path / "palm.png"
    cv2.imwrite(str(path), cv2.imread(str(SAMPLES / "palm.jpg")))
    page.paste(path)
    page.wait_for(FOUND)
    assert page.errors == []


def test_a_box_is_drawn_where_it_is_asked_for(page):
    """In pixels of the photo, whatever the size of the screen; and taken back by the same button."""
    choose(page)
    page.click("#box")
    page.drag(image_point(page, 20, 30), image_point(page, 200, 190))
    page.wait_for("document.getElementById('box-label').textContent === 'Clear box'")
    page.wait_for(FOUND)
    asked = [url for url in page.requested if "/v1/hands" in url][-1]
    box = [float(edge) for edge in parse_qs(urlsplit(asked).query)["box"][0].split(",")]
    np.testing.assert_allclose(box, [20, 30, 200, 190], atol=1)
    page.click("#box")
    page.wait_for("document.getElementById('box-label').textContent === 'Box'")
    page.wait_for(FOUND)
    assert "box" not in [url for url in page.requested if "/v1/hands" in url][-1]


def test_a_box_can_be_drawn_with_keys_alone(page):
    choose(page)
    page.press("b", 66)
    for key in ("Enter", "ArrowLeft", "ArrowUp", "Enter"):
        page.press(key, {"Enter": 13, "ArrowLeft": 37, "ArrowUp": 38}[key])
    page.wait_for("document.getElementById('box-label').textContent === 'Clear box'")
    page.wait_for(FOUND)
    assert "box=" in [url for url in page.requested if "/v1/hands" in url][-1]


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
        found[format] = downloaded(folder, f"*.{format}")
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


def test_a_problem_that_is_over_is_no_longer_shown(page):
    """A download that worked at the second try still said that the server was busy."""
    choose(page)
    page.run("window.usual = fetch; window.fetch = async () => new Response('{}', { status: 429 }); 0")
    page.click("[data-format=json]")
    page.wait_for("!document.getElementById('notice').hidden")
    page.run("window.fetch = usual; 0")
    page.click("#notice-retry")
    page.wait_for("document.getElementById('status').textContent.startsWith('Saved')")
    assert page.run("document.getElementById('notice').hidden")


def test_the_camera_is_followed_and_switched_off(page):
    page.click("#camera")
    page.wait_for("document.getElementById('status').textContent.startsWith('Following')")
    page.wait_for("/frames/.test(document.getElementById('live-rate').textContent)")
    page.click("#camera")
    page.wait_for("document.getElementById('app').dataset.mode !== 'live'")
    assert page.run("document.getElementById('video').srcObject") is None
    assert page.errors == []


def test_a_camera_that_is_asked_for_twice_is_started_once(page):
    """A double click: the second start ended the first, which told of an interrupted play() over the running camera."""
    page.run("for (const _ of [1, 2]) document.getElementById('camera').click()")
    page.wait_for("document.getElementById('status').textContent.startsWith('Following')")
    assert page.run("document.getElementById('notice').hidden")
    page.click("#camera")
    assert page.errors == []


def downloaded(folder: Path, pattern: str) -> Path:
    """The one file of that name, when it is whole: until then Chromium calls it .crdownload."""
    wait_until(lambda: list(folder.glob(pattern)))
    (path,) = folder.glob(pattern)
    return path


def wait_for_pictures(page: Page, count: int) -> None:
    """Until the camera's next ones are shown."""
    page.run(
        """import("./static/js/stage.js").then(({ Stage }) => {
            window.shown = 0;
            const show = Stage.prototype.setPicture;
            Stage.prototype.setPicture = function (...picture) {
                shown++;
                return show.apply(this, picture);
            };
        })"""
    )
    page.wait_for(f"shown >= {count}")


def two_hands(width: int, height: int) -> np.ndarray:
    """(H, W, 3) BGR: a right hand beside a left one, on grey."""
    both = cv2.hconcat([cv2.imread(str(SAMPLES / name)) for name in ("palm.jpg", "left_gun.jpg")])
    picture = np.full((height, width, 3), 90, np.uint8)
    top = (height - width // 2) // 2
    picture[top : top + width // 2] = cv2.resize(both, (width, width // 2))
    return picture


@pytest.fixture(scope="module")
def finder():
    """A server that finds every hand."""
    predictor = load_predictor(threads=1)
    with running(settings(), predictor.engine, predictor) as one:
        yield one


@pytest.fixture
def two_hands_page(finder, tmp_path):
    """The page of a browser whose camera sees two hands."""
    camera = tmp_path / "two.y4m"
    with camera.open("wb") as file:
        file.write(b"YUV4MPEG2 W640 H480 F15:1 Ip A1:1 C420jpeg\n")
        file.write(b"FRAME\n" + cv2.cvtColor(two_hands(640, 480), cv2.COLOR_BGR2YUV_I420).tobytes())
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with chromium(tmp_path / "profile", *fake, f"--use-file-for-fake-video-capture={camera}") as page:
        page.resize(1280, 800)
        page.open(finder.url + "/")
        yield page


CHIPS = "[...document.getElementById('hands').children].map((label) => label.innerText.trim())"


def test_several_hands_of_a_camera_have_scores_and_can_be_hidden(two_hands_page):
    page = two_hands_page
    page.click("#camera")
    page.wait_for("document.getElementById('status').textContent === 'Following 2 hands.'")
    sides = [chip.split()[0] for chip in page.wait_for(f"({CHIPS}).every((chip) => /%$/.test(chip)) && {CHIPS}")]
    assert sorted(sides) == ["Left", "Right"]
    with_both = picture(page)
    page.click("#hands label:first-child span")
    wait_for_pictures(page, 5)
    assert changed(with_both, picture(page)) > 0.02, "one is gone, and stays so"
    page.click("#camera")
    assert page.errors == []


def test_a_camera_is_recorded_and_kept(page, profile):
    """What was seen, as a clip that our own reader reads, and the hands in it."""
    page.click("#camera")
    page.wait_for("document.getElementById('status').textContent.startsWith('Following')")
    page.click("#record")
    page.wait_for("/Recording, ([2-9]|[1-9][0-9])/.test(document.getElementById('status').textContent)")
    wait_for_pictures(page, 2)
    page.click("#record")
    page.wait_for("document.querySelectorAll('#files button').length === 2")
    for number in (1, 2):
        page.click(f"#files button:nth-child({number})")
    page.click("#camera")
    lines = [json.loads(line) for line in downloaded(profile / "downloads", "hands.jsonl").read_text().splitlines()]
    assert len(lines) >= 2
    assert all(0 <= line["time"] < 300 and line["width"] == 640 for line in lines)
    assert np.array(lines[-1]["hands"][0]["joints"]).shape == (21, 3)
    assert np.array(lines[-1]["hands"][0]["joint_scores"]).shape == (21,)
    assert 0.5 < lines[-1]["hands"][0]["handedness_score"] <= 1
    shown = ClipSource(downloaded(profile / "downloads", "hands.*[4m]")).read()
    assert shown is not None
    assert shown.image.std() > 20, "the picture with the hand"
    assert page.errors == []


def test_the_next_picture_is_sent_before_the_last_one_is_shown(browser):
    """While the server works, the next one is made ready. On a busy machine not always in time, so it is waited for."""
    count_ahead = """window.ahead = 0;
        let waiting = 0; // pictures that were sent and not yet shown
        const send = WebSocket.prototype.send;
        WebSocket.prototype.send = function (data) {
            if (typeof data !== "string") waiting++;
            return send.call(this, data);
        };
        import("./static/js/stage.js").then(({ Stage }) => {
            const show = Stage.prototype.setPicture;
            Stage.prototype.setPicture = function (...picture) {
                if (picture[0]) ahead += --waiting > 0;
                return show.apply(this, picture);
            };
        })"""
    browser.errors.clear()
    with running(settings(), DotEngine(delay=0.3)) as server:
        browser.open(server.url + "/")
        browser.run(count_ahead)
        browser.click("#camera")
        browser.wait_for("ahead >= 3")
        browser.click("#camera")
    assert browser.errors == []


def test_pictures_are_sent_where_no_worker_can_be_had(browser):
    """The page makes the JPEGs itself."""
    browser.errors.clear()
    with running(settings(), DotEngine()) as server:
        browser.open(server.url + "/")
        browser.run("window.Worker = class { postMessage() {} set onerror(tell) { setTimeout(tell, 100); } }")
        browser.click("#camera")
        browser.wait_for("/frames/.test(document.getElementById('live-rate').textContent)")
        browser.click("#camera")
    assert browser.errors == []


def test_a_clip_becomes_a_job_whose_results_are_kept(browser, profile, tmp_path):
    """Dropped on the page: progress, then the clip with hands, their log and the animated hand."""
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (384, 384))
    for _ in range(8):
        writer.write(cv2.imread(str(SAMPLES / "palm.jpg")))
    writer.release()
    browser.errors.clear()
    with running(
        settings(jobs_dir=tmp_path / "jobs", job_nice=0, token="a-token-of-some-length"), open_engine()
    ) as server:
        browser.open(server.url + "/", ready="document.getElementById('token')?.open")
        browser.run("document.getElementById('token-value').value = 'a-token-of-some-length'")
        browser.click("#token [type=submit]")
        browser.wait_for("document.getElementById('app').dataset.ready === 'true'")
        browser.drop(clip, (400, 300))
        browser.wait_for("document.getElementById('app').dataset.mode === 'clip'")
        browser.wait_for("document.querySelectorAll('#files button').length >= 3", 300)
        assert browser.run("document.getElementById('status').textContent") == "Done: hands in 8 of 8 pictures."
        names = browser.run(
            "[...document.querySelectorAll('#files button')].map((one) => one.textContent.split(',')[0])"
        )
        assert {"overlay.mp4", "hands.jsonl", "hand.glb"} <= set(names)
        (profile / "downloads" / "hands.jsonl").unlink(missing_ok=True)
        browser.click(f"#files button:nth-child({names.index('hands.jsonl') + 1})")
        assert len(list(read_frames(downloaded(profile / "downloads", "hands.jsonl")))) == 8
        browser.wait_for("document.getElementById('clip').src.startsWith('blob:')")
    refused = [error for error in browser.errors if "401" not in error]
    # Chromium without Google's codecs does not play H.264.
    assert [error for error in refused if "overlay" not in error] == []


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Four seconds that Chromium plays."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = VideoWriter(path, (384, 384), 4.0, "vp9")
    for index in range(16):
        writer.write(read_image(SAMPLES / "palm.jpg"), index / 4)
    writer.close()
    return path


def test_a_clip_falls_silent_when_a_photo_is_chosen(browser, clip, tmp_path):
    """It played on behind the photo, with its sound if that was on, and there was no button to stop it."""
    playing = "(clip => !clip.paused && clip.currentTime > 0)(document.getElementById('clip'))"
    with running(settings(jobs_dir=tmp_path / "jobs"), DotEngine()) as server:
        browser.open(server.url + "/")
        browser.choose(clip)
        browser.wait_for("document.getElementById('clip').readyState > 2")
        browser.run("document.getElementById('clip').play()")
        browser.wait_for(playing)
        browser.choose(SAMPLES / "palm.jpg")
        browser.wait_for("document.getElementById('app').dataset.mode === 'photo'")
        assert not browser.run(playing)


def test_a_clip_that_is_given_up_as_it_is_accepted_is_cancelled(page):
    """While the answer was read nobody listened: the job went on, and its id was known to nobody."""
    asked = page.run(
        "import('./static/js/clip.js').then(async ({ workOnClip }) => { const [usual, asked] = [window.fetch, []];"
        "const given = new AbortController(); window.fetch = async (url, { method = 'GET' } = {}) => {"
        "asked.push(`${method} ${new URL(url).pathname}`); return { ok: true,"
        "headers: new Headers({ Location: '/v1/videos/12' }),"
        "json: async () => { given.abort(); given.signal.throwIfAborted(); } }; };"
        "const options = { signal: given.signal, onProgress() {} };"
        "try { await workOnClip(new File(['x'], 'clip.mp4'), {}, 10, options); } catch (e) { asked.push(e.name); }"
        "window.fetch = usual; return asked; })"
    )
    assert asked == ["POST /v1/videos", "DELETE /v1/videos/12", "AbortError"]


def test_an_overlay_that_comes_late_takes_nothings_place(browser, clip, tmp_path):
    """A photo was chosen while it came."""
    with running(settings(jobs_dir=tmp_path / "jobs", job_nice=0), open_engine()) as server:
        browser.open(server.url + "/")
        browser.run(
            "{ const usual = fetch; window.fetch = async (url, ...more) => { const answer = await usual(url, ...more);"
            "if (`${url}`.endsWith('overlay.mp4')) await new Promise((done) => (window.comes = done));"
            "return answer; }; }"
        )
        browser.choose(clip)
        browser.wait_for("window.comes !== undefined", 300)
        browser.choose(SAMPLES / "palm.jpg")
        browser.wait_for(FOUND)
        browser.run("comes(); new Promise((done) => setTimeout(done, 300))")
        assert browser.run("document.getElementById('clip').getAttribute('src')") is None
        assert browser.run("document.getElementById('app').dataset.mode") == "photo"


def test_a_clip_that_cannot_be_read_is_refused_in_words(browser, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"no clip at all")
    with running(settings(jobs_dir=tmp_path / "jobs"), DotEngine()) as server:
        browser.open(server.url + "/")
        browser.choose(clip)
        browser.wait_for("!document.getElementById('notice').hidden")
        assert "MP4" in browser.run("document.getElementById('notice-text').textContent")
        assert browser.run("document.getElementById('app').dataset.mode") == "empty"


def test_it_is_said_that_a_hand_can_be_turned_until_it_was(page):
    assert not page.run("document.getElementById('hint').checkVisibility()")
    choose(page)
    assert page.run("document.getElementById('hint').checkVisibility()")
    page.drag((470, 400), (620, 440))
    page.wait_for("!document.getElementById('hint').checkVisibility()")
    choose(page, "left_gun.jpg")
    assert not page.run("document.getElementById('hint').checkVisibility()")


@pytest.mark.skipif("AXE" not in os.environ, reason="needs axe-core: npm install axe-core, AXE=.../axe.min.js")
def test_axe_finds_nothing(finder, browser, tmp_path):
    """The checks of accessibility by axe-core, with hands shown, light and dark."""
    path = tmp_path / "two.jpg"
    cv2.imwrite(str(path), two_hands(800, 500))
    for scheme in ("light", "dark"):
        browser.prefer(color_scheme=scheme)
        browser.open(finder.url + "/")
        for show in (lambda: None, lambda: choose_path(browser, path), lambda: browser.click("#camera")):
            show()
            browser.run(Path(os.environ["AXE"]).read_text(encoding="utf-8") + ";0")
            found = browser.run(
                "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes[0].html]))"
            )
            assert found == [], scheme
        browser.click("#camera")
    browser.prefer(color_scheme="light")


def test_a_camera_that_is_refused_is_told_how_to_be_allowed(server, tmp_path):
    """By the person, whom a browser of its own stands in for: it says no to every page that asks."""
    with chromium(tmp_path, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream=deny") as page:
        page.open(server.url + "/")
        page.click("#camera")
        page.wait_for("!document.getElementById('notice').hidden")
        assert page.run("document.getElementById('notice-title').textContent") == "The camera was not allowed"
        assert not page.run("document.getElementById('notice-retry').hidden")
        assert page.run("document.getElementById('app').dataset.mode") == "empty"
        choose(page)
        assert page.run("document.getElementById('notice').hidden")


def test_a_clip_in_work_outlives_a_camera_that_is_refused(server, tmp_path):
    """It was cancelled as the camera was asked for, and the page stood still at its progress."""
    in_work = "document.getElementById('status').textContent.startsWith('Picture 3 of 8')"
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"not looked at")
    with chromium(
        tmp_path / "profile", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream=deny"
    ) as page:
        page.open(server.url + "/")
        page.run(
            "{ const usual = fetch; window.asked = []; window.fetch = async (url, options = {}) => {"
            "if (!`${url}`.includes('v1/videos')) return usual(url, options);"
            "options.signal?.throwIfAborted(); asked.push(options.method ?? 'GET');"
            "const job = { status: 'running', frames: 8, frames_done: 3 };"
            "return new Response(JSON.stringify(job), { headers: { Location: '/v1/videos/12' } }); }; }"
        )
        page.choose(clip)
        page.wait_for(in_work)
        page.click("#camera")
        page.wait_for("!document.getElementById('notice').hidden")
        page.wait_for(in_work)
        assert "DELETE" not in page.run("asked")


def decoded_by_the_page(page: Page, content: bytes) -> dict:
    encoded = base64.b64encode(content).decode()
    return page.run(
        "import('./static/js/wire.js').then(({ decodeFrame }) => { const frame = decodeFrame("
        f"Uint8Array.from(atob({encoded!r}), (c) => c.charCodeAt(0)).buffer);"
        "for (const hand of frame.hands) for (const name of ['keypoints', 'joints', 'jointScores', 'vertices'])"
        "if (hand[name]) hand[name] = [...hand[name]]; return frame; })"
    )


@pytest.mark.parametrize("focal", ["500", "undefined"])
def test_the_near_hand_hides_the_far_one(page, focal):
    """Each was at the same depth, its own middle: a far finger came through a near palm. Bones lay in any order."""
    page.run(
        """import('./static/js/stage.js').then(({ Stage }) => {
            const root = document.createElement('div');
            root.style.cssText = 'position: fixed; inset: 0 auto auto 0; width: 200px; height: 200px';
            const canvas = (id) => Object.assign(document.createElement('canvas'), { id });
            root.append(...['picture', 'mesh', 'lines'].map(canvas));
            document.body.append(root);
            const faces = Uint32Array.of(0, 1, 2, 0, 2, 3);
            const colors = { right: [250, 0, 0], left: [0, 0, 250] };
            const model = { faces: { right: faces, left: faces }, colors, bones: [] };
            window.other = new Stage(root, model, { onBox() {}, onDraw() {} });
            other.setPicture(null, 200, 200);
        })"""
    )
    # Red squares at half the distance of blue ones, of which a corner comes 0.2 m nearer: that is not enough.
    hands = [
        f"{{ handedness: '{side}', cropCenter: [100, 100], cropSize: 200, scale: {scale}, translation: [0, 0], "
        f"focal: {focal}, joints: [], vertices: Float32Array.of(-0.1,-0.1,{z}, 0.1,-0.1,0, 0.1,0.1,0, -0.1,0.1,0) }}"
        for side, scale, z in (("right", 8, 0), ("left", 4, -0.2))
    ]
    for order in (hands, hands[::-1]):
        drawn = page.run(
            f"(() => {{ other.setHands([{', '.join(order)}]); other.draw(); "
            "const canvas = Object.assign(document.createElement('canvas'), { width: 200, height: 200 }); "
            "const context = canvas.getContext('2d'); "
            "context.drawImage(other.layers[1], 0, 0, 200, 200); "
            "const seen = [[100, 100], [80, 80]].map(([x, y]) => [...context.getImageData(x, y, 1, 1).data]); "
            "return [seen, other.hands.map((hand) => hand.handedness)]; })()"
        )
        assert all(red > 2 * blue for red, _, blue, _ in drawn[0]), drawn
        assert drawn[1] == ["left", "right"], "bones are drawn in this order"
    assert page.errors == []


@pytest.mark.parametrize("vertices", ["float16", "float32"])
def test_the_page_reads_what_the_server_writes(page, vertices):
    """Every number of the stream, by the page's own decoder, for none, one and two hands."""
    predictor = Predictor(MarkerEngine(heads=True))
    picture = draw([hand_at(90, 170, 48, 0.3, "right"), hand_at(230, 170, 40, -0.2, "left")])
    hands = predictor(picture, boxes=[(50, 90, 150, 200), (180, 90, 280, 200)])
    assert [hand.handedness for hand in hands] == ["right", "left"]
    hands[1] = replace(hands[1], joint_scores=np.linspace(0, 1, 21, dtype=np.float32))
    for shown in ([], hands[:1], hands, hands[::-1]):
        sent = encode_frame(Frame(4_000_000_000, 320, 240, 12.5, 7.25), shown, StreamOptions(vertices=vertices))
        frame = decoded_by_the_page(page, sent)
        assert [frame[name] for name in ("number", "width", "height")] == [4_000_000_000, 320, 240]
        assert [frame["serverMs"], frame["modelMs"], len(frame["hands"])] == [12.5, 7.25, len(shown)]
        for read, hand in zip(frame["hands"], shown, strict=True):
            assert [read["handedness"], read["handednessSource"]] == [hand.handedness, "found"]
            exact = {
                "score": hand.score,
                "handednessScore": hand.handedness_score,
                "cropCenter": hand.crop.center,
                "cropSize": hand.crop.size,
                "scale": hand.camera.scale,
                "translation": hand.camera.translation,
                "keypoints": hand.keypoints_image().ravel(),
                "joints": hand.joints.ravel(),
                "vertices": hand.vertices.astype(vertices).ravel(),
            }
            if hand.joint_scores is None:
                assert "jointScores" not in read
            else:
                exact["jointScores"] = hand.joint_scores
            for name, value in exact.items():
                np.testing.assert_array_equal(np.float32(read[name]), np.float32(value), err_msg=name)


def test_the_page_knows_every_half_precision_number(page):
    bits = np.arange(2**16, dtype=np.uint16)
    read = page.run(
        "import('./static/js/wire.js').then(({ halfFloat }) => Array.from({ length: 65536 }, (_, b) => halfFloat(b)))"
    )
    wanted = bits.view(np.float16).astype(float)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(np.array(read, float)[finite], wanted[finite])
    assert all(number is None or not np.isfinite(number) for number in np.array(read)[~finite])


def test_a_sample_does_not_say_which_hand_the_next_one_is(page):
    """A sample once set the switch to its own side, where it stayed: a left hand then was drawn as a right one."""
    for name, side in (("palm", "Right"), ("left_gun", "Left")):
        page.run(f"document.querySelector('[data-sample={name}]').click()")
        page.wait_for(f"document.getElementById('status').textContent === '{side} hand found.'")
        assert page.run("document.querySelector('#sides input:checked').value") == "auto"
    page.choose(SAMPLES / "palm.jpg")
    page.wait_for("document.getElementById('status').textContent === 'Right hand found.'")


def test_a_phone_has_room_for_everything(page):
    """360 px wide: nothing sticks out to the side, whatever is shown, and nothing lies over what is to be touched."""
    page.resize(360, 740, mobile=True)
    assert page.run("document.documentElement.scrollWidth") == 360
    page.click(".welcome [data-sample=palm]")
    page.wait_for(FOUND)
    assert page.run("document.documentElement.scrollWidth") == 360
    page.click("#camera")
    page.wait_for("document.getElementById('status').textContent.startsWith('Following')")
    outside = page.run(
        "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.scrollWidth > b.clientWidth + 1)"
        ".map(b => b.textContent.trim() || b.ariaLabel)"
    )
    assert outside == [], "buttons whose words stick out"
    page.click("#camera")


def test_it_is_dark_where_dark_is_wished_for(page):
    light = until_still(page).mean()
    page.prefer(color_scheme="dark")
    dark = until_still(page).mean()
    page.prefer(color_scheme="light")
    assert light > 150
    assert dark < 90
