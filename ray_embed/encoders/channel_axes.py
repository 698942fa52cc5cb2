# SPDX-License-Identifier: Apache-2.0
"""Find the channel axis of what a layer gives: followed from the images through every operation.

TensorFlow reports each operation that an eager call runs. A convolution or pooling says itself
where its channels are; a transposition or reshape moves them; most others leave them where they
are. So the axis is known for layers without a `data_format` of their own, and for code between
layers. A SavedModel's signature is one operation, so its graph is walked instead.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int | None, ...]
Axis = int | None

# These decide where the channels are. Value: which input holds the maps.
_CONVOLUTIONS = {
    "Conv2D": 0,
    "Conv3D": 0,
    "DepthwiseConv2dNative": 0,
    "_FusedConv2D": 0,
    "_FusedDepthwiseConv2dNative": 0,
    "Conv2DBackpropInput": 2,
    "Conv3DBackpropInputV2": 2,
}
_POOLINGS = {"MaxPool", "AvgPool", "MaxPool3D", "AvgPool3D", "DepthToSpace", "SpaceToDepth"}
_RESHAPES = {"Reshape", "Squeeze", "ExpandDims"}
_REDUCTIONS = {"Mean", "Max", "Min", "Sum", "Prod", "EuclideanNorm", "All", "Any"}
_PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "_FusedMatMul"}
# These change the length of axes, and keep their order.
_RESIZES = {
    "Pad",
    "PadV2",
    "MirrorPad",
    "Slice",
    "ConcatV2",
    "Split",
    "SplitV",
    "Tile",
    "ResizeBilinear",
    "ResizeBicubic",
    "ResizeNearestNeighbor",
    "ResizeArea",
    "GatherV2",
}


@dataclass(frozen=True)
class _Operation:
    """One operation: what it is, and how to read its inputs' axes, shapes and values."""

    kind: str
    attributes: Callable[[str], Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    axes: tuple[Axis, ...]
    value: Callable[[Any], Any]

    @property
    def layout(self) -> str:
        """Return the `data_format`, an empty string where the operation has none."""
        found = self.attributes("data_format") or ""
        return found.decode() if isinstance(found, bytes) else str(found)

    def shape(self, number: int) -> Shape | None:
        """Return the shape of an input, None where it is unknown."""
        return _shape_of(self.inputs[number])


@dataclass
class Channels:
    """The channel axis of every tensor of one call.

    `images` is the batch to call the model with; `channels_first` tells whether any maps in the
    call had their channels in the second axis; `mismatch` describes the first convolution if it
    takes another axis for the channels than the one that holds them.
    """

    images: Any
    channels_first: bool = False
    mismatch: str = ""
    _axes: dict[int, int] = field(default_factory=dict)
    _nearest: dict[int, int] = field(default_factory=dict)
    _convolved: bool = False

    def axis(self, value: Any) -> Axis:
        """Return the channel axis of a tensor of the call, None where it cannot be known."""
        return self._axes.get(getattr(value, "_id", -1))

    def assumed(self, rank: int) -> int:
        """Return the channel axis of the nearest layer of this rank, the last axis if none."""
        return self._nearest.get(rank, rank - 1)

    def watch(self, layer: Any, output: Any) -> None:
        """Take over what a layer says of its output where its operations do not tell."""
        rank = getattr(getattr(output, "shape", None), "rank", None)
        if rank is None or rank < 3:
            return
        if self.axis(output) is None and (axis := _declared_axis(layer, rank)) is not None:
            self.set(output, axis)
        if (known := self.axis(output)) is not None:
            self._nearest[rank] = known

    def set(self, tensor: Any, axis: int) -> None:
        """Record the channel axis of a tensor."""
        rank = tensor.shape.rank
        self._axes[tensor._id] = axis
        # Tokens may lie across for a while in any model, as in mixers.
        self.channels_first |= bool(rank) and rank > 3 and axis == 1

    def record(self, kind: Any, inputs: Any, attributes: Any, outputs: Any, *_: Any) -> None:
        """Record the axes of an operation's outputs: called by TensorFlow after each one."""
        pairs = dict(zip(attributes[::2], attributes[1::2], strict=False)) if attributes else {}
        operation = _Operation(
            kind.decode() if isinstance(kind, bytes) else str(kind),
            pairs.get,
            inputs,
            outputs or (),
            tuple(self.axis(value) for value in inputs),
            _constant,
        )
        self._check_convolution(operation)
        for tensor, axis in zip(operation.outputs, _output_axes(operation), strict=False):
            if axis is not None:
                self.set(tensor, axis)

    def _check_convolution(self, operation: _Operation) -> None:
        """Compare the first convolution with the images' own channel axis."""
        if self._convolved or operation.kind not in _CONVOLUTIONS:
            return
        number = _CONVOLUTIONS[operation.kind]
        held, shape = operation.axes[number], operation.shape(number)
        if held is None or shape is None:
            return
        self._convolved = True
        taken = 1 if operation.layout.startswith("NC") else len(shape) - 1
        if taken != held:
            self.mismatch = f"its first convolution takes axis {taken} for the channels"


@contextlib.contextmanager
def tracking(images: Any) -> Iterator[Channels]:
    """Record the channel axes of what is called meanwhile.

    Args:
        images: (N, H, W, C).
    """
    import tensorflow as tf
    from tensorflow.python.framework import op_callbacks

    channels = Channels(tf.convert_to_tensor(images))
    channels.set(channels.images, 3)

    def callback(
        kind: Any,
        inputs: Any,
        attributes: Any,
        outputs: Any,
        op_name: Any = None,
        graph: Any = None,
    ) -> None:
        # An operation that is read wrongly must not stop the encoder: its axis is then unknown.
        with contextlib.suppress(Exception):
            channels.record(kind, inputs, attributes, outputs)

    op_callbacks.add_op_callback(callback)
    try:
        yield channels
    finally:
        op_callbacks.remove_op_callback(callback)


def signature_axes(signature: Any, channels_first: bool) -> list[tuple[Axis, bool]]:
    """Return the channel axis of each output of a signature.

    Args:
        signature: a concrete function of one input.
        channels_first: whether that is (N, C, H, W), not (N, H, W, C).

    Returns:
        For each output, in the order of the sorted names, the axis or None, and whether any maps
        in the graph have their channels first. A graph that changes its variables cannot be
        followed: its axes are None, and its maps may have their channels first.
    """
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    # This puts the functions that it calls in place, so that one walk sees every operation.
    try:
        frozen = convert_variables_to_constants_v2(signature)
    except Exception:
        return [(None, True)] * len(signature.structured_outputs)
    (images,) = frozen.inputs
    axes: dict[str, Axis] = {images.name: 1 if channels_first else 3}
    for node in frozen.graph.get_operations():
        if node.type == "Placeholder":
            continue
        operation = _Operation(
            node.type,
            _attributes_of(node),
            node.inputs,
            node.outputs,
            tuple(axes.get(value.name) for value in node.inputs),
            _constant,
        )
        with contextlib.suppress(Exception):
            for tensor, axis in zip(node.outputs, _output_axes(operation), strict=False):
                axes[tensor.name] = axis
    first = any(
        axis == 1 and (frozen.graph.get_tensor_by_name(name).shape.rank or 0) > 3
        for name, axis in axes.items()
    )
    return [(axes.get(output.name), first) for output in frozen.outputs]


def looks_channels_first(shape: Sequence[int | None]) -> bool:
    """Whether the shape of an input says (N, C, H, W): 1, 3 or 4 channels before larger sides."""
    if len(shape) != 4 or shape[1] not in (1, 3, 4):
        return False
    return all(side is None or side > 4 for side in shape[2:])


def _declared_axis(layer: Any, rank: int) -> Axis:
    """Return the channel axis that a layer's own options name."""
    match getattr(layer, "data_format", None):
        case "channels_first":
            return 1
        case "channels_last":
            return rank - 1
    axis = getattr(layer, "axis", None)
    if isinstance(axis, (list, tuple)) and len(axis) == 1:
        axis = axis[0]
    if type(layer).__name__ in ("BatchNormalization", "GroupNormalization", "Concatenate") and (
        isinstance(axis, int)
    ):
        return axis % rank
    return None


def _constant(tensor: Any) -> Any:
    if hasattr(tensor, "numpy"):
        return tensor.numpy()
    import tensorflow as tf

    return tf.get_static_value(tensor)


def _attributes_of(node: Any) -> Callable[[str], Any]:
    def get(name: str) -> Any:
        try:
            return node.get_attr(name)
        except ValueError:
            return None

    return get


def _shape_of(tensor: Any) -> Shape | None:
    shape = getattr(tensor, "shape", None)
    return None if shape is None or shape.rank is None else tuple(shape)


# --- what each operation does to the axis --------------------------------------------------------


def _output_axes(op: _Operation) -> list[Axis]:
    """Return the channel axis of each output."""
    if not any(axis is not None for axis in op.axes) and op.kind not in _CONVOLUTIONS:
        return [None for _ in op.outputs]
    return [_output_axis(op, _shape_of(output)) for output in op.outputs]


def _output_axis(op: _Operation, out: Shape | None) -> Axis:
    if out is None:
        return None
    if op.kind in _CONVOLUTIONS or op.kind in _POOLINGS:
        return 1 if op.layout.startswith("NC") else len(out) - 1
    if op.kind == "Transpose":
        return _transposed(op)
    if op.kind in _RESHAPES:
        return _reshaped(op.axes[0], op.shape(0), out)
    if op.kind in _REDUCTIONS:
        return _reduced(op)
    if op.kind in _PRODUCTS:
        return _multiplied(op, out)
    if op.kind == "Einsum":
        return _contracted(op)
    if op.kind in ("Pack", "Unpack"):
        return _stacked(op)
    if op.kind == "StridedSlice":
        return _sliced(op)
    return _kept(op, out)


def _transposed(op: _Operation) -> Axis:
    order = op.value(op.inputs[1])
    if op.axes[0] is None or order is None:
        return None
    return [int(axis) for axis in order].index(op.axes[0])


def _reshaped(axis: Axis, before: Shape | None, after: Shape) -> Axis:
    """Follow an axis whose length stays, with as many values before or behind it.

    A last axis that is split, as into heads of attention, or merged with those before stays last.
    """
    if axis is None or before is None:
        return None
    same = [
        number
        for number, length in enumerate(after)
        if length == before[axis]
        and (
            _size(before[:axis]) == _size(after[:number])
            or _size(before[axis + 1 :]) == _size(after[number + 1 :])
        )
    ]
    if not same:
        is_last = axis == len(before) - 1 and bool(after)
        whole = is_last and (_ends_with(after, before[-1]) or _ends_with(before, after[-1]))
        return len(after) - 1 if whole else None
    # Axes of length 1 are alike: the one as far from the end, or from the beginning, is meant.
    from_end = axis - len(before) + len(after)
    return from_end if from_end in same else axis if axis in same else same[0]


def _ends_with(lengths: Shape, size: int | None) -> bool:
    """Whether some last lengths multiply to `size`."""
    return any(_size(lengths[at:]) == _size([size]) for at in range(len(lengths)))


def _size(lengths: Iterable[int | None]) -> tuple[int, int]:
    """Return how many lengths are unknown, and the product of the others."""
    known = list(lengths)
    return known.count(None), math.prod(length for length in known if length is not None)


def _reduced(op: _Operation) -> Axis:
    shape, axis, over = op.shape(0), op.axes[0], op.value(op.inputs[1])
    if shape is None or axis is None or over is None:
        return None
    if op.attributes("keep_dims"):
        return axis
    gone = {int(number) % len(shape) for number in over.reshape(-1)}
    return None if axis in gone else axis - sum(number < axis for number in gone)


def _multiplied(op: _Operation, out: Shape) -> Axis:
    """Follow the channels through a product of (…, M, K) and (…, K, N)."""
    rank = len(out)
    flipped = [
        bool(op.attributes(new) or op.attributes(old))
        for new, old in (("transpose_a", "adj_x"), ("transpose_b", "adj_y"))
    ]
    places: set[Axis] = set()
    summed = [False, False]
    for side in (0, 1):
        axis, shape = op.axes[side], op.shape(side)
        if axis is None or shape is None:
            continue
        from_end = axis - len(shape)
        if from_end < -2:
            places.add(rank + from_end)
            continue
        # The first factor is summed over its last axis, the second over its last but one.
        over = (-1, -2)[side] if not flipped[side] else (-2, -1)[side]
        if from_end == over:
            summed[side] = True
        else:
            places.add(rank + (-2, -1)[side])
    if summed == [True, False] and op.axes[1] is None:
        # Channels times weights: the new channels are the weights' other axis.
        places.add(rank - 1)
    if summed == [False, True] and op.axes[0] is None:
        places.add(rank - 2)
    return places.pop() if len(places) == 1 else None


def _contracted(op: _Operation) -> Axis:
    equation = op.attributes("equation")
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    left, right = text.replace(" ", "").split("->")
    if "." in text:
        return None
    terms = left.split(",")
    letters = {term[axis] for term, axis in zip(terms, op.axes, strict=True) if axis is not None}
    kept = {letter for letter in letters if letter in right}
    if len(kept) == 1:
        return right.index(kept.pop())
    if kept or len(terms) != 2 or None not in op.axes:
        return None
    weights = terms[op.axes.index(None)]
    other = terms[1 - op.axes.index(None)]
    new = [letter for letter in right if letter in weights and letter not in other]
    return right.index(new[-1]) if new else None


def _stacked(op: _Operation) -> Axis:
    axes = {axis for axis in op.axes if axis is not None}
    if len(axes) != 1:
        return None
    axis, at = axes.pop(), op.attributes("axis") or 0
    shape = op.shape(0)
    if shape is None:
        return None
    at %= len(shape) + (op.kind == "Pack")
    if op.kind == "Pack":
        return axis + (at <= axis)
    return None if at == axis else axis - (at < axis)


def _kept(op: _Operation, out: Shape) -> Axis:
    """Follow an operation that computes value by value, or only changes lengths."""
    found: set[int] = set()
    for number, axis in enumerate(op.axes):
        shape = op.shape(number)
        if axis is None or shape is None:
            continue
        # Operands of a lower rank are aligned at their last axis.
        moved = axis + len(out) - len(shape)
        if len(out) < len(shape):
            return None
        if op.kind in _RESIZES or shape[axis] in (out[moved], 1):
            found.add(moved)
    # Operands that disagree leave it open.
    return found.pop() if len(found) == 1 else None


def _sliced(op: _Operation) -> Axis:
    """Follow an axis through x[…]: an index drops its axis, a range keeps it."""
    axis, shape = op.axes[0], op.shape(0)
    dropped, ellipsis, begin = (
        op.attributes("shrink_axis_mask") or 0,
        op.attributes("ellipsis_mask") or 0,
        op.value(op.inputs[1]),
    )
    if axis is None or shape is None or begin is None or op.attributes("new_axis_mask"):
        return None
    indices = [bit for bit in range(len(begin)) if dropped >> bit & 1]
    if ellipsis:
        # What stands behind the ellipsis counts from the end.
        middle = ellipsis.bit_length() - 1
        indices = [bit if bit < middle else len(shape) - len(begin) + bit for bit in indices]
    return None if axis in indices else axis - sum(index < axis for index in indices)
