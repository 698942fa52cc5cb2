# SPDX-License-Identifier: Apache-2.0
"""The nearest records of a run, read part by part.

Only one part and the nearest records so far are held in memory.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_embed.core.arrays import Array, as_matrix, smallest_columns, unit_rows
from ray_embed.errors import InputError
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

Points = np.ndarray[Any, np.dtype[np.float64]]

METRICS = ("cosine", "l2")
_RECORD = ["index", "key", "label", "split"]
# How many distances are in memory at once.
_DISTANCES_AT_ONCE = 1 << 22
# Records with more than `_WIDE` numbers are read in blocks of about `_BLOCK_NUMBERS` numbers.
_WIDE, _BLOCK_NUMBERS = 8192, 1 << 23
# Squared distances below this share of the squared lengths are rounding errors, even in float32.
_ROUNDING = 1e-13


def neighbors(
    folder: Folder,
    numbers: list[int],
    column: str,
    query: str | Array,
    k: int,
    metric: str,
    split: str | None = None,
) -> pa.Table:
    """Find the `k` nearest records of each query, in all splits or in one.

    Cosine distance is 1 - cos, in [0, 2], and 1 where a vector is zero. `l2` is the Euclidean
    distance. Both are computed in float64 and compared in float32. Records at equal distances are
    ordered by index.

    Args:
        folder: the run folder.
        numbers: the numbers of its feature parts, at least one, in order.
        column: the column of the features.
        query: features (D,) or (n, D), or the key of a record (``split/key`` if several splits have
            the key). A record given by its key is not its own neighbor.
        k: the number of neighbors of each query. There are fewer if fewer records are searched.
        metric: ``cosine`` or ``l2``.
        split: the split to search. If None, all splits are searched.

    Returns:
        a table, by query and rank: `query` int64 from 0, `rank` int64 from 1, `index` int64, `key`,
        `label`, `split`, and `distance` float32.

    Raises:
        InputError: the key, split or measure does not exist, several records have the key, the
            query's features are not finite or have another dimension, or `k` is less than 1.
        DamagedError: a part differs from what was written.
        StorageError: a part cannot be read.
    """
    if k < 1:
        raise InputError(f"k is {k}; it must be 1 or more")
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; it must be {' or '.join(METRICS)}")
    queried: tuple[int, int] | None = None
    if isinstance(query, str):
        queried = _locate_key(folder, numbers, query)
        part = part_files.read_part(folder, layout.FEATURES, queried[0], [column])
        query = as_matrix(part[column])[queried[1]]
    points = _check_points(query)
    search = _Search(points, k, metric)
    starts = [0]
    splits: dict[str, None] = {}
    for number, part in _read_parts(folder, numbers, [column, "split"]):
        rows = as_matrix(part[column])
        if points.shape[1] != rows.shape[1]:
            raise InputError(
                f"the query has {points.shape[1]} dimensions, and the features of "
                f"{folder.display_path()} have {rows.shape[1]}"
            )
        searched = np.ones(len(rows), bool)
        if split is not None:
            splits |= dict.fromkeys(pc.unique(part["split"]).to_pylist())
            searched = pc.equal(part["split"], split).to_numpy()
        if queried is not None and queried[0] == number:
            searched = searched & (np.arange(len(rows)) != queried[1])
        search.add(rows[searched], starts[-1] + np.flatnonzero(searched))
        starts.append(starts[-1] + len(rows))
    if split is not None and split not in splits:
        raise InputError(
            f"{folder.display_path()}: no record has the split {split!r}; the splits are "
            f"{', '.join(splits)}"
        )
    count, nearest = search.positions.shape
    ranked = {
        "query": np.repeat(np.arange(count), nearest),
        "rank": np.tile(np.arange(1, nearest + 1), count),
    }
    records = _read_records(folder, numbers, starts, search.positions.ravel())
    table = pa.table({**ranked, **dict(zip(_RECORD, records.itercolumns(), strict=True))})
    return table.append_column("distance", pa.array(search.distances.ravel()))


class _Search:
    """The nearest rows of each query among the rows added so far, the nearest first.

    `distances` is (n, k) float32, `positions` (n, k) int64.
    """

    def __init__(self, points: Points, k: int, metric: str) -> None:
        self._points = points
        self._k = k
        self._measure = {"cosine": _cosine_distances, "l2": _euclidean_distances}[metric]
        self.distances: Array = np.zeros((len(points), 0), np.float32)
        self.positions: Array = np.zeros((len(points), 0), np.int64)

    def add(self, rows: Array, positions: Array) -> None:
        """Also search rows (m, D). Their positions (m,) must exceed all positions so far."""
        # In double precision, a part of wide features would take a gigabyte or more.
        size = max(1, _BLOCK_NUMBERS // rows.shape[1]) if rows.shape[1] > _WIDE else len(rows)
        for start in range(0, len(rows), max(1, size)):
            self._add(rows[start : start + size], positions[start : start + size])

    def _add(self, rows: Array, positions: Array) -> None:
        doubles = rows.astype(np.float64)
        size = max(1, _DISTANCES_AT_ONCE // (len(rows) + self._k))
        starts = range(0, max(1, len(self._points)), size)
        blocks = [self._search(slice(start, start + size), doubles, positions) for start in starts]
        self.distances = np.concatenate([distances for distances, _ in blocks])
        self.positions = np.concatenate([nearest for _, nearest in blocks])

    def _search(self, block: slice, rows: Points, positions: Array) -> tuple[Array, Array]:
        new = self._measure(self._points[block], rows).astype(np.float32)
        distances = np.concatenate([self.distances[block], new], axis=1)
        known = np.concatenate([self.positions[block], np.broadcast_to(positions, new.shape)], 1)
        nearest = smallest_columns(distances, self._k)
        return np.take_along_axis(distances, nearest, 1), np.take_along_axis(known, nearest, 1)


def _cosine_distances(points: Points, rows: Points) -> Points:
    distances: Points = 1 - unit_rows(points) @ unit_rows(rows).T
    distances[distances < _ROUNDING] = 0
    return distances


def _euclidean_distances(points: Points, rows: Points) -> Points:
    lengths = np.add.outer(np.square(points).sum(axis=1), np.square(rows).sum(axis=1))
    squares: Points = lengths - 2 * points @ rows.T
    squares[squares < _ROUNDING * lengths] = 0
    return np.sqrt(squares, out=squares)


def _check_points(query: Any) -> Points:
    """Return the queries as (n, D) float64.

    Raises:
        InputError: the query does not consist of finite numbers of shape (D,) or (n, D).
    """
    try:
        points = np.asarray(query, np.float64)
    except (TypeError, ValueError):
        points = np.zeros(())
    if points.ndim not in (1, 2):
        raise InputError("the query must be a key, or features of shape (D,) or (n, D)")
    if not np.isfinite(points).all():
        raise InputError("the query has features that are not finite")
    return np.atleast_2d(points)


def _locate_key(folder: Folder, numbers: list[int], key: str) -> tuple[int, int]:
    """Find the part and row of a record by its key, or by ``split/key`` if no record has that key.

    Raises:
        InputError: no record has the key, or several do.
    """
    # The name of a split contains no slash.
    split, _, rest = key.partition("/")
    as_keys: list[tuple[int, int, str]] = []
    within_splits: list[tuple[int, int, str]] = []
    for number, part in _read_parts(folder, numbers, ["key", "split"]):
        keys, splits = part["key"], part["split"]
        within = pc.and_(pc.equal(keys, rest), pc.equal(splits, split))
        for matches, mask in ((as_keys, pc.equal(keys, key)), (within_splits, within)):
            rows = np.flatnonzero(mask.to_numpy())
            matches.extend((number, int(row), splits[int(row)].as_py()) for row in rows)
    matches = as_keys or within_splits
    if len(matches) == 1:
        number, row, _ = matches[0]
        return number, row
    if not matches:
        raise InputError(f"{folder.display_path()}: no embedded record has the key {key!r}")
    names = list(dict.fromkeys(name for _, _, name in matches))
    if len(names) < len(matches):
        where, advice = f"that of {len(matches)} records", "give the features of one of them"
    else:
        where = f"in {len(names)} splits"
        advice = f"give {' or '.join(repr(f'{name}/{key}') for name in names)}"
    raise InputError(f"{folder.display_path()}: the key {key!r} is {where}; {advice}")


def _read_records(
    folder: Folder, numbers: list[int], starts: list[int], positions: Array
) -> pa.Table:
    """Read the index, key, label and split of the rows at the given positions, in that order."""
    unique, order = np.unique(positions, return_inverse=True)
    ends = np.searchsorted(unique, starts)
    rows = {
        number: unique[first:last] - start
        for number, start, (first, last) in zip(numbers, starts, pairwise(ends), strict=False)
        if last > first
    }
    read = partial(part_files.read_part, folder, layout.FEATURES, columns=_RECORD)
    # Read at least one part, for the types of the columns.
    taken = rows or {numbers[0]: np.zeros(0, np.int64)}
    parts = part_files.map_parts(folder, lambda number: read(number).take(taken[number]), taken)
    return pa.concat_tables(list(parts)).combine_chunks().take(order)


def _read_parts(
    folder: Folder, numbers: list[int], columns: list[str]
) -> Iterator[tuple[int, pa.Table]]:
    read = partial(part_files.read_part, folder, layout.FEATURES, columns=columns)
    yield from zip(numbers, part_files.map_parts(folder, read, numbers), strict=True)
