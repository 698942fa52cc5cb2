# SPDX-License-Identifier: Apache-2.0
"""An ``.npy`` file of images, (N, H, W, C) or (N, H, W), with one of labels beside it.

The file of labels is found by its name, like an array in an ``.npz``: ``images.npy`` and
``labels.npy``, ``x_train.npy`` and ``y_train.npy``. Images are read by row range.
"""

import math
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.arrays import Array
from ray_embed.core.uri import get_parent_uri, is_uri, join_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.sources.array_checks import (
    check_images,
    check_label_shape,
    convert_labels,
    describe_arrays,
    get_wanted_labels,
)
from ray_embed.sources.array_files import ArraySource, compute_checksum, read_range
from ray_embed.sources.array_names import find_label_names
from ray_embed.sources.container_files import list_names
from ray_embed.sources.files import File, locate_file, open_file, stat_files
from ray_embed.sources.npy_format import read_header
from ray_embed.storage.retry import explain_error

_ENDING = ".npy"


def open_npy(split: str, named: str, config: RunConfig) -> ArraySource:
    """Open an ``.npy`` file of images, a path or URI, as a source.

    Raises:
        InputError: the file is not an ``.npy`` file or is cut off, an array has an unsupported type
            or rank, the lengths differ, or there is no file of the labels that were asked for.
    """
    where = redact_uri(named)
    name = PurePosixPath(urlsplit(named).path if is_uri(named) else named).stem
    shape, dtype, _ = _read_file_header(locate_file(named))
    check_images(name, shape, dtype, where)
    labels, notes = _read_labels(named, name, config, shape[0])
    return ArraySource(
        split=split,
        location=named,
        info=describe_arrays(
            shape,
            dtype,
            labels,
            checksum=compute_checksum(named, name, read_rows, shape[0]),
            notes=notes,
        ),
        labels=labels,
        array=name,
        read=read_rows,
    )


def read_rows(location: str, array: str, start: int, count: int) -> Array:
    """Read rows of the array in an ``.npy`` file, which has at least `start` + `count` of them.

    Its name does not matter, as it is the only one.

    Raises:
        InputError: the file is no longer a valid ``.npy`` file.
        OSError: the file cannot be read.
    """
    file = locate_file(location)
    shape, dtype, offset = _read_file_header(file)
    size = dtype.itemsize * math.prod(shape[1:])
    content = read_range(file, offset + start * size, count * size)
    return np.frombuffer(content, dtype).reshape(count, *shape[1:])


def _read_labels(
    named: str, name: str, config: RunConfig, count: int
) -> tuple[pa.Array, tuple[str, ...]]:
    """Return the labels of `count` images (null if there are none) and notes for the user."""
    where, wanted = redact_uri(named), get_wanted_labels(config)
    folder = get_parent_uri(named) if is_uri(named) else str(PurePosixPath(named).parent)
    others = sorted(
        entry.removesuffix(_ENDING) for entry in list_names(folder) if entry.endswith(_ENDING)
    )
    candidates = find_label_names(name) if wanted is None else (wanted.removesuffix(_ENDING),)
    label = next((candidate for candidate in candidates if candidate in others), None)
    if label is None:
        found = ", ".join(f"{other}{_ENDING}" for other in others)
        if wanted is not None:
            raise InputError(
                f"{where}: no file {candidates[0]}{_ENDING} beside it for --label-column; the "
                f"folder contains {found}"
            )
        looked_for = " or ".join(f"{other}{_ENDING}" for other in candidates)
        return pa.nulls(count), (
            f"{where}: no {looked_for or 'file of labels'} beside it, so the records are "
            f"unlabeled; the folder contains {found}; select the labels with --label-column",
        )
    location = join_uri(folder, f"{label}{_ENDING}")
    file = locate_file(location)
    shape, dtype, offset = _read_file_header(file)
    check_label_shape(label, shape, count, redact_uri(location), config.label_type)
    try:
        content = read_range(file, offset, math.prod(shape) * dtype.itemsize)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {explain_error(error)}") from error
    values = np.frombuffer(content, dtype).reshape(shape)
    return convert_labels(values, redact_uri(location), config.label_type), (
        f"{where}: labels from {label}{_ENDING}",
    )


def _read_file_header(file: File) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return the shape and type of the array in an ``.npy`` file, and where its data begins.

    Raises:
        InputError: it is not an ``.npy`` file, is cut off, or contains Python objects.
        FileNotFoundError: there is no such file.
    """
    [(size, _)] = stat_files([file])
    try:
        with open_file(file) as stream:
            shape, dtype = read_header(stream, PurePosixPath(str(file)).stem, str(file))
            offset = stream.tell()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {explain_error(error)}") from error
    except ValueError as error:
        raise InputError(f"{file}: not an .npy file: {error}") from error
    expected = offset + dtype.itemsize * math.prod(shape)
    if size is not None and size < expected:
        raise InputError(
            f"{file}: the file is cut off: it has {size:,} of {expected:,} bytes; copy or write it "
            "again"
        )
    return shape, dtype, offset
