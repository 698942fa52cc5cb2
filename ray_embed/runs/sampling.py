# SPDX-License-Identifier: Apache-2.0
"""Take a sample of a run's records into memory, for evaluation and plots.

A sample is drawn by split and label with a fixed seed, like the sample that the projector shows. A
small run is read completely.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.core.arrays import Array, Matrix, as_matrix, as_objects
from ray_embed.errors import InputError
from ray_embed.images import thumbnails
from ray_embed.runs import stratified
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# Between these magnitudes, a sum of squares over a million dimensions fits into float32.
_SMALLEST, _LARGEST = 1e-16, 1e16

_RECORD = ("index", "key", "label", "split")
# The maximum number of bytes of features in memory.
_MAX_FEATURE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Records of a run, in order.

    Attributes:
        features: (n, D) float32.
        index: (n,) int64.
        keys: (n,) object.
        labels: (n,) object. The label of an unlabeled record is None. Labels can be lists of str.
        splits: (n,) object.
        label_type: the type of the column of labels.
        total: the number of records that these were drawn from.
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
    """Return how many records, at most `limit`, have features that fit into a gigabyte.

    Args:
        limit: the most records.
        dimensions: the number of dimensions per record that are in memory at once.
    """
    return max(2, min(limit, _MAX_FEATURE_BYTES // (4 * dimensions)))


def draw_sample(folder: Folder, column: str, limit: int, among: Array | None = None) -> Subset:
    """Draw a sample of a run's records, and read it.

    Args:
        folder: the run folder, with all its parts.
        column: the column of features.
        limit: the most records.
        among: (m,) int64, sorted, the `index` of the records to draw from. If None, draw from all
            records.

    Raises:
        DamagedError: a part is damaged.
        StorageError: a part cannot be read.
    """
    rows, total = _draw_rows(folder, limit, among)
    return _read_rows(folder, column, rows, total)


def draw_components(folder: Folder, column: str, limit: int) -> tuple[Array, Matrix]:
    """Draw the same sample as :func:`draw_sample`, but read PCA coordinates instead of features.

    Args:
        folder: the run folder, with all its parts, which has been reduced.
        column: the column of features.
        limit: the most records.

    Returns:
        `index` (n,) int64, and coordinates (n, k) float32.

    Raises:
        DamagedError: a part is damaged.
        StorageError: a part cannot be read.
    """
    rows, _ = _draw_rows(folder, limit, None)
    name = layout.pca_column(column)

    def take(number: int) -> pa.Table:
        part = part_files.read_part(folder, layout.PCA, number, ["index", name])
        return part.take(pa.array(rows[number]))

    table = pa.concat_tables(list(part_files.map_parts(folder, take, rows)))
    return table["index"].to_numpy(), as_matrix(table[name])


def _draw_rows(folder: Folder, limit: int, among: Array | None) -> tuple[dict[int, Array], int]:
    """Draw rows of the parts; return them by part, and the number of records to draw from."""
    numbers = list(part_files.list_part_numbers(folder))

    def read_candidates(number: int) -> tuple[pa.Table, Array]:
        part = _read_columns(folder, ["index", "split", "label"], number)
        index = part["index"].to_numpy()
        rows = (
            np.arange(len(index)) if among is None else np.flatnonzero(_find_members(index, among))
        )
        return part.take(pa.array(rows)), rows

    strata = stratified.Strata(limit)
    for table, _ in part_files.map_parts(folder, read_candidates, numbers):
        strata.add(table)
    total = sum(strata.counts.values())
    draw = stratified.Draw(strata.counts, min(limit, total))
    drawn = {}
    tables = part_files.map_parts(folder, read_candidates, numbers)
    for number, (table, rows) in zip(numbers, tables, strict=True):
        drawn[number] = rows[draw.take(table)]
    return drawn, total


def read_records(folder: Folder, column: str, index: Array, total: int) -> Subset:
    """Read records of a run, in the order of `index`.

    Args:
        folder: the run folder.
        column: the column of features.
        index: (n,) int64, the records, which must exist and be distinct.
        total: the number of records that they were drawn from.

    Raises:
        DamagedError: a part is damaged.
        StorageError: a part cannot be read.
    """
    numbers = list(part_files.list_part_numbers(folder))
    wanted = np.sort(index)

    def find_rows(number: int) -> Array:
        part_index = _read_columns(folder, ["index"], number)["index"].to_numpy()
        return np.flatnonzero(_find_members(part_index, wanted))

    rows = dict(zip(numbers, part_files.map_parts(folder, find_rows, numbers), strict=True))
    records = _read_rows(folder, column, rows, total)
    by_index = np.argsort(records.index)
    return select_rows(records, by_index[np.searchsorted(records.index, index, sorter=by_index)])


def select_rows(subset: Subset, rows: Array) -> Subset:
    """Return the records at some positions of a subset, in the order of `rows`."""
    names = ("features", "index", "keys", "labels", "splits")
    return replace(subset, **{name: getattr(subset, name)[rows] for name in names})


def find_existing_records(folder: Folder, index: Array) -> Array:
    """Return which of some records a run holds, as (n,) bool.

    Args:
        folder: the run folder, with all its parts.
        index: (n,) int64, the records.

    Raises:
        DamagedError: a part is damaged.
        StorageError: a part cannot be read.
    """
    wanted = np.sort(index)

    def find_in_part(number: int) -> Array:
        part_index: Array = _read_columns(folder, ["index"], number)["index"].to_numpy()
        return part_index[_find_members(part_index, wanted)]

    parts = part_files.map_parts(folder, find_in_part, part_files.list_part_numbers(folder))
    return np.isin(index, np.concatenate([wanted[:0], *parts]))


def check_finite(subset: Subset, name: str) -> None:
    """Refuse features that are not finite, or whose squares are not finite in float32.

    Args:
        subset: the records.
        name: the run and layer, for the message.

    Raises:
        InputError: some features are not finite, or all are too large or too small.
    """
    (bad_rows,) = np.nonzero(~np.isfinite(subset.features).all(axis=1))
    if len(bad_rows):
        first = bad_rows[0]
        raise InputError(
            f"{name}: the features of {len(bad_rows)} of {len(subset)} records are not finite, "
            f"{subset.splits[first]} {subset.keys[first]!r} for one; repair the encoder, or use "
            "another --layer"
        )
    largest = float(np.abs(subset.features).max(initial=0))
    if largest and not _SMALLEST < largest < _LARGEST:
        size = "large" if largest >= _LARGEST else "small"
        raise InputError(
            f"{name}: the features are too {size} to compute distances in float32 (the largest is "
            f"{largest:.1e}); check the encoder's weights and --scale, or use another --layer"
        )


def read_thumbnails(folder: Folder, index: Array) -> list[thumbnails.Pixels] | None:
    """Read the thumbnails (h, w, 1 or 3) uint8 of records, in the order of `index`.

    Args:
        folder: the run folder.
        index: (n,) int64, the records, which must exist.

    Returns:
        The thumbnails, or None if any are missing.

    Raises:
        DamagedError: a part is damaged.
        StorageError: a part cannot be read.
    """
    wanted = np.unique(index)
    by_index: dict[int, thumbnails.Pixels] = {}
    numbers = list(part_files.list_part_numbers(folder, layout.THUMBNAILS))

    def read(part: pq.ParquetFile) -> pa.Table:
        index = part.read(["index"], use_threads=False)
        mask = _find_members(index["index"].to_numpy(), wanted)
        # Thumbnails make up most of the bytes, and most parts hold none of the requested records.
        if not mask.any():
            return part_files.THUMBNAIL_SCHEMA.empty_table()
        return part_files.read_rows(part, np.flatnonzero(mask), ["index", "png"])

    def read_part(number: int) -> pa.Table:
        return part_files.read_part_with(folder, layout.THUMBNAILS, number, read)

    for part in part_files.map_parts(folder, read_part, numbers):
        pngs = zip(part["index"].to_pylist(), part["png"].to_pylist(), strict=True)
        by_index.update((record, thumbnails.decode_png(png)) for record, png in pngs)
    if len(by_index) < len(wanted):
        return None
    return [by_index[int(record)] for record in index]


def _read_rows(folder: Folder, column: str, rows: dict[int, Array], total: int) -> Subset:
    """Read some rows of each part."""

    def take(number: int) -> pa.Table:
        return _read_columns(folder, [*_RECORD, column], number).take(pa.array(rows[number]))

    # If there are no rows at all, one part is read for the types.
    numbers = [number for number in rows if len(rows[number])] or list(rows)[:1]
    features: Matrix | None = None
    tables: list[pa.Table] = []
    start = 0
    for part in part_files.map_parts(folder, take, numbers):
        values = as_matrix(part[column])
        if features is None:
            # Fill the array part by part: joining all parts at the end would take twice the memory.
            features = np.empty((sum(map(len, rows.values())), values.shape[1]), np.float32)
        features[start : start + len(values)] = values
        start += len(values)
        tables.append(part.drop_columns([column]))
    assert features is not None  # noqa: S101 - there is at least one part
    records = pa.concat_tables(tables)
    return Subset(
        features=features,
        index=records["index"].to_numpy(),
        keys=as_objects(records["key"].to_pylist()),
        labels=as_objects(records["label"].to_pylist()),
        splits=as_objects(records["split"].to_pylist()),
        label_type=records.schema.field("label").type,
        total=total,
    )


def _find_members(values: Array, among: Array) -> Array:
    """Return which values are in `among`, as (n,) bool.

    `np.isin` would sort `among`, which is sorted already, once for every part.
    """
    if not len(among):
        return np.zeros(len(values), bool)
    positions = np.minimum(np.searchsorted(among, values), len(among) - 1)
    members: Array = among[positions] == values
    return members


def _read_columns(folder: Folder, columns: list[str], number: int) -> pa.Table:
    return part_files.read_part(folder, layout.FEATURES, number, columns)
