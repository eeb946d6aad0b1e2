"""Training on a machine lent for minutes that has no network and passes little data (docs/how_to/borrowed_gpu.md):

    python benchmarks/borrowed_gpu.py rehearse CONFIG                          at home: the whole way at toy size
    python benchmarks/borrowed_gpu.py train CONFIG RUN --minutes 8.5           there, again and again
    python benchmarks/borrowed_gpu.py pack RUN CARRIED --budget-mb 60          there: the newest state, in small parts
    python benchmarks/borrowed_gpu.py unpack CARRIED RUN                       on the next machine, or at home

What comes out of `unpack` is the folder of a run: `handmesh train CONFIG --resume --out RUN` goes on with it.

A state is carried whole (weights and their average as they are, the optimiser's moments in bfloat16: off by at most
0.4 %, while float16 would lose squared gradients of 1e-12), or, with --weights or where that is larger than the budget,
as its averaged weights alone in float16: training then goes on with new moments and another warm-up.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from handmesh.config.load import load_config, parse_config
from handmesh.config.train import TrainConfig
from handmesh.errors import CheckpointError, ConfigError
from handmesh.hand.models import load_hand
from handmesh.learn.train import Progressed, build_network, train, write_model
from handmesh.model.checkpoint import load_latest_state, save_state
from handmesh.system.atomic import sha256_of, write_atomically

MANIFEST, STATE = "carried.json", "state.pt"
RECORDS = ("config.yaml", "environment.json", "scores.json", "metrics.jsonl")
FIRST_STEPS, MORE_STEPS = 20, 5  # of a rehearsal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("rehearse")
    action.add_argument("config", type=Path)
    action = actions.add_parser("train")
    action.add_argument("config", type=Path)
    action.add_argument("run", type=Path)
    action.add_argument("--minutes", type=float, required=True)
    action = actions.add_parser("pack")
    action.add_argument("run", type=Path)
    action.add_argument("carried", type=Path)
    action.add_argument("--part-mb", type=float, default=15)
    action.add_argument("--budget-mb", type=float, default=float("inf"))
    action.add_argument("--weights", action="store_true")
    action = actions.add_parser("unpack")
    action.add_argument("carried", type=Path)
    action.add_argument("run", type=Path)
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if wanted.action == "rehearse":
        with TemporaryDirectory(prefix="handmesh-") as directory:
            print(rehearse(load_config(wanted.config), Path(directory)))
    elif wanted.action == "train":
        end = time.monotonic() + 60 * wanted.minutes
        train(load_config(wanted.config), wanted.run, resume=True, should_stop=lambda: time.monotonic() >= end)
    elif wanted.action == "pack":
        print(pack(wanted.run, wanted.carried, wanted.part_mb, wanted.budget_mb, weights=wanted.weights))
    else:
        print(f"step {unpack(wanted.carried, wanted.run)} in {wanted.run}")


def pack(run: Path, out: Path, part_mb: float = 15, budget_mb: float = float("inf"), *, weights: bool = False) -> str:
    """Write the newest state of the run and its records into `out`, in parts; what was written, in words."""
    state = load_latest_state(run)
    if state is None:
        raise CheckpointError(f"There is no training state in {run}: has it run until its first checkpoint?")
    content = archive(run, averaged_weights(state) if weights else whole(state))
    if not weights and len(content) > 1e6 * budget_mb:
        weights, content = True, archive(run, averaged_weights(state))
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("part-*"):
        old.unlink()
    size, parts = max(int(1e6 * part_mb), 1), []
    for number, start in enumerate(range(0, len(content), size)):
        piece, name = content[start : start + size], f"part-{number:03d}"
        write_atomically(out / name, piece)
        parts.append({"name": name, "sha256": sha256_of(piece)})
    write_atomically(out / MANIFEST, json.dumps({"step": state["step"], "parts": parts}).encode())
    kind = "averaged weights" if weights else "whole"
    return f"step {state['step']}, {kind}: {len(content) / 1e6:.1f} MB in {len(parts)} parts"


def unpack(carried: Path, run: Path) -> int:
    """Make `run` the folder of the run that was packed; its step. Parts that are missing or damaged are named."""
    manifest = json.loads((carried / MANIFEST).read_bytes())
    names = [part["name"] for part in manifest["parts"]]
    pieces = {name: (carried / name).read_bytes() for name in names if (carried / name).exists()}
    bad = [p["name"] for p in manifest["parts"] if sha256_of(pieces.get(p["name"], b"")) != p["sha256"]]
    if bad:
        raise CheckpointError(f"{carried}: {', '.join(bad)} missing or damaged: carry those once more.")
    newest = load_latest_state(run) if run.exists() else None
    if newest is not None and newest["step"] >= manifest["step"]:
        raise CheckpointError(f"{run} is at step {newest['step']} already, {carried} at {manifest['step']}.")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces[name] for name in names))) as tar:
        contents = {name: tar.extractfile(name).read() for name in tar.getnames() if name in (*RECORDS, STATE)}
    reduced = torch.load(io.BytesIO(contents.pop(STATE)), map_location="cpu", weights_only=True)
    run.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(run / name, content)
    state = converted(reduced, lambda value: value.float() if value.is_floating_point() else value)
    if "model" not in state:
        state |= {"model": state["average"], "optimizer": None, "warm_again_at": state["step"]}
    config = parse_config(state["config"], str(carried))
    save_state(run, state["step"], state, keep=config.keep_checkpoints)
    model = build_network(config, load_hand(config.model.hand)).eval()
    model.load_state_dict(state["average"])
    scores = json.loads(contents["scores.json"])["validation"] if "scores.json" in contents else {}
    write_model(run, model, config, state["step"], scores)
    return int(state["step"])


def whole(state: dict[str, Any]) -> dict[str, Any]:
    moments = converted(state["optimizer"], lambda value: value.bfloat16() if value.ndim else value)
    return {**state, "optimizer": moments}


def averaged_weights(state: dict[str, Any]) -> dict[str, Any]:
    def half(value: Tensor) -> Tensor:
        small = value.half() if value.is_floating_point() else value
        if not torch.isfinite(small).all():
            raise CheckpointError("Some weights are not finite in float16: carry this run whole.")
        return small

    kept = {name: state[name] for name in ("step", "config", "best", "hand_sha256")}
    return kept | {name: converted(state[name], half) for name in ("average", "dense")}


def converted(tree: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """The same nested dicts and lists with every tensor converted."""
    if isinstance(tree, Tensor):
        return convert(tree)
    if isinstance(tree, dict):
        return {key: converted(value, convert) for key, value in tree.items()}
    return [converted(value, convert) for value in tree] if isinstance(tree, list) else tree


def archive(run: Path, state: dict[str, Any]) -> bytes:
    """A plain tar of the state and the run's records: weights do not compress."""
    buffer, stored = io.BytesIO(), io.BytesIO()
    torch.save(state, stored)
    records = [(name, (run / name).read_bytes()) for name in RECORDS if (run / name).exists()]
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in [*records, (STATE, stored.getvalue())]:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def toy_config(config: TrainConfig, directory: Path) -> TrainConfig:
    """The same run, but small: 64 px crops of 96 px renders. Raises ConfigError where it does not render by itself."""
    if config.data.live is None:
        raise ConfigError("Only runs with data.live can be rehearsed: for others there is configs/smoke.yaml.")
    tree = config.model_dump(mode="json")
    tree["model"]["resolution"] = 64
    tree["data"]["live"].update(
        directory=str(directory / "renders"), size=96, workers=1, capacity=48, start=8, reuse=16.0, backgrounds=4
    )
    tree["optimizer"]["warmup_steps"] = 5
    tree.update(
        steps=FIRST_STEPS + MORE_STEPS, batch_size=4, accumulation=1, low_resolution=None, low_resolution_share=0.0,
        compile=False, tensorboard=False, log_every=5, checkpoint_every=1000, evaluate_every=1000, evaluation_count=4,
    )  # fmt: skip
    return parse_config(tree, "rehearsal")


def rehearse(config: TrainConfig, directory: Path) -> str:
    """Render, train, stop as if the time were over, pack, unpack elsewhere, go on: whatever breaks, breaks here."""
    toy, losses = toy_config(config, directory), []

    def on_progress(now: Progressed) -> None:
        losses.append(now.losses["total"])

    asked = iter(range(1, FIRST_STEPS + 1))
    train(toy, directory / "there", on_progress=on_progress, should_stop=lambda: next(asked) == FIRST_STEPS)
    packed = pack(directory / "there", directory / "carried", budget_mb=60)
    unpack(directory / "carried", directory / "here")
    train(toy, directory / "here", resume=True, on_progress=on_progress)
    return f"{toy.steps} steps, loss {losses[0]:.2f} to {losses[-1]:.2f}; carried: {packed}"


if __name__ == "__main__":
    main()
