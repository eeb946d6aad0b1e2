"""Settings from a YAML file or a shipped configuration, with overrides; of every mistake the message names the key."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from handmesh.config.detector import DetectorConfig
from handmesh.config.scenes import RENAMED_SCENE_KEYS
from handmesh.config.settings import Settings
from handmesh.config.train import TrainConfig
from handmesh.errors import ConfigError

logger = logging.getLogger(__name__)

# Dotted names of settings in former versions, and what they are called now, in the same section: files and states of
# those versions load, and say so.
RENAMED_KEYS = {
    "loss.right": "loss.handedness",
    "augmentation.upright": "augmentation.upright_prob",
    "augmentation.wide": "augmentation.context_scale_prob",
    "augmentation.wide_margin": "augmentation.context_scale",
    "augmentation.absent": "augmentation.negative_ratio",
    "augmentation.amplitude_mix": "augmentation.fda_prob",
    "augmentation.photo_edge": "augmentation.border_prob",
    "photo_augmentation.unrotated": "photo_augmentation.no_rotation_prob",
    "folded": "reparameterized",
}
RENAMED_KEYS |= {
    f"data.{section}{old}": f"data.{section}{new}"
    for section in ("synthetic.scenes.", "live.scenes.", "scenes.")
    for old, new in RENAMED_SCENE_KEYS.items()
}

Kind = TypeVar("Kind", bound=Settings)


def shipped_configs() -> dict[str, Path]:
    """The settings that ship with the package, by name: in the package of a wheel, in configs/ of the source tree."""
    package = Path(__file__).parents[1]
    folder = next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(config: str | Path) -> Path:
    """The file of a configuration: a path, or a shipped one's name, also written as its path in the source tree.

    Raises ConfigError, which lists the shipped ones.
    """
    path, shipped = Path(config), shipped_configs()
    if path.is_file():
        return path
    if path.suffix in ("", ".yaml") and path.parent in (Path(), Path("configs")) and path.stem in shipped:
        return shipped[path.stem]
    if path.exists():
        raise ConfigError(f"{path} cannot be read as YAML: it is a folder.")
    raise ConfigError(f"No configuration at {path}. Give the path of a YAML file, or one of {', '.join(shipped)}.")


def load_config(config: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file or a shipped configuration, apply `key.path=value` overrides, check everything.

    `extends: NAME|PATH` in a file: it holds what differs from that configuration, section by section.

    Raises ConfigError for a missing or malformed file, an unknown key (with the nearest known one) or a wrong value,
    and for the settings of a detector.
    """
    settings = load_any_config(config, overrides)
    if isinstance(settings, DetectorConfig):
        raise ConfigError(f"{config} is of a detector, wanted the settings of a hand mesh model.")
    return settings


def load_any_config(config: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig | DetectorConfig:
    """As `load_config`; a file with the key `detector` is of a detector of hands."""
    path = None if config is None else find_config(config)
    tree = {} if path is None else _read_tree(path)
    for override in overrides:
        _apply_override(tree, override)
    where = str(path) if path else "settings"
    return parse_detector_config(tree, where) if "detector" in tree else parse_config(tree, where)


def _read_tree(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a file over those of the configuration that its `extends` names. `above`: who extends it."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings as `key: value`, found {type(tree).__name__}.")
    tree = tree or {}
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends is {base!r}, wanted the name or the path of another configuration.")
    beside = path.parent / base
    base_path = beside if beside.is_file() else find_config(base)
    if base_path.resolve() in (*above, path.resolve()):
        raise ConfigError(f"{path} extends {base}, which comes back to it: a configuration cannot extend itself.")
    return _merged(_read_tree(base_path, (*above, path.resolve())), tree)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML comes without types
    """Refuses a key that is there twice, of which YAML would forget the first. `<<` forgets nothing."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        names = [key.value for key in keys]
        for place, key in enumerate(keys):
            if key.value in names[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
        return node


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; all other values, lists too, are replaced."""
    both = {**base, **changes}
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            both[key] = _merged(base[key], value)
    return both


def parse_config(tree: dict[str, Any], where: str) -> TrainConfig:
    """Build a TrainConfig from plain values, as read from YAML or from a checkpoint. Raises ConfigError."""
    return _parse(TrainConfig, _with_new_names(tree, where), where)


def parse_detector_config(tree: dict[str, Any], where: str) -> DetectorConfig:
    """As `parse_config`, of a detector."""
    return _parse(DetectorConfig, tree, where)


def _parse(kind: type[Kind], tree: dict[str, Any], where: str) -> Kind:
    try:
        return kind.model_validate(_plain(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_describe(problem, kind) for problem in error.errors())) from None


def _with_new_names(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """A copy in which no setting has a name of `RENAMED_KEYS` any more."""
    tree, found = copy.deepcopy(tree), []
    for old, new in RENAMED_KEYS.items():
        *path, name = old.split(".")
        section: Any = tree
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or name not in section:
            continue
        if new.split(".")[-1] in section:
            raise ConfigError(f"{where}: {old} is the former name of {new}, and both are given: leave it out.")
        section[new.split(".")[-1]] = section.pop(name)
        found.append(f"{old} is now {new}")
    if found:
        logger.warning("%s: former names of settings: %s.", where, "; ".join(found))
    return tree


def _plain(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 (no dot) as text: turn such text into the number it was meant to be."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key.path=value, for example optimizer.learning_rate=1e-3.")
    *parents, leaf = key.split(".")
    node: Any = tree
    for name in parents:
        place = _place(node, name, override) if isinstance(node, list) else name
        if isinstance(node, dict) and node.get(name) is None:
            node[name] = {}  # missing, or `freihand: null`, as a run's own record has it
        node = node[place]
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override!r}: {name} is a value, not a section.")
    try:
        node[_place(node, leaf, override) if isinstance(node, list) else leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value.") from None


def _place(entries: list[Any], name: str, override: str) -> int:
    """Which entry of a list is meant."""
    if not (name.isdecimal() and int(name) < len(entries)):
        raise ConfigError(f"--set {override!r}: {name!r} is none of its list's entries, 0 to {len(entries) - 1}.")
    return int(name)


def _describe(problem: Any, kind: type[Settings]) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "value_error":  # ours, and it says what was found
        return f"{name}: {problem['ctx']['error']}" if name else str(problem["ctx"]["error"])
    if problem["type"] != "extra_forbidden":
        return f"{name or 'settings'}: {problem['msg']}, found {problem['input']!r}"
    section: Any = kind
    for part in path[:-1]:
        section = _section(section.model_fields[part].annotation) if part in section.model_fields else section
    known = sorted(section.model_fields)
    nearest = get_close_matches(path[-1], known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"{name} is not a setting; {hint}"


def _section(annotation: Any) -> Any:
    """The settings class in an annotation such as `FreiHandData | None` or `tuple[PhotoData, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None)
