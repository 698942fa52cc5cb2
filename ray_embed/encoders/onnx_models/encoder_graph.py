# SPDX-License-Identifier: Apache-2.0
"""Make one ONNX graph of an encoder: from images (N, H, W, C) float32 to pooled features."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.onnx_models.graph import Tensor, select_nodes
from ray_embed.encoders.onnx_models.reading import get_opset, graphs_of
from ray_embed.encoders.spec import Output

# As in the pooling of TensorFlow tensors.
_GEM_P, _GEM_CLAMP = 3.0, 1e-6


@dataclass(frozen=True, kw_only=True)
class EncoderGraph:
    """A model from images to features, and its digests.

    Attributes:
        model: the model.
        input_name: its input, (N, H, W, C) float32.
        output_names: its outputs, (N, D) float32, in the order of the encoder's.
        architecture: a digest without the weights.
        content: a digest with the weights.
    """

    model: Any
    input_name: str
    output_names: tuple[str, ...]
    architecture: str
    content: str


def make_encoder_graph(
    model: Any,
    image: Tensor,
    shape: Sequence[int],
    channels_first: bool,
    outputs: Sequence[Output],
    ranks: Sequence[int],
) -> EncoderGraph:
    """Return the graph of an encoder, without what its outputs do not need.

    Args:
        model: the model.
        image: its input.
        shape: (N, H, W, C) of the batches.
        channels_first: whether its input is (N, C, H, W).
        outputs: the requested tensors with their pooling.
        ranks: the ranks of these tensors.
    """
    import onnx

    writer = _Writer(get_opset(model), _choose_prefix(model.graph))
    images = writer.name("images")
    writer.add_input(images, image, channels_first)
    before, writer.nodes = writer.nodes, []
    names = tuple(
        writer.add_pooling(output, rank, number)
        for number, (output, rank) in enumerate(zip(outputs, ranks, strict=True))
    )
    nodes, needed = select_nodes(model.graph, [output.layer for output in outputs])
    made = onnx.ModelProto()
    # Initializers that are no inputs need version 4.
    made.ir_version = max(model.ir_version, 4)
    made.opset_import.extend(model.opset_import)
    graph = made.graph
    graph.name = "encoder"
    graph.node.extend([*before, *nodes, *writer.nodes])
    graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    graph.initializer.extend(writer.constants)
    number = onnx.TensorProto.FLOAT
    graph.input.append(onnx.helper.make_tensor_value_info(images, number, list(shape)))
    graph.output.extend(
        onnx.helper.make_tensor_value_info(name, number, [shape[0], output.dimension])
        for name, output in zip(names, outputs, strict=True)
    )
    return EncoderGraph(
        model=made,
        input_name=images,
        output_names=names,
        architecture=_digest(made, weights=False),
        content=_digest(made, weights=True),
    )


def _choose_prefix(graph: Any) -> str:
    """Return a prefix that no tensor of the graph has."""
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    prefix = "ray_embed"
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return prefix


class _Writer:
    """Writes nodes before and after a graph, in the version of its operators."""

    def __init__(self, opset: int, prefix: str) -> None:
        self._opset, self._prefix, self._count = opset, prefix, 0
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def name(self, what: str) -> str:
        """Return the name of a tensor that is not in the model."""
        return f"{self._prefix}.{what}"

    def add_input(self, images: str, image: Tensor, channels_first: bool) -> None:
        """Write the conversion of images (N, H, W, C) float32 to the input of the model."""
        kind = np.dtype(image.dtype) if image.dtype != "bfloat16" else None
        value = images
        if kind is not None and kind.kind in "iu" and kind.itemsize <= 2:
            # Interpolation may exceed the range of pixels.
            limits = np.iinfo(kind)
            value = self._clip(value, float(limits.min), float(limits.max))
        if image.dtype != "float32":
            value = self._cast(value, image.dtype or "float32")
        if channels_first:
            value = self._add("Transpose", [value], perm=[0, 3, 1, 2])
        self._add("Identity", [value], output=image.name)

    def add_pooling(self, output: Output, rank: int, number: int) -> str:
        """Write the pooling of a tensor to (N, D) float32, and return its name."""
        axis = output.channel_axis % rank
        places = [place for place in range(1, rank) if place != axis]
        value = self._cast(output.layer, "float32")
        match output.pool:
            case "gap":
                value = self._reduce("ReduceMean", value, places)
            case "gmp":
                value = self._reduce("ReduceMax", value, places)
            case "gem":
                value = self._clip(value, _GEM_CLAMP, None)
                value = self._add("Pow", [value, self._constant(np.float32(_GEM_P))])
                value = self._reduce("ReduceMean", value, places)
                value = self._add("Pow", [value, self._constant(np.float32(1 / _GEM_P))])
            case "cls":
                value = self._to_channels_last(value, rank, axis)
                value = self._add("Gather", [value, self._constant(np.int64(0))], axis=1)
            case "flatten":
                value = self._to_channels_last(value, rank, axis)
                # 0 keeps the batch.
                value = self._add("Reshape", [value, self._constant(np.array([0, -1]))])
        return self._add("Identity", [value], output=self.name(f"features_{number}"))

    def _to_channels_last(self, value: str, rank: int, axis: int) -> str:
        if axis == rank - 1:
            return value
        order = [place for place in range(rank) if place != axis]
        return self._add("Transpose", [value], perm=[*order, axis])

    def _clip(self, value: str, low: float, high: float | None) -> str:
        if self._opset < 11:
            limits: dict[str, Any] = {"min": low} if high is None else {"min": low, "max": high}
            return self._add("Clip", [value], **limits)
        ends = [self._constant(np.float32(end)) for end in (low, high) if end is not None]
        return self._add("Clip", [value, *ends])

    def _cast(self, value: str, dtype: str) -> str:
        import onnx

        return self._add("Cast", [value], to=getattr(onnx.TensorProto, _CAST_NAMES[dtype]))

    def _reduce(self, kind: str, value: str, axes: list[int]) -> str:
        if self._opset < 18:
            return self._add(kind, [value], axes=axes, keepdims=0)
        return self._add(kind, [value, self._constant(np.array(axes))], keepdims=0)

    def _constant(self, value: Any) -> str:
        import onnx

        name = self._next()
        array: Array = np.asarray(value)
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        import onnx

        output = output or self._next()
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _next(self) -> str:
        self._count += 1
        return self.name(str(self._count))


_CAST_NAMES = {
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
}


# --- digests -------------------------------------------------------------------------------------


def _digest(model: Any, *, weights: bool) -> str:
    """Return a hash of what a graph computes, which depends on neither names nor storage.

    Without `weights`, float arrays are hashed by type and shape only; everything else is hashed by
    value.
    """
    digest = hashlib.sha256()
    for domain, version in sorted((o.domain, o.version) for o in model.opset_import):
        digest.update(f"{domain or 'ai.onnx'} {version} ".encode())
    _hash_graph(digest, model.graph, {}, weights)
    return digest.hexdigest()


def _hash_graph(digest: "hashlib._Hash", graph: Any, outer: dict[str, int], weights: bool) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    numbers = dict(outer)

    def number(name: str) -> str:
        if not name:
            return "-"
        if name not in numbers:
            numbers[name] = len(numbers)
            if name in constants:
                _hash_tensor(digest, constants[name], weights)
        return str(numbers[name])

    for value in graph.input:
        digest.update(f"input {number(value.name)}".encode())
        digest.update(value.type.SerializeToString(deterministic=True))
    for node in graph.node:
        inputs, outputs = ([number(name) for name in names] for names in (node.input, node.output))
        digest.update(f"{node.domain}:{node.op_type} {inputs} {outputs}".encode())
        for attribute in sorted(node.attribute, key=lambda each: each.name):
            _hash_attribute(digest, attribute, numbers, weights)
        for inner in graphs_of(node):
            _hash_graph(digest, inner, numbers, weights)
    digest.update(f"outputs {[number(value.name) for value in graph.output]}".encode())


def _hash_attribute(
    digest: "hashlib._Hash", attribute: Any, numbers: dict[str, int], weights: bool
) -> None:
    digest.update(f"{attribute.name} {attribute.type}".encode())
    if attribute.HasField("t"):
        _hash_tensor(digest, attribute.t, weights)
    elif not (attribute.HasField("g") or attribute.graphs):
        digest.update(attribute.SerializeToString(deterministic=True))


def _hash_tensor(digest: "hashlib._Hash", tensor: Any, weights: bool) -> None:
    import onnx

    array = np.asarray(onnx.numpy_helper.to_array(tensor))
    digest.update(f"{tensor.data_type}{array.shape}".encode())
    if not weights and array.ndim > 0 and array.dtype.kind in "fV":
        return
    if array.dtype.kind == "O":
        digest.update(repr(array.tolist()).encode())
    else:
        digest.update(array.tobytes())
