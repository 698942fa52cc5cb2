# SPDX-License-Identifier: Apache-2.0
"""Thumbnails of one small size: what no encoder at all would give."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.runs import sampling
from ray_embed.runs.sampling import Subset
from ray_embed.storage.filesystem import Folder

SIDE = 16
_TOGETHER = 64


def of(folder: Folder, records: Subset) -> Array | None:
    """Give the pictures of a run's records by :func:`small`; None where thumbnails are missing.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    thumbnails = sampling.read_thumbnails(folder, records.index)
    return None if thumbnails is None else small(thumbnails)


def small(thumbnails: Sequence[Array]) -> Array:
    """Average thumbnails down to squares of one size: 16 pixels, or the largest side if smaller.

    Args:
        thumbnails: (h, w, 1 or 3) uint8 each, at least one.

    Returns:
        (n, side, side, 1 or 3) float32, 0 to 255; grey ones become three channels beside others.
    """
    side = min(SIDE, max(max(one.shape[:2]) for one in thumbnails))
    channels = max(one.shape[2] for one in thumbnails)
    pictures = np.empty((len(thumbnails), side, side, channels), np.float32)
    shapes = np.array([one.shape for one in thumbnails])
    for shape in np.unique(shapes, axis=0):
        (alike,) = np.nonzero((shapes == shape).all(axis=1))
        for start in range(0, len(alike), _TOGETHER):
            rows = alike[start : start + _TOGETHER]
            pictures[rows] = averaged(np.stack([thumbnails[at] for at in rows]), side)
    return pictures


def averaged(pictures: Array, side: int) -> Array:
    """Give each pixel of (n, side, side, c) the mean of what it covers of pictures (n, h, w, c)."""
    down, across = (_weights(size, side) for size in pictures.shape[1:3])
    by_row = np.einsum("sh,nhwc->nswc", down, pictures, optimize=True)
    found: Array = np.einsum("tw,nswc->nstc", across, by_row, optimize=True)
    return found


@lru_cache
def _weights(size: int, side: int) -> Array:
    """Give the share (side, size) float32 of each of `size` pixels in each of `side` ones."""
    edges = np.arange(side + 1) * size / side
    starts = np.arange(size)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (overlap.clip(0) * side / size).astype(np.float32)


def as_features(records: Subset, pictures: Array) -> Subset:
    """Give the records with their pictures (n, side, side, c), flattened, for features."""
    return replace(records, features=pictures.reshape(len(pictures), -1))
