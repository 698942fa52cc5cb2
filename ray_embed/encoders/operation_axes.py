# SPDX-License-Identifier: Apache-2.0
"""Rules that say where each TensorFlow operation moves the channel axis of its inputs."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int | None, ...]
Axis = int | None

# Convolutions fix where the channels are. The value is the number of the input with the maps.
CONVOLUTIONS = {
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
# These change the lengths of axes, but not their order.
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


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation, and the channel axes of its inputs.

    Attributes:
        kind: its type, such as ``Conv2D``.
        attributes: returns an attribute by name, or None.
        axes: the channel axis of each input, or None if it is unknown.
        value: returns the value of a constant input, or None.
    """

    kind: str
    attributes: Callable[[str], Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    axes: tuple[Axis, ...]
    value: Callable[[Any], Any]

    @property
    def layout(self) -> str:
        """Return the `data_format`, or an empty string if the operation has none."""
        return as_text(self.attributes("data_format") or "")

    def shape(self, number: int) -> Shape | None:
        """Return the shape of an input, or None if it is unknown."""
        return shape_of(self.inputs[number])


def shape_of(tensor: Any) -> Shape | None:
    """Return the shape of a tensor, or None if it is unknown."""
    shape = getattr(tensor, "shape", None)
    return None if shape is None or shape.rank is None else tuple(shape)


def as_text(value: Any) -> str:
    """Return a value that TensorFlow may return as bytes or text, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def output_axes(op: Operation) -> list[Axis]:
    """Return the channel axis of each output."""
    if not any(axis is not None for axis in op.axes) and op.kind not in CONVOLUTIONS:
        return [None for _ in op.outputs]
    return [_output_axis(op, shape_of(output)) for output in op.outputs]


def _output_axis(op: Operation, out: Shape | None) -> Axis:
    if out is None:
        return None
    if op.kind in CONVOLUTIONS or op.kind in _POOLINGS:
        return 1 if op.layout.startswith("NC") else len(out) - 1
    if op.kind in _RESHAPES:
        return _reshaped_axis(op.axes[0], op.shape(0), out)
    if op.kind in _REDUCTIONS:
        return _reduced_axis(op)
    if op.kind in _PRODUCTS:
        return _product_axis(op, len(out))
    rule = _RULES.get(op.kind)
    return rule(op) if rule else _elementwise_axis(op, out)


def _transposed_axis(op: Operation) -> Axis:
    order = op.value(op.inputs[1])
    if op.axes[0] is None or order is None:
        return None
    return [int(axis) for axis in order].index(op.axes[0])


def _reshaped_axis(axis: Axis, before: Shape | None, after: Shape) -> Axis:
    """Return the axis of the same length with as many values before or after it.

    A last axis stays last if it is split, for example into attention heads, or merged with other
    axes.
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
    # Among several, prefer the axis at the same distance from the end, then from the beginning.
    from_end = axis - len(before) + len(after)
    return from_end if from_end in same else axis if axis in same else same[0]


def _ends_with(lengths: Shape, size: int | None) -> bool:
    """Return whether the product of the last lengths, for some number of them, is `size`."""
    return any(_size(lengths[start:]) == _size([size]) for start in range(len(lengths)))


def _size(lengths: Iterable[int | None]) -> tuple[int, int]:
    """Return the number of unknown lengths, and the product of the known ones."""
    known = list(lengths)
    return known.count(None), math.prod(length for length in known if length is not None)


def _reduced_axis(op: Operation) -> Axis:
    shape, axis, reduced = op.shape(0), op.axes[0], op.value(op.inputs[1])
    if shape is None or axis is None or reduced is None:
        return None
    if op.attributes("keep_dims"):
        return axis
    removed = {int(number) % len(shape) for number in reduced.reshape(-1)}
    return None if axis in removed else axis - sum(number < axis for number in removed)


def _product_axis(op: Operation, rank: int) -> Axis:
    """Follow the channels through a matrix product of (…, M, K) and (…, K, N)."""
    axes: set[Axis] = set()
    summed = []
    for side in (0, 1):
        is_summed, axis = _factor_axis(op, side, rank)
        summed.append(is_summed)
        if axis is not None:
            axes.add(axis)
    # If channels are multiplied by weights, the new channels are the weights' other axis.
    if summed == [True, False] and op.axes[1] is None:
        axes.add(rank - 1)
    if summed == [False, True] and op.axes[0] is None:
        axes.add(rank - 2)
    return axes.pop() if len(axes) == 1 else None


def _factor_axis(op: Operation, side: int, rank: int) -> tuple[bool, Axis]:
    """Return whether a factor's channels are summed over, and if not, their axis in the product."""
    axis, shape = op.axes[side], op.shape(side)
    if axis is None or shape is None:
        return False, None
    from_end = axis - len(shape)
    if from_end < -2:
        return False, rank + from_end
    names = (("transpose_a", "adj_x"), ("transpose_b", "adj_y"))[side]
    is_transposed = any(op.attributes(name) for name in names)
    # The first factor is summed over its last axis; the second, over its second-to-last axis.
    summed = -1 if (side == 0) != is_transposed else -2
    if from_end == summed:
        return True, None
    return False, rank + (-2, -1)[side]


def _einsum_axis(op: Operation) -> Axis:
    text = as_text(op.attributes("equation"))
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


def _stacked_axis(op: Operation) -> Axis:
    axes = {axis for axis in op.axes if axis is not None}
    if len(axes) != 1:
        return None
    axis, stacked = axes.pop(), op.attributes("axis") or 0
    shape = op.shape(0)
    if shape is None:
        return None
    stacked %= len(shape) + (op.kind == "Pack")
    if op.kind == "Pack":
        return axis + (stacked <= axis)
    return None if stacked == axis else axis - (stacked < axis)


def _elementwise_axis(op: Operation, out: Shape) -> Axis:
    """Follow an operation that computes elementwise, or only changes the lengths of axes."""
    axes: set[int] = set()
    for number, axis in enumerate(op.axes):
        shape = op.shape(number)
        if axis is None or shape is None:
            continue
        # Operands of lower rank are aligned at the last axis.
        moved = axis + len(out) - len(shape)
        if len(out) < len(shape):
            return None
        if op.kind in _RESIZES or shape[axis] in (out[moved], 1):
            axes.add(moved)
    # If operands disagree, the axis is unknown.
    return axes.pop() if len(axes) == 1 else None


def _sliced_axis(op: Operation) -> Axis:
    """Follow an axis through x[…]: an index removes its axis, a range keeps it."""
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
        # Indices after the ellipsis count from the end.
        middle = ellipsis.bit_length() - 1
        indices = [bit if bit < middle else len(shape) - len(begin) + bit for bit in indices]
    return None if axis in indices else axis - sum(index < axis for index in indices)


_RULES: dict[str, Callable[[Operation], Axis]] = {
    "Transpose": _transposed_axis,
    "Einsum": _einsum_axis,
    "Pack": _stacked_axis,
    "Unpack": _stacked_axis,
    "StridedSlice": _sliced_axis,
}
