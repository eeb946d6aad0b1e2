"""What a model file says about itself, and what is in it, read without torch.

A model file is safetensors: weights, and under the key "handmesh" of its metadata a JSON record, which names the
network's settings and the hand it was trained with. `handmesh.model.checkpoint` writes it and rebuilds the torch
network; engines that need no torch read it here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from handmesh.config.model import ModelConfig
from handmesh.errors import CheckpointError
from handmesh.hand import HandArrays
from handmesh.hand.models import HAND_MODELS, load_hand
from handmesh.system.atomic import sha256_of_file

Weight = TypeVar("Weight")

RECORD = "handmesh"  # the key of the record in the file's metadata
FORMAT = 1

# What weights were called in files that earlier versions wrote: how their names begin, then and now.
RENAMED_WEIGHTS = {"right_head.": "handedness_head."}

# Keys of the record, then and now.
RENAMED_RECORD_KEYS = {"folded": "reparameterized"}
RECORD_KEYS = {"format", "model", "reparameterized", "hand_sha256", "training"}


def read_record(path: Path) -> dict[str, Any]:
    """The JSON record of a model file, without its weights. Raises CheckpointError."""
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(RECORD)
    except FileNotFoundError:
        raise CheckpointError(f"No model at {path}.") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a model (safetensors): {error}.") from error
    if text is None:
        raise CheckpointError(f"{path} holds weights, but no handmesh record: it is not a handmesh model.")
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its handmesh record is damaged ({error}).") from error
    if isinstance(record, dict):
        record = {RENAMED_RECORD_KEYS.get(key, key): value for key, value in record.items()}
    if not isinstance(record, dict) or not record.keys() >= RECORD_KEYS:
        raise CheckpointError(f"{path}: its handmesh record is damaged: wanted {', '.join(sorted(RECORD_KEYS))}.")
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has model format {record['format']}, this version reads {FORMAT}. Update handmesh."
        )
    return record


def config_of(record: dict[str, Any], path: Path) -> ModelConfig:
    """The network's settings. Raises CheckpointError, naming `path`, for ones that this version does not know."""
    try:
        return ModelConfig.model_validate(record["model"])
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise CheckpointError(f"{path}: its model settings are not ones this version knows: {problems}.") from error


def hand_of(record: dict[str, Any], path: Path) -> HandArrays:
    """The hand that the model was trained with.

    Raises CheckpointError when the hand of that name here is another one; AssetError, with instructions, when its
    files were not added here.
    """
    name = config_of(record, path).hand
    hand = load_hand(name)
    if record["hand_sha256"] != hand.sha256:
        raise CheckpointError(
            f"{path} was trained with another hand model (sha256 {record['hand_sha256'][:12]}..., the {name!r} "
            f"hand here is {hand.sha256[:12]}...). Its answers would be wrong: {HAND_MODELS[name].how_to_match}."
        )
    return hand


def is_half(path: Path) -> bool:
    """Whether all weights are stored as float16. Raises CheckpointError."""
    try:
        with safe_open(path, framework="np") as file:
            return all(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118, no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a model (safetensors): {error}.") from error


def with_current_names(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Weights by the names that this version gives them (`RENAMED_WEIGHTS`)."""
    return {
        next((new + name[len(old) :] for old, new in RENAMED_WEIGHTS.items() if name.startswith(old)), name): weight
        for name, weight in weights.items()
    }


def sha256_of(path: Path) -> str:
    """Raises CheckpointError when the file cannot be read."""
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
