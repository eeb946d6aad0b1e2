"""Published FastViT weights on this machine: added once from a downloaded file, then known by a name.

`add_backbone_weights` reads any published form (`handmesh.model.fastvit_weights`), finds out which variant it is, and
keeps the numbers unchanged, under Apple's names, in one safetensors file with a record of where they came from and
under which licence. A training config names the result, and `find_backbone_weights` turns the name into the file.
Nothing is ever downloaded: the weights have owners, and whoever uses them must have agreed to their terms.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from handmesh.errors import CheckpointError
from handmesh.model.fastvit import VARIANTS
from handmesh.model.fastvit_weights import LICENCE_URL, published_weights_page, recognise_weights
from handmesh.system.atomic import written_atomically
from handmesh.system.paths import folder_in, user_data_folder

FOLDER_VARIABLE = "HANDMESH_WEIGHTS_DIR"

_RECORD = "handmesh_backbone"  # the key of the record in the file's metadata
_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class StoredWeights:
    """What a stored file says about itself."""

    name: str
    variant: str  # one of `fastvit.VARIANTS`
    reparameterized: bool  # for inference only; False: the train-time form
    num_classes: int  # of the classifier; 0 without one
    source: str  # where the file came from, in the words of whoever added it, or its path
    source_sha256: str
    naming: str  # whose names its weights had: "Apple" or "timm"
    licence: str
    added: str  # UTC, ISO 8601

    @property
    def path(self) -> Path:
        return _path(self.name)


def weights_folder() -> Path:
    """Where added weights live: `$HANDMESH_WEIGHTS_DIR`, or handmesh/weights in the user's data folder.

    The data folder is ~/.local/share (or $XDG_DATA_HOME) on Linux, ~/Library/Application Support on macOS and
    %LOCALAPPDATA% on Windows. The folder need not exist.
    """
    if chosen := folder_in(FOLDER_VARIABLE):
        return chosen
    return user_data_folder() / "weights"


def add_backbone_weights(
    file: Path,
    name: str | None = None,
    *,
    source: str | None = None,
    licence: str | None = None,
    replace: bool = False,
) -> StoredWeights:
    """Store a published checkpoint: Apple's .pth.tar, plain or reparameterized, or timm's .safetensors, .bin or .pth.

    name: how configs will call it; by default the variant's name, with "_reparameterized" after it for that form.
    source and licence go into the record; by default the file's path, and that the licence is assumed to be Apple's.
    Adding the same file again under its name changes nothing; another one needs replace=True.

    Raises CheckpointError if the file is missing (the message says where to get one), damaged, hostile (it is read
    with ``weights_only=True``, so it cannot run code), or no FastViT; or if the name is impossible or taken.
    """
    if name is not None:
        _check_name(name)
    if not file.is_file():
        raise CheckpointError(f"There is no file {file}. {_page(name or file.name, file)}")
    recognised = recognise_weights(file)
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    stored = StoredWeights(
        name=name or recognised.variant + ("_reparameterized" if recognised.reparameterized else ""),
        variant=recognised.variant,
        reparameterized=recognised.reparameterized,
        num_classes=recognised.num_classes,
        source=source or str(file),
        source_sha256=digest,
        naming=recognised.naming,
        licence=licence or f"assumed to be Apple's, as published with FastViT: {LICENCE_URL}",
        added=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if stored.path.exists() and not replace:
        present = read_stored_weights(stored.name)
        if present.source_sha256 == digest:
            return present
        raise CheckpointError(
            f"There already are weights named {stored.name!r}, from {present.source} "
            f"(sha256 {present.source_sha256[:12]}...), and {file} is another file (sha256 {digest[:12]}...). "
            "Choose another name with --name, or give --replace."
        )
    record = json.dumps({"format": _FORMAT} | asdict(stored))
    tensors = {key: value.contiguous() for key, value in recognised.weights.items()}
    with written_atomically(stored.path, error=CheckpointError, create_folder=True) as temporary:
        temporary.write_bytes(serialize(tensors, metadata={_RECORD: record}))
    return stored


def find_backbone_weights(name: str) -> Path:
    """The safetensors file of weights that were added under this name, for `fastvit_weights.load_backbone_weights`.

    Raises CheckpointError if there are none: the message says what there is, where the owners publish weights, and
    what to type.
    """
    _check_name(name)
    path = _path(name)
    if not path.is_file():
        names = _stored_names()
        there = f"there are: {', '.join(names)}" if names else "none have been added yet"
        raise CheckpointError(f"There are no weights named {name!r} in {weights_folder()} ({there}). {_page(name)}")
    return path


def read_stored_weights(name: str) -> StoredWeights:
    """The record of the weights with this name, without reading the weights. Raises CheckpointError."""
    path = find_backbone_weights(name)
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}). Add it again with --replace.") from None
    try:
        return _parse(name, json.loads(metadata[_RECORD]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has no readable record of where its weights come from ({type(error).__name__}: {error}). "
            "Only `handmesh weights add` writes into this folder: move the file away and add it from there."
        ) from None


def list_backbone_weights() -> list[StoredWeights | CheckpointError]:
    """All weights that were added, by name; in the place of a file that cannot be read, the error that says why."""
    found: list[StoredWeights | CheckpointError] = []
    for name in _stored_names():
        try:
            found.append(read_stored_weights(name))
        except CheckpointError as error:
            found.append(error)
    return found


def _parse(name: str, record: dict[str, Any]) -> StoredWeights:
    if record.pop("format") != _FORMAT:
        raise ValueError("its format is another version's")
    if "folded" in record:  # as it was called
        record["reparameterized"] = record.pop("folded")
    stored = StoredWeights(**(record | {"name": name}))  # the file's name is the name, also after a rename
    if stored.variant not in VARIANTS:
        raise ValueError(f"unknown variant {stored.variant!r}")
    return stored


def _path(name: str) -> Path:
    return weights_folder() / f"{name}.safetensors"


def _stored_names() -> list[str]:
    return sorted(path.stem for path in weights_folder().glob("*.safetensors") if _NAME.fullmatch(path.stem))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name.endswith(".safetensors"):
        raise CheckpointError(
            f"{name!r} cannot name weights: wanted letters, digits, '.', '_' and '-', for example fastvit_ma36."
        )


def _page(name: str, file: Path | None = None) -> str:
    """The manual page: what is published for the variant that a name speaks of, and what to type."""
    variant = next((variant for variant in VARIANTS if re.match(rf"{variant}(?![0-9a-z])", name)), "fastvit_ma36")
    example = file or Path(f"{variant}.pth.tar")
    option = "" if file is not None or name == variant else f" --name {name}"
    return f"""{published_weights_page(variant)}
Download one, for example into {example}, and type
  handmesh weights add {example}{option}"""
