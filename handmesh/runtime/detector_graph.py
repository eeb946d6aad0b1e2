"""A detector's file: an ONNX graph whose metadata says what it is.

Input "pictures" (B, H, W, 3) uint8 RGB, sides multiples of 16; output "grid" (B, 8, H / 8, W / 8) float32, as
`handmesh.hand.grid` means it. Weights are stored in float16 under the names of the torch network, so that training can
go on from the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import CheckpointError
from handmesh.runtime.trace import OPSET, optimized, quiet, split_depthwise, store_in_16_bits
from handmesh.system.atomic import written_atomically
from handmesh.system.extras import extra

if TYPE_CHECKING:
    from handmesh.config.detector import DetectorModel
    from handmesh.model.detector import HandDetectorNet

DETECTOR_SUFFIX = ".onnx"
INPUT, OUTPUT = "pictures", "grid"
RECORD = "handmesh_detector"  # key of the metadata
FORMAT = 1
_STORED = ".stored"
# Modules of the network: how the names of weights begin.
_MODULES = ("patch_embed.", "network.", "laterals.", "mixers.", "smooth.", "predict.")


def write_detector(path: Path, network: HandDetectorNet, training: Mapping[str, Any]) -> None:
    """Atomic. `training`: plain values about how it was made. Raises CheckpointError."""
    with extra("train", "making an ONNX graph"):
        import onnx
        from onnx import numpy_helper

    model = onnx.load_from_string(_traced(network.config))
    weights = {name: value.detach().half().float().cpu().numpy() for name, value in network.named_parameters()}
    for constant in model.graph.initializer:
        if constant.name in weights:
            array = np.ascontiguousarray(weights[constant.name])
            constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    split_depthwise(model)
    store_in_16_bits(model)
    record = {"format": FORMAT, "detector": network.config.model_dump(mode="json"), "training": dict(training)}
    onnx.helper.set_model_props(model, {RECORD: json.dumps(record)})
    with written_atomically(path, error=CheckpointError, create_folder=True) as temporary:
        temporary.write_bytes(model.SerializeToString())


@cache
def _traced(config: DetectorModel) -> bytes:
    """The graph of a network of these settings, with whatever weights: each is an initializer of its own name."""
    with extra("train", "making an ONNX graph"):
        import torch

    from handmesh.model.detector import HandDetectorNet

    height, width = torch.export.Dim("height", min=2, max=512), torch.export.Dim("width", min=2, max=512)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        network = HandDetectorNet(config).eval().requires_grad_(False)
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 96, 160, 3, dtype=torch.uint8),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1), 1: 16 * height, 2: 16 * width},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        model = optimized(program.model_proto, {name for name, _ in network.named_parameters()})
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def weights_in(path: Path) -> dict[str, NDArray[np.float32]]:
    """The weights of a detector's file by their names in the network. Raises CheckpointError."""
    with extra("train", "reading an ONNX graph"):
        import onnx
        from onnx import numpy_helper
    try:
        model = onnx.load(str(path))
    except Exception as error:  # onnx's own have no common root
        raise CheckpointError(f"{path} cannot be read as a detector: {error}.") from None
    return {
        constant.name.removesuffix(_STORED): numpy_helper.to_array(constant).astype(np.float32)
        for constant in model.graph.initializer
        if constant.name.startswith(_MODULES)
    }
