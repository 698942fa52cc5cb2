# SPDX-License-Identifier: Apache-2.0
"""Some records of a run, or all where there are few, in memory: what its features are judged by.

The same records each time: drawn by split and label, as those that the projector shows.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.core.arrays import Array, Matrix, as_matrix
from ray_embed.errors import InputError
from ray_embed.images import thumbnails
from ray_embed.runs import stratified
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# Squares of features in between fit into float32, added up over a million dimensions too.
_SMALLEST, _LARGEST = 1e-16, 1e16

_RECORD = ("index", "key", "label", "split")
# Features in memory.
_BYTES = 1 << 30


@dataclass(frozen=True)
class Subset:
    """Records of a run, in order.

    `features` is (n, D) float32. `index` (n,) int64, `keys` (n,), `labels` (n,) and `splits` (n,)
    are of object, the labels None where there are none. `label_type` is that of the column, and
    `total` the number of records that they were drawn from.
    """

    features: Matrix
    index: Array
    keys: Array
    labels: Array
    splits: Array
    label_type: pa.DataType
    total: int

    def __len__(self) -> int:
        return len(self.index)


def limit_by_memory(limit: int, dimensions: int) -> int:
    """Give how many records, at most `limit`, have features that fit into a gigabyte.

    Args:
        limit: how many at most.
        dimensions: of all the features of a record that are in memory together.
    """
    return max(2, min(limit, _BYTES // (4 * dimensions)))


def draw_sample(folder: Folder, column: str, limit: int, among: Array | None = None) -> Subset:
    """Take at most `limit` records of a run into memory.

    Args:
        folder: the run folder, with all its parts.
        column: the features.
        limit: how many records at most.
        among: (m,) int64, sorted, the `index` of those to draw from; None for all.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    drawn, total = _draw_rows(folder, limit, among)
    return _read_rows(folder, column, drawn, total)


def draw_components(folder: Folder, column: str, limit: int) -> tuple[Array, Matrix]:
    """Draw the records that `draw` draws; read their principal components instead of features.

    Args:
        folder: the run folder, with all its parts, reduced.
        column: the features.
        limit: how many records at most.

    Returns:
        their `index` (n,) int64, and coordinates (n, k) float32.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    drawn, _ = _draw_rows(folder, limit, None)
    name = layout.pca_column(column)

    def take(number: int) -> pa.Table:
        part = part_files.read_part(folder, layout.PCA, number, ["index", name])
        return part.take(pa.array(drawn[number]))

    taken = pa.concat_tables(list(part_files.map_parts(folder, take, drawn)))
    return taken["index"].to_numpy(), as_matrix(taken[name])


def _draw_rows(folder: Folder, limit: int, among: Array | None) -> tuple[dict[int, Array], int]:
    """Draw rows of the parts; returns them by part, and of how many records they are."""
    numbers = list(part_files.list_part_numbers(folder))

    def strata_of(number: int) -> tuple[pa.Table, Array]:
        part = _read_columns(folder, ["index", "split", "label"], number)
        own = part["index"].to_numpy()
        rows = np.arange(len(own)) if among is None else np.flatnonzero(_find_members(own, among))
        return part.take(pa.array(rows)), rows

    strata = stratified.Strata(limit)
    for table, _ in part_files.map_parts(folder, strata_of, numbers):
        strata.add(table)
    total = sum(strata.counts.values())
    chosen = stratified.Draw(strata.counts, min(limit, total))
    drawn = {}
    tables = part_files.map_parts(folder, strata_of, numbers)
    for number, (table, rows) in zip(numbers, tables, strict=True):
        drawn[number] = rows[chosen.take(table)]
    return drawn, total


def read_records(folder: Folder, column: str, index: Array, total: int) -> Subset:
    """Take the records of `index` (n,) int64, which are there, into memory, in its order.

    Args:
        folder: the run folder.
        column: the features.
        index: which records; none of them twice.
        total: the number of records that they were drawn from.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    numbers = list(part_files.list_part_numbers(folder))
    wanted = np.sort(index)

    def rows_of(number: int) -> Array:
        own = _read_columns(folder, ["index"], number)["index"].to_numpy()
        return np.flatnonzero(_find_members(own, wanted))

    rows = dict(zip(numbers, part_files.map_parts(folder, rows_of, numbers), strict=True))
    found = _read_rows(folder, column, rows, total)
    by_index = np.argsort(found.index)
    return select_rows(found, by_index[np.searchsorted(found.index, index, sorter=by_index)])


def select_rows(subset: Subset, rows: Array) -> Subset:
    """Give the records at some positions of a subset, in the order of `rows`."""
    names = ("features", "index", "keys", "labels", "splits")
    return replace(subset, **{name: getattr(subset, name)[rows] for name in names})


def find_held_records(folder: Folder, index: Array) -> Array:
    """Say which records (n,) bool a run holds.

    Args:
        folder: the run folder, with all its parts.
        index: (n,) int64, of records.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    wanted = np.sort(index)

    def of_part(number: int) -> Array:
        own: Array = _read_columns(folder, ["index"], number)["index"].to_numpy()
        return own[_find_members(own, wanted)]

    parts = part_files.map_parts(folder, of_part, part_files.list_part_numbers(folder))
    return np.isin(index, np.concatenate([wanted[:0], *parts]))


def check_finite(subset: Subset, name: str) -> None:
    """Refuse features that are not finite, or whose squares are not: all numbers would be wrong.

    Args:
        subset: the records.
        name: what they are of, for the message.

    Raises:
        InputError: some are not.
    """
    (unsound,) = np.nonzero(~np.isfinite(subset.features).all(axis=1))
    if len(unsound):
        first = unsound[0]
        raise InputError(
            f"{name}: the features of {len(unsound)} of {len(subset)} records are not finite, "
            f"{subset.splits[first]} {subset.keys[first]!r} for one; mend the encoder, or take "
            "another --layer"
        )
    largest = float(np.abs(subset.features).max(initial=0))
    if largest and not _SMALLEST < largest < _LARGEST:
        size = "large" if largest >= _LARGEST else "small"
        raise InputError(
            f"{name}: the features are too {size} to compute distances in float32 (the largest is "
            f"{largest:.1e}); check the encoder's weights and --scale, or take another --layer"
        )


def read_thumbnails(folder: Folder, index: Array) -> list[thumbnails.Pixels] | None:
    """Give the thumbnails (h, w, 1 or 3) uint8 of records, in the order of `index`.

    None where some are missing.

    Args:
        folder: the run folder.
        index: (n,) int64, of records that are there.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    wanted = np.unique(index)
    found: dict[int, thumbnails.Pixels] = {}
    numbers = list(part_files.list_part_numbers(folder, layout.THUMBNAILS))

    def read(part: pq.ParquetFile) -> pa.Table:
        index = part.read(["index"], use_threads=False)
        mask = _find_members(index["index"].to_numpy(), wanted)
        # Most parts have none of a few, and pictures are most of the bytes.
        if not mask.any():
            return part_files.THUMBNAIL_SCHEMA.empty_table()
        return part.read(["index", "png"], use_threads=False).filter(pa.array(mask))

    def read_part(number: int) -> pa.Table:
        return part_files.read_part_with(folder, layout.THUMBNAILS, number, read)

    for part in part_files.map_parts(folder, read_part, numbers):
        pngs = zip(part["index"].to_pylist(), part["png"].to_pylist(), strict=True)
        found.update((at, thumbnails.decode_png(png)) for at, png in pngs)
    if len(found) < len(wanted):
        return None
    return [found[int(at)] for at in index]


def _read_rows(folder: Folder, column: str, rows: dict[int, Array], total: int) -> Subset:
    """Read rows of parts."""

    def take(number: int) -> pa.Table:
        return _read_columns(folder, [*_RECORD, column], number).take(pa.array(rows[number]))

    # Where nothing is taken, the types are still there.
    numbers = [number for number in rows if len(rows[number])] or list(rows)[:1]
    features: Matrix | None = None
    taken: list[pa.Table] = []
    start = 0
    for part in part_files.map_parts(folder, take, numbers):
        own = as_matrix(part[column])
        if features is None:
            # One after the other: all parts and all rows would be twice as much.
            features = np.empty((sum(map(len, rows.values())), own.shape[1]), np.float32)
        features[start : start + len(own)] = own
        start += len(own)
        taken.append(part.drop_columns([column]))
    assert features is not None  # noqa: S101 - there is a part at least
    records = pa.concat_tables(taken)
    texts = {name: _to_objects(records[name]) for name in ("key", "label", "split")}
    return Subset(
        features,
        records["index"].to_numpy(),
        texts["key"],
        texts["label"],
        texts["split"],
        records.schema.field("label").type,
        total,
    )


def _find_members(values: Array, among: Array) -> Array:
    """Say which values are among sorted ones; sorting those again for each part would take long."""
    if not len(among):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(among, values), len(among) - 1)
    found: Array = among[place] == values
    return found


def _read_columns(folder: Folder, columns: list[str], number: int) -> pa.Table:
    return part_files.read_part(folder, layout.FEATURES, number, columns)


def _to_objects(column: pa.ChunkedArray) -> Array:
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values
