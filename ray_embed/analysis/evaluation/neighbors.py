# SPDX-License-Identifier: Apache-2.0
"""The nearest reference records of each judged one, found once for all that is made of them."""

from dataclasses import dataclass

import numpy as np

from ray_embed.analysis.evaluation.protocol import Trial
from ray_embed.core.arrays import Array, Matrix

METRICS = ("cosine", "l2")
_TOGETHER = 64


@dataclass(frozen=True)
class Neighbours:
    """Of each judged record the nearest reference records, nearest first.

    `positions` (n, k) int64 are those in the subset; `distances` (n, k) float64 are 1 - cosine, or
    Euclidean.
    """

    positions: Array
    distances: Array


def nearest(features: Matrix, trial: Trial, metric: str, count: int) -> Neighbours:
    """Find the `count` nearest reference records, or all where there are fewer.

    Args:
        features: (N, D) float32, of the subset.
        trial: who is judged by whom; nobody is his own neighbour.
        metric: one of `METRICS`.
        count: how many.
    """
    from sklearn.neighbors import NearestNeighbors

    points = directions(features) if metric == "cosine" else features
    search = NearestNeighbors(n_neighbors=min(count, trial.most), algorithm="brute")
    search.fit(points[trial.reference])
    if trial.leaves_one_out:
        distances, found = search.kneighbors()
        rows = np.searchsorted(trial.reference, trial.judged)
        distances, found = distances[rows], found[rows]
    else:
        distances, found = search.kneighbors(points[trial.judged])
    distances = distances.astype(np.float64)
    if metric == "cosine":
        distances = np.square(distances) / 2
    return Neighbours(trial.reference[found], distances)


def directions(features: Matrix) -> Matrix:
    """Scale rows to length one, so that squared Euclidean distances are 2 (1 - cosine).

    A row of zeros, which has no direction, gets one of its own: like other such rows, and at right
    angles to all else.
    """
    # The squares of all features would take as much memory as these.
    lengths = np.concatenate(
        [
            np.linalg.norm(features[start : start + _TOGETHER], axis=1, keepdims=True)
            for start in range(0, max(1, len(features)), _TOGETHER)
        ]
    )
    is_zero = lengths == 0
    scaled: Matrix = (features / np.where(is_zero, 1, lengths)).astype(np.float32, copy=False)
    return np.hstack([scaled, is_zero.astype(np.float32)]) if is_zero.any() else scaled
