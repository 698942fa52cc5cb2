# SPDX-License-Identifier: Apache-2.0
"""The nearest records of a run, part by part: memory for one part and the best so far."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_embed.core.arrays import Array, as_matrix
from ray_embed.errors import InputError
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

Points = np.ndarray[Any, np.dtype[np.float64]]

METRICS = ("cosine", "l2")
_RECORD = ["index", "key", "label", "split"]
# Distances in memory at once.
_AT_ONCE = 1 << 22
# Numbers of a record from which on fewer records are taken together, and numbers taken together.
_WIDE, _NUMBERS = 8192, 1 << 23
# Squared distances below this share of the squared lengths are rounding, of float32 features too.
_NOTHING = 1e-13


def neighbors(
    folder: Folder,
    numbers: list[int],
    column: str,
    query: str | Array,
    k: int,
    metric: str,
    split: str | None = None,
) -> pa.Table:
    """Find the `k` nearest records of each query, among all that are embedded or those of a split.

    Cosine distance is 1 - cos, in [0, 2], and 1 where a vector is zero; `l2` is the Euclidean
    distance. Both are computed in float64 and compared in float32; of equal ones the lower index
    comes first.

    Args:
        folder: the run folder.
        numbers: its features parts, one at least, in order.
        column: the features.
        query: features (D,) or (n, D), or the key of a record (``split/key`` where splits share the
            key), which is then no neighbour of its own.
        k: how many of each query; fewer where there are no more records.
        metric: ``cosine`` or ``l2``.
        split: of which the neighbours are; None for all.

    Returns:
        a table, by query and rank: `query` int64 from 0, `rank` int64 from 1, `index` int64, `key`,
        `label`, `split`, and `distance` float32.

    Raises:
        InputError: no such key, split or metric, a key of several records, features of another
            dimension or not finite, or `k` is less than 1.
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    if k < 1:
        raise InputError(f"k is {k}; it must be 1 or more")
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; it must be {' or '.join(METRICS)}")
    own: tuple[int, int] | None = None
    if isinstance(query, str):
        own = _find(folder, numbers, query)
        part = part_files.read_part(folder, layout.FEATURES, own[0], [column])
        query = as_matrix(part[column])[own[1]]
    points = _points(query)
    search = _Search(points, k, metric)
    starts = [0]
    splits: dict[str, None] = {}
    for number, part in _each(folder, numbers, [column, "split"]):
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
        if own is not None and own[0] == number:
            searched = searched & (np.arange(len(rows)) != own[1])
        search.add(rows[searched], starts[-1] + np.flatnonzero(searched))
        starts.append(starts[-1] + len(rows))
    if split is not None and split not in splits:
        raise InputError(
            f"{folder.display_path()}: no record is of the split {split!r}; there are "
            f"{', '.join(splits)}"
        )
    count, found = search.places.shape
    ranked = {
        "query": np.repeat(np.arange(count), found),
        "rank": np.tile(np.arange(1, found + 1), count),
    }
    records = _records(folder, numbers, starts, search.places.ravel())
    table = pa.table({**ranked, **dict(zip(_RECORD, records.itercolumns(), strict=True))})
    return table.append_column("distance", pa.array(search.distances.ravel()))


class _Search:
    """The nearest rows of each query among those added so far, the nearest first.

    `distances` is (n, k) float32, `places` (n, k) int64.
    """

    def __init__(self, points: Points, k: int, metric: str) -> None:
        self._points = points
        self._k = k
        self._between = {"cosine": _cosine, "l2": _euclidean}[metric]
        self.distances: Array = np.zeros((len(points), 0), np.float32)
        self.places: Array = np.zeros((len(points), 0), np.int64)

    def add(self, rows: Array, places: Array) -> None:
        """Take rows (m, D) into account, which come after all others; (m,) is where they are."""
        # In double precision, a part of wide features would take a gigabyte or more.
        together = max(1, _NUMBERS // rows.shape[1]) if rows.shape[1] > _WIDE else len(rows)
        for start in range(0, len(rows), max(1, together)):
            self._add(rows[start : start + together], places[start : start + together])

    def _add(self, rows: Array, places: Array) -> None:
        wide = rows.astype(np.float64)
        size = max(1, _AT_ONCE // (len(rows) + self._k))
        blocks = [slice(at, at + size) for at in range(0, max(1, len(self._points)), size)]
        kept = [self._kept(block, wide, places) for block in blocks]
        self.distances = np.concatenate([distances for distances, _ in kept])
        self.places = np.concatenate([known for _, known in kept])

    def _kept(self, block: slice, rows: Points, places: Array) -> tuple[Array, Array]:
        new = self._between(self._points[block], rows).astype(np.float32)
        distances = np.concatenate([self.distances[block], new], axis=1)
        known = np.concatenate([self.places[block], np.broadcast_to(places, new.shape)], axis=1)
        # Floats that are not negative are in order by their bits, NaN last: with the position below
        # them no two are equal, and of equal distances the first is the smaller one.
        order = distances.view(np.uint32).astype(np.uint64) << np.uint64(32)
        order |= np.arange(order.shape[1], dtype=np.uint64)
        if order.shape[1] > self._k:
            order = np.partition(order, self._k - 1, axis=1)[:, : self._k]
        order.sort(axis=1)
        columns = (order & np.uint64(0xFFFFFFFF)).astype(np.int64)
        return np.take_along_axis(distances, columns, 1), np.take_along_axis(known, columns, 1)


def _unit(points: Points) -> Points:
    lengths: Points = np.linalg.norm(points, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return points / lengths


def _cosine(points: Points, rows: Points) -> Points:
    distances: Points = 1 - _unit(points) @ _unit(rows).T
    distances[distances < _NOTHING] = 0
    return distances


def _euclidean(points: Points, rows: Points) -> Points:
    lengths = np.add.outer(np.square(points).sum(axis=1), np.square(rows).sum(axis=1))
    squares: Points = lengths - 2 * points @ rows.T
    squares[squares < _NOTHING * lengths] = 0
    return np.sqrt(squares, out=squares)


def _points(query: Any) -> Points:
    """Give the queries as (n, D) float64.

    Raises:
        InputError: they are no finite numbers of that shape.
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


def _find(folder: Folder, numbers: list[int], key: str) -> tuple[int, int]:
    """Find the part and row of a key, or of ``split/key`` where none has it as it is.

    Raises:
        InputError: none has, or several.
    """
    # The name of a split holds no slash.
    split, _, rest = key.partition("/")
    plain: list[tuple[int, int, str]] = []
    joined: list[tuple[int, int, str]] = []
    for number, part in _each(folder, numbers, ["key", "split"]):
        keys, splits = part["key"], part["split"]
        within = pc.and_(pc.equal(keys, rest), pc.equal(splits, split))
        for found, mask in ((plain, pc.equal(keys, key)), (joined, within)):
            rows = np.flatnonzero(mask.to_numpy())
            found.extend((number, int(row), splits[int(row)].as_py()) for row in rows)
    found = plain or joined
    if len(found) == 1:
        number, row, _ = found[0]
        return number, row
    if not found:
        raise InputError(f"{folder.display_path()}: no embedded record has the key {key!r}")
    names = list(dict.fromkeys(name for _, _, name in found))
    if len(names) < len(found):
        mend, where = "give the features of the one meant", f"of {len(found)} records"
    else:
        mend = f"give {' or '.join(repr(f'{name}/{key}') for name in names)}"
        where = f"in {len(names)} splits"
    raise InputError(f"{folder.display_path()}: the key {key!r} is {where}; {mend}")


def _records(folder: Folder, numbers: list[int], starts: list[int], places: Array) -> pa.Table:
    """Read what is known of the rows at some places, in their order."""
    wanted, back = np.unique(places, return_inverse=True)
    ends = np.searchsorted(wanted, starts)
    rows = {
        number: wanted[first:last] - start
        for number, start, (first, last) in zip(numbers, starts, pairwise(ends), strict=False)
        if last > first
    }
    read = partial(part_files.read_part, folder, layout.FEATURES, columns=_RECORD)
    # One part at least, for the columns' types.
    read_from = rows or {numbers[0]: np.zeros(0, np.int64)}
    parts = part_files.map_parts(
        folder, lambda number: read(number).take(read_from[number]), read_from
    )
    return pa.concat_tables(list(parts)).combine_chunks().take(back)


def _each(folder: Folder, numbers: list[int], columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
    read = partial(part_files.read_part, folder, layout.FEATURES, columns=columns)
    yield from zip(numbers, part_files.map_parts(folder, read, numbers), strict=True)
