"""Draw the pictures of Start and How to from what the examples write:

    python benchmarks/synthetic_clip.py clip.mp4 --seconds 10
    python docs/make_pictures.py clip.mp4

The others are screenshots of the pages that they show.
"""

from __future__ import annotations

import csv
import os
import runpy
import sys
import tempfile
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
            handmesh.overlay_hands(frame.image, list(hands.values()))[::2, ::2]
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
    write_atomically(IMAGES / "joint_angles.svg", table(rows).encode())


def save(name: str, pictures: list[np.ndarray]) -> None:
    """Side by side."""
    write_atomically(IMAGES / f"{name}.jpg", encode_image(np.concatenate(pictures, axis=1), "jpg", quality=80))


def run(example: str, *words: str) -> None:
    sys.argv = [example, *words]
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")


def table(rows: list[list[str]]) -> str:
    """An SVG of the table of angles: the more a joint bends, the darker."""
    names = rows[0][3:]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {110 + 26 * (len(rows) - 1)}"'
        ' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    ]
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
