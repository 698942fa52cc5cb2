# SPDX-License-Identifier: Apache-2.0
"""Open a source and its images, as planning and the actors do."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import RunConfig
from ray_embed.images.decode import PixelSpec
from ray_embed.sources.base import PlannedRecords, Source
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
