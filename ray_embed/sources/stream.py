# SPDX-License-Identifier: Apache-2.0
"""The one reader that walks a tf.data dataset, or a sequence, and cuts it into shards."""

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import importing
from ray_embed.errors import InputError, RayEmbedError, RunError
from ray_embed.keys import key_of
from ray_embed.labels import label_type_of
from ray_embed.sources import Streamed

Image = np.ndarray[Any, Any]
Record = tuple[Image, Any, str | None]
_END = object()


@dataclass(frozen=True)
class StreamInfo:
    """What must be known of a stream before its first shard."""

    label_type: pa.DataType
    image_shape: tuple[int, int, int]
    image_dtype: str


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
            opened = importing.call(opened, source.kwargs, self._where)
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
        """Give label type and image shape, from the first record."""
        height, width, channels = self._first.shape
        kind = "uint8" if self._first.dtype == np.uint8 else "float"
        return StreamInfo(self._label_type, (height, width, channels), kind)

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
                "(__len__ and __getitem__) of (img, gt) or (img, gt, img_path) is needed"
            )

    def _unpack(self, element: Any, position: int) -> Iterator[Record]:
        """Take one element, a record or a batch, apart into records."""
        if not isinstance(element, (tuple, list)) or len(element) not in (2, 3):
            raise InputError(
                f"{self._where}: element {position} is {_described(element)}; "
                "(img, gt) or (img, gt, img_path) is needed"
            )
        image, label = self._array(element[0], "img"), element[1]
        path = element[2] if len(element) == 3 else None
        if image.dtype != np.uint8:
            if image.dtype.kind not in "fiu" and image.dtype.name != "bfloat16":
                raise InputError(
                    f"{self._where}: img is of type {image.dtype}; numbers are needed: decode the "
                    "images in the dataset function"
                )
            image = image.astype(np.float32)
        if image.ndim == 3:
            labels = self._labels(self._alone(label, "gt"), 1)
            paths = self._paths(self._alone(path, "img_path"), 1)
            yield image, labels[0], paths[0]
        elif image.ndim == 4:
            labels, paths = self._labels(label, len(image)), self._paths(path, len(image))
            yield from zip(image, labels, paths, strict=True)
        else:
            raise InputError(
                f"{self._where}: img has the shape {image.shape}; "
                "(H, W, C), or (N, H, W, C) for batches, is needed"
            )

    def _labels(self, labels: Any, count: int) -> list[Any]:
        """Give `count` labels as Python values; each must be a scalar or of shape (1,)."""
        return self._values(
            labels,
            count,
            "gt",
            "give one number or text a record (not the image, a mask or a one-hot vector)",
        )

    def _paths(self, paths: Any, count: int) -> list[str | None]:
        values = self._values(paths, count, "img_path", "give one text a record")
        return [value if value is None else str(value) for value in values]

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
        return [key_of(value) if isinstance(value, (bytes, str)) else value for value in flat]

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


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_described(item) for item in value)})"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {tuple(shape)}"


def _checksum(image: Image) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data, zlib.crc32(repr(image.shape).encode()))
