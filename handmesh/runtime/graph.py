"""The ONNX graph of a model file: beside it, of the same name, so that nobody needs torch to run a model.

Whoever writes a model writes its graph (`write_graph`), which says in its metadata which file it is of. One that is
missing, or that is of other weights, is made anew at first use: that takes torch and some seconds, once. Where it
cannot lie beside its model, it lies in the user's cache folder, and where that cannot be written either, nowhere.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import CheckpointError, ExportError
from handmesh.hand import BETA_COUNT, FACE_COUNT, JOINT_NAMES, MANO_JOINT_NAMES, VERTEX_COUNT, HandOutput
from handmesh.hand.models import HAND_MODELS
from handmesh.model.file import config_of, hand_of, is_half, read_record, sha256_of
from handmesh.system.atomic import write_atomically
from handmesh.system.extras import extra
from handmesh.system.paths import CACHE_VARIABLE, user_cache_folder

if TYPE_CHECKING:
    from handmesh.model.network import HandMeshNet

logger = logging.getLogger(__name__)

RECORD = "handmesh_record"  # keys of a graph's metadata
WEIGHTS_SHA256 = "checkpoint_sha256"

# What outputs were called in graphs that earlier versions wrote.
OLD_OUTPUT_NAMES = {"handedness": "right"}

Loaded = TypeVar("Loaded")


def is_exported(path: Path) -> bool:
    """A graph that was given instead of a model file."""
    return path.suffix in (".onnx", ".xml")


def write_with_graph(path: Path, network: HandMeshNet, *, training: Mapping[str, Any], half: bool = False) -> None:
    """`save_model`, and beside it the graph. Raises CheckpointError when one of them cannot be written."""
    from handmesh.model.checkpoint import save_model

    save_model(path, network, training=training, half=half)
    write_graph(path)


def write_graph(model: Path) -> Path:
    """Make the graph of a model file, beside it. Raises CheckpointError, AssetError, MissingPackageError."""
    path = model.with_suffix(".onnx")
    write_atomically(path, graph_of(model), error=CheckpointError)
    return path


def graph_of(model: Path) -> bytes:
    """Trace it. Raises CheckpointError, AssetError; MissingPackageError without torch."""
    with extra("train", f"{model.name} has no graph of its weights beside it, and making one"):
        from handmesh.model.checkpoint import load_model
        from handmesh.runtime.trace import build_graph

    network, _ = load_model(model)
    if not network.reparameterized:
        network = network.reparameterize()
    return build_graph(network, metadata_of(model), half=is_half(model))


def open_graph(
    model: Path,
    load: Callable[[Path | bytes], Loaded],
    metadata_in: Callable[[Loaded], Mapping[str, str]],
    kinds: type[Exception],
    runtime: str,
    damaged: tuple[type[Exception], ...] | None = None,
) -> Loaded:
    """What `load` makes of an exported file, or of the graph of a model file, which is made where there is none.

    `metadata_in` reads what a loaded graph says about itself. `kinds` are the errors of `load`; those of `damaged`, by
    default all of them, say that the file is not whole: such a graph is made anew, and is replaced once the new one
    loads. All others end it, the file as it was. Raises CheckpointError, AssetError, MissingPackageError.
    """
    if is_exported(model):
        try:
            return load(model)
        except kinds as error:
            raise CheckpointError(f"{model} cannot be run by {runtime}: {error}. Export it again.") from error
    hand_of(read_record(model), model)  # refused here even if the graph is there: predictions need the hand as well
    sha256 = sha256_of(model)
    beside, cached = model.with_suffix(".onnx"), cached_path(model, sha256)
    places = [beside, cached]
    damaged = damaged or (kinds,)
    for path in (beside, cached):
        if not path.is_file():
            continue
        try:
            loaded = load(path)
        except damaged as error:
            logger.warning("The graph %s cannot be read (%s): it is made anew.", path, error)
            continue
        except kinds as error:
            raise CheckpointError(f"The graph {path} cannot be run by {runtime}: {error}.") from error
        metadata = metadata_in(loaded)
        if metadata.get(WEIGHTS_SHA256) == sha256 and "precision" not in json.loads(metadata.get(RECORD, "{}")):
            return loaded
        if path == beside and not _may_be_replaced(metadata):
            logger.warning("%s is no graph of %s's weights, and is left alone.", path, model.name)
            places.remove(beside)
        else:
            logger.warning("%s is of other weights than %s: it is made anew.", path, model.name)
    logger.warning("Making the graph of %s with torch, once: it takes some seconds.", model.name)
    graph = graph_of(model)
    try:
        loaded = load(graph)
    except kinds as error:
        raise CheckpointError(f"A graph that was just made of {model} cannot be run by {runtime}: {error}.") from error
    _keep(graph, places)
    return loaded


def cached_path(model: Path, sha256: str) -> Path:
    """Where the graph of a model lies that cannot lie beside it."""
    return user_cache_folder() / "graphs" / f"{model.stem[:40]}-{sha256[:32]}.onnx"


def _may_be_replaced(metadata: Mapping[str, str]) -> bool:
    """Whether it is a float32 graph of ours: not another program's, and no int8 that was exported to this place."""
    return RECORD in metadata and "precision" not in json.loads(metadata[RECORD])


def _keep(graph: bytes, places: list[Path]) -> None:
    """Write it to the first place that can be written."""
    problem: Exception | None = None
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, graph)
        except (OSError, ExportError) as error:
            problem = error
        else:
            return
    logger.warning("The graph is made anew at every start: %s Set %s to another folder.", problem, CACHE_VARIABLE)


# --- What a graph says about itself -----------------------------------------------------------------------------------


def metadata_of(model: Path) -> dict[str, str]:
    """What every exported file says about itself; plain text, and JSON where it is a table."""
    record = read_record(model)
    config = config_of(record, model)
    side = config.resolution
    inputs = {
        "crops": {
            "shape": ["batch", side, side, 3],
            "dtype": "uint8",
            "meaning": "RGB, one hand each, rows from the top; normalisation is inside the graph",
        }
    }
    heads = {
        "confidence": config.confidence_head,
        "handedness": config.handedness_head,
        "joint_confidence": config.joint_confidence_head,
        "seen": config.keypoint_head,
    }
    outputs = {name: {**about, "dtype": "float32"} for name, about in _OUTPUTS.items()}
    for name, there in heads.items():
        if not there:
            outputs[name]["meaning"] = f"{'0' if name == 'seen' else '1'}: this model cannot tell"
    return {
        RECORD: json.dumps(record),
        "checkpoint": model.name,
        WEIGHTS_SHA256: sha256_of(model),
        "hand": config.hand,
        "hand_sha256": record["hand_sha256"],
        "hand_licence": HAND_MODELS[config.hand].licence,
        "inputs": json.dumps(inputs),
        "outputs": json.dumps(outputs),
        "crop_rule": "A square of the photograph around the hand, sampled bilinearly, as means where it shrinks: "
        "its side is 1.5 times (trained: 1.15 to 2.2 times) the longer side of the box around the hand's keypoints, "
        "its centre the box's. Any rotation; best with the fingers upwards. Pixels outside the photograph are black.",
        "camera_rule": "Of an upright square with its centre at c and a side of b pixels (centres at integers), a "
        "point (X, Y, Z) of vertices or joints is drawn at c + b / 2 * scale * (X + x, Y + y); camera is scale, x, y.",
        "mirroring": "The network knows right hands. Mirror the crop of a left hand left to right, and the answer "
        "back: x -> -x in camera, vertices and joints, rotations R -> M R M with M = diag(-1, 1, 1), triangles "
        "rewound. Of an unknown side show both: the likelier one has the higher handedness.",
        "faces": json.dumps(hand_of(record, model).f.tolist(), separators=(",", ":")),
    }


_ROTATIONS = len(MANO_JOINT_NAMES)
_OUTPUTS: dict[str, dict[str, Any]] = {
    "camera": {
        "shape": ["batch", 3],
        "order": ["scale", "x", "y"],
        "unit": "scale: NDC per metre; x, y: metres",
        "meaning": "weak perspective: ndc = scale * (xy of a point + (x, y)); the crop spans -1 to 1 from edge to "
        "edge, x right, y down",
    },
    "pose": {
        "shape": ["batch", _ROTATIONS, 3, 3],
        "order": MANO_JOINT_NAMES,
        "meaning": "rotation matrices relative to the parent joint; the first turns the hand into the camera's axes; "
        "all the identity: the flat hand at rest",
    },
    "betas": {"shape": ["batch", BETA_COUNT], "meaning": "shape coefficients, about standard normal"},
    "vertices": {
        "shape": ["batch", VERTEX_COUNT, 3],
        "unit": "metres",
        "meaning": f"axes of a camera that faces the crop (x right, y down, z forward), origin of the hand model; in "
        f"the order that 'faces' counts them: {FACE_COUNT} triangles, counter-clockwise seen from outside",
    },
    "joints": {
        "shape": ["batch", len(JOINT_NAMES), 3],
        "order": JOINT_NAMES,
        "unit": "metres",
        "meaning": "as vertices",
    },
    "confidence": {
        "shape": ["batch"],
        "meaning": "probability that there is a hand, and that its joints are drawn within 0.15 of its size (the "
        "longer side of their box)",
    },
    "handedness": {"shape": ["batch"], "meaning": "probability that the crop, as it is, shows a right hand"},
    "joint_confidence": {
        "shape": ["batch", len(JOINT_NAMES)],
        "order": JOINT_NAMES,
        "meaning": "probability that there is a hand, and that this joint is drawn within 0.06 of its size",
    },
    "seen": {
        "shape": ["batch", len(JOINT_NAMES), 3],
        "order": JOINT_NAMES,
        "meaning": "where heatmaps have each joint, x and y in NDC, and how much of the heatmap's mass lies there",
    },
}
assert tuple(_OUTPUTS) == HandOutput._fields
_NEW_OUTPUTS = ("joint_confidence", "seen")  # since the first version


def record_in(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The record of the model that an exported file was made from. Raises CheckpointError."""
    try:
        record: dict[str, Any] = json.loads(metadata[RECORD])
    except (KeyError, ValueError):
        raise CheckpointError(f"{path} has no handmesh record: it is no graph that `handmesh export` made.") from None
    return record


def precision_of(record: Mapping[str, Any]) -> str:
    """What a graph computes in: int8 where it was exported so."""
    return str(record.get("precision", "float32"))


def outputs_in(names: Iterable[str]) -> list[str]:
    """What the fields of `HandOutput` are called among a graph's outputs; what former versions had not is left out."""
    there = set(names)
    fields = [field if field in there else OLD_OUTPUT_NAMES.get(field, field) for field in HandOutput._fields]
    return [field for field in fields if field in there or field not in _NEW_OUTPUTS]


def hand_output(answers: Sequence[NDArray[Any]]) -> HandOutput:
    """Of the values of `outputs_in`: a graph of a former version cannot tell which joints were found, or seen."""
    absent = len(HandOutput._fields) - len(answers)
    if not absent:
        return HandOutput(*answers)
    count, joints = len(answers[0]), len(JOINT_NAMES)
    cannot_tell = np.ones((count, joints), np.float32), np.zeros((count, joints, 3), np.float32)  # `_NEW_OUTPUTS`
    return HandOutput(*answers, *cannot_tell[-absent:])


def scope_of(name: str) -> str:
    """The module that a node comes from: "backbone.conv_exp.se" of "backbone.conv_exp.se/Conv_2"."""
    return name.rpartition("/")[0]
