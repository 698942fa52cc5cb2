# SPDX-License-Identifier: Apache-2.0
"""Some records of a run, or all where there are few, in memory: what its features are judged by.

The same records each time: drawn by split and label, as those that the projector shows.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import sample, store, thumbnail
from ray_embed.filesystem import Folder
from ray_embed.matrix import Matrix, as_matrix

Array = np.ndarray[Any, Any]

_RECORD = ("index", "key", "label", "split")


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


def draw(folder: Folder, column: str, limit: int) -> Subset:
    """Take at most `limit` records of a run into memory.

    Args:
        folder: the run folder, with all its parts.
        column: the features.
        limit: how many records at most.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    numbers = list(store.part_numbers(folder))
    strata = sample.Strata(limit)
    for table in store.each(folder, partial(_read, folder, ["split", "label"]), numbers):
        strata.add(table)
    total = sum(strata.counts.values())
    drawn = dict(_drawn(folder, numbers, strata.counts, min(limit, total)))

    def take(number: int) -> pa.Table:
        return _read(folder, [*_RECORD, column], number).take(pa.array(drawn[number]))

    taken = list(store.each(folder, take, drawn))
    records = pa.concat_tables([part.drop_columns([column]) for part in taken])
    texts = {name: _objects(records[name]) for name in ("key", "label", "split")}
    return Subset(
        np.concatenate([as_matrix(part[column]) for part in taken]),
        records["index"].to_numpy(),
        texts["key"],
        texts["label"],
        texts["split"],
        records.schema.field("label").type,
        total,
    )


def pictures(folder: Folder, index: Array) -> list[thumbnail.Pixels]:
    """Give the thumbnails (h, w, 1 or 3) uint8 of records, in the order of `index`.

    Args:
        folder: the run folder.
        index: (n,) int64, of records that are there.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    wanted = np.unique(index)
    found: dict[int, thumbnail.Pixels] = {}
    numbers = list(store.part_numbers(folder, store.THUMBNAILS))

    def read(number: int) -> pa.Table:
        part = store.read_part(folder, store.THUMBNAILS, number)
        own = part["index"].to_numpy()
        return part.filter(pa.array(np.isin(own, wanted)))

    for part in store.each(folder, read, numbers):
        pngs = zip(part["index"].to_pylist(), part["png"].to_pylist(), strict=True)
        found.update((at, thumbnail.decode_png(png)) for at, png in pngs)
    return [found[int(at)] for at in index]


def _drawn(
    folder: Folder, numbers: list[int], counts: Counter[sample.Stratum], limit: int
) -> Iterator[tuple[int, sample.Rows]]:
    draw = sample.Draw(counts, limit)
    tables = store.each(folder, partial(_read, folder, ["split", "label"]), numbers)
    for number, table in zip(numbers, tables, strict=True):
        rows = draw.of(table)
        if len(rows):
            yield number, rows


def _read(folder: Folder, columns: list[str], number: int) -> pa.Table:
    return store.read_part(folder, store.FEATURES, number, columns)


def _objects(column: pa.ChunkedArray) -> Array:
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values
