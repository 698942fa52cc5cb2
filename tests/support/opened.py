# SPDX-License-Identifier: Apache-2.0
"""Open a source and its images, as planning and the actors do."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import RunConfig
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources.base import PlannedRecords, Source
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.dataset_records import RecordReader
from ray_embed.sources.open import open_sources


def open_source(source: Any, split: str = "s", **options: Any) -> Source:
    """Open one source."""
    (opened,) = open_sources(RunConfig(sources={split: source}, model="m.keras", **options))
    return opened


def list_records(source: Source, skipped: Counter[str] | None = None) -> PlannedRecords:
    """All records of a source that lists them."""
    batches = source.records(Counter() if skipped is None else skipped)
    assert batches is not None
    rows = pa.Table.from_batches(list(batches))
    return PlannedRecords(rows=rows, positions=np.arange(rows.num_rows))


def read_images(source: Source, records: PlannedRecords, size: tuple[int, int]) -> np.ndarray:
    """The images of some records as the encoder gets them, (n, H, W, 3)."""
    pixels = PixelSpec(shape=(*size, 3), scale="none")
    batches = source.reader().open(records, pixels).batches(4, 1)
    return np.concatenate([batch.images for batch in batches])


def walked(
    source: Any, size: int = 4, limit: int | None = None, **kwargs: Any
) -> tuple[pa.Table, list[Any], RecordReader]:
    """Walk a dataset to its end: its plan rows, its images, and the reader."""
    reader = RecordReader(Dataset("valid", source, kwargs), limit)
    shards = list(iter(lambda: reader.read_shard(size), None))
    assert all(shard.rows.num_rows == size for shard in shards[:-1])
    rows = pa.concat_tables([shard.rows for shard in shards])
    return rows, [image for shard in shards for image in shard.images], reader
