# SPDX-License-Identifier: Apache-2.0
"""HDF5 files with a dataset of images, (N, H, W, C) or (N, H, W), and one of labels.

Images are read by row range, so the file can be larger than memory and can be remote.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, get_first_line
from ray_embed.sources.array_checks import (
    check_images,
    check_label_shape,
    convert_labels,
    describe_arrays,
    describe_choice,
    get_wanted_labels,
)
from ray_embed.sources.array_files import ArraySource, compute_checksum
from ray_embed.sources.array_names import choose_arrays
from ray_embed.sources.files import locate_file, open_file
from ray_embed.sources.label_vectors import VECTOR_TYPES
from ray_embed.storage.retry import call_with_retries, explain_error, is_storage_error

if TYPE_CHECKING:
    import h5py


def open_hdf5(split: str, named: str, config: RunConfig) -> ArraySource:
    """Open an HDF5 file, a path or URI, as a source.

    Without a dataset of labels, the records are unlabeled.

    Raises:
        InputError: the file is not an HDF5 file or is damaged, has no images, a dataset has an
            unsupported type or rank, or the lengths differ.
    """
    where = redact_uri(named)
    with _open_input(named) as file:
        names = _list_datasets(file)
        wanted = get_wanted_labels(config)
        name, label = choose_arrays(names, split, config.image_column, wanted, where)
        shape: tuple[int, ...] = file[name].shape or ()
        dtype = file[name].dtype
        check_images(name, shape, dtype, where)
        labels = _read_labels(file, label, shape[0], where, config.label_type)
    return ArraySource(
        split=split,
        location=named,
        info=describe_arrays(
            shape,
            dtype,
            labels,
            checksum=compute_checksum(named, name, read_rows, shape[0]),
            notes=describe_choice(name, label, names, where),
        ),
        labels=labels,
        array=name,
        read=read_rows,
    )


def read_rows(location: str, array: str, start: int, count: int) -> Array:
    """Read rows of a dataset of an HDF5 file.

    Raises:
        KeyError: there is no such dataset any more.
        OSError: the file cannot be read.
    """

    def read() -> Array:
        with _open(location) as file:
            rows: Array = file[array][start : start + count]
            return rows

    return call_with_retries(read)


@contextlib.contextmanager
def _open(location: str) -> Iterator["h5py.File"]:
    import h5py

    with open_file(locate_file(location)) as stream, h5py.File(stream, "r") as file:
        yield file


@contextlib.contextmanager
def _open_input(location: str) -> Iterator["h5py.File"]:
    """Open an HDF5 file for planning.

    Raises:
        InputError: it is not an HDF5 file, or cannot be read.
    """
    where = redact_uri(location)
    try:
        with _open(location) as file:
            yield file
    except OSError as error:
        if error.errno or is_storage_error(error):
            raise InputError(f"{where}: cannot be read: {explain_error(error)}") from error
        raise InputError(f"{where}: cannot be read as HDF5: {get_first_line(error)}") from error
    except (RuntimeError, KeyError, ValueError) as error:
        # What h5py raises for damage.
        raise InputError(f"{where}: cannot be read as HDF5: {get_first_line(error)}") from error


def _list_datasets(file: "h5py.File") -> list[str]:
    """Return the full names of all datasets, such as ``train/images``."""
    import h5py

    names: list[str] = []

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)

    file.visititems(add)
    return names


def _read_labels(
    file: "h5py.File", label: str | None, count: int, where: str, label_type: str
) -> pa.Array:
    """Return the labels of `count` images, null if there are none."""
    import h5py

    if label is None:
        return pa.nulls(count)
    dataset = file[label]
    check_label_shape(label, dataset.shape or (), count, where, label_type)
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if is_text and label_type not in VECTOR_TYPES:
        texts = dataset.asstr(errors="backslashreplace")[()].reshape(-1)
        return pa.array(texts.tolist(), pa.string())
    values: np.ndarray[Any, Any] = dataset[()]
    return convert_labels(values, where, label_type)
