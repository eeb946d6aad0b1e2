"""Tune the bundled model to photos of your own, and see what it brought. Needs pip install -e ".[train]".

    handmesh label photos/ --out labels.jsonl                 or labels of your own
    python examples/finetune.py labels.jsonl runs/mine        half an hour of one core

What to expect: docs/how_to/finetune.md.
"""

import json
import sys
from pathlib import Path

import handmesh


def main(labels: str, folder: str, *settings: str) -> None:
    run = Path(folder)
    config = handmesh.load_config(
        "finetune", [f"data.photos.0.path={labels}", f"data.synthetic.directory={run}/renders", *settings]
    )
    handmesh.train(config, run, on_progress=lambda now: print(f"\rstep {now.step} of {now.steps}", end="", flush=True))

    log = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    validations = [line["validation"] for line in log if "validation" in line]
    print("\n2D error over the hand's box, on photos it never learnt from, before and after:")
    for name in ("photos0_keypoint_box_error", "any_rotation_keypoint_box_error"):
        print(f"  {name}:", *(f"{scores[name]:.3f}" for scores in (validations[0], validations[-1])))
    print(f"handmesh predict photo.jpg --model {run / 'deploy.safetensors'}")


if __name__ == "__main__":  # renders are drawn by other processes, which import this file
    main(*sys.argv[1:])
