# SPDX-License-Identifier: Apache-2.0
"""List the tensors of an ONNX graph that are useful as features: those that layers return."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_embed.encoders.batch_axis import find_batch_fault
from ray_embed.encoders.onnx_models.graph import (
    Constants,
    Sides,
    Tensor,
    list_tensors,
    read_names,
)

# Operators that continue the one before them: normalization, activations, and sums.
_CONTINUES = {
    *("Abs", "Add", "BatchNormalization", "Cast", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf"),
    *("Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Mul", "Neg"),
    *("PRelu", "Pow", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Swish", "Tanh"),
    *("InstanceNormalization", "GroupNormalization", "LayerNormalization"),
}
# Operators that join branches: sums, gates, and concatenations.
_JOINS = {"Add", "Concat", "Mul", "Sum"}
_REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"}
# Operators that only move or copy values, whose constants are no weights.
_MOVES = {
    *("Cast", "Expand", "Gather", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile"),
    *("Transpose", "Unsqueeze", "Upsample"),
}


def list_layers(
    graph: Any, calls: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]
) -> tuple[dict[str, Sides], int]:
    """Return the tensors of layers with one row per image, with their shapes, and how many others
    have one.

    A layer is a node with weights, or one that joins branches or pools. If only activations,
    normalization or sums of the same shape continue it, the last of these is listed instead.

    Args:
        graph: the graph.
        calls: its tensors with their shapes for batches of different sizes, by name.
        sizes: these sizes.
    """
    found: dict[str, Sides] = {}
    for name in list_tensors(graph):
        shapes = [_known_shape(call.get(name)) for call in calls]
        complete = [known for known in shapes if known is not None]
        if len(complete) == len(sizes) and not find_batch_fault(complete, sizes):
            found[name] = (None, *complete[0][1:])
    listed = _choose(graph, found)
    return {name: found[name] for name in listed}, len(found) - len(listed)


def _known_shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    if tensor is None or not tensor.is_feature or tensor.shape is None:
        return None
    sides = [side for side in tensor.shape if side is not None]
    return tuple(sides) if len(sides) == len(tensor.shape) else None


def _choose(graph: Any, shapes: dict[str, Sides]) -> list[str]:
    """Return the tensors to list, in the order of the graph."""
    users = Counter(name for node in graph.node for name in read_names(node))
    outputs = {value.name for value in graph.output}
    constants = Constants(graph)
    layers: set[str] = set()
    continued: set[str] = set()
    for node in graph.node:
        for name in (name for name in node.output if name in shapes):
            before = {
                other
                for other in node.input
                if node.op_type in _CONTINUES
                and users[other] == 1
                and other not in outputs
                and shapes.get(other) == shapes[name]
            }
            continued |= before
            if before & layers or _is_layer(node, shapes, name, constants):
                layers.add(name)
    return [name for name in shapes if name in outputs or name in layers - continued]


def _is_layer(node: Any, shapes: dict[str, Sides], name: str, constants: Constants) -> bool:
    computed = [other for other in node.input if other and other not in constants]
    if node.op_type in _MOVES or node.op_type == "Flatten":
        return len(shapes[name]) == 2
    if node.op_type in _REDUCTIONS:
        # A mean over the channels is a step of a normalization.
        return shapes[name][-1] != 1 or len(shapes[name]) == 4
    if node.op_type.endswith("Pool"):
        return True
    if node.op_type in _JOINS and len(computed) > 1:
        return True
    weights = [constants.get_shape(other) for other in node.input if other in constants]
    return any(np.prod(shape, dtype=np.int64) > 1 for shape in weights)
