# SPDX-License-Identifier: Apache-2.0
"""Predict labels from the nearest neighbors."""

from collections.abc import Callable

import numpy as np

from ray_embed.core.arrays import Array

TEMPERATURE = 0.07
# How many numbers (records times classes) are in memory at once.
_BLOCK = 4_000_000


def predict_by_majority(labels: Array, distances: Array, classes: int) -> Array:
    """Predict the class that most neighbors have.

    Ties go to the class with the lowest sum of distances, then to the first class.

    Args:
        labels: (n, k) int64, the classes of the neighbors.
        distances: (n, k) float64.
        classes: how many classes there are.

    Returns:
        (n,) int64.
    """

    def predict(labels: Array, distances: Array) -> Array:
        votes = _sum_by_class(labels, np.ones_like(distances), classes)
        sums = _sum_by_class(labels, distances, classes)
        most = votes == votes.max(axis=1, keepdims=True)
        predicted: Array = np.where(most, sums, np.inf).argmin(axis=1)
        return predicted

    return _predict_in_blocks(predict, labels, distances, classes)


def predict_by_weight(labels: Array, distances: Array, classes: int) -> Array:
    """Predict the class with the largest total weight; a neighbor's weight is exp(cosine / 0.07).

    Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination. Caron
    et al. 2021, Emerging Properties in Self-Supervised Vision Transformers, use the same numbers of
    neighbors.

    Args:
        labels: (n, k) int64, the classes of the neighbors.
        distances: (n, k) float64, 1 - cosine.
        classes: how many classes there are.

    Returns:
        (n,) int64.
    """

    def predict(labels: Array, distances: Array) -> Array:
        weights = np.exp((1 - distances) / TEMPERATURE)
        predicted: Array = _sum_by_class(labels, weights, classes).argmax(axis=1)
        return predicted

    return _predict_in_blocks(predict, labels, distances, classes)


def _predict_in_blocks(
    predict: Callable[[Array, Array], Array], labels: Array, distances: Array, classes: int
) -> Array:
    size = max(1, _BLOCK // classes)
    blocks = [slice(start, start + size) for start in range(0, len(labels), size)]
    return np.concatenate([predict(labels[block], distances[block]) for block in blocks])


def _sum_by_class(labels: Array, weights: Array, classes: int) -> Array:
    """Sum the weights (n, k) by class: (n, classes)."""
    cells = labels + classes * np.arange(len(labels))[:, None]
    sums = np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * classes)
    return sums.reshape(len(labels), classes)
