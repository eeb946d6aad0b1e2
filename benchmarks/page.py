"""How long the web page takes, in a headless Chromium:  python benchmarks/page.py [--photos 20] [--seconds 10]

A server with the bundled model is started, at default settings. A 640 x 480 JPEG is chosen again and again: from the
choice to the mesh on the screen, in the parts that the page itself shows. Then, in turns, the page follows a fake
camera (640 x 480, 60 pictures a second, so that it is not what limits; a hand that sways), and a client sends the same
pictures over the same WebSocket, each as soon as the one before is answered: frames per second of both, their ratio,
how often the page was drawn, and what server and browser took of the processors, which they share: without a graphics
card Chromium draws there, too. Linux.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from serving import Server, sample

import handmesh
from handmesh.client import Client
from handmesh.files.image import encode_image

ROWS = """Object.fromEntries([...document.querySelectorAll("#timing > div")].map(
    row => [...row.children].map(part => part.innerText)))"""
STATUS = "document.getElementById('status').textContent"
SHIFTS = [round(80 + 30 * np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 120, endpoint=False)]  # px, of the hand
QUALITY = 80  # of a JPEG, as the page sends them
CAMERA_FPS = 60
COUNT = """import("./static/js/stage.js").then(({ Stage }) => {
    window.drawn = 0;
    const draw = Stage.prototype.draw;
    Stage.prototype.draw = function () { drawn++; return draw.call(this); };
    window.sent = 0;
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (data) { sent += typeof data !== "string"; return send.call(this, data); };
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the camera, and of the client, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from browser import CHROMIUM, camera_pictures, chromium, write_camera

    if CHROMIUM is None:
        sys.exit("No Chromium was found: apt-get install chromium, or Google Chrome.")
    server = Server()
    try:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            photo, camera = directory / "photo.jpg", directory / "camera.y4m"
            photo.write_bytes(encode_image(sample(), "jpeg", quality=90))
            hand = Path(handmesh.__file__).parent / "assets" / "samples" / "rest.jpg"
            write_camera(camera, hand, CAMERA_FPS, SHIFTS)
            frames = [
                encode_image(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), "jpeg", quality=QUALITY)
                for picture in camera_pictures(hand, SHIFTS)
            ]
            fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
            with chromium(directory / "profile", *fake, f"--use-file-for-fake-video-capture={camera}") as page:
                page.resize(1280, 800)
                page.open(f"http://127.0.0.1:{server.port}/")
                if arguments.photos:
                    report("a photo", [one_photo(page, photo) for _ in range(arguments.photos + 1)][1:])
                page.run(COUNT)
                rows, ratios = [], []
                for _ in range(arguments.rounds):
                    shown = camera_round(page, server, arguments.seconds)
                    rate = client_round(server.port, frames, arguments.seconds)
                    rows += shown
                    ratios.append(statistics.median(float(row["Frames"].split()[0]) for row in shown) / rate)
                    print(f"the WebSocket alone: {rate:.1f} frames/s; the page's over it: {ratios[-1]:.2f}")
                report("the camera", rows)
                print(f"the page's frames/s over the WebSocket's: {statistics.median(ratios):.2f}")
    finally:
        server.end()


def one_photo(page: Any, path: Path) -> dict[str, str]:
    page.run("document.querySelector('#timing').replaceChildren()")
    page.choose(path)
    page.wait_for("document.querySelector('#timing').innerText.includes('Photo to mesh')")
    rows: dict[str, str] = page.run(ROWS)
    return rows


def camera_round(page: Any, server: Server, seconds: float) -> list[dict[str, str]]:
    """The figures that the page shows, every 0.6 s: it renews them every half second."""

    def counted() -> tuple[float, float, float, float]:
        return (*page.run("[sent, drawn]"), server.cpu_seconds(), browser_seconds(server))

    page.click("#camera")
    page.wait_for(f"{STATUS}.startsWith('Following')")
    time.sleep(3)
    rows = []
    before, started = counted(), time.monotonic()
    while time.monotonic() < started + seconds:
        time.sleep(0.6)
        rows.append(page.run(ROWS))
    passed = time.monotonic() - started
    sent, drawn, server_s, browser_s = (now - then for now, then in zip(counted(), before, strict=True))
    print(
        f"the page: {sent / passed:.1f} frames/s, drawn {drawn / passed:.1f} times a second; processor ms of a frame:"
    )
    print(f"  server {1000 * server_s / sent:.1f}, browser {1000 * browser_s / sent:.1f}")
    page.click("#camera")
    page.wait_for("document.getElementById('app').dataset.mode !== 'live'")
    return rows


def browser_seconds(server: Server) -> float:
    """Processor time of what this process started and is not the server."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    total, left = 0.0, [one for one in children[os.getpid()] if one != server.process.pid]
    while left:
        pid = left.pop()
        total += seconds[pid]
        left += children.get(pid, [])
    return total


def client_round(port: int, frames: list[bytes], seconds: float) -> float:
    """Frames per second."""
    with Client(f"http://127.0.0.1:{port}").stream() as stream:
        for frame in frames[:10]:
            stream(frame)
        started = time.monotonic()
        for number, frame in enumerate(itertools.cycle(frames)):
            if time.monotonic() - started > seconds:
                return number / (time.monotonic() - started)
            stream(frame)
    raise AssertionError


def report(name: str, rows: list[dict[str, str]]) -> None:
    print(f"{name}, {len(rows)} times: median, most")
    for part in rows[0]:
        values = [float(row[part].split()[0]) for row in rows]
        print(f"  {part:20} {statistics.median(values):7.1f} {max(values):7.1f} {rows[0][part].split()[1]}")


if __name__ == "__main__":
    main()
