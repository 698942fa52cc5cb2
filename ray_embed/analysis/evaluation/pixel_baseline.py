# SPDX-License-Identifier: Apache-2.0
"""Thumbnails of one small size, as a baseline without any encoder."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.runs import sampling
from ray_embed.runs.sampling import Subset
from ray_embed.storage.filesystem import Folder

SIDE = 16
_IMAGES_AT_ONCE = 64


def read_pictures(folder: Folder, records: Subset) -> Array | None:
    """Return the thumbnails of a run's records, shrunk to one size, or None if any are missing.

    Raises:
        DamagedError: a part differs from what was written.
        StorageError: a part cannot be read.
    """
    thumbnails = sampling.read_thumbnails(folder, records.index)
    return None if thumbnails is None else shrink(thumbnails)


def shrink(thumbnails: Sequence[Array]) -> Array:
    """Average thumbnails down to squares of one size: 16 pixels, or the largest side if smaller.

    Args:
        thumbnails: at least one array, each (h, w, 1 or 3) uint8.

    Returns:
        (n, side, side, 1 or 3) float32, 0 to 255. If any thumbnail has three channels, all pictures
        do.
    """
    shapes = np.array([thumbnail.shape for thumbnail in thumbnails])
    side = min(SIDE, int(shapes[:, :2].max()))
    pictures = np.empty((len(thumbnails), side, side, shapes[:, 2].max()), np.float32)
    for shape in np.unique(shapes, axis=0):
        (same_shape,) = np.nonzero((shapes == shape).all(axis=1))
        for start in range(0, len(same_shape), _IMAGES_AT_ONCE):
            rows = same_shape[start : start + _IMAGES_AT_ONCE]
            pictures[rows] = average_pixels(np.stack([thumbnails[row] for row in rows]), side)
    return pictures


def average_pixels(pictures: Array, side: int) -> Array:
    """Average pictures (n, h, w, c) down to (n, side, side, c), by the area that a pixel covers."""
    down, across = (_compute_weights(size, side) for size in pictures.shape[1:3])
    by_row = np.einsum("sh,nhwc->nswc", down, pictures, optimize=True)
    averages: Array = np.einsum("tw,nswc->nstc", across, by_row, optimize=True)
    return averages


@lru_cache
def _compute_weights(size: int, side: int) -> Array:
    """Return the weight (side, size) float32 of each of `size` pixels in each of `side` means."""
    edges = np.arange(side + 1) * size / side
    starts = np.arange(size)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (overlap.clip(0) * side / size).astype(np.float32)


def use_as_features(records: Subset, pictures: Array) -> Subset:
    """Return the records with their pictures (n, side, side, c), flattened, as features."""
    return replace(records, features=pictures.reshape(len(pictures), -1))
