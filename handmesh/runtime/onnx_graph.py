"""The folded network as an ONNX graph, written straight from a model file's weights: no torch, no tracing.

Input "crops", (B, S, S, 3) uint8 RGB; outputs are named after the fields of `HandOutput`. Normalisation and the hand
model are inside; B is free. `handmesh.model.network` defines what is computed (a test compares the two for every
variant and every optional head); here the same function is said in ONNX's operators. The backbone's structure is read
off the names of its weights, so there is no second table of variants.

The graph holds the hand model's arrays. With MANO inside it is under MANO's licence, and its metadata says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from handmesh.config import ATTENTION_HEAD_CHANNELS, IMAGE_MEAN, IMAGE_STD, ModelConfig
from handmesh.errors import CheckpointError
from handmesh.hand import BETA_COUNT, FINGERTIP_VERTICES, JOINTS_FROM_MANO, VERTEX_COUNT, HandArrays, HandOutput

OPSET = 20  # the first with Gelu
IR_VERSION = 10  # ONNX Runtime 1.20 reads up to this one
INPUT = "crops"
POOLED = "pooled"  # (B, C): what follows is geometry, and stays in float32 whatever comes before

Weights = Mapping[str, NDArray[np.float32]]

_ROTATIONS = 16

# Of rotation.matrix_from_6d: rows shorter than this, or with a sine between them below that, have no direction.
_SHORTEST_ROW = 1e-4
_SMALLEST_SINE = 1e-3


def build_graph(
    config: ModelConfig, weights: Weights, hand: HandArrays, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """`weights` are those of a folded `HandMeshNet`, named as in its model file.

    Raises CheckpointError when one is missing, or is there and has no place in the network.
    """
    graph = _Graph()
    weights = _Used(weights)
    pooled = _backbone(graph, weights, _normalised(graph))
    outputs = _heads(graph, weights, pooled)
    outputs["vertices"], outputs["joints"] = _hand_model(graph, hand, outputs["pose"], outputs["betas"])
    weights.refuse_unused()
    side = config.resolution
    shapes: dict[str, Sequence[int]] = {
        "camera": (3,),
        "pose": (_ROTATIONS, 3, 3),
        "betas": (BETA_COUNT,),
        "vertices": (VERTEX_COUNT, 3),
        "joints": (len(JOINTS_FROM_MANO), 3),
        "confidence": (),
        "handedness": (),
    }
    for name in HandOutput._fields:
        graph.add("Identity", outputs[name], name=name)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "handmesh",
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", side, side, 3])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shapes[name]])
                for name in HandOutput._fields
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="handmesh",
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, dict(metadata or {}))
    return model


class _Used(dict[str, NDArray[np.float32]]):
    """Weights that know which of them were used."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        self._used.add(name)
        try:
            return super().__getitem__(name)
        except KeyError:
            raise CheckpointError(f"The weights do not fit a folded network: missing {name}.") from None

    def refuse_unused(self) -> None:
        if unused := sorted(self.keys() - self._used):
            raise CheckpointError(f"The weights do not fit a folded network: unknown {', '.join(unused[:3])}.")


class _Graph:
    """Nodes and constants, added one after the other. `add` returns the name of what the new node gives."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, value: ArrayLike, dtype: Any = np.float32, name: str | None = None) -> str:
        array = np.ascontiguousarray(value, dtype=dtype)
        if name is None:  # small ones are often the same
            key = (array.dtype.str, np.shape(value), array.tobytes())
            if key in self._names:
                return self._names[key]
            name = self._names[key] = f"constant_{len(self._names)}"
        self.constants.append(numpy_helper.from_array(array.reshape(np.shape(value)), name))
        return name

    def shape(self, *sizes: int) -> str:
        """For Reshape: 0 keeps a size, -1 is what is left."""
        return self.constant(sizes, np.int64)

    def add(self, operator: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes: Any) -> Any:
        """The name of the output, or a list of names."""
        base = name or f"{operator}_{len(self.nodes)}"
        names = [base] if outputs == 1 else [f"{base}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=base, **attributes))
        return names[0] if outputs == 1 else names

    def reshape(self, x: str, *sizes: int) -> str:
        return self.add("Reshape", x, self.shape(*sizes))

    def take(self, x: str, start: int, end: int, axis: int) -> str:
        return self.add("Slice", x, *(self.constant([value], np.int64) for value in (start, end, axis)))


# --- Pixels to features -----------------------------------------------------------------------------------------------


def _normalised(graph: _Graph) -> str:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) less the mean colour, still in steps of 1 / 255: `_backbone` has the rest.

    Not the mean too: where the first convolution pads with zero, that stands for the mean colour.
    """
    planes = graph.add("Cast", graph.add("Transpose", INPUT, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    return graph.add("Sub", planes, graph.constant(np.reshape([255 * mean for mean in IMAGE_MEAN], (3, 1, 1))))


def _backbone(graph: _Graph, weights: Weights, x: str) -> str:
    """-> (B, C) features, pooled."""
    per_step = np.array([1 / (255 * std) for std in IMAGE_STD], np.float32).reshape(1, 3, 1, 1)
    for name, stride, scale in (("0", 2, per_step), ("1", 2, None), ("2", 1, None)):
        x = _conv(graph, weights, f"backbone.patch_embed.{name}.reparam_conv", x, stride=stride, input_scale=scale)
        x = graph.add("Gelu", x)
    for index in _indices(weights, "backbone.network."):
        name = f"backbone.network.{index}"
        if f"{name}.reparam_conv.weight" in weights:  # the positional encoding
            x = _conv(graph, weights, f"{name}.reparam_conv", x)
        elif f"{name}.proj.0.lkb_reparam.weight" in weights:  # between two stages
            x = _conv(graph, weights, f"{name}.proj.0.lkb_reparam", x, stride=2)
            x = graph.add("Gelu", _conv(graph, weights, f"{name}.proj.1.reparam_conv", x))
        else:
            for block in _indices(weights, f"{name}."):
                x = _block(graph, weights, f"{name}.{block}", x)
    x = _conv(graph, weights, "backbone.conv_exp.reparam_conv", x)
    gate = graph.add("GlobalAveragePool", x)
    gate = graph.add("Relu", _conv(graph, weights, "backbone.conv_exp.se.reduce", gate))
    gate = graph.add("Sigmoid", _conv(graph, weights, "backbone.conv_exp.se.expand", gate))
    x = graph.add("Gelu", graph.add("Mul", x, gate))
    return graph.add("Flatten", graph.add("GlobalAveragePool", x), axis=1, name=POOLED)


def _indices(weights: Weights, prefix: str) -> list[int]:
    """The numbers that follow `prefix` in the names of weights."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = sorted({int(match.group(1)) for name in weights if (match := pattern.match(name))})
    if found != list(range(len(found))):
        raise CheckpointError(f"The weights do not fit a folded network: after {prefix} come {found}, with a gap.")
    return found


def _block(graph: _Graph, weights: Weights, name: str, x: str) -> str:
    if f"{name}.token_mixer.reparam_conv.weight" in weights:  # RepMixer, its residual connection folded in
        x = _conv(graph, weights, f"{name}.token_mixer.reparam_conv", x)
    else:
        x = graph.add("Add", x, _attention(graph, weights, f"{name}.token_mixer", x))
    hidden = _conv(graph, weights, f"{name}.convffn.conv.conv", x)
    hidden = graph.add("Gelu", _conv(graph, weights, f"{name}.convffn.fc1", hidden))
    return graph.add("Add", x, _conv(graph, weights, f"{name}.convffn.fc2", hidden))


def _conv(
    graph: _Graph,
    weights: Weights,
    name: str,
    x: str,
    *,
    stride: int = 1,
    input_scale: NDArray[np.float32] | None = None,
) -> str:
    """With "same" padding, of the input times `input_scale`."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    kernel = kernel if input_scale is None else kernel * input_scale
    size = kernel.shape[-1]
    return graph.add(
        "Conv",
        x,
        graph.constant(kernel, name=f"{name}.weight"),
        graph.constant(bias, name=f"{name}.bias"),
        name=name,
        kernel_shape=[size, size],
        strides=[stride, stride],
        pads=[size // 2] * 4,
        group=_groups(name, kernel),
    )


def _groups(name: str, kernel: NDArray[np.float32]) -> int:
    """A folded FastViT's kernels larger than 1 x 1 are depthwise; between stages and at the end each input channel
    gives two. The very first sees all of RGB.
    """
    out_channels, per_group, size, _ = kernel.shape
    if size == 1 or name.endswith("patch_embed.0.reparam_conv"):
        return 1
    assert per_group == 1, (name, kernel.shape)
    doubles = "lkb_reparam" in name or "conv_exp" in name
    return int(out_channels // 2 if doubles else out_channels)


def _attention(graph: _Graph, weights: Weights, name: str, x: str) -> str:
    """(B, C, h, w) -> the same shape. Scaled dot products of heads of `ATTENTION_HEAD_CHANNELS` channels."""
    channels = weights[f"{name}.proj.weight"].shape[0]
    heads = channels // ATTENTION_HEAD_CHANNELS
    qkv, qkv_bias = weights[f"{name}.qkv.weight"], weights[f"{name}.qkv.bias"]
    # The scale of the products, 1 / sqrt(channels of a head), goes into the queries.
    scale = np.ones((3 * channels, 1), np.float32)
    scale[:channels] = ATTENTION_HEAD_CHANNELS**-0.5
    tokens = graph.add("Transpose", graph.reshape(x, 0, channels, -1), perm=[0, 2, 1])  # (B, hw, C)
    weight = graph.constant((qkv * scale).T, name=f"{name}.qkv.weight")
    projected = graph.add("MatMul", tokens, weight, name=f"{name}.qkv")
    projected = graph.add("Add", projected, graph.constant(qkv_bias * scale[:, 0], name=f"{name}.qkv.bias"))
    parts = graph.add("Split", projected, outputs=3, axis=-1, num_outputs=3)
    q, k, v = (graph.reshape(part, 0, 0, heads, ATTENTION_HEAD_CHANNELS) for part in parts)
    q, v = (graph.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))  # (B, heads, hw, 32)
    k = graph.add("Transpose", k, perm=[0, 2, 3, 1])
    attention = graph.add("Softmax", graph.add("MatMul", q, k), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", attention, v), perm=[0, 2, 1, 3])
    mixed = graph.reshape(mixed, 0, 0, channels)
    weight = graph.constant(weights[f"{name}.proj.weight"].T, name=f"{name}.proj.weight")
    mixed = graph.add("MatMul", mixed, weight, name=f"{name}.proj")
    mixed = graph.add("Add", mixed, graph.constant(weights[f"{name}.proj.bias"], name=f"{name}.proj.bias"))
    as_map = graph.add("Transpose", mixed, perm=[0, 2, 1])
    return graph.add("Reshape", as_map, graph.add("Shape", x))


# --- Features to a hand -----------------------------------------------------------------------------------------------


def _heads(graph: _Graph, weights: Weights, pooled: str) -> dict[str, str]:
    """All heads as one matrix product -> every output but the mesh."""
    names = [
        name for name in ("camera", "pose", "betas", "confidence", "handedness") if f"{name}_head.weight" in weights
    ]
    weight = np.concatenate([weights[f"{name}_head.weight"] for name in names])
    bias = np.concatenate([weights[f"{name}_head.bias"] for name in names])
    answers = graph.add(
        "Gemm", pooled, graph.constant(weight, name="heads.weight"), graph.constant(bias, name="heads.bias"), transB=1
    )
    sizes = [len(weights[f"{name}_head.bias"]) for name in names]
    parts = dict(
        zip(
            names,
            graph.add("Split", answers, graph.constant(sizes, np.int64), outputs=len(sizes), axis=1),
            strict=True,
        )
    )
    outputs = {"camera": parts["camera"], "betas": parts["betas"]}
    outputs["pose"] = _matrix_from_6d(graph, graph.reshape(parts["pose"], 0, _ROTATIONS, 6))
    for name in ("confidence", "handedness"):
        if name in parts:
            outputs[name] = graph.reshape(graph.add("Sigmoid", parts[name]), -1)
        else:  # as many ones as there are crops
            count = graph.add("Shape", pooled, start=0, end=1)
            one = numpy_helper.from_array(np.ones(1, np.float32))
            outputs[name] = graph.add("ConstantOfShape", count, value=one)
    return outputs


def _matrix_from_6d(graph: _Graph, sixd: str) -> str:
    """(B, 16, 6) -> (B, 16, 3, 3): `rotation.matrix_from_6d`, with its way out for rows without a direction."""
    axis_x, axis_y = graph.constant([1, 0, 0]), graph.constant([0, 1, 0])
    first, has_direction = _scaled_row(graph, graph.take(sixd, 0, 3, -1))
    x = _unit(graph, graph.add("Where", has_direction, first, axis_x))

    second, has_direction = _scaled_row(graph, graph.take(sixd, 3, 6, -1))
    across = _length(graph, _reject(graph, second, x))
    independent = graph.add("Greater", across, graph.constant(_SMALLEST_SINE))
    not_along_x = graph.add("Less", graph.add("Abs", graph.take(x, 0, 1, -1)), graph.constant(0.9))
    other_axis = graph.add("Where", not_along_x, axis_x, axis_y)
    second = graph.add("Where", graph.add("And", has_direction, independent), second, other_axis)
    z = _unit(graph, _cross(graph, x, _reject(graph, second, x)))
    y = _cross(graph, z, x)
    return graph.reshape(graph.add("Concat", x, y, z, axis=-1), 0, 0, 3, 3)


def _scaled_row(graph: _Graph, row: str) -> tuple[str, str]:
    """The row with its largest component brought to 1, and whether it had one."""
    largest = graph.add("ReduceMax", graph.add("Abs", row), graph.constant([-1], np.int64), keepdims=1)
    shortest = graph.constant(_SHORTEST_ROW)
    has_direction = graph.add("Not", graph.add("Less", largest, shortest))  # true for what is not a number
    return graph.add("Div", row, graph.add("Max", largest, shortest)), has_direction


def _length(graph: _Graph, vector: str) -> str:
    return graph.add("ReduceL2", vector, graph.constant([-1], np.int64), keepdims=1)


def _unit(graph: _Graph, vector: str) -> str:
    return graph.add("Div", vector, graph.add("Max", _length(graph, vector), graph.constant(1e-12)))


def _reject(graph: _Graph, vector: str, unit: str) -> str:
    """The part of `vector` across `unit`."""
    product = graph.add("Mul", vector, unit)
    along = graph.add("ReduceSum", product, graph.constant([-1], np.int64), keepdims=1)
    return graph.add("Sub", vector, graph.add("Mul", along, unit))


def _cross(graph: _Graph, first: str, second: str) -> str:
    def turned(vector: str, order: list[int]) -> str:
        return graph.add("Gather", vector, graph.constant(order, np.int64), axis=-1)

    ahead, behind = [1, 2, 0], [2, 0, 1]
    plus = graph.add("Mul", turned(first, ahead), turned(second, behind))
    minus = graph.add("Mul", turned(first, behind), turned(second, ahead))
    return graph.add("Sub", plus, minus)


def _hand_model(graph: _Graph, hand: HandArrays, pose: str, betas: str) -> tuple[str, str]:
    """(B, 16, 3, 3), (B, 10) -> vertices (B, 778, 3), joints (B, 21, 3): `mano.HandModel`, step by step."""

    def coordinate_major(basis: NDArray[np.float64]) -> NDArray[np.float64]:  # (778, 3, N) -> (N, 3 * 778)
        return basis.transpose(2, 1, 0).reshape(basis.shape[2], 3 * VERTEX_COUNT)

    basis = np.concatenate([coordinate_major(hand.shapedirs), coordinate_major(hand.posedirs)])
    fingers = graph.take(pose, 1, _ROTATIONS, 1)
    feature = graph.reshape(graph.add("Sub", fingers, graph.constant(np.eye(3))), 0, 9 * (_ROTATIONS - 1))
    rest_vertices = graph.add(
        "Gemm",
        graph.add("Concat", betas, feature, axis=1),
        graph.constant(basis, name="hand.basis"),
        graph.constant(coordinate_major(hand.v_template[..., None])[0], name="hand.template"),
    )
    joint_basis = np.einsum("jv,vck->kjc", hand.J_regressor, hand.shapedirs).reshape(BETA_COUNT, 3 * _ROTATIONS)
    rest_joints = graph.add(
        "Gemm",
        betas,
        graph.constant(joint_basis, name="hand.joint_basis"),
        graph.constant((hand.J_regressor @ hand.v_template).reshape(-1), name="hand.joints"),
    )
    transforms = _skinning_transforms(graph, pose, graph.reshape(rest_joints, 0, _ROTATIONS, 3, 1))  # (B, 16, 12)
    blended = graph.add(
        "MatMul",
        graph.add("Transpose", transforms, perm=[0, 2, 1]),
        graph.constant(hand.weights.T, name="hand.weights"),
    )  # (B, 12, 778): the blended transform of every vertex
    blended = graph.reshape(blended, 0, 3, 4, VERTEX_COUNT)
    turned = graph.add("Mul", graph.take(blended, 0, 3, 2), graph.reshape(rest_vertices, 0, 1, 3, VERTEX_COUNT))
    turned = graph.add("ReduceSum", turned, graph.constant([2], np.int64), keepdims=0)
    offset = graph.reshape(graph.take(blended, 3, 4, 2), 0, 3, VERTEX_COUNT)
    vertices = graph.add("Transpose", graph.add("Add", turned, offset), perm=[0, 2, 1])
    tips = np.eye(VERTEX_COUNT)[list(FINGERTIP_VERTICES)]
    regressor = np.concatenate([hand.J_regressor, tips])[list(JOINTS_FROM_MANO)]
    joints = graph.add("MatMul", graph.constant(regressor, name="hand.joint_regressor"), vertices)
    return vertices, joints


def _skinning_transforms(graph: _Graph, pose: str, rest: str) -> str:
    """(B, 16, 3, 3), (B, 16, 3, 1) -> (B, 16, 12): where each joint carries the rest pose, rows of [R | t].

    Five fingers at once, three products along them; see `mano._skinning_transforms`.
    """
    root, root_rest = graph.take(pose, 0, 1, 1), graph.take(rest, 0, 1, 1)
    fingers = graph.reshape(graph.take(pose, 1, _ROTATIONS, 1), 0, 5, 3, 9)
    fingers_rest = graph.reshape(graph.take(rest, 1, _ROTATIONS, 1), 0, 5, 3, 3)
    parent, offset = root, graph.add("Sub", root_rest, graph.add("MatMul", root, root_rest))
    rotations, offsets = [], []
    for knuckle in range(3):
        local = graph.reshape(graph.take(fingers, knuckle, knuckle + 1, 2), 0, 5, 3, 3)
        at_rest = graph.reshape(graph.take(fingers_rest, knuckle, knuckle + 1, 2), 0, 5, 3, 1)
        rotation = graph.add("MatMul", parent, local)
        # A joint keeps its position under its own and its parent's transform.
        step = graph.add("MatMul", graph.add("Sub", parent, rotation), at_rest)
        offset = graph.add("Add", offset, step)
        rotations.append(graph.reshape(rotation, 0, 5, 1, 9))
        offsets.append(graph.reshape(offset, 0, 5, 1, 3))
        parent = rotation
    all_rotations = graph.reshape(graph.add("Concat", *rotations, axis=2), 0, _ROTATIONS - 1, 3, 3)
    all_offsets = graph.reshape(graph.add("Concat", *offsets, axis=2), 0, _ROTATIONS - 1, 3, 1)
    root_offset = graph.add("Sub", root_rest, graph.add("MatMul", root, root_rest))
    turned = graph.add("Concat", root, all_rotations, axis=1)
    moved = graph.add("Concat", root_offset, all_offsets, axis=1)
    return graph.reshape(graph.add("Concat", turned, moved, axis=3), 0, _ROTATIONS, 12)
