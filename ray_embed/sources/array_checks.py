# SPDX-License-Identifier: Apache-2.0
"""Check that arrays are images and labels, and convert labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.errors import InputError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.label_lists import make_lists
from ray_embed.sources.label_schema import find_label_type
from ray_embed.sources.label_vectors import MULTI_HOT, VECTOR_TYPES, decode_vectors


def get_wanted_labels(config: RunConfig | None) -> str | None:
    """Return the array of labels that the options name, or None."""
    if config is None or "label_column" not in config.model_fields_set:
        return None
    return config.label_column


def check_images(name: str, shape: Sequence[int], dtype: np.dtype[Any], where: str) -> None:
    """Check that an array is a batch of images, (N, H, W, C) or (N, H, W), uint8 or float.

    Raises:
        InputError: it has another type or rank, its channels come first, or it is empty.
    """
    shape = tuple(shape)
    if dtype != np.uint8 and dtype.kind != "f":
        raise InputError(
            f"{where}: images have dtype {dtype}; expected uint8 or float: save pixels from 0 to "
            "255 as images.astype(np.uint8), and others as floats"
        )
    if len(shape) not in (3, 4):
        raise InputError(f"{where}: images have shape {shape}; expected (N, H, W, C) or (N, H, W)")
    if len(shape) == 4 and is_channels_first(shape[1:]):
        raise InputError(
            f"{where}: images have shape {shape}, with the channels first (NCHW); they must be "
            "last: save images=np.transpose(images, (0, 2, 3, 1))"
        )
    if shape[0] == 0:
        raise InputError(f"{where}: the array {name!r} is empty")


def is_channels_first(shape: Sequence[int]) -> bool:
    """Return whether a shape looks like (C, H, W): 1, 3 or 4 first, but not last."""
    first, height, width = shape
    counts = (1, 3, 4)
    return first in counts and width not in counts and min(height, width) > max(counts)


def describe_choice(
    images: str, labels: str | None, names: Sequence[str], where: str
) -> tuple[str, ...]:
    """Return notes for the user about the arrays that were chosen among `names`."""
    notes = []
    if images != "images":
        notes.append(f"{where}: images from {images}, labels from {labels or 'no array'}")
    if labels is None:
        notes.append(
            f"{where}: no array 'labels', so the records are unlabeled; the file contains "
            f"{', '.join(names)}; select the labels with --label-column"
        )
    return tuple(notes)


def check_label_shape(
    name: str, shape: Sequence[int], count: int, where: str, label_type: str
) -> None:
    """Check that an array has one label per image, as (N,), (N, 1) or, for vectors, (N, K).

    Raises:
        InputError: it has another shape.
    """
    shape = tuple(shape)
    are_rows = len(shape) == 2 and shape[0] == count
    if label_type in VECTOR_TYPES:
        if are_rows:
            return
        raise InputError(
            f"{where}: {name} have shape {shape}; --label-type {label_type} takes one vector for "
            f"each of the {count} images, ({count}, K)"
            + ("; leave the option out" if shape == (count,) else "")
        )
    if shape in ((count,), (count, 1)):
        return
    advice = (
        "; if these are one-hot labels, use --label-type onehot, or save labels=np.argmax(labels, "
        "axis=1); if several classes can be 1, use --label-type multihot"
        if are_rows
        else ""
    )
    raise InputError(
        f"{where}: {name} have shape {shape}; expected one label for each of the {count} "
        f"images{advice}"
    )


def convert_labels(labels: np.ndarray[Any, Any], where: str, label_type: str) -> pa.Array:
    """Convert NumPy labels of a checked shape to an Arrow array of one of the label types.

    Raises:
        InputError: the labels have an unsupported type, a number is out of range, or a row is not
            the vector that `label_type` says.
    """
    if label_type in VECTOR_TYPES:
        classes = decode_vectors(labels, label_type, where)
        return make_lists(classes) if label_type == MULTI_HOT else pa.array(classes, pa.int64())
    labels = labels.reshape(-1)
    if labels.dtype.kind in "US":
        texts = (
            v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else v for v in labels
        )
        return pa.array([str(text) for text in texts], pa.string())
    if labels.dtype.kind not in "biuf":
        raise InputError(
            f"{where}: labels cannot be of type {labels.dtype}; save labels=labels.astype(str)"
        )
    try:
        array = pa.array(labels.astype(labels.dtype.newbyteorder("=")))
        return array.cast(find_label_type(array.type, where))
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: a label does not fit in 64 bits: {error}") from error


def describe_arrays(
    shape: Sequence[int],
    dtype: np.dtype[Any],
    labels: pa.Array,
    *,
    checksum: str,
    notes: tuple[str, ...],
) -> SourceInfo:
    """Return the properties of a source of checked images, (N, H, W, C) or (N, H, W)."""
    _, height, width, *channels = shape
    return SourceInfo(
        label_type=labels.type,
        image_shape=(height, width, channels[0] if channels else 1),
        image_dtype="uint8" if dtype == np.uint8 else "float",
        checksum=checksum,
        notes=notes,
    )
