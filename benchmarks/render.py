"""Milliseconds to draw a hand over an image, per image size, on one core; and what a first picture costs a process.

python benchmarks/render.py [--repeats 50]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

SIZES = ((224, 224), (640, 480), (1280, 720), (1920, 1080), (4000, 3000))

FIRST_PICTURE = """
import time
start = time.perf_counter()
import numpy as np
from handmesh.hand import builtin_hand
hand = builtin_hand()
loaded = time.perf_counter()
from handmesh.draw import render
imported = time.perf_counter()
render.overlay(np.zeros((480, 640, 3), np.uint8), hand.v_template * 2000 + [320, 240, 0], hand.faces)
print(f"{imported - loaded:.2f} {time.perf_counter() - imported:.2f}")
"""


def best_ms(run: Callable[[], object], repeats: int) -> float:
    """The shortest of several runs: the one that other programs disturbed least."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    repeats = parser.parse_args().repeats

    with tempfile.TemporaryDirectory() as cache:
        for label in ("compiled now", "compiled before"):
            environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
            command = [sys.executable, "-c", FIRST_PICTURE]
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            imported, drawn = answer.split()
            print(f"a process's first picture, {label}: import {imported} s, draw {drawn} s")

    import numpy as np

    from handmesh.draw import render
    from handmesh.draw.skeleton import draw_skeleton
    from handmesh.geometry.normals import vertex_normals
    from handmesh.hand import builtin_hand

    hand = builtin_hand()
    # Fingers up, palm to the viewer.
    vertices = hand.v_template @ np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    normals = vertex_normals(vertices, hand.faces)
    low, high = vertices.min(axis=0), vertices.max(axis=0)

    print("\n| image | pixels of hand | overlay ms | mesh alone ms | skeleton ms |\n|---|---|---|---|---|")
    for width, height in SIZES:
        # The hand fills 80% of the image's height or width.
        scale = 0.8 * min(width / (high[0] - low[0]), height / (high[1] - low[1]))
        placed = (vertices - (low + high) / 2) * scale + [width / 2, height / 2, 0]
        keypoints = placed[np.linspace(0, len(placed) - 1, 21).astype(int), :2]
        image = np.full((height, width, 3), 128, np.uint8)
        covered = int((render.render_mesh(placed, hand.faces, (width, height), normals=normals)[..., 3] > 0).sum())
        count = max(3, min(repeats, repeats * 640 * 480 * 2 // (width * height)))

        runs = (
            partial(render.overlay, image, placed, hand.faces, normals=normals),
            partial(render.render_mesh, placed, hand.faces, (width, height), normals=normals),
            partial(draw_skeleton, image, keypoints),
        )
        times = " | ".join(f"{best_ms(run, count):.2f}" for run in runs)
        print(f"| {width} x {height} | {covered:,} | {times} |")


if __name__ == "__main__":
    main()
