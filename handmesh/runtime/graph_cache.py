"""ONNX graphs of model files, made once on a machine and kept in the user's cache folder (`handmesh.system.paths`).

An entry's name holds the SHA-256 of the model file and that of the code that writes graphs, so neither another model
nor another handmesh ever finds it. Entries are written whole or not at all: processes that start at the same time
may each write one, of the same content, and the last stays. Nothing is lost when the folder is deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ExportError
from handmesh.hand.models import HAND_MODELS
from handmesh.model.file import config_of, hand_of, read_record, read_weights, sha256_of
from handmesh.system.atomic import write_atomically
from handmesh.system.paths import CACHE_VARIABLE, user_cache_folder

logger = logging.getLogger(__name__)

_WRITERS = ("runtime/onnx_graph", "config", "hand/arrays", "model/fastvit")  # modules that a graph's content depends on
MAX_BYTES = 2_000_000_000  # of all entries; the ones that were used longest ago go first


def graph_folder() -> Path:
    return user_cache_folder() / "graphs"


def cached_graph(model: Path) -> Path | bytes:
    """The ONNX graph of a model file: where it lies, or itself where nothing can be written.

    A folded model file needs no torch, an unfolded one needs it once, to be folded. Raises CheckpointError, and
    AssetError where the hand model is missing.
    """
    hand_of(read_record(model), model)  # refused here even if the graph is there: predictions need the hand as well
    path = _entry(model)
    with suppress(OSError):
        if path.stat().st_size > 0:
            os.utime(path)  # used just now
            return path
    graph = graph_of(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, graph)
    except (OSError, ExportError) as error:
        logger.warning("The engine is built anew at every start: %s Set %s to another folder.", error, CACHE_VARIABLE)
        return graph
    _forget_old(path)
    return path


def forget_graph(model: Path) -> None:
    """Delete the graph of a model file, which a disk or a power cut damaged."""
    with suppress(OSError):
        _entry(model).unlink()


def _entry(model: Path) -> Path:
    return graph_folder() / f"{model.stem[:40]}-{sha256_of(model)[:32]}-{_writer()}.onnx"


def _writer() -> str:
    """Identity of the code that shapes graphs: nobody has to remember to raise a version."""
    digests = [sha256_of(Path(__file__).parents[1] / f"{name}.py") for name in _WRITERS]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:8]


def graph_of(model: Path) -> bytes:
    """Build it. The metadata has the model's record, the SHA-256 of its file, and the licence of the hand inside."""
    from handmesh.runtime.onnx_graph import build_graph

    record = read_record(model)
    config = config_of(record, model)
    graph = build_graph(config, folded_weights(model, record), hand_of(record, model), metadata_of(model))
    return bytes(graph.SerializeToString())


def folded_weights(model: Path, record: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    if record["folded"]:
        return read_weights(model)
    from handmesh.model.checkpoint import load_model

    network, _ = load_model(model)
    return {name: tensor.numpy() for name, tensor in network.reparameterize().state_dict().items()}


def metadata_of(model: Path) -> dict[str, str]:
    """What every exported file says about itself; plain text."""
    record = read_record(model)
    hand = config_of(record, model).hand
    return {
        "handmesh_record": json.dumps(record),
        "checkpoint": model.name,
        "checkpoint_sha256": sha256_of(model),
        "hand": hand,
        "hand_sha256": record["hand_sha256"],
        "hand_licence": HAND_MODELS[hand].licence,
    }


def _forget_old(newest: Path) -> None:
    """Keep the folder below `MAX_BYTES`. A process that is about to read what is deleted builds its own."""
    entries = []
    for path in newest.parent.glob("*.onnx"):
        with suppress(OSError):
            status = path.stat()
            entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= MAX_BYTES or path == newest:
            break
        with suppress(OSError):
            path.unlink()
            total -= size
