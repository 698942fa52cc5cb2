# SPDX-License-Identifier: Apache-2.0
"""Images that are one array in a file, of which ranges of rows are read.

The key of a record is its position. A file that stores no checksum of its images is identified by
its size, its modification time, and a checksum of the first and the last image.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, StorageError, get_first_line
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources.array_images import ArrayImages, open_arrays
from ray_embed.sources.base import PlannedRecords, SourceInfo
from ray_embed.sources.files import File, check_unchanged, locate_file, open_file, stat_files
from ray_embed.storage.retry import call_with_retries, explain_error

_RECORDS_PER_BATCH = 65_536

# Reads rows of an array: the path or URI of its file, its name, the first row, the number of rows.
ReadRows = Callable[[str, str, int, int], Array]


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """The images of an array in a file, in order. `read` is a function of a module."""

    split: str
    location: str
    info: SourceInfo
    labels: pa.Array
    array: str
    read: ReadRows

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the records of all images."""
        [(size, mtime)] = stat_files([locate_file(self.location)])
        for start in range(0, len(self.labels), _RECORDS_PER_BATCH):
            rows = min(_RECORDS_PER_BATCH, len(self.labels) - start)
            yield pa.record_batch(
                {
                    "key": pa.array([str(start + i) for i in range(rows)], pa.string()),
                    "label": self.labels.slice(start, rows),
                    "path": pa.nulls(rows, pa.binary()),
                    "size": pa.repeat(pa.scalar(size, pa.int64()), rows),
                    "mtime": pa.repeat(pa.scalar(mtime, pa.int64()), rows),
                }
            )

    def reader(self) -> "ArrayReader":
        """Return the reader for the images."""
        where = f"--source {self.split}={redact_uri(self.location)}"
        return ArrayReader(self.location, self.array, self.read, where)


@dataclass(frozen=True)
class ArrayReader:
    """Reads images of an array in a file. `where` is how messages refer to the source."""

    location: str
    array: str
    read: ReadRows
    where: str

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> ArrayImages:
        """Read the images of planned records.

        Raises:
            InputError: the images do not fit the encoder, or the file was removed.
            StorageError: the file cannot be read.
        """
        images = read_positions(self.location, self.array, self.read, records.positions)
        return open_arrays(images, records.positions, pixels, self.where)

    def verify(self, rows: pa.Table) -> None:
        """Check that the file has not changed since the run was planned.

        Raises:
            InputError: the file has changed or is missing.
            StorageError: the storage does not answer.
        """
        if rows.num_rows:
            planned = (rows["size"][0].as_py(), rows["mtime"][0].as_py())
            check_unchanged([locate_file(self.location)], [planned])


def read_positions(location: str, array: str, read: ReadRows, positions: Array) -> Array:
    """Read images, (n, H, W, C) uint8 or float32, with one read per range of positions.

    Args:
        location: the path or URI of the file.
        array: the name of the array.
        read: reads rows of it, (n, H, W, C) or (n, H, W).
        positions: the ascending positions of the images.

    Raises:
        InputError: the file was removed.
        StorageError: it cannot be read.
    """
    file = locate_file(location)
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    ranges = [part for part in np.split(positions, breaks) if len(part)]
    try:
        arrays = [read(location, array, int(part[0]), len(part)) for part in ranges]
    except FileNotFoundError as error:
        raise InputError(f"{file}: the file was removed after the run was planned") from error
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {explain_error(error)}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise StorageError(f"{file}: cannot be read: {get_first_line(error)}") from error
    if not arrays:
        return np.zeros(0)
    return convert_images(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


def convert_images(images: Array) -> Array:
    """Return images (n, H, W, C) or (n, H, W) as (n, H, W, C), uint8 or float32."""
    if images.ndim == 3:
        images = images[..., None]
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def read_range(file: File, start: int, size: int) -> bytes:
    """Read a range of bytes of a file.

    Raises:
        OSError: the file cannot be read, or ends before the range does.
    """
    content = call_with_retries(partial(_read_once, file, start, size))
    if len(content) < size:
        raise OSError(f"the file ends before byte {start + size}")
    return content


def _read_once(file: File, start: int, size: int) -> bytes:
    with open_file(file) as stream:
        stream.seek(start)
        return stream.read(size)


def compute_checksum(location: str, array: str, read: ReadRows, count: int) -> str:
    """Return a checksum of the first and the last of `count` images.

    Raises:
        InputError: they cannot be read.
    """
    try:
        ends = [read(location, array, row, 1) for row in (0, count - 1)]
    except (OSError, ValueError, RuntimeError) as error:
        reason = explain_error(error) if isinstance(error, OSError) else get_first_line(error)
        raise InputError(
            f"{redact_uri(location)}: its images cannot be read: {reason}; is the file complete?"
        ) from error
    crc = 0
    for image in ends:
        crc = zlib.crc32(np.ascontiguousarray(image).data, crc)
    return f"{crc:08x}"
