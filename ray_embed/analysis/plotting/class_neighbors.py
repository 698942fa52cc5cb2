# SPDX-License-Identifier: Apache-2.0
"""Find which classes are confused, and which records lie inside another class."""

from dataclasses import dataclass

import numpy as np

from ray_embed.core.arrays import Array, Matrix, smallest_columns, unit_rows

K = 20
_ROWS = 1024


@dataclass(frozen=True)
class ClassNeighbors:
    """The nearest neighbors of n records by cosine, excluding each record itself.

    `rows` (n, k) int64 holds the positions of the neighbors, the nearest first, and `similarities`
    (n, k) float32 holds their cosines. `same_class` (n,) float32 holds the cosine to the nearest
    record of the same class, or -1 if there is none.
    """

    rows: Array
    similarities: Array
    same_class: Array


def find_class_neighbors(features: Matrix, codes: Array, k: int = K) -> ClassNeighbors:
    """Find the k nearest neighbors, or all if there are fewer. Ties go to the first record.

    Args:
        features: (n, D) float32, n > 1.
        codes: (n,) int64, the class of each.
        k: how many neighbors.
    """
    units = unit_rows(features)
    count = min(k, len(units) - 1)
    rows = np.empty((len(units), count), np.int64)
    similarities = np.empty((len(units), count), np.float32)
    same_class = np.empty(len(units), np.float32)
    for start in range(0, len(units), _ROWS):
        block = slice(start, min(start + _ROWS, len(units)))
        cosines = units[block] @ units.T
        cosines[np.arange(len(cosines)), np.arange(block.start, block.stop)] = -np.inf
        rows[block] = smallest_columns(-cosines.astype(np.float32, copy=False), count)
        similarities[block] = np.take_along_axis(cosines, rows[block], 1)
        same = codes[block, None] == codes[None, :]
        same_class[block] = np.where(same, cosines, -np.inf).max(axis=1).clip(-1)
    return ClassNeighbors(rows, similarities, same_class)


def compute_confusion(neighbors: ClassNeighbors, codes: Array, classes: int) -> Array:
    """Compute the share of each class among the neighbors of each class.

    Returns:
        (classes, classes) float64: row a, column b is the mean share of class b among the neighbors
        of the records of class a. The row of each class that has records sums to 1.
    """
    counts = np.zeros((classes, classes))
    np.add.at(counts, (codes[:, None], codes[neighbors.rows]), 1.0)
    shares: Array = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def choose_most_confused(shares: Array, limit: int) -> Array:
    """Choose at most `limit` classes, taken from the most confused pairs."""
    confused = shares.copy()
    np.fill_diagonal(confused, 0)
    limit = min(limit, len(shares))
    chosen: dict[int, None] = {}
    for pair in np.argsort(-confused, axis=None, kind="stable"):
        for code in divmod(int(pair), len(shares)):
            if len(chosen) < limit:
                chosen[code] = None
        if len(chosen) == limit:
            break
    return np.fromiter(chosen, np.int64)


@dataclass(frozen=True)
class Misplaced:
    """Records that lie inside another class, the farthest inside first.

    `rows` (m,) int64 holds their positions, `inside` (m,) int64 the class that each lies inside,
    and `shares` (m,) float64 the share of that class among its neighbors.
    """

    rows: Array
    inside: Array
    shares: Array


def rank_misplaced(neighbors: ClassNeighbors, codes: Array) -> Misplaced:
    """Rank records by how far inside another class they are.

    The first criterion is the share of one other class among the neighbors. Ties are broken by how
    much nearer that class is than the record's own: the mean cosine to these neighbors, minus the
    cosine to the nearest record of its own class. Records without neighbors of another class are
    left out.

    Args:
        neighbors: the neighbors.
        codes: (n,) int64, the class of each record.
    """
    classes = codes[neighbors.rows]
    is_other = classes != codes[:, None]
    inside, shares, lead = (np.zeros(len(codes), kind) for kind in (np.int64, float, float))
    for row in np.flatnonzero(is_other.any(axis=1)):
        counts = np.bincount(classes[row, is_other[row]])
        inside[row] = counts.argmax()
        is_inside = classes[row] == inside[row]
        shares[row] = is_inside.mean()
        lead[row] = neighbors.similarities[row, is_inside].mean() - neighbors.same_class[row]
    order = np.lexsort((np.arange(len(codes)), -lead, -shares))
    order = order[shares[order] > 0]
    return Misplaced(order, inside[order], shares[order])
