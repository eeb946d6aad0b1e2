"""The network as an ONNX graph: traced by torch's own exporter, nothing written by hand.

Whatever a backbone is made of, what is exported is what was trained. Tracing takes ten seconds of a processor, and
depends on the network's settings alone, so it is done once for each of them in a process: `_traced` gives a graph in
which every weight still stands under its own name, and `build_graph` puts the weights of a model file into it.

Nodes and values are called after the module that they come from, "backbone.network.4.2.convffn.fc1/Conv": by these
scopes int8 and bfloat16 find their parts of the network.

Weights are stored in the precision of the model file and cast to float32 in the graph; runtimes do that when they load
it. The tables of the hand, larger than all others, are stored beside float16 weights as 16-bit fixed-point numbers with
a scale for each row: vertices move by less than a thousandth of a millimetre.
"""

from __future__ import annotations

import ast
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handmesh.config.model import ModelConfig
from handmesh.hand import HandOutput, builtin_hand
from handmesh.system.extras import extra

if TYPE_CHECKING:
    from handmesh.model.network import HandMeshNet

OPSET = 20  # the first with Gelu
IR_VERSION = 10  # ONNX Runtime 1.20 reads up to this one
INPUT = "crops"

# Numbers in a tensor from which on 16 bits are worth the nodes that it takes: one more, or two.
_WORTH_A_CAST, _WORTH_A_SCALE = 1_000, 100_000
_FIXED_POINT_MAX = 2**15 - 1

_quiet = threading.RLock()


def build_graph(network: HandMeshNet, metadata: Mapping[str, str], *, half: bool) -> bytes:
    """The serialized graph of a reparameterized network. `half`: its weights are of float16, and are stored so."""
    with extra("train", "making an ONNX graph"):
        import onnx
        from onnx import numpy_helper

    graph = onnx.load_from_string(_traced(_structure_of(network.config)))
    weights = dict([*network.named_parameters(), *network.named_buffers()])
    for constant in graph.graph.initializer:
        if constant.name in weights:
            array = weights[constant.name].detach().float().cpu().numpy()
            assert list(array.shape) == list(constant.dims), (constant.name, array.shape, constant.dims)
            constant.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), constant.name))
    split_depthwise(graph)
    if half:
        store_in_16_bits(graph)
    onnx.helper.set_model_props(graph, dict(metadata))
    return bytes(graph.SerializeToString())


def properties_of(model: Any) -> dict[str, str]:
    """What a graph (onnx.ModelProto) says about itself."""
    return {entry.key: entry.value for entry in model.metadata_props}


def with_metadata(graph: bytes, entries: Mapping[str, str]) -> bytes:
    """A graph with more, or other, metadata."""
    import onnx

    model = onnx.load_from_string(graph)
    onnx.helper.set_model_props(model, properties_of(model) | dict(entries))
    return bytes(model.SerializeToString())


def with_plain_weights(model: Any) -> bytes:
    """A graph (onnx.ModelProto, which is used up) with all that can be computed once computed: every weight is a
    float32 constant, as tools want them that look at a node's weights.
    """
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {constant.name: constant for constant in model.graph.initializer}
    for node in list(model.graph.node):
        if all(name in constants for name in node.input):
            given = {name: numpy_helper.to_array(constants[name]) for name in node.input}
            for name, value in zip(node.output, ReferenceEvaluator(node).run(None, given), strict=True):
                constants[name] = numpy_helper.from_array(value, name)
            model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input} | {one.name for one in model.graph.output}
    del model.graph.initializer[:]
    model.graph.initializer.extend(constant for name, constant in constants.items() if name in used)
    return bytes(model.SerializeToString())


# --- Tracing ----------------------------------------------------------------------------------------------------------


def _structure_of(config: ModelConfig) -> ModelConfig:
    """The settings without those that no graph depends on."""
    plain = ModelConfig()
    return config.model_copy(update={name: getattr(plain, name) for name in ("drop_path", "hand", "initial_scale")})


@cache
def _traced(config: ModelConfig) -> bytes:
    """The graph of a network of these settings, with whatever weights: each is an initializer of its own name."""
    with extra("train", "making an ONNX graph"):
        import torch

        from handmesh.hand.layer import HandModel
        from handmesh.model.network import HandMeshNet

    side = config.resolution
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        network = HandMeshNet(config, HandModel(builtin_hand())).eval().reparameterize()
        program = torch.onnx.export(
            network,
            (torch.zeros(2, side, side, 3, dtype=torch.uint8),),  # two: one would be taken for a constant
            input_names=[INPUT],
            output_names=list(HandOutput._fields),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=False,  # which would fold weights into each other
            verbose=False,
        )
        assert program is not None
        own = {name for name, _ in [*network.named_parameters(), *network.named_buffers()]}
        model = optimized(program.model_proto, own)
    _named_by_scope(model.graph, {name for name, _ in network.named_modules()})
    return bytes(model.SerializeToString())


def optimized(model: Any, weights: set[str]) -> Any:
    """A traced graph with what can be computed once computed, but for these weights, which stay under their names."""
    import onnx
    import onnxscript.optimizer

    own = [constant for constant in model.graph.initializer if constant.name in weights]
    for weight in own:  # as inputs, the optimizer leaves them alone
        model.graph.initializer.remove(weight)
        value = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        model.graph.input.append(value)
    model = onnxscript.optimizer.optimize(model)
    del model.graph.input[1:]
    model.graph.initializer.extend(own)
    model.ir_version = IR_VERSION
    return model


def _named_by_scope(graph: Any, modules: set[str]) -> None:
    """Names by which a node is found, in place of what the exporter noted about it: stack traces, paths, types."""
    renamed: dict[str, str] = {name: name for name in HandOutput._fields}
    counts: Counter[str] = Counter()
    del graph.value_info[:]
    for node in graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        *scopes, _ = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "['']"))
        plain = f"{next((scope for scope in reversed(scopes) if scope in modules), '')}/{node.op_type}"
        counts[plain] += 1
        node.name = plain if counts[plain] == 1 else f"{plain}_{counts[plain]}"
        for index, value in enumerate(filter(None, node.output)):
            renamed.setdefault(value, node.name if len(node.output) == 1 else f"{node.name}:{index}")
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*graph.input, *graph.output, *graph.initializer]:
        del value.metadata_props[:]
    del graph.metadata_props[:]


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of their own deprecations and of packages that are not installed: nothing to act on.

    It holds for the whole process, so one thread at a time: of two the later would leave what the other had set.
    """
    with _quiet:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)


def split_depthwise(model: Any) -> None:
    """Every depthwise convolution with two outputs per channel, before a 1x1 convolution, as two with one; in place.

    ONNX Runtime's blocked layout has no kernel for the former: the same numbers a tenth faster. The two halves come one
    after the other, so the 1x1 takes its columns in that order. Weights stay stored as they are: runtimes cut and
    reorder them once, when they load the graph.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    shapes = {constant.name: list(constant.dims) for constant in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    groups = {
        node.name: next((a.i for a in node.attribute if a.name == "group"), 1)
        for node in graph.node
        if node.op_type == "Conv"
    }
    constants: dict[str, NDArray[np.int64]] = {}
    order: dict[str, str] = {}  # output of a convolution that was split -> the constant that says its channels' order
    nodes = []
    for node in graph.node:
        channels = groups.get(node.name, 1)
        followers = readers.get(node.output[0], [])
        if (
            channels > 1
            and shapes.get(node.input[1], [])[:2] == [2 * channels, 1]
            and len(node.input) == 3
            and [follower.op_type for follower in followers] == ["Conv"]
            and groups[followers[0].name] == 1
            and followers[0].input[1] in shapes
        ):
            constants |= {"split.axis": np.array([0]), "split.end": np.array([2**31 - 1]), "split.step": np.array([2])}
            halves = []
            for half in range(2):
                start, name = f"split.start.{half}", f"{node.name}.{half}"
                constants[start] = np.array([half])
                for part, source in (("weight", node.input[1]), ("bias", node.input[2])):
                    cut = [source, start, "split.end", "split.axis", "split.step"]
                    nodes.append(helper.make_node("Slice", cut, [f"{name}.{part}"], f"{name}.{part}"))
                conv = helper.make_node("Conv", [node.input[0], f"{name}.weight", f"{name}.bias"], [name], name)
                conv.attribute.extend(node.attribute)
                nodes.append(conv)
                halves.append(name)
            nodes.append(helper.make_node("Concat", halves, list(node.output), f"{node.name}.both", axis=1))
            order[node.output[0]] = f"split.order.{channels}"
            constants[order[node.output[0]]] = np.arange(2 * channels).reshape(channels, 2).T.ravel()
            continue
        if node.op_type == "Conv" and node.input[0] in order:
            columns = f"{node.name}.columns"
            nodes.append(helper.make_node("Gather", [node.input[1], order[node.input[0]]], [columns], columns, axis=1))
            node.input[1] = columns
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


# --- Storing ----------------------------------------------------------------------------------------------------------


def store_in_16_bits(model: Any) -> None:
    """What float16 holds exactly, in float16; what is large and it does not hold, in fixed point."""
    from onnx import TensorProto, helper, numpy_helper

    before: list[Any] = []
    kept = []
    for constant in model.graph.initializer:
        array = numpy_helper.to_array(constant)
        stored, scale = (None, None) if array.dtype != np.float32 else _in_16_bits(array)
        if stored is None:
            kept.append(constant)
            continue
        kept.append(numpy_helper.from_array(stored, f"{constant.name}.stored"))
        cast = constant.name if scale is None else f"{constant.name}.whole"
        before.append(helper.make_node("Cast", [f"{constant.name}.stored"], [cast], cast, to=TensorProto.FLOAT))
        if scale is not None:
            kept.append(numpy_helper.from_array(scale, f"{constant.name}.scale"))
            inputs = [cast, f"{constant.name}.scale"]
            before.append(helper.make_node("Mul", inputs, [constant.name], constant.name))
    nodes = [*before, *model.graph.node]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _in_16_bits(array: NDArray[np.float32]) -> tuple[NDArray[Any] | None, NDArray[np.float32] | None]:
    """(numbers of 16 bits, what to multiply them by if anything); (None, None): better stored as it is."""
    if array.size < _WORTH_A_CAST:
        return None, None
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if np.array_equal(half.astype(np.float32), array):
        return half, None
    if array.size < _WORTH_A_SCALE:
        return None, None
    largest = np.abs(array).max(axis=-1, keepdims=True)
    scale = np.where(largest > 0, largest / _FIXED_POINT_MAX, 1).astype(np.float32)
    return np.rint(array / scale).astype(np.int16), scale
