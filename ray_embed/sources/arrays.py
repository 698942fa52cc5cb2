# SPDX-License-Identifier: Apache-2.0
"""An ``.npz`` file with the arrays `images` (NHWC or NHW) and `labels`.

The images are read a range of rows at a time, straight from the archive's member, so that a file
larger than memory can be a source.
"""

import contextlib
import functools
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ray_embed.errors import InputError
from ray_embed.labels import label_type_of
from ray_embed.sources import Listed
from ray_embed.sources.folder import size_and_time

_BATCH = 65_536


def open_arrays(split: str, path: Path) -> Listed:
    """Open an ``.npz`` file as a source; a record's key is its position.

    Raises:
        InputError: not an ``.npz``, an array is missing, of another type or rank, or their
            lengths differ.
    """
    shape, dtype = array_header(path, "images")
    if dtype != np.uint8 and dtype.kind != "f":
        raise InputError(f"{path}: images are {dtype}; uint8 or float is needed")
    if len(shape) not in (3, 4):
        raise InputError(
            f"{path}: images have the shape {shape}; (N, H, W, C) or (N, H, W) is needed"
        )
    count, height, width = shape[:3]
    if count == 0:
        raise InputError(f"{path}: no images in it")
    label_shape, _ = array_header(path, "labels")
    if label_shape not in ((count,), (count, 1)):
        raise InputError(
            f"{path}: labels have the shape {label_shape}; one label for each of the "
            f"{count} images is needed"
        )
    labels = np.load(path, allow_pickle=False)["labels"].reshape(-1)
    arrow = label_array(labels, str(path))
    return Listed(
        split,
        str(path),
        "array",
        label_type_of(arrow.type, f"{path}: labels"),
        lambda skipped: _records(path, arrow),
        image_shape=(height, width, shape[3] if len(shape) == 4 else 1),
        image_dtype="uint8" if dtype == np.uint8 else "float",
        content=_checksum(path),
    )


def _checksum(path: Path) -> str:
    """Give the checksum of the images that the archive itself keeps."""
    with zipfile.ZipFile(path) as archive:
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


def _records(path: Path, labels: pa.Array) -> Iterator[pa.RecordBatch]:
    count = len(labels)
    size, mtime = size_and_time(path)
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


def array_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and type of one array of an ``.npz``, without its data.

    Raises:
        InputError: not an ``.npz``, no such array, or an array of Python objects.
    """
    with _member(path, name) as (_, shape, dtype):
        return shape, dtype


@contextlib.contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """Open one array of an ``.npz``: gives (stream at its data, shape, dtype)."""
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            if f"{name}.npy" not in archive.namelist():
                names = ", ".join(entry.removesuffix(".npy") for entry in archive.namelist())
                raise InputError(f"{path}: no array {name!r} in it; it has {names}")
            stream = stack.enter_context(archive.open(f"{name}.npy"))
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_2_0
            if version == (1, 0):
                read = np.lib.format.read_array_header_1_0
            shape, fortran, dtype = read(stream)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not an .npz file: {error}") from error
        if dtype.hasobject:
            raise InputError(f"{path}: {name} holds Python objects, which are not safe to load")
        if fortran and len(shape) > 1:
            raise InputError(f"{path}: {name} is in Fortran order; save np.ascontiguousarray of it")
        yield stream, shape, dtype


def read_images(path: Path, start: int, count: int) -> np.ndarray[Any, Any]:
    """Read the images `start` to `start + count` as (n, H, W, C), uint8 or float32."""
    images = np.array(_mapped(path, path.stat().st_mtime_ns)[start : start + count])
    if images.ndim == 3:
        images = images[..., None]
    return images if images.dtype == np.uint8 else images.astype(np.float32)


@functools.lru_cache(maxsize=8)
def _mapped(path: Path, _changed: int) -> np.ndarray[Any, Any]:
    """Map the images into memory: where they lie in the file, or from a copy if compressed."""
    with _member(path, "images") as (stream, shape, dtype):
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("images.npy")
        if member.compress_type == zipfile.ZIP_STORED:
            with open(path, "rb") as file:
                # The local header has 30 bytes; the last four are the lengths of what follows.
                file.seek(member.header_offset)
                name, extra = struct.unpack("<HH", file.read(30)[26:])
            offset = member.header_offset + 30 + name + extra + stream.tell()
            return np.memmap(path, dtype, "r", offset, shape)
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(stream, copy)
            copy.flush()
            return np.memmap(copy, dtype, "r", 0, shape)
