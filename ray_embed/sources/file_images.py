# SPDX-License-Identifier: Apache-2.0
"""Images in files, on a local disk or an object store, as batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError
from ray_embed.images import decode
from ray_embed.images.decode import Batch, PixelSpec
from ray_embed.sources import files
from ray_embed.sources.base import PlannedRecords
from ray_embed.sources.files import File, FileContents, SizeAndTime


@dataclass(frozen=True)
class FileReader:
    """Opens image files below a folder, a path or URI; records may also name a file anywhere."""

    location: str

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> "FileImages":
        """Open the files of planned records; nothing is read yet."""
        return FileImages(self._resolve(records.rows), _planned_stats(records.rows), pixels)

    def verify(self, rows: pa.Table) -> None:
        """Compare local files with what they were when planned; objects were when they were read.

        Raises:
            InputError: one has changed, or is gone.
        """
        pairs = zip(self._resolve(rows), _planned_stats(rows), strict=True)
        local = [(file, planned) for file, planned in pairs if not file.is_remote]
        files.check_unchanged([file for file, _ in local], [planned for _, planned in local])

    def _resolve(self, rows: pa.Table) -> list[File]:
        folder = files.locate_file(self.location)
        return [files.resolve_path(folder, path) for path in rows["path"].to_pylist()]


@dataclass(frozen=True)
class FileImages:
    """Image files; `planned` is the size and time of each when the run was planned."""

    files: Sequence[File]
    planned: Sequence[SizeAndTime]
    pixels: PixelSpec

    def __len__(self) -> int:
        return len(self.files)

    @property
    def size(self) -> int:
        """The bytes of the files."""
        return sum(size or 0 for size, _ in self.planned)

    def find_value_range(self) -> None:
        """Return None: the values in image files are whole levels from 0 to 255."""

    def batches(self, batch_size: int, threads: int) -> Iterator[Batch]:
        """Yield the decoded files; leave out those that cannot be decoded.

        Raises:
            InputError: a file on an object store is gone or has changed.
            StorageError: a file on an object store cannot be read.
        """
        if not any(file.is_remote for file in self.files):
            if self.files:
                paths = [file.path for file in self.files]
                yield from decode.file_batches(paths, self.pixels, batch_size, threads)
            return
        contents = FileContents(self.files, self.planned)
        yield from decode.content_batches(contents, self.pixels, batch_size, threads)
        contents.raise_error()

    def diagnose(self, number: int) -> str | Batch:
        """Return why a file was left out, as one of the fixed reasons; or the image after all.

        Raises:
            InputError: the file was there when planned and is gone.
            StorageError: the storage fails.
        """
        content = files.read_file(self.files[number], self.planned[number])
        return content if isinstance(content, str) else decode.diagnose(content, self.pixels)

    def load(self, number: int) -> Array:
        """Return an image as it is stored, (h, w, c) uint8.

        Raises:
            InputError: it is gone, or cannot be read.
        """
        content = files.read_file(self.files[number], (None, None))
        if isinstance(content, str):
            raise InputError(f"{self.files[number]}: {content}")
        return decode.decode_file(content)


def _planned_stats(rows: pa.Table) -> list[SizeAndTime]:
    return list(zip(rows["size"].to_pylist(), rows["mtime"].to_pylist(), strict=True))
