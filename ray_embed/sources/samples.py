# SPDX-License-Identifier: Apache-2.0
"""Sample a few records of a source for the preview."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_embed.sources.base import (
    PlannedRecords,
    Source,
    SourceInfo,
    explain_no_records,
    find_missing,
)
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.dataset_records import RecordReader

# Sample from the first records only, because listing a large source takes long.
_MAX_LISTED_RECORDS = 10_000


@dataclass(frozen=True)
class Sample:
    """A few records of a source, with the properties of the source."""

    info: SourceInfo
    records: PlannedRecords


def draw_sample(source: Source, count: int, limit: int | None) -> Sample:
    """Sample up to `count` of the first `limit` records of a source.

    For a dataset, these are the first `count` records. For other sources, the sample is spread
    evenly, because records are often sorted by label; records without a file are skipped.

    Raises:
        InputError: the source cannot be read or is empty.
        RunError: the dataset raised an error.
    """
    if isinstance(source, Dataset):
        return _read_dataset(source, min(count, limit or count))
    batches = source.records(Counter())
    assert batches is not None and source.info is not None  # noqa: S101 - no dataset
    first = _read_first(batches, min(_MAX_LISTED_RECORDS, limit or _MAX_LISTED_RECORDS))
    if not first:
        raise explain_no_records(source)
    rows = pa.Table.from_batches(first)
    chosen = np.unique(np.linspace(0, rows.num_rows - 1, min(count, rows.num_rows), dtype=int))
    records = PlannedRecords(rows=rows, positions=np.arange(rows.num_rows)).select(chosen)
    has_file = np.setdiff1d(np.arange(len(records)), find_missing(records.rows))
    return Sample(source.info, records.select(has_file))


def _read_dataset(source: Dataset, count: int) -> Sample:
    reader = RecordReader(source, count)
    shard = reader.read_shard(count)
    assert shard is not None  # noqa: S101 - opening the reader has read the first record
    records = PlannedRecords(
        rows=shard.rows, positions=np.arange(len(shard.images)), images=shard.images
    )
    return Sample(reader.describe(), records)


def _read_first(batches: Iterator[pa.RecordBatch], limit: int) -> list[pa.RecordBatch]:
    first: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        first.append(batch.slice(0, limit - rows))
        rows += first[-1].num_rows
        if rows >= limit:
            break
    return first
