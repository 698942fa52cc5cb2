# SPDX-License-Identifier: Apache-2.0
"""Batches of images from files on a local disk or an object store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError
from ray_embed.images import decode
from ray_embed.images.decode import Batch
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources import files
from ray_embed.sources.base import PlannedRecords
from ray_embed.sources.files import File, SizeAndTime


@dataclass(frozen=True)
class FileReader:
    """Opens image files. Relative paths are resolved against `location`, a path or URI.

    `has_pages` is whether the plan has the column `page`, which says what to take of each file.
    """

    location: str
    has_pages: bool = False

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> "FileImages":
        """Return the files of planned records, without reading them."""
        rows = records.rows
        pages = rows["page"].to_pylist() if self.has_pages else [0] * len(records)
        return FileImages(self._resolve(rows), _planned_stats(rows), pixels, pages)

    def verify(self, rows: pa.Table) -> None:
        """Check that local files have not changed since they were planned. Remote files were
        already checked when they were read.

        Raises:
            InputError: a file has changed or is missing.
        """
        pairs = zip(self._resolve(rows), _planned_stats(rows), strict=True)
        local = [(file, planned) for file, planned in pairs if not file.is_remote]
        files.check_unchanged([file for file, _ in local], [planned for _, planned in local])

    def _resolve(self, rows: pa.Table) -> list[File]:
        folder = files.locate_file(self.location)
        return [files.resolve_path(folder, path) for path in rows["path"].to_pylist()]


@dataclass(frozen=True)
class FileImages:
    """Image files, with the size and modification time that each had when the run was planned, and
    the page to take of each."""

    files: Sequence[File]
    planned: Sequence[SizeAndTime]
    pixels: PixelSpec
    pages: Sequence[int]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def size(self) -> int:
        """The total size of the files in bytes."""
        return sum(size or 0 for size, _ in self.planned)

    def find_value_range(self) -> None:
        """Return None, because the values of image files are usually levels."""

    def batches(self, batch_size: int, threads: int) -> Iterator[Batch]:
        """Yield batches of decoded files, skipping those that cannot be decoded.

        Raises:
            InputError: a remote file is missing or has changed.
            StorageError: a remote file cannot be read.
        """
        if not any(file.is_remote for file in self.files):
            if self.files:
                paths = [file.path for file in self.files]
                yield from decode.file_batches(paths, self.pixels, batch_size, threads, self.pages)
            return
        contents = files.read_contents(self.files, self.planned)
        yield from decode.content_batches(contents, self.pixels, batch_size, threads, self.pages)

    def diagnose(self, number: int) -> str | Batch:
        """Return why a file was skipped, as one of the fixed reject reasons, or the image if it can
        be decoded after all.

        Raises:
            InputError: the file existed when the run was planned and is missing now.
            StorageError: the file cannot be read.
        """
        content = files.read_file(self.files[number], self.planned[number])
        if isinstance(content, str):
            return content
        return decode.diagnose(content, self.pixels, self.pages[number])

    def load(self, number: int) -> Array:
        """Return an image as it is stored, (h, w, c), usually uint8.

        Raises:
            InputError: the file is missing or cannot be read.
        """
        content = files.read_file(self.files[number], (None, None))
        if isinstance(content, str):
            raise InputError(f"{self.files[number]}: {content}")
        return decode.decode_file(content, self.pages[number])


def _planned_stats(rows: pa.Table) -> list[SizeAndTime]:
    return list(zip(rows["size"].to_pylist(), rows["mtime"].to_pylist(), strict=True))
