"""How much of the bare engine a folder of photos gets:  OMP_NUM_THREADS=1 python benchmarks/folder.py

A folder of synthetic photos through `handmesh predict --format json --threads N`, against the engine alone on N threads
with as many crops. Processor time, since other programs may run: what is not the network's is everything else's. On a
machine that does nothing else, `--wall` takes the clock's. `--model` takes a bare architecture, which gets random
weights, or a model file. The side is given; with `--hand auto` both see it twice as a right and as a left hand.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from handmesh.bench.engines import is_bare, random_model
from handmesh.cli.predict import side_by_side
from handmesh.files.image import encode_image, read_photo
from handmesh.hand import builtin_hand
from handmesh.predict import HANDEDNESS_PASSES, Predictor, save_hands
from handmesh.runtime.engine import open_engine
from handmesh.synth import SceneRenderer, sample_generator

PASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fastvit_ma36")
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hand", choices=("right", "auto"), default="right")
    parser.add_argument("--wall", action="store_true", help="by the clock, for an idle machine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = random_model(arguments.model, 224, work)[0] if is_bare(arguments.model) else Path(arguments.model)
        renderer = SceneRenderer(builtin_hand(), size=384)
        photos = []
        for index in range(arguments.photos):
            scene = cv2.resize(renderer.render(sample_generator(77, index)).image, (480, 480))
            image = np.full((480, 640, 3), 90, np.uint8)
            image[:, :480] = scene
            photos.append(work / f"{index}.jpg")
            photos[-1].write_bytes(encode_image(image, "jpg"))
        engine = open_engine(model, "cpu", threads=1)
        predictor = Predictor(engine, passes=PASSES)
        crops = np.zeros((2, engine.resolution, engine.resolution, 3), np.uint8)
        both_sides = arguments.hand == "auto" and engine.record["model"]["handedness_head"]

        def predict(path: Path) -> None:
            save_hands(path.with_suffix(".json"), predictor(read_photo(path), handedness=arguments.hand))

        def network(_: Path) -> None:
            for done in range(1, PASSES + 1):
                engine(crops[: 2 if both_sides and done <= HANDEDNESS_PASSES else 1])

        clock = time.perf_counter if arguments.wall else time.process_time
        shares, rates = [], []
        for _ in range(3):
            taken = []
            for job in (network, predict):
                job(photos[0])
                started = clock()
                list(side_by_side(job, photos, arguments.threads))
                taken.append(clock() - started)
            shares.append(taken[0] / taken[1])
            rates.append(len(photos) / taken[1])
        print(
            f"{engine.name}, {arguments.model}, {arguments.threads} worker(s): {sorted(shares)[1]:.3f} of the engine, "
            f"{sorted(rates)[1]:.1f} photos/s{'' if arguments.wall else ' of CPU time'}"
        )


if __name__ == "__main__":
    main()
