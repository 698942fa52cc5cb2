# SPDX-License-Identifier: Apache-2.0
"""An ``.npz`` file with the arrays `images` (NHWC or NHW) and `labels`.

The images are read a range of rows at a time, straight from the archive's member, so that a file
larger than memory can be a source, wherever it is.
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
from typing import IO, Any, ClassVar

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.images.decode import PixelSpec
from ray_embed.sources.array_images import ArrayImages, open_arrays
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

_BATCH = 65_536
_OBJECTS_ADVICE = {
    "labels": "save labels=labels.astype(str), or of numbers labels.astype(int); a None among them "
    "would become the label 'None'",
    "images": "save images of one size as images=np.stack(images), which gives an array of uint8",
}


@dataclass(frozen=True)
class Npz:
    """The images of an ``.npz`` file, in their order; a record's key is its position."""

    kind: ClassVar[str] = "array"
    split: str
    location: str
    info: SourceInfo
    labels: pa.Array

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the images."""
        [(size, mtime)] = stat_files([locate_file(self.location)])
        for start in range(0, len(self.labels), _BATCH):
            rows = min(_BATCH, len(self.labels) - start)
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
        """Return what opens the images."""
        return NpzReader(self.location, f"--source {self.split}={redact_uri(self.location)}")


@dataclass(frozen=True)
class NpzReader:
    """Opens images of an ``.npz`` file; `where` names the source in messages."""

    location: str
    where: str

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> ArrayImages:
        """Read the images of planned records.

        Raises:
            InputError: they do not fit the encoder.
            StorageError: the file cannot be read.
        """
        images = _read_positions(self.location, records.positions)
        return open_arrays(images, records.positions, pixels, self.where)

    def verify(self, rows: pa.Table) -> None:
        """Compare the file with what it was when planned.

        Raises:
            InputError: it has changed, or is gone.
            StorageError: the storage does not answer.
        """
        if rows.num_rows:
            planned = (rows["size"][0].as_py(), rows["mtime"][0].as_py())
            check_unchanged([locate_file(self.location)], [planned])


def open_npz(split: str, root: str | Path) -> Npz:
    """Open an ``.npz`` file, a path or URI, as a source.

    Without an array `labels` its records have no labels.

    Raises:
        InputError: not an ``.npz``, the images are missing, an array is of another type or rank,
            or their lengths differ.
    """
    file, path = locate_file(str(root)), redact_uri(str(root))
    shape, dtype = read_array_header(file, "images")
    if dtype != np.uint8 and dtype.kind != "f":
        raise InputError(f"{path}: images are {dtype}; uint8 or float is needed")
    if len(shape) not in (3, 4):
        raise InputError(
            f"{path}: images have the shape {shape}; (N, H, W, C) or (N, H, W) is needed"
        )
    if len(shape) == 4 and is_channels_first(shape[1:]):
        raise InputError(
            f"{path}: images have the shape {shape}, with the channels first (NCHW); they are "
            "needed last: save images=np.transpose(images, (0, 2, 3, 1))"
        )
    count, height, width = shape[:3]
    if count == 0:
        raise InputError(f"{path}: no images in it")
    labels, notes = _read_labels(file, path, count)
    info = SourceInfo(
        label_type=find_label_type(labels.type, f"{path}: labels"),
        image_shape=(height, width, shape[3] if len(shape) == 4 else 1),
        image_dtype="uint8" if dtype == np.uint8 else "float",
        checksum=_read_checksum(file),
        notes=notes,
    )
    return Npz(split, str(root), info, labels)


def is_channels_first(shape: Sequence[int]) -> bool:
    """Return whether an image's shape is (C, H, W): 1, 3 or 4 channels first, and not last."""
    first, height, width = shape
    counts = (1, 3, 4)
    return first in counts and width not in counts and min(height, width) > max(counts)


def _read_labels(file: File, path: str, count: int) -> tuple[pa.Array, tuple[str, ...]]:
    """Return the labels of `count` images, null if there are none, and a note on that."""
    names = _list_arrays(file)
    if "labels" not in names:
        others = ", ".join(name for name in names if name != "images")
        advice = f"; it also has {others}: save the labels as labels=…" if others else ""
        return pa.nulls(count), (
            f"{path}: no array 'labels', so its records have no labels{advice}",
        )
    shape, _ = read_array_header(file, "labels")
    if shape not in ((count,), (count, 1)):
        one_hot = len(shape) == 2 and shape[0] == count
        advice = "; of one-hot labels save labels=np.argmax(labels, axis=1)" if one_hot else ""
        raise InputError(
            f"{path}: labels have the shape {shape}; one label for each of the "
            f"{count} images is needed{advice}"
        )
    with open_file(file) as stream:
        labels = np.load(stream, allow_pickle=False)["labels"].reshape(-1)
    return convert_labels(labels, path), ()


def _list_arrays(file: File) -> list[str]:
    with open_file(file) as stream, zipfile.ZipFile(stream) as archive:
        return [entry.removesuffix(".npy") for entry in archive.namelist()]


def _read_checksum(file: File) -> str:
    """Return the checksum of the images that the archive itself holds."""
    with open_file(file) as stream, zipfile.ZipFile(stream) as archive:
        return f"{archive.getinfo('images.npy').CRC:08x}"


def convert_labels(labels: np.ndarray[Any, Any], where: str) -> pa.Array:
    """Return NumPy labels (1-D) as an Arrow array of one of the label types.

    Raises:
        InputError: they are of a type that labels cannot have, or a number does not fit.
    """
    if labels.dtype.kind in "US":
        texts = (
            v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else v for v in labels
        )
        return pa.array([str(text) for text in texts], pa.string())
    if labels.dtype.kind not in "biuf":
        raise InputError(f"{where}: labels of type {labels.dtype} are no labels")
    try:
        array = pa.array(labels.astype(labels.dtype.newbyteorder("=")))
        return array.cast(find_label_type(array.type, where))
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: a label does not fit into 64 bits: {error}") from error


def read_array_header(file: File, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and type of one array of an ``.npz``, without its data.

    Raises:
        InputError: not an ``.npz``, no such array, or an array of Python objects.
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
                    f"{file}: no array {name!r} in it; it has {names}, but needs images and "
                    "labels: np.savez(path, images=images, labels=labels)"
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
                f"{file}: {name} holds Python objects, which are not safe to load; "
                + _OBJECTS_ADVICE.get(name, "save an array of numbers or text")
            )
        if fortran and len(shape) > 1:
            raise InputError(f"{file}: {name} is in Fortran order; save np.ascontiguousarray of it")
        yield stream, shape, dtype


def _read_positions(location: str, positions: Array) -> Array:
    """Read the images at some positions; consecutive ones at once."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    ranges = [part for part in np.split(positions, breaks) if len(part)]
    arrays = [read_images(location, int(part[0]), len(part)) for part in ranges]
    if not arrays:
        return np.zeros(0)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def read_images(root: str | Path, start: int, count: int) -> Array:
    """Read the images `start` to `start + count` as (n, H, W, C), uint8 or float32.

    Raises:
        InputError: the file is no longer an ``.npz`` with images.
        StorageError: the file cannot be read.
    """
    file = locate_file(str(root))
    [stat] = stat_files([file])
    try:
        data = _locate_images(str(root), stat)
        count = max(0, min(count, data.shape[0] - start))
        size = data.dtype.itemsize * math.prod(data.shape[1:])
        if data.copy is not None:
            # Shards are read in parallel, and a file has one position.
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
    """Where the images are: from `offset` on in the file, or in a copy of a compressed one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    copy: IO[bytes] | None


@functools.lru_cache(maxsize=8)
def _locate_images(root: str, _stat: SizeAndTime) -> _ImageData:
    # By size and time, too: another file may take its place.
    file = locate_file(root)
    with _open_array(file, "images") as (stream, shape, dtype):
        with open_file(file) as plain, zipfile.ZipFile(plain) as archive:
            member = archive.getinfo("images.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                # The local header has 30 bytes; the last four are the lengths of what follows.
                plain.seek(member.header_offset)
                name, extra = struct.unpack("<HH", plain.read(30)[26:])
                offset = member.header_offset + 30 + name + extra + stream.tell()
                return _ImageData(shape, dtype, offset, None)
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process reads it
        check_space(Path(tempfile.gettempdir()), member.file_size, f"{file} unpacked")
        shutil.copyfileobj(stream, copy)
        copy.flush()
        return _ImageData(shape, dtype, 0, copy)
