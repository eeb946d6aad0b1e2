"""What all sections of settings have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def flat_settings(tree: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(tree, dict | list):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flat_settings(value, f"{name}.{key}" if name else str(key))
    return flat
