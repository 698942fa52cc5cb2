# SPDX-License-Identifier: Apache-2.0
"""Labels told by the nearest neighbours."""

from collections.abc import Callable, Iterator

import numpy as np

from ray_embed.core.arrays import Array

TEMPERATURE = 0.07
# Numbers in memory at once, of records times classes.
_BLOCK = 4_000_000


def told(labels: Array, distances: Array, classes: int) -> Array:
    """Give the class that most neighbours have.

    Of classes with as many votes the one whose neighbours are nearer, by the sum of their
    distances; of those the first.

    Args:
        labels: (n, k) int64, the classes of the neighbours.
        distances: (n, k) float64.
        classes: how many classes there are.

    Returns:
        (n,) int64.
    """

    def choose(own: Array, far: Array) -> Array:
        votes = _sums(own, np.ones_like(far), classes)
        sums = _sums(own, far, classes)
        most = votes == votes.max(axis=1, keepdims=True)
        first: Array = np.where(most, sums, np.inf).argmin(axis=1)
        return first

    return _in_blocks(choose, labels, distances, classes)


def told_by_weight(labels: Array, distances: Array, classes: int) -> Array:
    """Give the class whose neighbours weigh most: exp(cosine / 0.07) each.

    Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination; with
    these numbers of neighbours also Caron et al. 2021, Emerging Properties in Self-Supervised
    Vision Transformers.

    Args:
        labels: (n, k) int64, the classes of the neighbours.
        distances: (n, k) float64, 1 - cosine.
        classes: how many classes there are.

    Returns:
        (n,) int64.
    """

    def choose(own: Array, far: Array) -> Array:
        heaviest: Array = _sums(own, np.exp((1 - far) / TEMPERATURE), classes).argmax(axis=1)
        return heaviest

    return _in_blocks(choose, labels, distances, classes)


def _in_blocks(
    choose: Callable[[Array, Array], Array], labels: Array, distances: Array, classes: int
) -> Array:
    rows = max(1, _BLOCK // classes)

    def chosen() -> Iterator[Array]:
        for start in range(0, len(labels), rows):
            block = slice(start, start + rows)
            yield choose(labels[block], distances[block])

    return np.concatenate(list(chosen()))


def _sums(labels: Array, weights: Array, classes: int) -> Array:
    """Add up the weights of each class: (n, k) gives (n, classes)."""
    cells = labels + classes * np.arange(len(labels))[:, None]
    sums = np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * classes)
    return sums.reshape(len(labels), classes)
