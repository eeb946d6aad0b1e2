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

import numpy as np
from serving import photo_640

import handmesh
from handmesh.runtime.engine import open_engine

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
    from browser import CHROMIUM, chromium, write_camera
    from server_harness import running, settings

    if CHROMIUM is None:
        sys.exit("No Chromium was found: apt-get install chromium, or Google Chrome.")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        photo, camera = directory / "photo.jpg", directory / "camera.y4m"
        photo.write_bytes(photo_640())
        swaying = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        sample = Path(handmesh.__file__).parent / "assets" / "samples" / "rest.jpg"
        write_camera(camera, sample, 30, [round(80 + 30 * np.sin(angle)) for angle in swaying])
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


if __name__ == "__main__":
    main()
