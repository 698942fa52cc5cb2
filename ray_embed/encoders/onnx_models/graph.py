# SPDX-License-Identifier: Apache-2.0
"""What the graph of an ONNX model has: its input, its constants, its tensors, and their shapes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.onnx_models.reading import graphs_of

Sides = tuple[int | None, ...]

# Larger constants are weights, which no shape depends on.
_MOST_SHAPE_VALUES = 1024
# The shapes of what these return depend on values, which ONNX cannot always compute beforehand.
_SHAPED_BY_VALUES = {
    *("ConstantOfShape", "Expand", "Gather", "Pad", "Range", "Reshape", "Resize", "Slice", "Split"),
    *("Squeeze", "Tile", "Unsqueeze", "Upsample"),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph: its type, such as `float32`, and its shape, if they are known."""

    name: str
    dtype: str | None = None
    shape: Sides | None = None

    @property
    def is_feature(self) -> bool:
        """Return whether it can be pooled."""
        is_float = self.dtype in ("float16", "bfloat16", "float32", "float64")
        return is_float and self.shape is not None and len(self.shape) in (2, 3, 4)


def list_inputs(graph: Any) -> list[Tensor]:
    """Return the inputs of a graph. Old files list their weights as inputs, too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [_describe(value) for value in graph.input if value.name not in constants]


def list_outputs(graph: Any) -> list[Tensor]:
    """Return the outputs of a graph."""
    return [_describe(value) for value in graph.output]


def list_tensors(graph: Any) -> list[str]:
    """Return the names of all tensors that the nodes of a graph compute, in their order."""
    return [name for node in graph.node for name in node.output if name]


def _describe(value: Any) -> Tensor:
    if not value.type.HasField("tensor_type"):
        return Tensor(value.name)
    kind = value.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(
            side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else None
            for side in kind.shape.dim
        )
    return Tensor(value.name, _name_type(kind.elem_type), shape)


def _name_type(number: int) -> str | None:
    import onnx

    if number == onnx.TensorProto.STRING:
        return "string"
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(number).name)
    except KeyError:
        return None


class Constants:
    """The constant tensors of a graph, whose values are read on demand."""

    def __init__(self, graph: Any) -> None:
        self._protos = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self._protos[node.output[0]] = node.attribute[0].t

    def __contains__(self, name: str) -> bool:
        return name in self._protos

    def get_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a constant."""
        return tuple(self._protos[name].dims)

    def read(self, name: str) -> Array | None:
        """Return the value of a constant, or None if the tensor is none."""
        if name not in self._protos:
            return None
        import onnx

        return np.asarray(onnx.numpy_helper.to_array(self._protos[name]))


def get_attributes(node: Any) -> Callable[[str], Any]:
    """Return the function that returns an attribute of a node by name, or None."""
    import onnx

    values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return values.get


def read_names(node: Any) -> Iterator[str]:
    """Yield the names of the tensors that a node reads, also in the graphs inside it."""
    yield from filter(None, node.input)
    for graph in graphs_of(node):
        for inner in graph.node:
            yield from read_names(inner)
        yield from (value.name for value in graph.output)


def select_nodes(graph: Any, outputs: Iterable[str]) -> tuple[list[Any], set[str]]:
    """Return the nodes that outputs depend on, in their order, and the tensors that these read."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(read_names(node))
    return nodes[::-1], needed


def with_outputs(model: Any, names: Sequence[str]) -> bytes:
    """Return a serialized model with other outputs, and only the nodes that they depend on."""
    import onnx

    nodes, needed = select_nodes(model.graph, names)
    changed = onnx.ModelProto()
    # Initializers that are no inputs need version 4.
    changed.ir_version = max(model.ir_version, 4)
    changed.opset_import.extend(model.opset_import)
    graph = changed.graph
    graph.name = "model"
    graph.node.extend(nodes)
    constants = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in constants)
    graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    content: bytes = changed.SerializeToString(deterministic=True)
    return content


def infer_tensors(
    model: Any, shape: Iterable[int | None], known: Mapping[str, Array] | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a graph by name, with the shapes that ONNX can infer.

    Args:
        model: the model, which has one input.
        shape: the shape of its input.
        known: values of tensors whose shapes cannot be inferred, by name.
    """
    import onnx

    draft = onnx.ModelProto()
    draft.ir_version = max(model.ir_version, 4)
    draft.opset_import.extend(model.opset_import)
    graph = draft.graph
    graph.name = "shapes"
    graph.node.extend(model.graph.node)
    (image,) = list_inputs(model.graph)
    for value in model.graph.input:
        if value.name == image.name:
            kind = value.type.tensor_type.elem_type
            graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, list(shape)))
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) <= _MOST_SHAPE_VALUES:
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    for name, array in (known or {}).items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    for value in model.graph.output:
        # Declared shapes may have another batch size.
        graph.output.append(onnx.helper.make_empty_tensor_value_info(value.name))
    try:
        inferred = onnx.shape_inference.infer_shapes(draft, data_prop=True).graph
    except Exception:
        # Operators of other domains have no rules; what is known without them remains.
        inferred = graph
    # A known output is in both lists.
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return {value.name: _describe(value) for value in values}


def list_uninferred(model: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors whose shapes ONNX did not infer, as far as all others follow from them.

    Args:
        model: the model.
        tensors: its tensors with the shapes that were inferred.
    """
    return [
        name
        for node in model.graph.node
        if node.op_type in _SHAPED_BY_VALUES or node.domain not in ("", "ai.onnx")
        for name in filter(None, node.output)
        if not _is_complete(tensors.get(name))
    ]


def _is_complete(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.shape is not None and None not in tensor.shape
