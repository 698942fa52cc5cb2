# SPDX-License-Identifier: Apache-2.0
"""List the tensors of an ONNX graph that can be used as features."""

from collections import Counter
from typing import Any

from ray_embed.encoders.batch_axis import find_batch_fault
from ray_embed.encoders.onnx_models.graph import Sides, Tensor, infer_tensors, read_names

# Operators that continue the one before them: normalization, activations, and sums.
_CONTINUES = {
    *("Abs", "Add", "BatchNormalization", "Cast", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf"),
    *("Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Mul", "Neg"),
    *("PRelu", "Pow", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Swish", "Tanh"),
    *("InstanceNormalization", "GroupNormalization", "LayerNormalization"),
}


def list_layers(
    model: Any, image: Tensor, shape: tuple[int, ...], has_fixed_batch: bool
) -> tuple[dict[str, Sides], int]:
    """Return the tensors with one row per image, with their shapes, and how many were left out.

    Of a convolution and what continues it in the same shape, only the last tensor is listed.

    Args:
        model: the model.
        image: its input.
        shape: the shape of the input, with at least two images unless the batch size is fixed.
        has_fixed_batch: whether the model takes only batches of this size.
    """
    sizes = [shape[0]] if has_fixed_batch else [shape[0], shape[0] - 1]
    calls = [infer_tensors(model, (size, *shape[1:])) for size in sizes]
    found: dict[str, Sides] = {}
    for name in (name for node in model.graph.node for name in node.output):
        shapes = [_known_shape(call.get(name)) for call in calls]
        complete = [known for known in shapes if known is not None]
        if len(complete) == len(sizes) and not find_batch_fault(complete, sizes):
            found[name] = (None, *complete[0][1:])
    steps = _find_steps(model.graph, found)
    return {name: known for name, known in found.items() if name not in steps}, len(steps)


def _known_shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    if tensor is None or not tensor.is_feature or tensor.shape is None:
        return None
    sides = [side for side in tensor.shape if side is not None]
    return tuple(sides) if len(sides) == len(tensor.shape) else None


def _find_steps(graph: Any, shapes: dict[str, Sides]) -> set[str]:
    """Return the tensors that a single operator continues in the same shape."""
    users = Counter(name for node in graph.node for name in read_names(node))
    users.update(value.name for value in graph.output)
    return {
        name
        for node in graph.node
        if node.op_type in _CONTINUES and node.output[0] in shapes
        for name in node.input
        if users[name] == 1 and shapes.get(name) == shapes[node.output[0]]
    }
