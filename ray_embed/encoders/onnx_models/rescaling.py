# SPDX-License-Identifier: Apache-2.0
"""Determine how an ONNX encoder rescales its pixels before its first layer with weights."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.onnx_models.graph import read_names, with_outputs
from ray_embed.encoders.onnx_models.sessions import open_session
from ray_embed.encoders.rescaling import Rescaling, measure_rescaling

_ARITHMETIC = {"Add", "Div", "Mul", "Neg", "Sub"}
_NORMALIZATION = {"BatchNormalization"}
_OTHERS = {
    *("Cast", "Ceil", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Floor", "Gather"),
    *("Identity", "Max", "Min", "Pad", "Reshape", "Resize", "Round", "Slice", "SpaceToDepth"),
    *("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample"),
}
_FOLLOWED = _ARITHMETIC | _NORMALIZATION | _OTHERS


def find_rescaling(
    model: Any,
    shape: tuple[int, ...],
    dtype: str,
    prepare: Callable[[Array], Array],
) -> Rescaling:
    """Return how the graph of an encoder rescales its input before the first layer with weights.

    Args:
        model: the graph from images to features.
        shape: (N, H, W, C) of its batches of images.
        dtype: the type of the model's own input.
        prepare: the preprocessing before the graph.
    """
    graph = model.graph
    (images,) = (value.name for value in graph.input)
    followed, ends = _follow(graph, images)
    if not ends:
        return Rescaling(dtype=dtype, expects_levels="int" in dtype)
    session = open_session(with_outputs(model, ends), 1)
    kinds = [node.op_type for node in followed]

    def blank(level: float) -> list[Array]:
        pixels = prepare(np.full(shape, level, np.float32))
        return [np.asarray(value, np.float64) for value in session.run(ends, {images: pixels})]

    return measure_rescaling(
        blank,
        channels=shape[-1],
        dtype=dtype,
        layers=tuple(dict.fromkeys(k for k in kinds if k in _ARITHMETIC | _NORMALIZATION)),
        # In a network's own normalization, the learned offset may have any value.
        is_learned=any(kind in _NORMALIZATION for kind in kinds),
    )


def _follow(graph: Any, start: str) -> tuple[list[Any], list[str]]:
    """Return the nodes that rescale or move pixels, and the tensors where these nodes end."""
    constant = {tensor.name for tensor in graph.initializer}
    pixels = {start}
    followed: list[Any] = []
    ends: dict[str, None] = {}
    for node in graph.node:
        names = list(read_names(node))
        # The size of the batch is fixed.
        if node.op_type in ("Shape", "Size"):
            constant.update(node.output)
            continue
        if all(name in constant for name in names):
            constant.update(node.output)
            continue
        from_pixels = [name for name in names if name in pixels]
        others = [name for name in names if name not in pixels and name not in constant]
        if from_pixels and not others and node.op_type in _FOLLOWED:
            followed.append(node)
            pixels.update(filter(None, node.output))
        else:
            ends |= dict.fromkeys(from_pixels)
    ends |= {value.name: None for value in graph.output if value.name in pixels}
    return followed, list(ends)
