# SPDX-License-Identifier: Apache-2.0
"""The protocols that every source type implements.

A :class:`Source` lists records in the process that plans a run. Its :class:`ImageReader` is sent to
the actors and opens the images of a shard. All other code uses only these two protocols.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.images.decode import Batch
from ray_embed.images.pixel_spec import PixelSpec


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Properties of a source that are known before its records are read.

    `extras` are the names of the (text) metadata columns. `image_shape` is (H, W, C) for arrays and
    None for image files; `image_dtype` is ``uint8`` or ``float``. `checksum` is set if all images
    are one array in a single file: that of the array if the file stores one, else that of its first
    and last image. `has_label_column` is None for sources without columns. `shard_size` is the
    number of records that are best read together. `notes` are messages for the user; `unlabeled` is
    one that says why the records have no labels, and empty if they have a label column.

    A dataset whose records the actors read by their positions has the number of its `records`, and
    the plan rows of a few of them, `probes`, by which an actor recognizes it.
    """

    label_type: pa.DataType
    extras: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    image_dtype: str = "uint8"
    checksum: str = ""
    has_label_column: bool | None = None
    shard_size: int | None = None
    notes: tuple[str, ...] = ()
    unlabeled: str = ""
    records: int | None = None
    probes: pa.Table | None = None

    @property
    def messages(self) -> tuple[str, ...]:
        """All messages for the user."""
        return (*self.notes, self.unlabeled) if self.unlabeled else self.notes


@dataclass(frozen=True, kw_only=True)
class PlannedRecords:
    """Planned records whose images are to be opened.

    `rows` are their plan rows. `positions`, (n,) int64, are their ascending positions in the split.
    `images` contains the images, as an array (n, H, W, C) or a list, if they were delivered by a
    sequential source; otherwise it is None.
    """

    rows: pa.Table
    positions: Array
    images: Any = None

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, chosen: Array) -> "PlannedRecords":
        """Return some of the records, by their ascending indices in this object, (m,) int64."""
        if len(chosen) == len(self):
            return self
        images = self.images
        if images is not None:
            images = [images[i] for i in chosen] if isinstance(images, list) else images[chosen]
        rows = self.rows.take(pa.array(chosen, pa.int64()))
        return PlannedRecords(rows=rows, positions=self.positions[chosen], images=images)


class ShardImages(Protocol):
    """The images of planned records, numbered from 0."""

    def __len__(self) -> int:
        """Return the number of images."""

    @property
    def size(self) -> int:
        """The total size in bytes: file sizes, or the memory size of arrays."""

    def find_value_range(self) -> tuple[float, float] | None:
        """Return the minimum and maximum of the first images, or None if they are not floats."""

    def batches(self, batch_size: int, threads: int) -> Iterator[Batch]:
        """Yield batches of preprocessed images, skipping those that cannot be decoded.

        Raises:
            InputError: an image is missing or has changed since the run was planned.
            StorageError: an image cannot be read.
        """

    def diagnose(self, number: int) -> str | Batch:
        """Return why an image was skipped, as one of the fixed reject reasons, or the image if it
        can be decoded after all.

        Raises:
            InputError: the image is missing or has changed since the run was planned.
            StorageError: the image cannot be read.
        """

    def load(self, number: int) -> Array:
        """Return the unprocessed image, (h, w, c), for the preview."""


class ImageReader(Protocol):
    """Opens the images of one split in an actor.

    It is pickled and sent to every actor, so it holds plain data: a location, not an open file.
    """

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> ShardImages:
        """Open the images of planned records.

        Args:
            records: some records of one shard.
            pixels: how their images become the encoder's input.

        Raises:
            InputError: the images do not fit the encoder.
        """

    def verify(self, rows: pa.Table) -> None:
        """Check that the images of a shard have not changed since the run was planned.

        Args:
            rows: all planned rows of the shard.

        Raises:
            InputError: an image has changed or is gone.
            StorageError: the storage does not respond.
        """


class Source(Protocol):
    """A source of records with keys, labels and images; one per ``--source``."""

    @property
    def split(self) -> str:
        """The name of the split."""

    @property
    def location(self) -> str:
        """The path or URI of the source, or the name of the callable or object."""

    @property
    def info(self) -> SourceInfo | None:
        """The properties of the source, or None for a sequential source."""

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch] | None:
        """Yield the records in a fixed order, in batches, without keeping all of them in memory.

        The columns are `key`, `label`, the extras, `path` (binary, relative to `location`; null for
        arrays), `size` (bytes of its file) and `mtime` (ns). If `size` is null, the file is missing
        and the record will be rejected.

        Args:
            skipped: counter to update with the number of skipped files, by reason.

        Returns:
            The batches, or None for a sequential source, whose records are planned while they are
            read.
        """

    def reader(self) -> ImageReader:
        """Return the reader that opens the images in the actors."""


def explain_no_records(source: Source) -> InputError:
    """Return the error for a source without records."""
    return InputError(
        f"--source {source.split}, in {redact_uri(source.location)}: it has no records; remove it, "
        "or write its files again"
    )


def find_missing(rows: pa.Table) -> list[int]:
    """Return the indices of the rows whose file was missing when the run was planned."""
    if "size" not in rows.column_names:
        return []
    missing: list[int] = np.flatnonzero(rows["size"].is_null().to_numpy()).tolist()
    return missing
