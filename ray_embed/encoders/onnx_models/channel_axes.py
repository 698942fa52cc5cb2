# SPDX-License-Identifier: Apache-2.0
"""Find the layout of an ONNX graph's input, and the channel axis of each of its tensors.

Convolutions, pooling and batch normalization of ONNX have their channels in axis 1. The rules for
TensorFlow's operations follow that axis through all others.
"""

import contextlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ray_embed.encoders.input_layout import layout_of_shape, looks_channels_first
from ray_embed.encoders.loaded_model import Sides as ImageSides
from ray_embed.encoders.onnx_models.graph import (
    Constants,
    Tensor,
    get_attributes,
    infer_tensors,
)
from ray_embed.encoders.operation_axes import Operation, output_axes
from ray_embed.encoders.spec import EncoderSpec

_CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv")
# The channels of these are axis 1, like those of a convolution of the layout NCHW.
_CHANNELS_FIRST = {
    *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "DeformConv"),
    *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization"),
    *("LRN", "DepthToSpace", "SpaceToDepth", "QLinearAveragePool", "QLinearGlobalAveragePool"),
}
# The operations of TensorFlow that move axes in the same way.
_SAME_AS = {
    "Reshape": "Reshape",
    "Flatten": "Reshape",
    "Squeeze": "Squeeze",
    "Unsqueeze": "ExpandDims",
    "MatMul": "BatchMatMulV2",
    "FusedMatMul": "BatchMatMulV2",
    "Gemm": "MatMul",
    "Einsum": "Einsum",
    "Transpose": "Transpose",
    "Concat": "ConcatV2",
    "Split": "Split",
    "Slice": "Slice",
    "Pad": "Pad",
    "Tile": "Tile",
    "Resize": "ResizeBilinear",
    "Upsample": "ResizeBilinear",
}


class _Shape(tuple[int | None, ...]):
    """A shape with the attribute that TensorFlow's shapes have."""

    @property
    def rank(self) -> int:
        return len(self)


@dataclass(frozen=True)
class _Value:
    """A tensor as the rules read it; `constant` is its value if the node itself holds it."""

    name: str
    shape: _Shape | None
    constant: Any = None


@dataclass
class TracedAxes:
    """The channel axis of each tensor that it is known of.

    Attributes:
        axes: by name.
        channels: the number of channels that the first convolution takes, if it is known.
        is_convolved: whether the first convolution was found.
        fits: whether that convolution has the channels of the images where it expects
            channels.
    """

    axes: dict[str, int] = field(default_factory=dict)
    channels: int | None = None
    is_convolved: bool = False
    fits: bool = False


def trace_axes(model: Any, tensors: dict[str, Tensor], image: str, axis: int) -> TracedAxes:
    """Follow the channels of the images through a graph.

    Args:
        model: the model.
        tensors: its tensors with their shapes.
        image: its input.
        axis: the axis of the channels there.
    """
    traced = TracedAxes({image: axis})
    constants = Constants(model.graph)
    for node in model.graph.node:
        if node.op_type in _CONVOLUTIONS and not traced.is_convolved:
            _note_convolution(node, traced, constants)
        # A node that cannot be read leaves the axes of its outputs unknown.
        with contextlib.suppress(Exception):
            operation = _describe(node, traced, tensors, constants)
            for name, found in zip(node.output, output_axes(operation), strict=False):
                if found is not None:
                    traced.axes[name] = found
    return traced


def _note_convolution(node: Any, traced: TracedAxes, constants: Constants) -> None:
    actual = traced.axes.get(node.input[0])
    if actual is None:
        return
    traced.is_convolved = True
    traced.fits = actual == 1
    weights = node.input[1] if node.op_type != "QLinearConv" else node.input[3]
    if node.op_type != "ConvTranspose" and weights in constants:
        groups = int(get_attributes(node)("group") or 1)
        traced.channels = constants.get_shape(weights)[1] * groups


def find_layout(model: Any, image: Tensor, spec: EncoderSpec) -> tuple[ImageSides, bool, list[str]]:
    """Return (H, W, C) as far as the input fixes it, whether it is (N, C, H, W), and notes.

    The first convolution decides, then the shape of the input.

    Raises:
        InputError: the input is no batch of images.
    """
    shape = image.shape or ()
    layout_of_shape(shape, spec)
    tensors = infer_tensors(model, shape)
    traces = {axis: trace_axes(model, tensors, image.name, axis) for axis in (1, 3)}
    fitting = [axis for axis, traced in traces.items() if traced.fits]
    notes = []
    if len(fitting) == 1:
        axis = fitting[0]
    elif looks_channels_first(shape) or shape[3] not in (1, 3, 4):
        axis = 1
        if not looks_channels_first(shape):
            notes.append(
                f"whether the input {image.name} is (N, C, H, W) or (N, H, W, C) cannot be known "
                "from the graph: (N, C, H, W) was taken, as is usual in ONNX"
            )
    else:
        axis = 3
    sides, channels_first = layout_of_shape(shape, replace(spec, channels_first=axis == 1))
    height, width, channels = sides
    return (height, width, channels or traces[axis].channels), channels_first, notes


def _describe(
    node: Any, traced: TracedAxes, tensors: dict[str, Tensor], constants: Constants
) -> Operation:
    """Return a node as an operation of TensorFlow that moves axes in the same way."""

    def read(name: str) -> _Value:
        tensor = tensors.get(name)
        shape = None if tensor is None else tensor.shape
        return _Value(name, None if shape is None else _Shape(shape))

    inputs, outputs = [read(name) for name in node.input], [read(name) for name in node.output]
    attributes = get_attributes(node)
    kind = _SAME_AS.get(node.op_type, node.op_type)
    if node.op_type in _CHANNELS_FIRST:
        kind, attributes = "Conv2D", {"data_format": "NCHW"}.get
    elif node.op_type.startswith("Reduce"):
        # Older files hold the axes in an attribute.
        axes = attributes("axes")
        if axes is not None:
            inputs = [inputs[0], _Value("", None, np.array(axes))]
        keeps = attributes("keepdims")
        kind, attributes = "Mean", {"keep_dims": keeps is None or keeps == 1}.get
    elif node.op_type == "Transpose":
        order = attributes("perm")
        rank = len(inputs[0].shape or ())
        inputs.append(_Value("", None, np.array(order or range(rank)[::-1])))
    elif node.op_type == "Gemm":
        turned = {"transpose_a": attributes("transA"), "transpose_b": attributes("transB")}
        attributes = turned.get
    elif node.op_type == "Gather":
        # A single index removes its axis.
        removes = inputs[1].shape == () or (
            (constants.read(node.input[1]) is not None)
            and (constants.get_shape(node.input[1]) == ())
        )
        kind = "Unpack" if removes else "GatherV2"

    def value(tensor: _Value) -> Any:
        return tensor.constant if tensor.constant is not None else constants.read(tensor.name)

    return Operation(
        kind=kind,
        attributes=attributes,
        inputs=inputs,
        outputs=outputs,
        axes=tuple(traced.axes.get(name) for name in node.input[: len(inputs)]),
        value=value,
    )
