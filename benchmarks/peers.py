"""The same work through others:

    OMP_NUM_THREADS=1 python benchmarks/peers.py [--batch 1] [--json FILE]
    python benchmarks/peers.py --photos FOLDER [--count 60]

Networks: each peer is a backbone that hand-mesh methods use, with random weights, on crops of 224 px; it takes turns
with our FastViT-MA36, reparameterized, without its hand model, so that like is compared with like.

Photographs, brought to 640 px: the hands of each found by our predictor, and by MediaPipe's palm detector and
landmarks, which give no mesh; one thread, processor time, each taking turns over all of them.

Peers are not dependencies of ours: what is installed is measured, and for the rest the reason is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from handmesh.bench.timing import describe_machine, torch_threads
from handmesh.detect import HandDetector, open_detector
from handmesh.errors import ConfigError
from handmesh.files.image import photos_in, read_image
from handmesh.model.fastvit import build_backbone
from handmesh.model.network import to_device
from handmesh.predict import load_predictor
from handmesh.runtime.timing import Timing, lead_in, time_in_turns

SIZE = 224
PHOTO_SIDE = 640
GIVEN = "handmesh, boxes and sides given"  # of the photographs in which hands were found
# name -> (package, how it is built there)
PEERS: dict[str, tuple[str, Callable[[Any], torch.nn.Module]]] = {
    "resnet18 (torchvision)": ("torchvision.models", lambda module: module.resnet18(weights=None)),
    "resnet50 (torchvision)": ("torchvision.models", lambda module: module.resnet50(weights=None)),
    "mobilenet_v3_large (torchvision)": ("torchvision.models", lambda module: module.mobilenet_v3_large(weights=None)),
    "fastvit_ma36 (timm)": ("timm", lambda module: module.create_model("fastvit_ma36", num_classes=0)),
    "hrnet_w48 (timm)": ("timm", lambda module: module.create_model("hrnet_w48", num_classes=0)),
    "hrnet_w64 (timm)": ("timm", lambda module: module.create_model("hrnet_w64", num_classes=0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="of these photographs, not of networks")
    parser.add_argument("--count", type=int, default=60, help="photographs, spread over the folder")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.photos:
        time_photos(arguments)
    else:
        time_networks(arguments)


def time_networks(arguments: argparse.Namespace) -> None:
    images = torch.randn(arguments.batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    networks = {"fastvit_ma36 (handmesh, reparameterized)": build_backbone("fastvit_ma36").eval().reparameterize()}
    for name, (package, build) in PEERS.items():
        try:
            module = __import__(package, fromlist=["*"])
            networks[name] = build(module).eval()
        # RuntimeError: torchvision beside a CPU-only torch has no operators of its own
        except (ImportError, RuntimeError) as error:
            print(f"skipped {name}: {type(error).__name__}: {str(error).splitlines()[0]}")

    def task(network: torch.nn.Module) -> Callable[[], torch.Tensor]:
        moved = to_device(network, torch.device("cpu"))

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return moved(images)

        return run

    clock = "cpu" if arguments.threads == 1 else "wall"
    with torch_threads(arguments.threads):
        tasks = {name: task(network) for name, network in networks.items()}
        lead_in_s = lead_in(arguments.threads)
        timings = time_in_turns(tasks, runs=arguments.runs, clock=clock, lead_in_s=lead_in_s)
    settings = {"engine": "torch", "precision": "float32", "batch": arguments.batch, "threads": arguments.threads}
    report(timings, "network_ms", dict.fromkeys(timings, 1), {**settings, "clock": clock}, arguments.json)


def time_photos(arguments: argparse.Namespace) -> None:
    paths = photos_in(arguments.photos)[0]
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(arguments.count, len(paths))).astype(int)]
    photos = []
    for path in paths:
        image = read_image(path)
        scale = PHOTO_SIDE / max(image.shape[:2])
        photos.append(np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8))
    predictor, detector = load_predictor(threads=1), HandDetector(threads=1)
    answers = [predictor(photo) for photo in photos]
    known = [([hand.box for hand in hands], [hand.handedness for hand in hands]) for hands in answers]
    tasks: dict[str, Callable[[], object]] = {
        "handmesh": lambda: [predictor(photo) for photo in photos],
        "handmesh, thorough search": lambda: [predictor(photo, search="thorough") for photo in photos],
        "handmesh, its detector alone": lambda: [detector(photo) for photo in photos],
    }
    if any(answers):
        tasks[GIVEN] = lambda: [
            predictor(photo, boxes=boxes, handedness=sides)
            for photo, (boxes, sides) in zip(photos, known, strict=True)
            if boxes
        ]
    try:
        mediapipe = open_detector("mediapipe")
        tasks["mediapipe, static"] = lambda: [mediapipe(photo) for photo in photos]
    except ConfigError as error:
        print(f"skipped mediapipe: {error}")
    cv2.setNumThreads(1)
    timings = time_in_turns(tasks, runs=min(arguments.runs, 5), warm_up=1, clock="cpu")
    with_hands = sum(map(bool, answers))
    print(
        f"{len(photos)} photographs, {sum(map(len, answers))} hands in {with_hands} of them; processor time of a "
        "photograph, with boxes given of one with hands"
    )
    counts = {name: with_hands if name == GIVEN else len(photos) for name in timings}
    report(timings, "photo_ms", counts, {"threads": 1, "clock": "cpu"}, arguments.json)


def report(
    timings: dict[str, Timing], what: str, counts: dict[str, int], settings: dict[str, object], file: Path | None
) -> None:
    """Prints what one of a row's `counts` things takes, and how many times as long as of the first; in JSON, too."""
    each = {name: timing.median_ms / counts[name] for name, timing in timings.items()}
    base = next(iter(each.values()))
    rows = []
    for name, milliseconds in each.items():
        print(f"{name:38} {milliseconds:8.1f} ms  {milliseconds / base:.2f}")
        rows.append({"model": name, **settings, what: milliseconds, "p95_ms": timings[name].p95_ms / counts[name]})
    if file:
        file.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
