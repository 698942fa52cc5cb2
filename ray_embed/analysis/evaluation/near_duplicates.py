# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates among the pictures: of the data, and not of the encoder.

Two pictures are near-duplicates if their thumbnails, averaged down to 16×16, differ by less than
1 % of the range of a pixel (RMS). A record of which the reference holds one is told by itself.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ray_embed.analysis.evaluation.pixel_baseline import averaged
from ray_embed.core.arrays import Array

THRESHOLD = 0.01 * 255
LISTED = 100
_COARSE = 4
_BLOCK = 512
# Bytes of a row from which on it is compared by a digest.
_LONG = 1 << 15


@dataclass(frozen=True)
class Duplicates:
    """Which records have a near-duplicate, and where.

    `splits` are those of the records; `found` (N, S) bool is whether a record has one in each.
    `pairs` are positions of two records with their difference, the most alike first, 100 at most;
    of pictures that are the same the first stands for all.
    """

    splits: tuple[str, ...]
    found: Array
    pairs: tuple[tuple[int, int, float], ...]

    def among(self, splits: Array) -> Array:
        """Give which records (N,) bool have one in some splits."""
        own = np.isin(self.splits, np.unique(splits.astype(str)))
        return np.asarray(self.found[:, own].any(axis=1))

    def counts(self, splits: Array) -> dict[str, dict[str, int]]:
        """Count, by their split, the records (N,) that have one in each split; 0 is left out."""
        found: dict[str, dict[str, int]] = {}
        for split in self.splits:
            counts = self.found[splits == split].sum(axis=0).tolist()
            found[split] = {to: n for to, n in zip(self.splits, counts, strict=True) if n}
        return {split: others for split, others in found.items() if others}


def near_duplicates(pictures: Array, splits: Array) -> Duplicates:
    """Find the near-duplicates.

    Args:
        pictures: (N, side, side, channels) float32, 0 to 255.
        splits: (N,) object, the split of each.
    """
    names, split_of = np.unique(splits.astype(str), return_inverse=True)
    flat = pictures.reshape(len(pictures), -1)
    first, unique_of = same_rows(flat)
    members = np.zeros((len(first), len(names)))
    np.add.at(members, (unique_of, split_of), 1)
    others = members.copy()
    closest: list[tuple[float, int, int]] = list(_equal(first, unique_of))
    coarse = averaged(pictures[first], _COARSE).reshape(len(first), -1)
    for rows, columns, differences in _near(flat[first], coarse):
        np.add.at(others, rows, members[columns])
        once = np.flatnonzero(rows < columns)
        # Of look-alikes there may be millions, in order already where they are equally far.
        once = once[np.argsort(differences[once], kind="stable")[:LISTED]]
        pairs = zip(
            differences[once].tolist(),
            first[rows[once]].tolist(),
            first[columns[once]].tolist(),
            strict=True,
        )
        closest = heapq.nsmallest(LISTED, [*closest, *pairs])
    counts = others[unique_of]
    # Nobody is a duplicate of himself.
    counts[np.arange(len(splits)), split_of] -= 1
    listed = tuple((min(a, b), max(a, b), d) for d, a, b in sorted(closest)[:LISTED])
    return Duplicates(tuple(names.tolist()), counts > 0, listed)


def equal_features(features: Array, splits: Array) -> Duplicates:
    """Find the records whose features are the same, bit for bit.

    Args:
        features: (N, D) float32.
        splits: (N,) object, the split of each.
    """
    names, split_of = np.unique(splits.astype(str), return_inverse=True)
    first, unique_of = same_rows(features)
    members = np.zeros((len(first), len(names)), np.int64)
    np.add.at(members, (unique_of, split_of), 1)
    counts = members[unique_of]
    counts[np.arange(len(splits)), split_of] -= 1
    pairs = tuple((a, b, 0.0) for _, a, b in _equal(first, unique_of))
    return Duplicates(tuple(names.tolist()), counts > 0, pairs[:LISTED])


def same_rows(values: Array) -> tuple[Array, Array]:
    """Give the first row of each different one (u,), and which of them each row (N,) is."""
    contiguous = np.ascontiguousarray(values)
    # Zeros of either sign are the same number.
    if contiguous.strides[0] > _LONG:
        # Sorting long rows takes several times their memory.
        digests = [blake2b(row + 0.0, digest_size=16).digest() for row in contiguous]
        as_bytes = np.array(digests, np.dtype((np.void, 16)))
    else:
        as_bytes = (contiguous + 0.0).view(np.dtype((np.void, contiguous.strides[0]))).ravel()
    _, first, unique_of = np.unique(as_bytes, return_index=True, return_inverse=True)
    return first, unique_of


def _equal(first: Array, unique_of: Array) -> Iterator[tuple[float, int, int]]:
    """Give some pairs of equal rows: the first of them with each other one."""
    repeated = np.flatnonzero(first[unique_of] != np.arange(len(unique_of)))
    for at in repeated[:LISTED].tolist():
        yield 0.0, int(first[unique_of[at]]), at


def _near(flat: Array, coarse: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Give rows, columns and differences of different pictures that are near, a block at a time.

    Averaging never makes a difference (RMS) larger, so what is far in the coarse pictures is far.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    def differences(values: Array, rows: Array, columns: Array) -> Array:
        found: Array = euclidean_distances(values[rows], values[columns])
        found /= np.sqrt(values.shape[1])
        return found

    everyone = np.arange(len(flat))
    for start in range(0, len(flat), _BLOCK):
        block = everyone[start : start + _BLOCK]
        # Rounding must not lose a pair.
        maybe = differences(coarse, block, everyone) < 1.01 * THRESHOLD
        maybe[np.arange(len(block)), block] = False
        rows, columns = block[maybe.any(axis=1)], everyone[maybe.any(axis=0)]
        if not len(rows):
            continue
        exact = differences(flat, rows, columns)
        near = (exact < THRESHOLD) & (rows[:, None] != columns)
        at, to = np.nonzero(near)
        yield rows[at], columns[to], exact[at, to]
