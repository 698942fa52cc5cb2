# SPDX-License-Identifier: Apache-2.0
"""Find near-duplicates among the images, independently of the encoder.

Two images are near-duplicates if their thumbnails, averaged down to 16×16, differ by less than 1 %
of the range of a pixel (RMS). A record with a near-duplicate in the reference is predicted by a
copy of itself.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ray_embed.analysis.evaluation.pixel_baseline import average_pixels
from ray_embed.core.arrays import Array

THRESHOLD = 0.01 * 255
LISTED = 100
_COARSE_SIDE = 4
_BLOCK = 512
# Rows with more bytes than this are compared by their digests.
_LONG_ROW_BYTES = 1 << 15


@dataclass(frozen=True)
class Duplicates:
    """Which records have a near-duplicate, and where.

    `splits` are the splits of the records. `in_split` (N, S) bool tells whether each record has a
    near-duplicate in each split. `pairs` holds at most 100 pairs, the most similar first: the
    positions of two records and their difference. Of several equal images, only the first is paired
    with other images.
    """

    splits: tuple[str, ...]
    in_split: Array
    pairs: tuple[tuple[int, int, float], ...]

    def select(self, splits: Array) -> Array:
        """Return which records (N,) bool have a near-duplicate in any of the given splits."""
        is_selected = np.isin(self.splits, np.unique(splits.astype(str)))
        return np.asarray(self.in_split[:, is_selected].any(axis=1))

    def count(self, splits: Array) -> dict[str, dict[str, int]]:
        """Count the records of each split with a near-duplicate in each split, omitting zeros."""
        by_split: dict[str, dict[str, int]] = {}
        for split in self.splits:
            counts = self.in_split[splits == split].sum(axis=0).tolist()
            by_split[split] = {other: n for other, n in zip(self.splits, counts, strict=True) if n}
        return {split: others for split, others in by_split.items() if others}


def find_near_duplicates(pictures: Array, splits: Array) -> Duplicates:
    """Find the near-duplicates.

    Args:
        pictures: (N, side, side, channels) float32, 0 to 255.
        splits: (N,) object, the split of each.
    """
    names, split_of = np.unique(splits.astype(str), return_inverse=True)
    flat = pictures.reshape(len(pictures), -1)
    first, unique_of = group_equal_rows(flat)
    members = np.zeros((len(first), len(names)))
    np.add.at(members, (unique_of, split_of), 1)
    others = members.copy()
    closest: list[tuple[float, int, int]] = list(_pair_equal_rows(first, unique_of))
    coarse = average_pixels(pictures[first], _COARSE_SIDE).reshape(len(first), -1)
    for rows, columns, differences in _compare_blocks(flat[first], coarse):
        np.add.at(others, rows, members[columns])
        once = np.flatnonzero(rows < columns)
        # There may be millions of pairs. A stable sort keeps equal differences in order.
        once = once[np.argsort(differences[once], kind="stable")[:LISTED]]
        pairs = zip(
            differences[once].tolist(),
            first[rows[once]].tolist(),
            first[columns[once]].tolist(),
            strict=True,
        )
        closest = heapq.nsmallest(LISTED, [*closest, *pairs])
    counts = others[unique_of]
    # No record is its own duplicate.
    counts[np.arange(len(splits)), split_of] -= 1
    listed = tuple((min(a, b), max(a, b), d) for d, a, b in sorted(closest)[:LISTED])
    return Duplicates(tuple(names.tolist()), counts > 0, listed)


def find_equal_features(features: Array, splits: Array) -> Duplicates:
    """Find the records whose features are equal, bit for bit.

    Args:
        features: (N, D) float32.
        splits: (N,) object, the split of each.
    """
    names, split_of = np.unique(splits.astype(str), return_inverse=True)
    first, unique_of = group_equal_rows(features)
    members = np.zeros((len(first), len(names)), np.int64)
    np.add.at(members, (unique_of, split_of), 1)
    counts = members[unique_of]
    counts[np.arange(len(splits)), split_of] -= 1
    pairs = tuple((a, b, 0.0) for _, a, b in _pair_equal_rows(first, unique_of))
    return Duplicates(tuple(names.tolist()), counts > 0, pairs[:LISTED])


def group_equal_rows(values: Array) -> tuple[Array, Array]:
    """Return the first row of each group of equal rows (u,), and the group of each row (N,)."""
    contiguous = np.ascontiguousarray(values)
    # Adding zero makes -0.0 equal to 0.0.
    if contiguous.strides[0] > _LONG_ROW_BYTES:
        # Sorting long rows takes several times their memory.
        digests = [blake2b(row + 0.0, digest_size=16).digest() for row in contiguous]
        as_bytes = np.array(digests, np.dtype((np.void, 16)))
    else:
        as_bytes = (contiguous + 0.0).view(np.dtype((np.void, contiguous.strides[0]))).ravel()
    _, first, unique_of = np.unique(as_bytes, return_index=True, return_inverse=True)
    return first, unique_of


def _pair_equal_rows(first: Array, unique_of: Array) -> Iterator[tuple[float, int, int]]:
    """Yield pairs of equal rows: the first row of a group with each of the others."""
    repeated = np.flatnonzero(first[unique_of] != np.arange(len(unique_of)))
    for row in repeated[:LISTED].tolist():
        yield 0.0, int(first[unique_of[row]]), row


def _compare_blocks(flat: Array, coarse: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Yield rows, columns and differences of near-duplicates that are not equal, by blocks.

    Averaging never makes a difference (RMS) larger, so images that differ when coarse do differ.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    def compare(values: Array, rows: Array, columns: Array) -> Array:
        differences: Array = euclidean_distances(values[rows], values[columns])
        differences /= np.sqrt(values.shape[1])
        return differences

    positions = np.arange(len(flat))
    for start in range(0, len(flat), _BLOCK):
        block = positions[start : start + _BLOCK]
        # Rounding must not lose a pair.
        is_candidate = compare(coarse, block, positions) < 1.01 * THRESHOLD
        is_candidate[np.arange(len(block)), block] = False
        rows, columns = block[is_candidate.any(axis=1)], positions[is_candidate.any(axis=0)]
        if not len(rows):
            continue
        differences = compare(flat, rows, columns)
        is_near = (differences < THRESHOLD) & (rows[:, None] != columns)
        near_rows, near_columns = np.nonzero(is_near)
        yield rows[near_rows], columns[near_columns], differences[near_rows, near_columns]
