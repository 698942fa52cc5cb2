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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.sources.array_checks import (
    check_images,
    check_label_shape,
    convert_labels,
    describe_arrays,
    describe_choice,
    get_wanted_labels,
)
from ray_embed.sources.array_files import ArraySource, read_range
from ray_embed.sources.array_names import choose_arrays
from ray_embed.sources.files import File, SizeAndTime, locate_file, open_file, stat_files
from ray_embed.sources.npy_format import read_header
from ray_embed.storage.download import check_space


def open_npz(split: str, root: str | Path, config: RunConfig | None = None) -> ArraySource:
    """Open an ``.npz`` file, a path or URI, as a source.

    Without an array of labels, the records are unlabeled.

    Raises:
        InputError: the file is not an ``.npz`` file, has no images, an array has an unsupported
            type or rank, or the lengths differ.
    """
    file, path = locate_file(str(root)), redact_uri(str(root))
    image = config.image_column if config else None
    names = _list_arrays(file)
    name, label = choose_arrays(names, split, image, get_wanted_labels(config), path)
    shape, dtype = read_array_header(file, name)
    check_images(name, shape, dtype, path)
    labels = _read_labels(file, path, label, shape[0], config.label_type if config else "text")
    return ArraySource(
        split=split,
        location=str(root),
        info=describe_arrays(
            shape,
            dtype,
            labels,
            checksum=_read_checksum(file, name),
            notes=describe_choice(name, label, names, path),
        ),
        labels=labels,
        array=name,
        read=read_rows,
    )


def _read_labels(file: File, path: str, label: str | None, count: int, label_type: str) -> pa.Array:
    """Return the labels of `count` images, null if there are none."""
    if label is None:
        return pa.nulls(count)
    shape, _ = read_array_header(file, label)
    check_label_shape(label, shape, count, path, label_type)
    with open_file(file) as stream:
        labels = np.load(stream, allow_pickle=False)[label]
    return convert_labels(labels, path, label_type)


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
            shape, dtype = read_header(stream, name, str(file))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{file}: not an .npz file: {error}") from error
        yield stream, shape, dtype


def read_rows(location: str, array: str, start: int, count: int) -> Array:
    """Read rows of an array of an ``.npz``, which has at least `start` + `count` of them.

    Raises:
        InputError: the file is no longer a valid ``.npz`` file with images.
        OSError: the file cannot be read.
    """
    file = locate_file(location)
    [stat] = stat_files([file])
    data = _locate_images(location, array, stat)
    size = data.dtype.itemsize * math.prod(data.shape[1:])
    if data.copy is not None:
        # `pread`, because shards are read in parallel and share one file position.
        content = os.pread(data.copy.fileno(), count * size, start * size)
    else:
        content = read_range(file, data.offset + start * size, count * size)
    return np.frombuffer(content, data.dtype).reshape(count, *data.shape[1:])


@dataclass(frozen=True)
class _ImageData:
    """The location of the image data: at `offset` in the file, or in an uncompressed copy."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    copy: IO[bytes] | None


@functools.lru_cache(maxsize=8)
def _locate_images(location: str, array: str, _stat: SizeAndTime) -> _ImageData:
    # The stat is part of the cache key, because the file may be replaced.
    file = locate_file(location)
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
