# SPDX-License-Identifier: Apache-2.0
"""The nearest neighbors of records in memory, searched once for all measures that need them."""

from dataclasses import dataclass

import numpy as np

from ray_embed.analysis.evaluation.protocol import Protocol
from ray_embed.core.arrays import Array, Matrix, row_lengths, unit_rows

METRICS = ("cosine", "l2")


@dataclass(frozen=True)
class Neighbors:
    """The nearest reference records of each evaluated record, the nearest first.

    `positions` (n, k) int64 are positions in the subset. `distances` (n, k) float64 are 1 - cosine,
    or Euclidean.
    """

    positions: Array
    distances: Array


def find_neighbors(features: Matrix, protocol: Protocol, metric: str, count: int) -> Neighbors:
    """Find the `count` nearest reference records, or all of them if there are fewer.

    Args:
        features: (N, D) float32, of the subset.
        protocol: the reference, and the records to evaluate. No record is its own neighbor.
        metric: one of `METRICS`.
        count: how many neighbors to find.
    """
    points = compute_directions(features) if metric == "cosine" else features
    known, count = points[protocol.reference], min(count, protocol.max_neighbors)
    if protocol.leaves_one_out:
        distances, rows = search_nearest(known, count)
        evaluated = np.searchsorted(protocol.reference, protocol.evaluated)
        distances, rows = distances[evaluated], rows[evaluated]
    else:
        distances, rows = search_nearest(known, count, points[protocol.evaluated])
    distances = distances.astype(np.float64)
    if metric == "cosine":
        distances = np.square(distances) / 2
    return Neighbors(protocol.reference[rows], distances)


def search_nearest(
    points: Matrix, count: int, queries: Matrix | None = None
) -> tuple[Array, Array]:
    """Find the nearest points of each query by Euclidean distance.

    Args:
        points: (m, D).
        count: how many points to find, fewer than there are `points`.
        queries: (n, D). If None, the points themselves, none of which is its own neighbor.

    Returns:
        the distances (n, k), the nearest first, and the rows of the points (n, k) int64.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points)
    distances, rows = search.kneighbors(queries)
    return distances, rows


def compute_directions(features: Matrix) -> Matrix:
    """Scale rows to length one, so that squared Euclidean distances are 2 (1 - cosine).

    A row of zeros has no direction, so all such rows are given the same new one, which is
    orthogonal to all other rows.
    """
    lengths = row_lengths(features)
    scaled: Matrix = unit_rows(features, lengths).astype(np.float32, copy=False)
    is_zero = lengths == 0
    return np.hstack([scaled, is_zero.astype(np.float32)]) if is_zero.any() else scaled
