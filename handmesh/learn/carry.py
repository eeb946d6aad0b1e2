"""A run small enough to carry: its newest state and records, reduced and cut into parts of a few megabytes.

For machines that are lent for minutes, have no network and pass little data: `pack` on the machine that trained,
`unpack` on the next one or at home. What comes out is the folder of a run, to be resumed, scored and shipped.

whole     weights and their average as they are, the optimiser's moments in bfloat16: training goes on where it stopped
weights   the averaged weights alone, in float16: training goes on from them, with new moments and another warm-up

A moment in bfloat16 is off by at most 0.4 %, which is far less than it differs between two batches; float16 would not
do, because squared gradients go down to 1e-12.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from handmesh.config import TrainConfig, parse_config
from handmesh.errors import CheckpointError, ConfigError
from handmesh.hand.layer import load_hand
from handmesh.learn.run_folder import METRICS, write_json
from handmesh.learn.train import build_network, write_model
from handmesh.model.checkpoint import load_latest_state, save_state
from handmesh.model.network import HandMeshNet
from handmesh.system.atomic import written_atomically

logger = logging.getLogger(__name__)

MANIFEST = "carried.json"
Kind = Literal["whole", "weights"]

_FORMAT = 1
_STATE = "state.pt"
_RECORDS = ("config.yaml", "environment.json", "scores.json", METRICS)
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote."""

    kind: Kind
    step: int
    parts: list[Path]
    size: int  # bytes, of all parts together


def pack(
    run: Path, out: Path, *, part_mb: float = 15, budget_mb: float | None = None, kind: Kind | None = None
) -> Packed:
    """Write the newest state of the run, and its records, into `out`: `carried.json` and parts of at most `part_mb`.

    Without `kind` it is `whole` where that fits into `budget_mb` megabytes, otherwise `weights`. Raises CheckpointError
    where there is no state or something cannot be written, and ConfigError for a run whose model is not its last one.
    """
    state = load_latest_state(run)
    if state is None:
        raise CheckpointError(f"There is no training state in {run} to carry: has it run until its first checkpoint?")
    config = parse_config(state["config"], f"the state in {run}")
    if config.select != "last":
        raise ConfigError(f"{run} selects by {config.select}, and only the last weights are carried: use select: last.")
    chosen = kind or "whole"
    content = _archive(run, _reduced(state, chosen))
    if kind is None and budget_mb is not None and len(content) > budget_mb * _MEGABYTE:
        chosen = "weights"
        content = _archive(run, _reduced(state, chosen))

    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("part-*"), out / MANIFEST]:
        old.unlink(missing_ok=True)
    step_bytes = max(int(part_mb * _MEGABYTE), 1)
    parts, record = [], []
    for number, start in enumerate(range(0, len(content), step_bytes)):
        piece, path = content[start : start + step_bytes], out / f"part-{number:03d}"
        with written_atomically(path, error=CheckpointError, create_folder=True) as temporary:
            temporary.write_bytes(piece)
        parts.append(path)
        record.append({"name": path.name, "size": len(piece), "sha256": _sha256(piece)})
    manifest = {"format": _FORMAT, "kind": chosen, "step": state["step"], "sha256": _sha256(content), "parts": record}
    write_json(out / MANIFEST, manifest)
    logger.info("step %d: %s in %d parts, %.1f MB", state["step"], chosen, len(parts), len(content) / _MEGABYTE)
    return Packed(chosen, state["step"], parts, len(content))


def unpack(carried: Path, run: Path) -> Packed:
    """Make `run` the folder of the run that was packed: its state, its records, `model.safetensors` and `deploy...`.

    The parts may have come in several trips, as long as all lie in `carried` now. Raises CheckpointError when one is
    missing or damaged, or when `run` already holds a state of this step or a later one.
    """
    manifest = _read_manifest(carried)
    content = _join(carried, manifest)
    newest = load_latest_state(run) if run.exists() else None
    if newest is not None and newest["step"] >= manifest["step"]:
        raise CheckpointError(
            f"{run} is at step {newest['step']} already, and {carried} holds step {manifest['step']}: unpack into "
            "another folder."
        )
    run.mkdir(parents=True, exist_ok=True)
    reduced = _extract(content, run)
    state = _restored(reduced)
    config = parse_config(state["config"], str(carried))
    save_state(run, state["step"], state, keep=config.keep_checkpoints)
    write_model(run, _averaged(config, state["average"]), config, state["step"], _held_out_scores(run))
    parts = [carried / part["name"] for part in manifest["parts"]]
    return Packed(manifest["kind"], manifest["step"], parts, len(content))


# ----------------------------------------------------------------------------------------------------- the state


def _reduced(state: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    if kind == "weights":
        hand = {"hand_sha256": state.get("hand_sha256")}
        halved = {name: _converted(state[name], _half(name)) for name in ("average", "dense")}
        return {"step": state["step"], "config": state["config"], "best": state.get("best", math.inf), **hand, **halved}
    moments = _converted(state["optimizer"], lambda value: value.bfloat16() if value.ndim else value)
    return {**state, "optimizer": moments}


def _restored(reduced: Mapping[str, Any]) -> dict[str, Any]:
    state = _converted(reduced, lambda value: value.float() if value.is_floating_point() else value)
    if "model" in state:
        return dict(state)
    model = {name: value.clone() for name, value in state["average"].items()}
    return {**state, "model": model, "optimizer": None, "warm_again_at": state["step"]}


def _half(what: str) -> Callable[[Tensor], Tensor]:
    def convert(value: Tensor) -> Tensor:
        half = value.half() if value.is_floating_point() else value
        if not torch.isfinite(half).all():
            raise CheckpointError(f"The {what} weights cannot be carried: some are not finite in float16.")
        return half

    return convert


def _converted(tree: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """The same nested dicts and lists with every tensor converted."""
    if isinstance(tree, Tensor):
        return convert(tree)
    if isinstance(tree, Mapping):
        return {key: _converted(value, convert) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_converted(value, convert) for value in tree]
    return tree


def _averaged(config: TrainConfig, average: Mapping[str, Tensor]) -> HandMeshNet:
    model = build_network(config, load_hand(config.model.hand)).eval()
    model.load_state_dict(dict(average))
    return model


def _held_out_scores(run: Path) -> dict[str, float]:
    """Those that were carried along; none where the run was packed before its first evaluation."""
    path = run / "scores.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["held_out"]) if path.exists() else {}


# ------------------------------------------------------------------------------------------------------ the bytes


def _archive(run: Path, reduced: Mapping[str, Any]) -> bytes:
    """A plain tar: weights do not compress."""
    buffer, state = io.BytesIO(), io.BytesIO()
    torch.save(dict(reduced), state)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in _RECORDS:
            if (run / name).exists():
                _add_file(tar, name, (run / name).read_bytes())
        _add_file(tar, _STATE, state.getvalue())
    return buffer.getvalue()


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    tar.addfile(header, io.BytesIO(content))


def _extract(content: bytes, run: Path) -> dict[str, Any]:
    """Write the records into `run` and return the state. Names other than ours are ignored."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for name in _RECORDS:
            if name in tar.getnames() and (file := tar.extractfile(name)) is not None:
                with written_atomically(run / name, error=CheckpointError, create_folder=True) as temporary:
                    temporary.write_bytes(file.read())
        state = tar.extractfile(_STATE)
        assert state is not None  # the checksum says that `pack` wrote it
        return dict(torch.load(io.BytesIO(state.read()), map_location="cpu", weights_only=True))


def _read_manifest(carried: Path) -> dict[str, Any]:
    path = carried / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"No {MANIFEST} in {carried}: wanted a folder that `handmesh carry pack` wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): carry it once more.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not of format {_FORMAT}, which this version reads: pack with this version.")
    return manifest


def _join(carried: Path, manifest: Mapping[str, Any]) -> bytes:
    pieces, missing, damaged = [], [], []
    for part in manifest["parts"]:
        path = carried / part["name"]
        if not path.exists():
            missing.append(part["name"])
            continue
        piece = path.read_bytes()
        if _sha256(piece) != part["sha256"]:
            damaged.append(part["name"])
        pieces.append(piece)
    if missing or damaged:
        found = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("damaged", damaged)) if names]
        raise CheckpointError(
            f"{carried} does not hold all {len(manifest['parts'])} parts of step {manifest['step']}, "
            f"{'; '.join(found)}. Carry those once more."
        )
    content = b"".join(pieces)
    if _sha256(content) != manifest["sha256"]:
        raise CheckpointError(f"The parts in {carried} do not make what was packed: carry {MANIFEST} once more.")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
