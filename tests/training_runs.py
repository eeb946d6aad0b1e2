"""Runs that are killed, and what they left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


class KilledError(Exception):
    pass


def killed_after(step: int) -> Any:
    """As if the machine went down: an exception out of the loop, at the progress report of a step."""

    def on_progress(progress: Any) -> None:
        if progress.step == step:
            raise KilledError

    return on_progress


def records(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("img_s", "data_wait_fraction")} for line in lines]


def tensors_of(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of nested dicts and lists, by path."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {path: tensor for key, value in items for path, tensor in tensors_of(value, f"{name}.{key}").items()}
