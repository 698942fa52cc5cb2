# SPDX-License-Identifier: Apache-2.0
"""Pool the output of a layer to one vector per image.

GeM is the generalized mean of Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No
Human Annotation" (TPAMI 2019), with p = 3 and values clamped at 1e-6.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError

_RANKS = {
    "gap": (3, 4),
    "gmp": (3, 4),
    "gem": (3, 4),
    "cls": (3,),
    "flatten": (2, 3, 4),
    "none": (2,),
}
_GEM_P = 3.0
_GEM_CLAMP = 1e-6


def resolve_pool(pool: str | None, layer: str, shape: tuple[int | None, ...]) -> str:
    """Return the pooling for a layer: `pool`, else `gap` for maps and tokens or `none` for vectors.

    Args:
        pool: the requested pooling, or None for the default.
        layer: the layer's name, for the error message.
        shape: the layer's output shape, batch first.

    Raises:
        InputError: the pooling does not fit the layer's rank.
    """
    rank = len(shape)
    chosen = pool or {2: "none", 3: "gap", 4: "gap"}.get(rank, "")
    if not chosen:
        raise InputError(
            f"--layer {layer}: its output has the shape {shape}; rank 2, 3 or 4 is needed"
        )
    if rank not in _RANKS[chosen]:
        fitting = ", ".join(name for name, ranks in _RANKS.items() if rank in ranks)
        raise InputError(
            f"--pool {chosen} does not fit the layer {layer!r} with its output shape {shape}; "
            f"poolings that fit: {fitting or 'none'}"
        )
    return chosen


def count_features(shape: Sequence[int], how: str, channel_axis: int = -1) -> int:
    """Return the dimension D to which :func:`pool` reduces an output of a shape, batch first."""
    return math.prod(shape[1:]) if how == "flatten" else int(shape[channel_axis])


def pool_array(features: Array, how: str, channel_axis: int = -1) -> Array:
    """Pool an array to (N, D) float32, as :func:`pool` does."""
    features = np.moveaxis(features.astype(np.float32, copy=False), channel_axis, -1)
    places = tuple(range(1, features.ndim - 1))
    match how:
        case "gap":
            return np.asarray(features.mean(places))
        case "gmp":
            return np.asarray(features.max(places))
        case "gem":
            powered = np.maximum(features, np.float32(_GEM_CLAMP)) ** _GEM_P
            return np.asarray(powered.mean(places) ** (1 / _GEM_P))
        case "cls":
            return features[:, 0]
        case "flatten":
            return features.reshape(len(features), -1)
    return features


def pool(features: Any, how: str, channel_axis: int = -1) -> Any:
    """Pool a TensorFlow tensor to (N, D) float32.

    Args:
        features: (N, H, W, C), (N, T, C) or (N, C), any float type.
        how: a pooling that fits the rank.
        channel_axis: the axis of the channels. They are first moved to the last axis, so that
            `flatten` returns the same order as for a model with channels last.
    """
    import tensorflow as tf

    features = tf.cast(features, tf.float32)
    rank = features.shape.rank
    if channel_axis not in (-1, rank - 1):
        others = [axis for axis in range(rank) if axis != channel_axis]
        features = tf.transpose(features, [*others, channel_axis])
    places = list(range(1, features.shape.rank - 1))
    match how:
        case "gap":
            return tf.reduce_mean(features, places)
        case "gmp":
            return tf.reduce_max(features, places)
        case "gem":
            powered = tf.maximum(features, _GEM_CLAMP) ** _GEM_P
            return tf.reduce_mean(powered, places) ** (1 / _GEM_P)
        case "cls":
            return features[:, 0]
        case "flatten":
            size = features.shape[1:].num_elements()
            return tf.reshape(features, (-1, size))
    return features
