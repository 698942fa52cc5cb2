# SPDX-License-Identifier: Apache-2.0
"""Whose neighbours are of which class: what is confused, and what sits inside another class."""

from dataclasses import dataclass

import numpy as np

from ray_embed.core.arrays import Array, Matrix

K = 20
_ROWS = 1024


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of n records by cosine, the record itself left out.

    `rows` (n, k) int64 are their positions, the nearest first, and `similarities` (n, k) float32
    the cosines. `own` (n,) float32 is the cosine to the nearest record of the same class, -1 where
    there is none.
    """

    rows: Array
    similarities: Array
    own: Array


def nearest(features: Matrix, codes: Array, k: int = K) -> Neighbours:
    """Find the k nearest neighbours, or all where there are fewer.

    Args:
        features: (n, D) float32, n > 1.
        codes: (n,) int64, the class of each.
        k: how many neighbours.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths > 0, lengths, 1)
    count = min(k, len(unit) - 1)
    rows = np.empty((len(unit), count), np.int64)
    similarities = np.empty((len(unit), count), np.float32)
    own = np.empty(len(unit), np.float32)
    for start in range(0, len(unit), _ROWS):
        part = slice(start, min(start + _ROWS, len(unit)))
        cosines = unit[part] @ unit.T
        cosines[np.arange(len(cosines)), np.arange(part.start, part.stop)] = -np.inf
        found = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(cosines, found, 1)
        # Of equals the first, so that it is the same each time.
        order = np.lexsort((found, -near), axis=1)
        rows[part] = np.take_along_axis(found, order, 1)
        similarities[part] = np.take_along_axis(near, order, 1)
        same = codes[part, None] == codes[None, :]
        own[part] = np.where(same, cosines, -np.inf).max(axis=1).clip(-1)
    return Neighbours(rows, similarities, own)


def confusion(found: Neighbours, codes: Array, classes: int) -> Array:
    """Give the share of each class among the neighbours of each class.

    Returns:
        (classes, classes) float64: row a, column b is the mean share of class b among the
        neighbours of the records of class a. Each row of a class with records adds up to 1.
    """
    counts = np.zeros((classes, classes))
    np.add.at(counts, (codes[:, None], codes[found.rows]), 1.0)
    shares: Array = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def most_confused(shares: Array, limit: int) -> Array:
    """Choose at most `limit` classes, by the pairs of which the most is confused."""
    apart = shares.copy()
    np.fill_diagonal(apart, 0)
    chosen: dict[int, None] = {}
    for pair in np.argsort(-apart, axis=None, kind="stable"):
        for code in divmod(int(pair), len(shares)):
            if len(chosen) < min(limit, len(shares)):
                chosen[code] = None
        if len(chosen) == min(limit, len(shares)):
            break
    return np.fromiter(chosen, np.int64)


@dataclass(frozen=True)
class Misplaced:
    """Records inside another class, the farthest first.

    `rows` (m,) int64 are their positions, `inside` (m,) int64 the class that they sit in, and
    `shares` (m,) float64 the share of it among their neighbours.
    """

    rows: Array
    inside: Array
    shares: Array


def misplaced(found: Neighbours, codes: Array) -> Misplaced:
    """Rank records by how far inside another class they sit.

    First by the share of the neighbours that are of one class, and not the record's own; where that
    is equal by how much nearer that class is than its own: the mean cosine to these neighbours,
    less the cosine to the nearest record of its own class. Records without such neighbours are
    left out.

    Args:
        found: the neighbours.
        codes: (n,) int64, the class of each record.
    """
    classes = codes[found.rows]
    foreign = classes != codes[:, None]
    inside, shares, lead = (np.zeros(len(codes), kind) for kind in (np.int64, float, float))
    for row in np.flatnonzero(foreign.any(axis=1)):
        counts = np.bincount(classes[row, foreign[row]])
        inside[row] = counts.argmax()
        of_it = classes[row] == inside[row]
        shares[row] = of_it.mean()
        lead[row] = found.similarities[row, of_it].mean() - found.own[row]
    order = np.lexsort((np.arange(len(codes)), -lead, -shares))
    order = order[shares[order] > 0]
    return Misplaced(order, inside[order], shares[order])
