# SPDX-License-Identifier: Apache-2.0
"""``.npz`` files with the arrays `images` (NHWC or NHW) and `labels`.

Images are read by row range directly from the archive, so the file can be larger than memory and
can be remote.
"""

import contextlib
import functools
import math
import os
import shutil
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.images.decode import PixelSpec
from ray_embed.sources.array_images import ArrayImages, open_arrays
from ray_embed.sources.array_names import choose_arrays
from ray_embed.sources.base import PlannedRecords, SourceInfo
from ray_embed.sources.files import (
    File,
    SizeAndTime,
    check_unchanged,
    locate_file,
    open_file,
    stat_files,
)
from ray_embed.sources.label_schema import find_label_type
from ray_embed.storage.download import check_space
from ray_embed.storage.retry import call_with_retries, explain_error

_RECORDS_PER_BATCH = 65_536
_OBJECTS_ADVICE = {
    "labels": "save labels=labels.astype(str), or for numbers labels.astype(int); the first makes "
    "a None the label 'None'",
    "images": "if all images have the same size, save images=np.stack(images)",
}


@dataclass(frozen=True)
class Npz:
    """The images of an ``.npz`` file, in order. The key of a record is its position."""

    split: str
    location: str
    info: SourceInfo
    labels: pa.Array
    array: str

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

    def reader(self) -> "NpzReader":
        """Return the reader for the images."""
        where = f"--source {self.split}={redact_uri(self.location)}"
        return NpzReader(self.location, self.array, where)


@dataclass(frozen=True)
class NpzReader:
    """Reads images from an ``.npz`` file. `where` is how messages refer to the source."""

    location: str
    array: str
    where: str

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> ArrayImages:
        """Read the images of planned records.

        Raises:
            InputError: the images do not fit the encoder.
            StorageError: the file cannot be read.
        """
        images = _read_positions(self.location, self.array, records.positions)
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


def open_npz(split: str, root: str | Path, config: RunConfig | None = None) -> Npz:
    """Open an ``.npz`` file, a path or URI, as a source.

    Without an array of labels, the records are unlabeled.

    Raises:
        InputError: the file is not an ``.npz`` file, has no images, an array has an unsupported
            type or rank, or the lengths differ.
    """
    file, path = locate_file(str(root)), redact_uri(str(root))
    names = _list_arrays(file)
    image, label = config.image_column if config else None, None
    if config and "label_column" in config.model_fields_set:
        label = config.label_column
    name, label = choose_arrays(names, split, image, label, path)
    shape, dtype = read_array_header(file, name)
    if dtype != np.uint8 and dtype.kind != "f":
        raise InputError(f"{path}: images have dtype {dtype}; expected uint8 or float")
    if len(shape) not in (3, 4):
        raise InputError(f"{path}: images have shape {shape}; expected (N, H, W, C) or (N, H, W)")
    if len(shape) == 4 and is_channels_first(shape[1:]):
        raise InputError(
            f"{path}: images have shape {shape}, with the channels first (NCHW); they must be "
            "last: save images=np.transpose(images, (0, 2, 3, 1))"
        )
    count, height, width = shape[:3]
    if count == 0:
        raise InputError(f"{path}: the array {name!r} is empty")
    labels, notes = _read_labels(file, path, label, count)
    if name != "images":
        notes = (f"{path}: images from {name}, labels from {label or 'no array'}", *notes)
    info = SourceInfo(
        label_type=find_label_type(labels.type, f"{path}: {label}"),
        image_shape=(height, width, shape[3] if len(shape) == 4 else 1),
        image_dtype="uint8" if dtype == np.uint8 else "float",
        checksum=_read_checksum(file, name),
        notes=notes,
    )
    return Npz(split, str(root), info, labels, name)


def is_channels_first(shape: Sequence[int]) -> bool:
    """Return whether a shape looks like (C, H, W): 1, 3 or 4 first, but not last."""
    first, height, width = shape
    counts = (1, 3, 4)
    return first in counts and width not in counts and min(height, width) > max(counts)


def _read_labels(
    file: File, path: str, label: str | None, count: int
) -> tuple[pa.Array, tuple[str, ...]]:
    """Return the labels of `count` images (null if there are none) and notes for the user."""
    if label is None:
        return pa.nulls(count), (
            f"{path}: no array 'labels', so the records are unlabeled; the file contains "
            f"{', '.join(_list_arrays(file))}; select the labels with --label-column",
        )
    shape, _ = read_array_header(file, label)
    if shape not in ((count,), (count, 1)):
        one_hot = len(shape) == 2 and shape[0] == count
        advice = (
            "; if these are one-hot labels, save labels=np.argmax(labels, axis=1)"
            if one_hot
            else ""
        )
        raise InputError(
            f"{path}: {label} have shape {shape}; expected one label for each of the {count} "
            f"images{advice}"
        )
    with open_file(file) as stream:
        labels = np.load(stream, allow_pickle=False)[label].reshape(-1)
    return convert_labels(labels, path), ()


def _list_arrays(file: File) -> list[str]:
    with _open_archive(file) as archive:
        return [entry.removesuffix(".npy") for entry in archive.namelist()]


def _read_checksum(file: File, name: str) -> str:
    """Return the CRC-32 of the images that is stored in the archive."""
    with _open_archive(file) as archive:
        return f"{archive.getinfo(f'{name}.npy').CRC:08x}"


@contextlib.contextmanager
def _open_archive(file: File) -> Iterator[zipfile.ZipFile]:
    try:
        with open_file(file) as stream, zipfile.ZipFile(stream) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: not an .npz file: {error}") from error


def convert_labels(labels: np.ndarray[Any, Any], where: str) -> pa.Array:
    """Convert 1-D NumPy labels to an Arrow array of one of the label types.

    Raises:
        InputError: the labels have an unsupported type, or a number is out of range.
    """
    if labels.dtype.kind in "US":
        texts = (
            v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else v for v in labels
        )
        return pa.array([str(text) for text in texts], pa.string())
    if labels.dtype.kind not in "biuf":
        raise InputError(f"{where}: labels cannot be of type {labels.dtype}")
    try:
        array = pa.array(labels.astype(labels.dtype.newbyteorder("=")))
        return array.cast(find_label_type(array.type, where))
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: a label does not fit in 64 bits: {error}") from error


def read_array_header(file: File, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and type of one array of an ``.npz``, without its data.

    Raises:
        InputError: the file is not an ``.npz`` file, or the array is missing or contains Python
            objects.
    """
    with _open_array(file, name) as (_, shape, dtype):
        return shape, dtype


@contextlib.contextmanager
def _open_array(
    file: File, name: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """Open one array of an ``.npz``; yield (stream at its data, shape, dtype)."""
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(open_file(file))))
            if f"{name}.npy" not in archive.namelist():
                names = ", ".join(entry.removesuffix(".npy") for entry in archive.namelist())
                raise InputError(
                    f"{file}: no array {name!r}; the file contains {names}, but must contain "
                    "images (and optionally labels): np.savez(path, images=images, labels=labels)"
                )
            stream = stack.enter_context(archive.open(f"{name}.npy"))
            version = np.lib.format.read_magic(stream)
            read_header = np.lib.format.read_array_header_2_0
            if version == (1, 0):
                read_header = np.lib.format.read_array_header_1_0
            shape, fortran, dtype = read_header(stream)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{file}: not an .npz file: {error}") from error
        if dtype.hasobject:
            raise InputError(
                f"{file}: {name} contains Python objects, which are unsafe to load; "
                + _OBJECTS_ADVICE.get(name, "save an array of numbers or text")
            )
        if fortran and len(shape) > 1:
            raise InputError(
                f"{file}: {name} is in Fortran order; save np.ascontiguousarray({name}) instead"
            )
        yield stream, shape, dtype


def _read_positions(location: str, array: str, positions: Array) -> Array:
    """Read the images at the given positions, with one read per range of consecutive positions."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    ranges = [part for part in np.split(positions, breaks) if len(part)]
    arrays = [read_images(location, int(part[0]), len(part), array) for part in ranges]
    if not arrays:
        return np.zeros(0)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def read_images(root: str | Path, start: int, count: int, array: str = "images") -> Array:
    """Read images[start : start + count] as (n, H, W, C), uint8 or float32.

    Raises:
        InputError: the file is no longer a valid ``.npz`` file with images.
        StorageError: the file cannot be read.
    """
    file = locate_file(str(root))
    [stat] = stat_files([file])
    try:
        data = _locate_images(str(root), array, stat)
        count = max(0, min(count, data.shape[0] - start))
        size = data.dtype.itemsize * math.prod(data.shape[1:])
        if data.copy is not None:
            # `pread`, because shards are read in parallel and share one file position.
            content = os.pread(data.copy.fileno(), count * size, start * size)
        else:
            offset = data.offset + start * size
            content = call_with_retries(partial(_read_range, file, offset, count * size))
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {explain_error(error)}") from error
    images = np.frombuffer(content, data.dtype).reshape(count, *data.shape[1:])
    if images.ndim == 3:
        images = images[..., None]
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def _read_range(file: File, start: int, size: int) -> bytes:
    with open_file(file) as stream:
        stream.seek(start)
        return stream.read(size)


@dataclass(frozen=True)
class _ImageData:
    """The location of the image data: at `offset` in the file, or in an uncompressed copy."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    copy: IO[bytes] | None


@functools.lru_cache(maxsize=8)
def _locate_images(root: str, array: str, _stat: SizeAndTime) -> _ImageData:
    # The stat is part of the cache key, because the file may be replaced.
    file = locate_file(root)
    with _open_array(file, array) as (stream, shape, dtype):
        with open_file(file) as plain, zipfile.ZipFile(plain) as archive:
            member = archive.getinfo(f"{array}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                # The local header has 30 bytes; the last four hold the lengths of the name and the
                # extra field.
                plain.seek(member.header_offset)
                name, extra = struct.unpack("<HH", plain.read(30)[26:])
                offset = member.header_offset + 30 + name + extra + stream.tell()
                return _ImageData(shape, dtype, offset, None)
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process reads it
        check_space(Path(tempfile.gettempdir()), member.file_size, f"{file} unpacked")
        shutil.copyfileobj(stream, copy)
        copy.flush()
        return _ImageData(shape, dtype, 0, copy)
