# SPDX-License-Identifier: Apache-2.0
"""The one reader that walks a tf.data dataset, or a sequence, and cuts it into shards."""

import itertools
import numbers
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.core import user_code
from ray_embed.core.keys import make_key
from ray_embed.errors import InputError, RayEmbedError, RunError
from ray_embed.sources.label_schema import label_type_of
from ray_embed.sources.npz import channels_first
from ray_embed.sources.open import Streamed

Image = np.ndarray[Any, Any]
Record = tuple[Image, Any, str | None]
_END = object()


@dataclass(frozen=True)
class StreamInfo:
    """What must be known of a stream before its first shard; `notes` are lines for the user."""

    label_type: pa.DataType
    image_shape: tuple[int, int, int]
    image_dtype: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StreamedShard:
    """Consecutive records: `rows` (key, label, crc) and their images, each (H, W, C)."""

    rows: pa.Table
    images: list[Image]


class StreamReader:
    """Walks the records of one streamed source, once, in order.

    Args:
        source: the stream.
        limit: the number of records after which it ends; None for all.

    Raises:
        InputError: the callable cannot be found or gives something else, there is no record, or
            an image or label is none.
    """

    def __init__(self, source: Streamed, limit: int | None = None) -> None:
        self._where = f"--source {source.split}={source.name}"
        opened = source.source
        if isinstance(opened, str) or _is_function(opened):
            opened = user_code.call_reference(opened, source.kwargs, self._where)
        # What the first third element is holds for all: "path" or "weight".
        self._third: str | None = None
        self._notes: list[str] = []
        records = itertools.islice(self._records(opened), limit)
        first = next(records, None)
        if first is None:
            raise InputError(f"{self._where}: it gives no record")
        self._rest = itertools.chain([first], records)
        self._position = 0
        image, label, _ = first
        # The first label's type holds for all: a later one of another type is an error.
        self._label_type = self._type_of(label)
        self._first = image

    def describe(self) -> StreamInfo:
        """Give label type, image shape and what to note, from the first record."""
        height, width, channels = self._first.shape
        kind = "uint8" if self._first.dtype == np.uint8 else "float"
        notes = tuple(self._notes)
        if pa.types.is_null(self._label_type):
            notes += ("its records have no labels",)
        return StreamInfo(self._label_type, (height, width, channels), kind, notes)

    def next_shard(self, size: int) -> StreamedShard | None:
        """Read the next shard of at most `size` records; None after the last.

        Raises:
            InputError: an image or a label is none, or labels change their type.
            RunError: the dataset itself failed; says at which record.
        """
        records = list(itertools.islice(self._rest, size))
        if not records:
            return None
        images, labels, paths = zip(*records, strict=True)
        start = self._position
        self._position += len(records)
        keys = [str(start + i) if path is None else path for i, path in enumerate(paths)]
        rows = pa.table(
            {
                "key": pa.array(keys, pa.string()),
                "label": self._label_array(labels, start),
                "crc": pa.array([_checksum(image) for image in images], pa.int64()),
            }
        )
        return StreamedShard(rows, list(images))

    def _label_array(self, labels: tuple[Any, ...], start: int) -> pa.Array:
        for offset, label in enumerate(labels):
            kind = self._type_of(label)
            if kind not in (self._label_type, pa.null()):
                raise InputError(
                    f"{self._where}: record {start + offset} has the label {label!r} ({kind}), the "
                    f"first record's label is {self._label_type}; give all labels one type"
                )
        return pa.array(labels, self._label_type)

    def _type_of(self, label: Any) -> pa.DataType:
        if isinstance(label, int) and not -(2**63) <= label < 2**63:
            raise InputError(
                f"{self._where}: the label {label} does not fit into 64 bits; give it as text"
            )
        try:
            kind = pa.scalar(label).type
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{self._where}: {label!r} ({type(label).__name__}) is no label; a label is one "
                "whole number, float, text or bool"
            ) from error
        return label_type_of(kind, self._where)

    def _records(self, opened: Any) -> Iterator[Record]:
        elements = self._elements(opened)
        for position in itertools.count():
            try:
                element = next(elements, _END)
            except RayEmbedError:
                raise
            except Exception as error:
                raise RunError(
                    f"{self._where}: the dataset failed at element {position} (counted from 0): "
                    f"{type(error).__name__}: {error}"
                ) from error
            if element is _END:
                return
            yield from self._unpack(element, position)

    def _elements(self, opened: Any) -> Iterator[Any]:
        import tensorflow as tf

        if isinstance(opened, tf.data.Dataset):
            yield from opened.as_numpy_iterator()
        elif hasattr(opened, "__len__") and hasattr(opened, "__getitem__"):
            for position in range(len(opened)):
                yield opened[position]
        else:
            raise InputError(
                f"{self._where}: it gives {type(opened).__name__}; a tf.data.Dataset or a sequence "
                "(__len__ and __getitem__) of img, (img, gt) or (img, gt, img_path) is needed"
            )

    def _unpack(self, element: Any, position: int) -> Iterator[Record]:
        """Take one element, a record or a batch, apart into records."""
        if hasattr(element, "shape"):
            element = (element,)
        if not isinstance(element, (tuple, list)) or len(element) not in (1, 2, 3):
            raise InputError(
                f"{self._where}: element {position} is {_described(element)}; "
                "img, (img, gt) or (img, gt, img_path) is needed"
            )
        image = self._array(element[0], "img")
        label, third = (*element[1:], None, None)[:2]
        if image.dtype != np.uint8:
            if image.dtype.kind not in "fiu" and image.dtype.name != "bfloat16":
                raise InputError(
                    f"{self._where}: img is of type {image.dtype}; numbers are needed: decode the "
                    "images in the dataset function"
                )
            image = image.astype(np.float32)
        if image.ndim == 2 or self._is_grey_batch(image, label):
            image = image[..., None]
        self._check_channels(image.shape)
        if image.ndim == 3:
            labels = self._labels(self._alone(label, "gt"), 1)
            paths = self._paths(self._alone(third, "img_path"), 1, position)
            yield image, labels[0], paths[0]
        elif image.ndim == 4:
            labels = self._labels(label, len(image))
            yield from zip(image, labels, self._paths(third, len(image), position), strict=True)
        else:
            raise InputError(
                f"{self._where}: img has the shape {image.shape}; "
                "(H, W, C) or (H, W), or (N, H, W, C) for batches, is needed"
            )

    def _is_grey_batch(self, image: Image, label: Any) -> bool:
        """Whether an image of rank 3 is a batch (N, H, W): it has N labels, and no channels."""
        if image.ndim != 3 or image.shape[-1] <= 4:
            return False
        if label is None or isinstance(label, (dict, tuple)):
            return False
        return self._array(label, "gt").shape in (image.shape[:1], (len(image), 1))

    def _check_channels(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (3, 4) or not channels_first(shape[-3:]):
            return
        order = (1, 2, 0) if len(shape) == 3 else (0, 2, 3, 1)
        raise InputError(
            f"{self._where}: img has the shape {shape}, with the channels first (NCHW); they are "
            f"needed last: give np.transpose(img, {order}), or dataset.map(lambda img, *others: "
            f"(tf.transpose(img, {order}), *others))"
        )

    def _labels(self, labels: Any, count: int) -> list[Any]:
        """Give `count` labels as Python values; each must be a scalar or of shape (1,)."""
        mend = "give one number or text a record (not the image, a mask or a one-hot vector)"
        if _is_one_hot(labels):
            mend = (
                "it looks one-hot, so give the number of the class: tf.argmax(gt, -1), or in Keras "
                "label_mode='int'"
            )
        return self._values(labels, count, "gt", mend)

    def _paths(self, values: Any, count: int, position: int) -> list[str | None]:
        """Give `count` paths; None for each where the third element is a sample weight."""
        given = self._values(values, count, "img_path", "give one text a record")
        for value in given:
            self._check_third(value, position)
        if self._third == "weight":
            return [None] * count
        return [value if value is None else str(value) for value in given]

    def _check_third(self, value: Any, position: int) -> None:
        """Tell a path from a sample weight, by the first record."""
        if value is None:
            return
        is_path = isinstance(value, (str, os.PathLike))
        if not is_path and not isinstance(value, numbers.Real):
            raise InputError(
                f"{self._where}: img_path is {value!r} ({type(value).__name__}) in element "
                f"{position}; a path is text or bytes"
            )
        kind = "path" if is_path else "weight"
        if self._third is None:
            self._third = kind
            if kind == "weight":
                self._notes.append(
                    f"the third element of a record is a number ({value!r}), taken for a sample "
                    "weight and left out; keys are positions (give what is meant as a key as text)"
                )
        elif kind != self._third:
            raise InputError(
                f"{self._where}: the third element is {value!r} in element {position}, a {kind}, "
                f"but a {self._third} before; give a path in each record, or in none"
            )

    def _values(self, values: Any, count: int, what: str, mend: str) -> list[Any]:
        if values is None:
            return [None] * count
        if isinstance(values, (dict, tuple)):
            raise InputError(f"{self._where}: {what} is {_described(values)}; {mend}")
        array = self._array(values, what)
        if array.shape not in ((count,), (count, 1)):
            if array.shape[:1] == (count,):
                shape = f"the shape {array.shape[1:]} a record, which is none"
            else:
                shape = f"the shape {array.shape} for {count} records"
            raise InputError(f"{self._where}: {what} has {shape}; {mend}")
        flat = array.reshape(-1).tolist()
        return [make_key(value) if isinstance(value, (bytes, str)) else value for value in flat]

    def _alone(self, value: Any, what: str) -> Any:
        """Make a batch of the value of a single record."""
        if value is None or isinstance(value, (dict, tuple)):
            return value
        return self._array(value, what)[None]

    def _array(self, value: Any, what: str) -> np.ndarray[Any, Any]:
        try:
            return np.asarray(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self._where}: {what} is no array of one shape: {error}") from error


def _is_function(source: Any) -> bool:
    return (
        callable(source)
        and not hasattr(source, "__getitem__")
        and not hasattr(source, "element_spec")
    )


def _is_one_hot(labels: Any) -> bool:
    """Whether labels are rows of zeros with a single one in each."""
    if isinstance(labels, (dict, tuple)) or labels is None:
        return False
    rows = np.asarray(labels)
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "biuf":
        return False
    return bool(np.all((rows == 0) | (rows == 1)) and np.all(rows.sum(axis=1) == 1))


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_described(item) for item in value)})"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {tuple(shape)}"


def _checksum(image: Image) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data, zlib.crc32(repr(image.shape).encode()))
