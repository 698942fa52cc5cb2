# SPDX-License-Identifier: Apache-2.0
"""What a source is: the protocols that every form of data implements.

A :class:`Source` lists records in the process that plans a run. Its :class:`ImageReader` goes to
the actors and opens the images of a shard. Everything else asks these two, never for the form.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.images.decode import Batch, PixelSpec


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What is known about a source before its records are read.

    `extras` names the columns, all text, that become metadata. `image_shape` is (H, W, C) of image
    arrays, None for image files; `image_dtype` is ``uint8`` or ``float``. `checksum` is that of
    images that all lie in one file. `has_label_column` is whether a listing has one, None for a
    source that is no listing. `notes` are lines for the user.
    """

    label_type: pa.DataType
    extras: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    image_dtype: str = "uint8"
    checksum: str = ""
    has_label_column: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlannedRecords:
    """Planned records whose images are wanted.

    `rows` are their rows of the plan, `positions` (n,) int64 where they are in their split, in
    ascending order. `images` holds their images if a sequential source delivered them with the
    shard, as one array (n, H, W, C) or a list; otherwise it is None.
    """

    rows: pa.Table
    positions: Array
    images: Any = None

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, chosen: Array) -> "PlannedRecords":
        """Return the records at some positions among these, (m,) int64 in ascending order."""
        if len(chosen) == len(self):
            return self
        images = self.images
        if images is not None:
            images = [images[i] for i in chosen] if isinstance(images, list) else images[chosen]
        rows = self.rows.take(pa.array(chosen, pa.int64()))
        return PlannedRecords(rows=rows, positions=self.positions[chosen], images=images)


class ShardImages(Protocol):
    """The opened images of some planned records, numbered from 0."""

    def __len__(self) -> int:
        """Return the number of images."""

    @property
    def size(self) -> int:
        """The bytes of all images: of files as they are stored, of arrays in memory."""

    def find_value_range(self) -> tuple[float, float] | None:
        """Return the lowest and highest value of the first float images; None for others."""

    def batches(self, batch_size: int, threads: int) -> Iterator[Batch]:
        """Yield the images as the encoder takes them; leave out those that cannot be decoded.

        Raises:
            InputError: an image is gone or has changed since the run was planned.
            StorageError: an image cannot be read.
        """

    def diagnose(self, number: int) -> str | Batch:
        """Return why an image was left out, as a short fixed text, or the image after all.

        Raises:
            InputError: the image is gone or has changed since the run was planned.
            StorageError: the image cannot be read.
        """

    def load(self, number: int) -> Array:
        """Return an image as it is stored, (h, w, c), for the preview."""


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
        """Compare the images of a shard with what they were when planned.

        Args:
            rows: all planned rows of the shard.

        Raises:
            InputError: an image has changed or is gone.
            StorageError: the storage does not answer.
        """


class Source(Protocol):
    """Records with keys, labels and images: one ``--source``."""

    @property
    def split(self) -> str:
        """The name of the split."""

    @property
    def kind(self) -> str:
        """How the plan records the form: ``files``, ``array`` or ``stream``. Nothing reads it."""

    @property
    def location(self) -> str:
        """The path or URI that opens it, or the name of a callable or object."""

    @property
    def info(self) -> SourceInfo | None:
        """What is known about it; None for a sequential source, before its first record is read."""

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch] | None:
        """Yield the records in a fixed order, as batches; never hold all of them.

        The columns are `key`, `label`, the extras, `path` (binary, relative to `location`; null for
        arrays), `size` (bytes of its file) and `mtime` (ns). A null `size` means that the file is
        missing: the record will be rejected.

        Args:
            skipped: counts what the source passes over, by reason.

        Returns:
            None for a sequential source: its records are planned while one reader reads them.
        """

    def reader(self) -> ImageReader:
        """Return what opens its images in the actors."""


def find_missing(rows: pa.Table) -> list[int]:
    """Return the positions among planned rows of the records that had no file when planned."""
    if "size" not in rows.column_names:
        return []
    missing: list[int] = np.flatnonzero(rows["size"].is_null().to_numpy()).tolist()
    return missing
