"""What is each ingredient of learning from photographs worth?

    python benchmarks/photo_ablation.py OUT --labels LABELS.jsonl --held-out CROPS.jsonl --start-from MODEL

As `ablation.py`: all variants go on from the same weights (of a model that learnt from renders alone), with the same
seeds and steps, and differ in one thing. LABELS are made by `handmesh label`; lines of CROPS, of sources that are not
in LABELS, need "image", "handedness" and "keypoints", of which so many a source are taken (--count). --first-labels:
those that MODEL itself made, for "rounds". Each variant is scored on CROPS with box and side given (2D error over the
box), with the box alone (share of wrong sides), and on renders with the box (PA-MPJPE, mm). What is finished in OUT is
not done again; two of them side by side, with different --only, share the work.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ablation import EVERYTHING, print_table, run_missing
from real_photos import box_of
from synthetic_photos import score as synthetic_score

from handmesh.config.load import parse_config
from handmesh.config.train import TrainConfig
from handmesh.files.image import read_image
from handmesh.hand import builtin_hand
from handmesh.label import MEDIAPIPE
from handmesh.learn.train import train
from handmesh.predict import Predictor, load_predictor
from handmesh.synth import SceneRenderer, SceneSettings, sample_generator

SEED = 8_500_009  # of the renders that are scored
BATCH = 64
# What is left out or other -> the part of the configuration. "labels" names another file of labels.
VARIANTS: dict[str, dict[str, Any]] = {
    EVERYTHING: {},
    "photographs": {"photographs": 0.0},
    "half the photographs' share": {"photographs": 0.25},
    "half the renders' share": {"photographs": 0.75},
    "fits, keypoints alone": {"labels": "keypoints"},
    "class B": {"labels": "class A"},
    "second round of labels": {"labels": "first"},
    "real poses in renders": {"scenes": {"real_poses": 0.0}},
    "mirrored photographs": {"photo_augmentation": {"mirrored": 0.0}},
    "small hands": {"photo_augmentation": {"downscale_prob": 0.0}},
    "heatmaps that stay": {"model": {"keypoint_head": False}},
    "160 px, 192 instead": {"model": {"resolution": 192}},
}
CLASS_B = ("rf_",)  # sources whose licence is as an uploader states it: the model card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--first-labels", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--start-from", required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--renders", type=int, default=6000)
    parser.add_argument("--count", type=int, default=100, help="held-out hands of each source")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    arguments = parser.parse_args()

    def run(name: str, folder: Path) -> dict[str, list[float]]:
        weights = train(variant(name, arguments), folder, resume=folder.exists())
        return score(load_predictor(weights, threads=1), arguments)

    if not arguments.table:
        run_missing(arguments.out, arguments.only, run)
    print_table(arguments.out, list(VARIANTS))


def variant(name: str, arguments: argparse.Namespace) -> TrainConfig:
    change = VARIANTS[name]
    share = change.get("photographs", 0.5)
    photos = [{"path": str(labels(change.get("labels"), arguments)), "weight": share}] if share else []
    tree = {
        "model": {"joint_confidence_head": True, "keypoint_head": True, **change.get("model", {})},
        "data": {
            "photos": photos,
            "synthetic": {
                "directory": str(arguments.out / "packs"),
                "count": arguments.renders,
                "size": 192,
                "seed": 6,
                "workers": 1,
                "weight": 1 - share,
                "scenes": {"real_poses": 0.5, "pose": {"touch": 0.12}, **change.get("scenes", {})},
            },
        },
        "augmentation": {"margin": [1.1, 1.9], "context_scale_prob": 0.25, "mirrored": 0.1, "effects": 0.8},
        "photo_augmentation": {
            "effects": 0.5,
            "occlusion": 0.15,
            "shift": 0.12,
            "context_scale_prob": 0.2,
            "mirrored": 0.15,
            "upright_prob": 0.6,
            "downscale_prob": 0.25,
            "downscale_px": [30, 110],
            **change.get("photo_augmentation", {}),
        },
        "loss": {"keypoints": 4.0, "heatmaps": 0.4, "heatmap_keypoints": 2.0},
        "optimizer": {
            "learning_rate": 3e-4,
            "final_learning_rate": 1e-6,
            "warmup_steps": 30,
            "ema_decay": 0.99,
        },
        "start_from": arguments.start_from,
        "reparameterized": True,
        "steps": arguments.steps,
        "batch_size": BATCH,
        "evaluate_every": arguments.steps,
        "evaluation_count": 64,
        "precision": "bfloat16",
    }
    return parse_config(tree, name)


def labels(kind: str | None, arguments: argparse.Namespace) -> Path:
    """The labels themselves, or a file of them that lacks something, written beside the runs."""
    if kind is None:
        return Path(arguments.labels)
    if kind == "first":
        if arguments.first_labels is None:
            raise SystemExit("This variant needs --first-labels.")
        return Path(arguments.first_labels)
    rows = [json.loads(line) for line in arguments.labels.read_text(encoding="utf-8").splitlines()]
    if kind == "keypoints":
        rows = [{key: value for key, value in row.items() if key not in ("pose", "betas")} for row in rows]
    else:
        rows = [row for row in rows if not Path(row["image"]).name.startswith(CLASS_B)]
    path: Path = arguments.out / f"{kind.replace(' ', '-')}.jsonl"
    for row in rows:
        row["image"] = str((arguments.labels.parent / row["image"]).resolve())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def score(predictor: Predictor, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Errors by name, one for each hand."""
    errors: dict[str, list[float]] = {"photos, 2D": [], "photos, wrong side": [], "renders, mm": [], "renders, 2D": []}
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in arguments.held_out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_source[row["source"]].append(row)
    for rows in by_source.values():
        for index in np.linspace(0, len(rows) - 1, min(arguments.count, len(rows))).astype(int):
            row = rows[index]
            image, truth = (
                read_image(arguments.held_out.parent / row["image"]),
                np.array(row["keypoints"], float)[:, :2],
            )
            box = [box_of(truth)]
            known = predictor(image, boxes=box, handedness=row["handedness"])[0]
            errors["photos, 2D"].append(
                float(
                    np.linalg.norm(known.keypoints_image() - MEDIAPIPE.apply(truth), axis=1).mean()
                    / np.ptp(truth, axis=0).max()
                )
            )
            free = predictor(image, boxes=box)[0]
            errors["photos, wrong side"].append(float(free.handedness != row["handedness"]))
    renderer = SceneRenderer(builtin_hand(), SceneSettings(crop_share=(0.45, 0.95)), size=224)
    for index in range(150):
        sample = renderer.render(sample_generator(SEED, index))
        hand = predictor(sample.image, boxes=[box_of(sample.keypoints)], handedness="right")[0]
        joints, _, keypoints, _ = synthetic_score(sample, hand)
        errors["renders, mm"].append(float(joints))
        errors["renders, 2D"].append(float(keypoints))
    return errors


if __name__ == "__main__":
    main()
