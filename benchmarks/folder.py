"""How much of the bare networks a folder of photos gets:  OMP_NUM_THREADS=1 python benchmarks/folder.py

A folder of synthetic photos through `handmesh predict --format json --threads N`, against its two networks alone on N
threads, on the pictures and crops that they are shown there. Processor time, since other programs may run: what is not
the networks' is everything else's. On a machine that does nothing else, `--wall` takes the clock's. `--model` takes a
bare architecture, which gets random weights, or a model file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from handmesh.bench.engines import is_bare, random_model
from handmesh.cli.predict import side_by_side
from handmesh.detect.hands import SIDE, HandDetector
from handmesh.files.image import encode_image, read_photo
from handmesh.hand import builtin_hand
from handmesh.hand.grid import fitted
from handmesh.predict import Predictor, save_hands
from handmesh.runtime.engine import open_engine
from handmesh.synth import SceneRenderer, sample_generator


class Recorded:
    """An engine that keeps the crops it was shown."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.crops = engine, []
        self.name, self.resolution, self.hand, self.record = engine.name, engine.resolution, engine.hand, engine.record

    def __call__(self, crops: np.ndarray) -> Any:
        self.crops.append(crops)
        return self._engine(crops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the bundled one by default")
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="by the clock, for an idle machine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, model = Path(folder), arguments.model
        if model is not None and is_bare(model):
            model = random_model(model, 224, work)[0]
        renderer = SceneRenderer(builtin_hand(), size=384)
        photos = []
        for index in range(arguments.photos):
            scene = cv2.resize(renderer.render(sample_generator(77, index)).image, (480, 480))
            image = np.full((480, 640, 3), 90, np.uint8)
            image[:, :480] = scene
            photos.append(work / f"{index}.jpg")
            photos[-1].write_bytes(encode_image(image, "jpg"))
        engine, detector = open_engine(model, "cpu", threads=1), HandDetector(threads=1)
        predictor = Predictor(engine, detector=detector)
        shown = {}
        for path in photos:
            recorded = Recorded(engine)
            predictor.with_engine(recorded)(path)
            shown[path] = fitted(read_photo(path).image, SIDE)[0], recorded.crops
        count = sum(len(crops) for _, of_photo in shown.values() for crops in of_photo) / len(photos)

        def predict(path: Path) -> None:
            save_hands(path.with_suffix(".json"), predictor(read_photo(path)))

        def networks(path: Path) -> None:
            picture, of_photo = shown[path]
            detector.find(picture)
            for crops in of_photo:
                engine(crops)

        clock = time.perf_counter if arguments.wall else time.process_time
        shares, rates = [], []
        for _ in range(3):
            taken = []
            for job in (networks, predict):
                job(photos[0])
                started = clock()
                list(side_by_side(job, photos, arguments.threads))
                taken.append(clock() - started)
            shares.append(taken[0] / taken[1])
            rates.append(len(photos) / taken[1])
        print(
            f"{engine.name}, {arguments.model or 'bundled'}, {arguments.threads} worker(s), {count:.1f} crops a photo: "
            f"{sorted(shares)[1]:.3f} of the networks, {sorted(rates)[1]:.1f} photos/s"
            f"{'' if arguments.wall else ' of CPU time'}"
        )


if __name__ == "__main__":
    main()
