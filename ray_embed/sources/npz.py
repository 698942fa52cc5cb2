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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.files import File, SizeAndTime, find, look_at, open_file
from ray_embed.sources.label_schema import label_type_of
from ray_embed.sources.open import Listed
from ray_embed.storage.download import check_space
from ray_embed.storage.retry import call_with_retries, explain_error

_BATCH = 65_536
_OF_OBJECTS = {
    "labels": "save labels=labels.astype(str), or of numbers labels.astype(int)",
    "images": "save images of one size as images=np.stack(images), which gives an array of uint8",
}


def open_arrays(split: str, root: str | Path) -> Listed:
    """Open an ``.npz`` file, a path or URI, as a source; a record's key is its position.

    Without an array `labels` its records have no labels.

    Raises:
        InputError: not an ``.npz``, the images are missing, an array is of another type or rank,
            or their lengths differ.
    """
    file, path = find(str(root)), redact_uri(str(root))
    shape, dtype = array_header(file, "images")
    if dtype != np.uint8 and dtype.kind != "f":
        raise InputError(f"{path}: images are {dtype}; uint8 or float is needed")
    if len(shape) not in (3, 4):
        raise InputError(
            f"{path}: images have the shape {shape}; (N, H, W, C) or (N, H, W) is needed"
        )
    if len(shape) == 4 and channels_first(shape[1:]):
        raise InputError(
            f"{path}: images have the shape {shape}, with the channels first (NCHW); they are "
            "needed last: save images=np.transpose(images, (0, 2, 3, 1))"
        )
    count, height, width = shape[:3]
    if count == 0:
        raise InputError(f"{path}: no images in it")
    labels, notes = _labels(file, path, count)
    return Listed(
        split,
        path,
        "array",
        label_type_of(labels.type, f"{path}: labels"),
        lambda skipped: _records(file, labels),
        image_shape=(height, width, shape[3] if len(shape) == 4 else 1),
        image_dtype="uint8" if dtype == np.uint8 else "float",
        content=_checksum(file),
        location=str(root),
        notes=notes,
    )


def channels_first(shape: Sequence[int]) -> bool:
    """Whether an image's shape is (C, H, W): 1, 3 or 4 channels first, and not last."""
    first, height, width = shape
    counts = (1, 3, 4)
    return first in counts and width not in counts and min(height, width) > max(counts)


def _labels(file: File, path: str, count: int) -> tuple[pa.Array, tuple[str, ...]]:
    """Give the labels of so many images, null where there are none, and a note where so."""
    names = _names(file)
    if "labels" not in names:
        others = ", ".join(name for name in names if name != "images")
        having = f"; it also has {others}: save the labels as labels=…" if others else ""
        return pa.nulls(count), (
            f"{path}: no array 'labels', so its records have no labels{having}",
        )
    shape, _ = array_header(file, "labels")
    if shape not in ((count,), (count, 1)):
        one_hot = len(shape) == 2 and shape[0] == count
        mend = "; of one-hot labels save labels=np.argmax(labels, axis=1)" if one_hot else ""
        raise InputError(
            f"{path}: labels have the shape {shape}; one label for each of the "
            f"{count} images is needed{mend}"
        )
    with open_file(file) as stream:
        labels = np.load(stream, allow_pickle=False)["labels"].reshape(-1)
    return label_array(labels, path), ()


def _names(file: File) -> list[str]:
    with open_file(file) as stream, zipfile.ZipFile(stream) as archive:
        return [entry.removesuffix(".npy") for entry in archive.namelist()]


def _checksum(file: File) -> str:
    """Give the checksum of the images that the archive itself keeps."""
    with open_file(file) as stream, zipfile.ZipFile(stream) as archive:
        return f"{archive.getinfo('images.npy').CRC:08x}"


def label_array(labels: np.ndarray[Any, Any], where: str) -> pa.Array:
    """Give NumPy labels (1-D) as an Arrow array of one of the label types.

    Raises:
        InputError: their type is no label, or a number does not fit.
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
        return array.cast(label_type_of(array.type, where))
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: a label does not fit into 64 bits: {error}") from error


def _records(file: File, labels: pa.Array) -> Iterator[pa.RecordBatch]:
    count = len(labels)
    [(size, mtime)] = look_at([file])
    for start in range(0, count, _BATCH):
        rows = min(_BATCH, count - start)
        yield pa.record_batch(
            {
                "key": pa.array([str(start + i) for i in range(rows)], pa.string()),
                "label": labels.slice(start, rows),
                "path": pa.nulls(rows, pa.binary()),
                "size": pa.repeat(pa.scalar(size, pa.int64()), rows),
                "mtime": pa.repeat(pa.scalar(mtime, pa.int64()), rows),
            }
        )


def array_header(file: File, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and type of one array of an ``.npz``, without its data.

    Raises:
        InputError: not an ``.npz``, no such array, or an array of Python objects.
    """
    with _member(file, name) as (_, shape, dtype):
        return shape, dtype


@contextlib.contextmanager
def _member(file: File, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """Open one array of an ``.npz``: gives (stream at its data, shape, dtype)."""
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
            read = np.lib.format.read_array_header_2_0
            if version == (1, 0):
                read = np.lib.format.read_array_header_1_0
            shape, fortran, dtype = read(stream)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{file}: not an .npz file: {error}") from error
        if dtype.hasobject:
            raise InputError(
                f"{file}: {name} holds Python objects, which are not safe to load; "
                + _OF_OBJECTS.get(name, "save an array of numbers or text")
            )
        if fortran and len(shape) > 1:
            raise InputError(f"{file}: {name} is in Fortran order; save np.ascontiguousarray of it")
        yield stream, shape, dtype


def read_images(root: str | Path, start: int, count: int) -> np.ndarray[Any, Any]:
    """Read the images `start` to `start + count` as (n, H, W, C), uint8 or float32.

    Raises:
        InputError: the file is no longer what it was.
        StorageError: it cannot be read.
    """
    file = find(str(root))
    [looked_at] = look_at([file])
    try:
        place = _place(str(root), looked_at)
        count = max(0, min(count, place.shape[0] - start))
        size = place.dtype.itemsize * math.prod(place.shape[1:])
        if place.copy is not None:
            # Shards are read side by side, and a file has one position.
            content = os.pread(place.copy.fileno(), count * size, start * size)
        else:
            at = place.offset + start * size
            content = call_with_retries(partial(_read_range, file, at, count * size))
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {explain_error(error)}") from error
    images = np.frombuffer(content, place.dtype).reshape(count, *place.shape[1:])
    if images.ndim == 3:
        images = images[..., None]
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def _read_range(file: File, start: int, size: int) -> bytes:
    with open_file(file) as stream:
        stream.seek(start)
        return stream.read(size)


@dataclass(frozen=True)
class _Place:
    """Where the images lie: from `offset` on in the file, or in a copy of a compressed one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    copy: IO[bytes] | None


@functools.lru_cache(maxsize=8)
def _place(root: str, _looked_at: SizeAndTime) -> _Place:
    file = find(root)
    with _member(file, "images") as (stream, shape, dtype):
        with open_file(file) as plain, zipfile.ZipFile(plain) as archive:
            member = archive.getinfo("images.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                # The local header has 30 bytes; the last four are the lengths of what follows.
                plain.seek(member.header_offset)
                name, extra = struct.unpack("<HH", plain.read(30)[26:])
                offset = member.header_offset + 30 + name + extra + stream.tell()
                return _Place(shape, dtype, offset, None)
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process reads it
        check_space(Path(tempfile.gettempdir()), member.file_size, f"{file} unpacked")
        shutil.copyfileobj(stream, copy)
        copy.flush()
        return _Place(shape, dtype, 0, copy)
