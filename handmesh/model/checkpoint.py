"""Models on disk. A model file is safetensors: weights plus one JSON record, from which it rebuilds its own network.

It never contains a hand model's arrays: it names the hand it was trained with ("builtin" or "mano") and its SHA-256,
and refuses another.
Training state (`save_state`, `load_latest_state`) is apart: it also holds the optimiser and the position in the run.
Every file is written under another name first and then moved into place: nobody ever sees half a file.
"""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize

from handmesh.errors import CheckpointError
from handmesh.hand.layer import HandModel
from handmesh.model.file import FORMAT, RECORD, config_of, hand_of, read_record, with_current_names
from handmesh.model.network import HandMeshNet
from handmesh.system.atomic import written_atomically

logger = logging.getLogger(__name__)

_OF_A_MEAN = ("steps", "samples")  # of a run's record, that the record of a mean of models repeats and adds up


def save_model(path: Path, model: HandMeshNet, *, training: Mapping[str, Any], half: bool = False) -> None:
    """Write weights and record. `training`: plain values about how it was made. `half`: store float16.

    Raises CheckpointError when the file cannot be written, or when a weight is not a finite number (of float16 with
    `half`); an older file at `path` is then still whole.
    """
    record = {
        "format": FORMAT,
        "model": model.config.model_dump(mode="json"),
        "reparameterized": model.reparameterized,
        "hand_sha256": model.hand.sha256,
        "training": dict(training),
    }
    weights = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} is not written: {name} is not finite{' in float16' if half else ''}.")
    with written_atomically(path, error=CheckpointError, create_folder=True) as temporary:
        temporary.write_bytes(serialize(weights, metadata={RECORD: json.dumps(record)}))


def load_model(path: Path) -> tuple[HandMeshNet, dict[str, Any]]:
    """Rebuild the network from its own file -> (model in evaluation mode, record). float32 whatever was stored.

    Raises CheckpointError when the file is missing, damaged, from another version, or was trained with another hand;
    AssetError, with instructions, when it was trained with MANO and no MANO file was added here.
    """
    record = read_record(path)
    config = config_of(record, path)
    hand = HandModel(hand_of(record, path))
    model = HandMeshNet(config, hand)
    if record["reparameterized"]:
        model = model.reparameterize()
    load_weights(model, read_model_weights(path), str(path))
    return model.eval(), record


def average_models(paths: Sequence[Path]) -> tuple[HandMeshNet, dict[str, Any]]:
    """The mean of the weights of several models -> (model in evaluation mode, what to record of its training).

    Of runs that went on from the same weights it is often better than the best of them (Wortsman et al., "Model soups",
    ICML 2022), and of a model and what further training made of it often better on other photographs (Wortsman et al.,
    "Robust fine-tuning of zero-shot models", CVPR 2022); of unrelated runs it is no model at all. Batch norms'
    statistics are averaged like weights. Raises CheckpointError for models that differ in more than their weights, and
    for reparameterized ones beside others, for the mean of reparameterized models is not what the mean of models folds
    to; AssetError as `load_model`.
    """
    first, *others = (load_model(path) for path in paths)
    for path, (model, record) in zip(paths, (first, *others), strict=True):
        if record["reparameterized"] != first[1]["reparameterized"]:
            reparameterized, other = (path, paths[0]) if record["reparameterized"] else (paths[0], path)
            raise CheckpointError(f"{reparameterized} is reparameterized, {other} is not: average models of one form.")
        if model.config.model_copy(update={"drop_path": 0.0}) != first[0].config.model_copy(update={"drop_path": 0.0}):
            raise CheckpointError(f"{path} and {paths[0]} are of other networks: only their weights may differ.")
    weights = [model.state_dict() for model, _ in (first, *others)]
    mean = {
        name: (sum(one[name].double() for one in weights) / len(weights)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights[0].items()
    }
    first[0].load_state_dict(mean)
    runs = [record["training"] for _, record in (first, *others)]
    crops = [run["crops"] for run in runs if "crops" in run]
    totals = {name: sum(run[name] for run in runs) for name in _OF_A_MEAN if all(name in run for run in runs)}
    training = totals | {"mean_of": [{name: run[name] for name in _OF_A_MEAN if name in run} for run in runs]}
    if len(crops) == len(runs) and all(one == crops[0] for one in crops):
        training["crops"] = crops[0]
    return first[0].eval(), training


def read_model_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model file, as stored, by today's names. For files that `read_record` has read."""
    with safe_open(path, framework="pt") as file:
        return with_current_names({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118, no mapping


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Strict: every key on both sides is used. Raises CheckpointError that names the first ones that are not."""
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in wanted]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(problems[:3])}{more}.")
    model.load_state_dict(dict(weights))


def save_state(directory: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write training state of `step` and delete all but the newest `keep`. Raises CheckpointError."""
    path = directory / f"state-{step:08d}.pt"
    with written_atomically(path, error=CheckpointError, create_folder=True) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # what torch's own writer raises where Python's would raise OSError
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} cannot be written: is the disk full? ({reason})") from error
    for old in _states(directory)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load_latest_state(directory: Path) -> dict[str, Any] | None:
    """The newest readable training state, or None. One that is damaged is skipped with a warning."""
    for path in reversed(_states(directory)):
        try:
            return _read_state(path)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, ValueError, zipfile.BadZipFile) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            logger.warning("%s cannot be read (%s): trying the one before it", path, reason)
    return None


def _read_state(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
    state = dict(torch.load(path, map_location="cpu", weights_only=True))
    return state | {name: with_current_names(state[name]) for name in ("model", "average") if name in state}


def _states(directory: Path) -> list[Path]:
    return sorted(directory.glob("state-*.pt"))
