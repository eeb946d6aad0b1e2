"""Where the time of one photo goes:  OMP_NUM_THREADS=1 python benchmarks/stages.py [--size 640x480] [--model M]

Milliseconds per stage (median of runs) on one synthetic photo of one hand, three passes; and the peak memory.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from handmesh.anatomy import pose_mesh
from handmesh.crop import CropTransform
from handmesh.hand import builtin_hand
from handmesh.image import encode_image, read_photo
from handmesh.predict import load_predictor, save_predictions
from handmesh.synth import SceneRenderer, sample_generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    sample = SceneRenderer(builtin_hand(), size=384).render(sample_generator(2026, 7))
    image = np.full((height, width, 3), 90, np.uint8)
    side = min(width, height)
    image[:side, :side] = cv2.resize(sample.image, (side, side))
    encoded = encode_image(image, "jpg")
    predictor = load_predictor(arguments.model, threads=arguments.threads)
    engine = predictor.engine
    photo = read_photo(encoded)
    crop = CropTransform.whole_image(width, height)
    crops = crop.warp(photo.image, engine.resolution)[None]
    hands = predictor(photo)
    hand = engine.hand
    with tempfile.TemporaryDirectory() as folder:
        stages: dict[str, Callable[[], Any]] = {
            "decode JPEG": lambda: read_photo(encoded),
            "one crop": lambda: crop.warp(photo.image, engine.resolution),
            "network and hand model, one pass": lambda: engine(crops),
            "hand model alone (numpy)": lambda: pose_mesh(hand, hands[0].pose, hands[0].betas),
            "whole prediction, three passes": lambda: predictor(photo),
            "draw overlay": lambda: hands[0].overlay(photo.image),
            "save GLB": lambda: save_predictions(Path(folder) / "hand.glb", hands),
            "save JSON": lambda: save_predictions(Path(folder) / "hand.json", hands),
            "draw and save PNG": lambda: save_predictions(Path(folder) / "hand.png", hands, photo.image),
        }
        print(f"{platform.machine()}, {arguments.threads} thread(s), {engine.name}, {width}x{height}")
        for name, stage in stages.items():
            print(f"{name:34} {milliseconds(stage, arguments.runs):8.2f} ms")
    print(f"{'peak memory':34} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MB")


def milliseconds(stage: Callable[[], Any], runs: int) -> float:
    for _ in range(3):
        stage()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        stage()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


if __name__ == "__main__":
    main()
