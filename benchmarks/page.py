"""How long the web page takes, in a headless Chromium:  python benchmarks/page.py [--photos 20] [--seconds 20]

A server with the bundled model is started. A 640 x 480 JPEG is chosen again and again: from the choice to the mesh on
the screen, in the parts that the page itself shows. Then a fake camera (640 x 480, a hand that sways) is followed for
some seconds: frames per second, and one frame there and back. Without a graphics card Chromium draws on the processor,
which it shares with the server.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from serving import photo_640

import handmesh
from handmesh.engine import open_engine

ROWS = """Object.fromEntries([...document.querySelectorAll("#timing > div")].map(
    row => [...row.children].map(part => part.innerText)))"""
STATUS = "document.getElementById('status').textContent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the camera")
    parser.add_argument("--threads", type=int, default=1, help="of the network")
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from browser import CHROMIUM, chromium
    from server_harness import running, settings

    if CHROMIUM is None:
        sys.exit("No Chromium was found: apt-get install chromium, or Google Chrome.")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        photo, camera = directory / "photo.jpg", directory / "camera.y4m"
        photo.write_bytes(photo_640())
        write_camera(camera)
        fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
        engine = open_engine(threads=arguments.threads)
        with (
            running(settings(), engine) as server,
            chromium(directory / "profile", *fake, f"--use-file-for-fake-video-capture={camera}") as page,
        ):
            page.resize(1280, 800)
            page.open(server.url + "/")
            report("a photo", [one_photo(page, photo) for _ in range(arguments.photos + 1)][1:])
            page.click("#camera")
            page.wait_for(f"{STATUS}.startsWith('Following')")
            time.sleep(2)
            frames = []
            until = time.monotonic() + arguments.seconds
            while time.monotonic() < until:
                time.sleep(0.6)  # the page renews its figures every half second
                frames.append(page.run(ROWS))
            report("the camera", frames)


def one_photo(page: Any, path: Path) -> dict[str, str]:
    page.run("document.querySelector('#timing').replaceChildren()")
    page.choose(path)
    page.wait_for("document.querySelector('#timing').innerText.includes('Photo to mesh')")
    rows: dict[str, str] = page.run(ROWS)
    return rows


def report(name: str, rows: list[dict[str, str]]) -> None:
    print(f"{name}, {len(rows)} times: median, most")
    for part in rows[0]:
        values = [float(row[part].split()[0]) for row in rows]
        print(f"  {part:20} {statistics.median(values):7.1f} {max(values):7.1f} {rows[0][part].split()[1]}")


def write_camera(path: Path) -> None:
    """A clip for the browser's fake camera, as YUV4MPEG2."""
    sample = Path(handmesh.__file__).parent / "assets" / "samples" / "rest.jpg"
    hand = cv2.resize(cv2.imread(str(sample)), (480, 480))
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W640 H480 F30:1 Ip A1:1 C420jpeg\n")
        for angle in np.linspace(0, 2 * np.pi, 60, endpoint=False):
            shift = round(80 + 30 * np.sin(angle))
            frame = np.full((480, 640, 3), 90, np.uint8)
            frame[:, shift : shift + 480] = hand
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).tobytes())


if __name__ == "__main__":
    main()
