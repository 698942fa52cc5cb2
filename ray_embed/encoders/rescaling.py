# SPDX-License-Identifier: Apache-2.0
"""Determine how an encoder rescales its pixels before its first layer with weights.

The graph is followed from its input through all operations that change pixels one by one, or move
them. The values that leave these operations are computed for blank images, so it does not matter
how the encoder rescales: by layers, by functions, or by casting.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array

_ARITHMETIC = {"Add", "AddV2", "Div", "Mul", "Neg", "RealDiv", "Sub", "SquaredDifference"}
_LIMITS = {"ClipByValue", "Maximum", "Minimum", "Round", "Floor"}
_NORMALIZATION = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
# Ops that move, copy or interpolate pixels, or change their type.
_MOVES = {
    "BroadcastTo",
    "Cast",
    "ConcatV2",
    "ExpandDims",
    "ExtractImagePatches",
    "Gather",
    "GatherV2",
    "Identity",
    "MirrorPad",
    "Pack",
    "Pad",
    "PadV2",
    "Placeholder",
    "Reshape",
    "ResizeArea",
    "ResizeBicubic",
    "ResizeBilinear",
    "ResizeNearestNeighbor",
    "Reverse",
    "ReverseV2",
    "ScaleAndTranslate",
    "SpaceToDepth",
    "Split",
    "SplitV",
    "Squeeze",
    "StopGradient",
    "StridedSlice",
    "Tile",
    "Transpose",
    "Unpack",
}
_FOLLOWED = _ARITHMETIC | _LIMITS | _NORMALIZATION | _MOVES

# An encoder that divides by at least this much expects pixels from 0 to 255. Dividing pixels from 0
# to 1 by their standard deviation, which is at most 0.5, makes them larger instead.
_MIN_LEVELS_DIVISOR = 16.0
# If the pixel value that the encoder maps to zero is above this, it is a mean of 0–255 pixels.
_MIN_LEVELS_MEAN = 2.0


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """The values that arrive at an encoder's first layer with weights.

    Attributes:
        dtype: the type of the encoder's input.
        layers: the layers, or else the operations, that rescale.
        factors: one per channel; a pixel x arrives as x · factor + offset.
        offsets: one per channel.
        casts: whether fractions of pixels are lost.
        expects_levels: whether the encoder clearly expects pixels from 0 to 255.
    """

    dtype: str
    layers: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    casts: bool = False
    expects_levels: bool = False

    @property
    def takes_integers(self) -> bool:
        """Return whether the input has an integer type."""
        return "int" in self.dtype

    @property
    def range(self) -> tuple[float, float]:
        """Return the lowest and highest values that arrive for pixels from 0 to 255."""
        ends = [
            offset + factor * level
            for factor, offset in zip(self.factors, self.offsets, strict=True)
            for level in (0.0, 255.0)
        ]
        return (min(ends), max(ends)) if ends else (0.0, 255.0)

    def describe(self) -> str:
        """Return a short description, such as ``rescaling_1: × 1/255``."""
        is_identity = not self.factors or (set(self.factors) == {1.0} and not any(self.offsets))
        if is_identity and not (self.layers or self.takes_integers or self.casts):
            return "rescales nothing itself"
        where = ", ".join(self.layers) or "its first operations"
        if self.takes_integers:
            where = f"input of type {self.dtype}"
        elif self.casts:
            where = f"{where}: cast to whole numbers"
        if is_identity:
            return where
        moved = any(abs(offset) > 1e-6 for offset in self.offsets)
        offsets = f", then {_listed(f'{offset:+.4g}' for offset in self.offsets)}" if moved else ""
        return f"{where}: × {_listed(_as_factor(factor) for factor in self.factors)}{offsets}"


def _listed(numbers: Iterable[str]) -> str:
    different = list(dict.fromkeys(numbers))
    return different[0] if len(different) == 1 else f"({', '.join(different)})"


def _as_factor(factor: float) -> str:
    return f"1/{1 / factor:.4g}" if 0 < abs(factor) < 1 else f"{factor:.4g}"


def find_rescaling(graph: Any, input_name: str, outputs: tuple[str, ...], dtype: str) -> Rescaling:
    """Return how the graph rescales its input before the first layer with weights.

    Args:
        graph: a GraphDef whose variables are constants.
        input_name: the tensor of the images, (N, H, W, C) float32 of a fixed shape.
        outputs: the output tensors of the graph.
        dtype: the type of the encoder's own input.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph.node}
    shape = _shape_of(nodes[_node_of(input_name)])
    followed, ends = _follow(nodes, _node_of(input_name), outputs)
    names = [name for name in followed if nodes[name].op in _ARITHMETIC | _NORMALIZATION]
    layers = tuple(dict.fromkeys(_layer_of(name) for name in names))
    part = tf.compat.v1.GraphDef(versions=graph.versions)
    part.node.extend(nodes[name] for name in _in_order(nodes, [_node_of(end) for end in ends]))
    imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(part, name=""), [])
    arrive = imported.prune(input_name, list(ends))

    def blank(level: float) -> list[Array]:
        values = arrive(tf.fill(shape, tf.constant(level, tf.float32)))
        return [np.asarray(value, np.float64) for value in values]

    return measure_rescaling(
        blank,
        channels=shape[-1],
        dtype=dtype,
        layers=layers,
        # In a network's own normalization, the learned offset may have any value.
        is_learned=any(
            nodes[name].op in _NORMALIZATION or "batchnorm" in name for name in followed
        ),
    )


def measure_rescaling(
    blank: Callable[[float], list[Array]],
    *,
    channels: int,
    dtype: str,
    layers: tuple[str, ...],
    is_learned: bool,
) -> Rescaling:
    """Return how an encoder rescales its input, by what it makes of blank images.

    Args:
        blank: returns the values that arrive at the first layers with weights, for images whose
            pixels all have one level.
        channels: the number of channels of the images.
        dtype: the type of the encoder's own input.
        layers: the names of what rescales.
        is_learned: whether some of these are learned.
    """
    black, half, white = blank(0.0), blank(0.5), blank(255.0)
    differences = [high - low for low, high in zip(black, white, strict=True)]
    moved = [difference != 0 for difference in differences]
    if not any(where.any() for where in moved):
        return Rescaling(dtype=dtype, layers=layers, expects_levels="int" in dtype)
    casts = all(np.array_equal(a, b) for a, b in zip(black, half, strict=True))
    slopes = np.concatenate([d[where] / 255 for d, where in zip(differences, moved, strict=True)])
    zeros = np.concatenate([low[where] for low, where in zip(black, moved, strict=True)])
    center = 0.0 if is_learned else float(np.median(-zeros / slopes))
    divided = 1 / float(np.median(np.abs(slopes)))
    pairs = dict.fromkeys(
        zip(np.round(slopes, 9).tolist(), np.round(zeros, 6).tolist(), strict=True)
    )
    factors, offsets = zip(*list(pairs)[:channels], strict=True)
    return Rescaling(
        dtype=dtype,
        layers=layers,
        factors=factors,
        offsets=offsets,
        casts=casts,
        expects_levels=(
            "int" in dtype
            or casts
            or divided >= _MIN_LEVELS_DIVISOR
            or _MIN_LEVELS_MEAN < center < 255
        ),
    )


def _follow(
    nodes: dict[str, Any], start: str, outputs: tuple[str, ...]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the nodes that rescale or move pixels, and the tensors where these nodes end."""
    order = _in_order(nodes, nodes)
    constant = {name for name in order if nodes[name].op == "Const"}
    followed = {start: None}
    ends: dict[str, None] = {}
    for name in order:
        inputs = [item for item in nodes[name].input if not item.startswith("^")]
        if not inputs or name == start:
            continue
        if all(_node_of(item) in constant for item in inputs):
            constant.add(name)
            continue
        pixels = [item for item in inputs if _node_of(item) in followed]
        others = [item for item in inputs if item not in pixels and _node_of(item) not in constant]
        if pixels and not others and nodes[name].op in _FOLLOWED:
            followed[name] = None
        else:
            ends |= dict.fromkeys(pixels)
    ends |= {name: None for name in outputs if _node_of(name) in followed}
    named = (end if ":" in end else f"{end}:0" for end in ends)
    return list(followed), tuple(dict.fromkeys(named)) or (f"{start}:0",)


def _in_order(nodes: dict[str, Any], wanted: Iterable[str]) -> list[str]:
    """Return the wanted nodes and everything that they depend on, inputs first.

    Nodes that close a loop come before their inputs, because a loop has no order.
    """
    ordered: dict[str, None] = {}
    stack = list(wanted)[::-1]
    while stack:
        name = stack[-1]
        inputs = [] if nodes[name].op == "NextIteration" else nodes[name].input
        missing = [other for item in inputs if (other := _node_of(item)) not in ordered]
        if missing and name not in ordered:
            stack.extend(missing)
            continue
        ordered[stack.pop()] = None
    return list(ordered)


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _layer_of(node: str) -> str:
    """Return the layer of an operation, such as `rescaling_1` for ``model/rescaling_1/mul``."""
    scopes = [scope for scope in node.split("/")[:-1] if scope != "batchnorm"]
    return scopes[-1] if scopes else node


def _shape_of(node: Any) -> tuple[int, ...]:
    return tuple(side.size for side in node.attr["shape"].shape.dim)
