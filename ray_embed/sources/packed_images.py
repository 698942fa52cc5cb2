# SPDX-License-Identifier: Apache-2.0
"""Encoded images that lie in larger files: the rows of a Parquet file, the members of a tar.

A planned record names its file (`path`) and its place in it (`position`: a row or a byte offset).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError, StorageError, get_first_line
from ray_embed.images import decode
from ray_embed.images.decode import Batch
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources.base import PlannedRecords
from ray_embed.sources.files import (
    File,
    SizeAndTime,
    check_unchanged,
    locate_file,
    open_file,
    resolve_path,
)
from ray_embed.storage.retry import call_with_retries, explain_error

_NO_IMAGE = "missing"
# A request to a store costs as much time as reading some megabytes.
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Place:
    """Where an image is in its file: its row or byte offset, and its length in bytes if known."""

    position: int
    length: int | None


# Yields the images at some places of a file, in ascending order; None for a record without one.
ReadPlaces = Callable[[File, Sequence[Place]], Iterator[bytes | None]]


def make_packed_records(
    columns: Mapping[str, pa.Array],
    name: str,
    stat: SizeAndTime,
    *,
    positions: pa.Array,
    lengths: pa.Array,
) -> pa.RecordBatch:
    """Return the records of images in one file.

    Args:
        columns: `key`, `label` and the extras.
        name: the name of the file, below the location of the source.
        stat: its size and modification time.
        positions: where the images are in the file.
        lengths: their lengths in bytes; null if they are not known.
    """
    count = len(positions)
    size, mtime = stat
    return pa.record_batch(
        {
            **columns,
            "path": pa.repeat(pa.scalar(name.encode(), pa.binary()), count),
            "size": pa.repeat(pa.scalar(size, pa.int64()), count),
            "mtime": pa.repeat(pa.scalar(mtime, pa.int64()), count),
            "position": positions,
            "length": lengths,
        }
    )


@dataclass(frozen=True)
class PackedReader:
    """Opens images in files below a folder, a path or URI.

    `read` is pickled, so it is a function of a module, or a partial of one.
    """

    location: str
    read: ReadPlaces

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> "PackedImages":
        """Open the images of planned records; nothing is read yet."""
        return PackedImages(self._resolve(records.rows), self.read, pixels)

    def verify(self, rows: pa.Table) -> None:
        """Compare the files of a shard with what they were when planned.

        Raises:
            InputError: one has changed, or was removed.
            StorageError: the storage does not respond.
        """
        planned = dict(
            zip(
                rows["path"].to_pylist(),
                zip(rows["size"].to_pylist(), rows["mtime"].to_pylist(), strict=True),
                strict=True,
            )
        )
        folder = locate_file(self.location)
        check_unchanged([resolve_path(folder, path) for path in planned], planned.values())

    def _resolve(self, rows: pa.Table) -> list[tuple[File, Place]]:
        folder = locate_file(self.location)
        paths = rows["path"].to_pylist()
        files = {path: resolve_path(folder, path) for path in dict.fromkeys(paths)}
        places = map(Place, rows["position"].to_pylist(), rows["length"].to_pylist())
        return [(files[path], place) for path, place in zip(paths, places, strict=True)]


@dataclass
class PackedImages:
    """Encoded images, each at a place of a file."""

    places: Sequence[tuple[File, Place]]
    read: ReadPlaces
    pixels: PixelSpec
    _bytes_read: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def size(self) -> int:
        """The number of bytes of the images that have been read."""
        return self._bytes_read

    def find_value_range(self) -> None:
        """Return None, because the values of encoded images are usually levels."""

    def batches(self, batch_size: int, threads: int) -> Iterator[Batch]:
        """Yield the decoded images; leave out those that cannot be decoded.

        Raises:
            InputError: a file was removed.
            StorageError: a file cannot be read.
        """
        if self.places:
            # An empty image cannot be decoded either; `diagnose` finds the reason.
            contents = (content or b"" for content in self._read(self.places))
            yield from decode.content_batches(contents, self.pixels, batch_size, threads)

    def diagnose(self, number: int) -> str | Batch:
        """Return why an image was left out, as a fixed reason, or the image if it decodes.

        Raises:
            InputError: its file was removed.
            StorageError: its file cannot be read.
        """
        content = self._read_one(number)
        return _NO_IMAGE if content is None else decode.diagnose(content, self.pixels)

    def load(self, number: int) -> Array:
        """Return an image as it is stored, (h, w, c), usually uint8.

        Raises:
            InputError: the record has no image.
        """
        content = self._read_one(number)
        if content is None:
            raise InputError(f"{self.places[number][0]}: a record has no image")
        return decode.decode_file(content)

    def _read_one(self, number: int) -> bytes | None:
        return next(self._read([self.places[number]]))

    def _read(self, places: Sequence[tuple[File, Place]]) -> Iterator[bytes | None]:
        for file, group in groupby(places, key=lambda item: item[0]):
            for content in _read_with_retries(self.read, file, [place for _, place in group]):
                self._bytes_read += len(content or b"")
                yield content


def _read_with_retries(
    read: ReadPlaces, file: File, places: Sequence[Place]
) -> Iterator[bytes | None]:
    """Yield the images at some places of a file; continue after temporary errors of a store."""
    done = 0
    running: Iterator[bytes | None] | None = None

    def read_next() -> bytes | None:
        nonlocal running
        try:
            running = running or iter(read(file, places[done:]))
            return next(running)
        except BaseException:
            running = None
            raise

    while done < len(places):
        try:
            content = call_with_retries(read_next) if file.is_remote else read_next()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{file}: the file was removed after the run was planned") from error
        except OSError as error:
            raise StorageError(f"{file}: cannot be read: {explain_error(error)}") from error
        except (ValueError, StopIteration, pa.ArrowException) as error:
            raise StorageError(f"{file}: cannot be read: {get_first_line(error)}") from error
        done += 1
        yield content


def read_ranges(file: File, places: Sequence[Place]) -> Iterator[bytes | None]:
    """Yield the bytes at some ranges of a file; a store is asked for neighboring ranges at once.

    A place without a length is a record without an image.

    Raises:
        OSError: the file cannot be read, or ends before a range does.
    """
    with open_file(file) as stream:
        for chunk in _group_ranges(places, _CHUNK_BYTES if file.is_remote else 0):
            start = chunk[0].position
            stop = chunk[-1].position + (chunk[-1].length or 0)
            stream.seek(start)
            content = stream.read(stop - start)
            if len(content) < stop - start:
                raise OSError(f"the file ends before byte {stop}")
            for place in chunk:
                begin = place.position - start
                yield None if place.length is None else content[begin : begin + place.length]


def _group_ranges(places: Sequence[Place], size: int) -> Iterator[list[Place]]:
    """Yield neighboring places, as many at a time as lie within `size` bytes."""
    chunk: list[Place] = []
    for place in places:
        if chunk and place.position + (place.length or 0) - chunk[0].position > size:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk
