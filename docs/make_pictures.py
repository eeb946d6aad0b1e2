"""Draw the pictures of Start and How to from what the examples write:

    python benchmarks/synthetic_clip.py clip.mp4 --seconds 10
    python docs/make_pictures.py clip.mp4

The others are screenshots of the pages that they show. What tuning brings is drawn from how_to/finetune.md's table.
"""

from __future__ import annotations

import contextlib
import csv
import html
import io
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

import handmesh
from handmesh.files.image import encode_image
from handmesh.system.atomic import write_atomically

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
SAMPLES = ROOT / "handmesh" / "assets" / "samples"
GRAPH = ROOT / "handmesh" / "assets" / "handmesh_t8.onnx"
FRAMES = (60, 130, 180, 215)  # of the clip


def main() -> None:
    clip = Path(sys.argv[1]).resolve()
    predictor = handmesh.load_predictor()
    photo = handmesh.read_image(SAMPLES / "palm.jpg")
    save("first_mesh", [photo, handmesh.overlay_hands(photo, predictor(photo))])
    frames = enumerate(handmesh.follow_video(clip, predictor))
    save(
        "first_clip",
        [
            handmesh.overlay_hands(frame.image, hands.values())[::2, ::2]
            for index, (frame, hands) in frames
            if index in FRAMES
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run("pinch_to_draw.py", str(clip), "drawing.png")
        save("pinch", [handmesh.read_image("drawing.png")])
        run("plain_onnxruntime.py", str(GRAPH), str(SAMPLES / "palm.jpg"), "60", "60", "330", "330")
        save("keypoints", [cv2.resize(handmesh.read_image("keypoints.png"), (256, 256), interpolation=cv2.INTER_AREA)])
        run("folder_to_joint_angles.py", str(SAMPLES), "angles.csv")
        rows = list(csv.reader(Path("angles.csv").read_text().splitlines()))
        for name in ("point", "left_gun", "palm"):
            Path(f"{name}.jpg").write_bytes((SAMPLES / f"{name}.jpg").read_bytes())
        words = sorted(path.name for path in Path().glob("*.jpg"))
        with served() as address, contextlib.redirect_stdout(io.StringIO()) as printed:
            run("http_client.py", address, *words)
    for name, drawing in (
        ("joint_angles", table(rows)),
        (
            "http_client",
            terminal(
                [
                    "$ python examples/http_client.py http://127.0.0.1:8000 " + " ".join(words),
                    *printed.getvalue().splitlines(),
                ]
            ),
        ),
        ("finetune", bars((ROOT / "docs" / "how_to" / "finetune.md").read_text(encoding="utf-8"))),
    ):
        write_atomically(IMAGES / f"{name}.svg", drawing.encode())


def save(name: str, pictures: list[np.ndarray]) -> None:
    """Side by side."""
    write_atomically(IMAGES / f"{name}.jpg", encode_image(np.concatenate(pictures, axis=1), "jpg", quality=80))


def run(example: str, *words: str) -> None:
    sys.argv = [example, *words]
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")


@contextlib.contextmanager
def served() -> Iterator[str]:
    """`handmesh serve`, and its address."""
    command = [sys.executable, "-m", "handmesh", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        lines = iter(server.stderr or ())
        address = next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        try:
            while not ready(address):
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            server.communicate()


def ready(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/readyz"):
        return True
    return False


def terminal(lines: list[str]) -> str:
    """An SVG of what a command prints."""
    text = (f'<text x="12" y="{24 + 20 * row}">{html.escape(line)}</text>' for row, line in enumerate(lines))
    return "\n".join(
        [svg(660, 16 + 20 * len(lines), "#1e2430", 'fill="#dde3ee" font-family="monospace"'), *text, "</svg>\n"]
    )


def bars(page: str) -> str:
    """An SVG of a page's table of errors before and after: each row over its own "before"."""
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+)( mm)? \| ([\d.]+)(?: mm)? \|$", page, re.MULTILINE)
    parts = [svg(660, 20 + 56 * len(rows), "#fff", 'font-family="sans-serif"')]
    for row, (name, before, unit, after) in enumerate(rows):
        y = 20 + 56 * row
        parts.append(f'<text x="12" y="{y + 4}" font-weight="bold">{html.escape(name)}</text>')
        for line, (when, value, fill) in enumerate((("before", before, "#b8c4d6"), ("after", after, "#285aa0"))):
            width = 440 * float(value) / float(before)
            parts.append(
                f'<text x="12" y="{y + 21 + 16 * line}">{when}</text>'
                f'<rect x="64" y="{y + 11 + 16 * line}" width="{width:.0f}" height="12" fill="{fill}"/>'
                f'<text x="{70 + width:.0f}" y="{y + 21 + 16 * line}">{value}{unit}</text>'
            )
    return "\n".join(parts) + "\n</svg>\n"


def svg(width: int, height: int, background: str, style: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style} font-size="12" '
        f'xml:space="preserve"><rect width="100%" height="100%" fill="{background}"/>'
    )


def table(rows: list[list[str]]) -> str:
    """An SVG of the table of angles: the more a joint bends, the darker."""
    names = rows[0][3:]
    parts = [svg(760, 110 + 26 * (len(rows) - 1), "#fff", 'font-family="sans-serif"')]
    for column, name in enumerate(names):
        parts.append(f'<text transform="translate({128 + 42 * column} 96) rotate(-50)">{name}</text>')
    for row, (photo, _, _, *angles) in enumerate(rows[1:]):
        y = 102 + 26 * row
        parts.append(f'<text x="8" y="{y + 17}">{photo}</text>')
        for column, angle in enumerate(angles):
            share = min(max(float(angle) / 100, 0), 1)
            fill = ",".join(str(round(255 - share * (255 - dark))) for dark in (40, 90, 160))
            ink = "#fff" if share > 0.5 else "#222"
            parts.append(
                f'<rect x="{110 + 42 * column}" y="{y}" width="40" height="24" fill="rgb({fill})"/>'
                f'<text x="{130 + 42 * column}" y="{y + 16}" text-anchor="middle" fill="{ink}">'
                f"{float(angle):.0f}</text>"
            )
    return "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    main()
