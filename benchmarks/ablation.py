"""What is each ingredient of synthetic training worth?  python benchmarks/ablation.py OUT [--photos REAL] [--only NAME]

All variants go on from the same weights, with the same seeds, steps and number of renders, and differ in one thing that
is left out; "everything" leaves nothing out. Each is scored through the whole `Predictor` on photos of an
appearance that training never sees (`SceneSettings.held_out_appearance`, backgrounds of other families), on the
default one, and on --photos (a folder as `real_photos.py` takes). Numbers are differences from "everything" on the
same photos, with the standard error of their mean: positive is worse without the ingredient.

What is finished in OUT is not done again, so a run that was stopped goes on; `--table` only prints what is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from real_photos import box_of
from synthetic_photos import score as synthetic_score

from handmesh import metrics
from handmesh.config.load import parse_config
from handmesh.config.train import TrainConfig
from handmesh.files.image import read_image
from handmesh.hand import builtin_hand
from handmesh.learn.run_folder import write_json
from handmesh.learn.train import train
from handmesh.predict import Predictor, load_predictor
from handmesh.synth import Backgrounds, SceneRenderer, SceneSettings, SyntheticSample, sample_generator

SEED = 8_400_013  # of the photos that are scored
EVERYTHING = "everything"
PASSES = 3

NO_EFFECTS = {"effects": 0.0, "fda_prob": 0.0, "border_prob": 0.0}
ONE_LIGHT = {"lights": {"back": 0.0, "flash": 0.0, "overcast": 0.0, "colored": 0.0}}
VIEWS = ("tripod_views", "selfie_views", "egocentric_views", "table_views", "room_views")
SAME_SKIN = {"ring": 0.0, "bracelet": 0.0, "hair": 0.0, "tattoo": 0.0, "glove": 0.0, "nail_polish": 0.0, "sleeve": 0.0}
# What is left out -> the part of the configuration that leaves it out.
VARIANTS: dict[str, dict[str, Any]] = {
    EVERYTHING: {},
    "camera effects": {"augmentation": NO_EFFECTS},
    "upright bias": {"augmentation": {"upright_prob": 0.0}},
    "far hands": {"augmentation": {"context_scale_prob": 0.0}},
    "dense supervision": {"loss": {"heatmaps": 0.0, "heatmap_keypoints": 0.0, "heatmap_depths": 0.0}},
    "root-frame losses": {"loss": {"root_vertices": 0.0, "root_joints": 0.0}},
    "things held and in front": {"scenes": {"object": 0.0, "stray_object": 0.0, "occluder": 0.0}},
    "second hand": {"scenes": {"second_hand": 0.0}},
    "things worn, hair, gloves": {"scenes": SAME_SKIN},
    "fingers on their own": {"scenes": {"pose": {"single_fingers": 0.0, "swap_fingers": 0.0, "free": 0.0}}},
    "views where cameras are": {"scenes": {"uniform_views": 1.0, **dict.fromkeys(VIEWS, 0.0)}},
    "unusual light": {"scenes": ONE_LIGHT},
    "shapes": {"scenes": {"beta_scale": 0.3}},
}


class Photos(NamedTuple):
    default: list[SyntheticSample]
    held_out: list[SyntheticSample]
    real: list[tuple[NDArray[np.uint8], dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, help="real photos with labels.json")
    parser.add_argument("--start-from", default="handmesh_t8")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--renders", type=int, default=6000)
    parser.add_argument("--count", type=int, default=300, help="photos of each appearance")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        photos = draw_photos(arguments.count, arguments.photos)

        def run(name: str, folder: Path) -> dict[str, list[float]]:
            weights = train(variant(name, arguments), folder, resume=folder.exists())
            return score(load_predictor(weights, detector=None, passes=PASSES), photos)

        run_missing(arguments.out, list(dict.fromkeys([EVERYTHING, *arguments.only])), run)
    print_table(arguments.out, list(VARIANTS))


def run_missing(out: Path, names: Sequence[str], run: Callable[[str, Path], dict[str, list[float]]]) -> None:
    """Keep the errors of each variant that OUT lacks, by name, one for each hand."""
    for name in names:
        folder = folder_of(out, name)
        if not (folder / "errors.json").exists():
            write_json(folder / "errors.json", run(name, folder))
        print(f"{name}: done", flush=True)


def folder_of(out: Path, name: str) -> Path:
    """Where a variant's run lies."""
    return out / name.replace(" ", "-").replace(",", "")


def variant(name: str, arguments: argparse.Namespace) -> TrainConfig:
    change = VARIANTS[name]
    tree = {
        "model": {"backbone": "fastvit_t8", "resolution": 128, "confidence_head": True, "handedness_head": True},
        "data": {
            "synthetic": {
                "directory": str(arguments.out / "packs"),
                "count": arguments.renders,
                "seed": 5,
                "workers": 1,
                "scenes": change.get("scenes", {}),
            }
        },
        "augmentation": {
            "context_scale_prob": 0.2,
            "mirrored": 0.08,
            "negative_ratio": 0.06,
            **change.get("augmentation", {}),
        },
        "loss": change.get("loss", {}),
        "optimizer": {"learning_rate": 3e-4, "warmup_steps": 100, "ema_decay": 0.998},
        "start_from": arguments.start_from,
        "steps": arguments.steps,
        "evaluate_every": arguments.steps,
        "evaluation_count": 64,
        "precision": "bfloat16",
    }
    return parse_config(tree, name)


def draw_photos(count: int, folder: Path | None) -> Photos:
    hand, share = builtin_hand(), (0.45, 0.95)
    usual = SceneRenderer(hand, SceneSettings(crop_share=share), size=224)
    unseen = SceneRenderer(
        hand,
        SceneSettings.held_out_appearance().model_copy(update={"crop_share": share}),
        size=224,
        backgrounds=Backgrounds(SEED, count=64, held_out=True),
    )
    labels = [] if folder is None else json.loads((folder / "labels.json").read_text())
    return Photos(
        [usual.render(sample_generator(SEED, index)) for index in range(count)],
        [unseen.render(sample_generator(SEED + 1, index)) for index in range(count)],
        [(read_image(folder / label["file"]), label) for label in labels] if folder is not None else [],
    )


def score(predictor: Predictor, photos: Photos) -> dict[str, list[float]]:
    """Errors by name, one for each photo."""
    errors: dict[str, list[float]] = {}
    for appearance, samples in (("default", photos.default), ("held out", photos.held_out)):
        hands = [predictor(sample.image, handedness="right", min_score=0)[0] for sample in samples]
        rows = np.array([synthetic_score(sample, hand) for sample, hand in zip(samples, hands, strict=True)])
        errors[f"{appearance}, mm"], errors[f"{appearance}, 2D"], errors[f"{appearance}, palm flipped"] = rows[
            :, [0, 2, 3]
        ].T.tolist()
    for image, label in photos.real:
        keypoints = np.array(label["keypoints"])
        seen = keypoints[:, 2] > 0
        side = "left" if label["handedness"] == "left" else "right"
        for protocol in ("whole", "box"):
            boxes = [box_of(keypoints[seen, :2])] if protocol == "box" else None
            hand = predictor(image, boxes=boxes, handedness=side, min_score=0)[0]
            error = float(metrics.keypoint_box_error(keypoints[seen, :2], hand.keypoints_image()[seen]))
            errors.setdefault(f"real {protocol}, 2D", []).append(error)
            if protocol == "box" and "joints_m" in label:
                aligned = 1000 * float(metrics.pa_rigid_mean_error(label["joints_m"], hand.joints))
                errors.setdefault("real box, mm", []).append(aligned)
    return errors


def print_table(out: Path, names: Sequence[str]) -> None:
    """Markdown: "everything" as it is, the others as differences from it."""
    rows = {}
    for name in names:
        file = folder_of(out, name) / "errors.json"
        if file.exists():
            rows[name] = {key: np.array(values) for key, values in json.loads(file.read_text()).items()}
    if EVERYTHING not in rows:
        raise SystemExit(f"{out} holds no finished run of {EVERYTHING!r}.")
    base = rows.pop(EVERYTHING)
    print(f"| without | {' | '.join(base)} |\n| --- |{' --- |' * len(base)}")
    print(f"| (nothing left out) | {' | '.join(_number(key, values.mean()) for key, values in base.items())} |")
    for name, errors in rows.items():
        cells = []
        for key, values in errors.items():
            apart = values - base[key]
            spread = apart.std(ddof=1) / np.sqrt(len(apart))
            cells.append(f"{'+' if apart.mean() >= 0 else ''}{_number(key, apart.mean())} ± {_number(key, spread)}")
        print(f"| {name} | {' | '.join(cells)} |")


def _number(key: str, value: float) -> str:
    return f"{value:.2f}" if key.endswith("mm") else f"{value:.3f}"


if __name__ == "__main__":
    main()
