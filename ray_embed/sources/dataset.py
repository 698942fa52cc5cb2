# SPDX-License-Identifier: Apache-2.0
"""Datasets (tf.data or sequences), which a single reader reads in order and cuts into shards."""

import itertools
import numbers
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ray_embed.core import user_code
from ray_embed.core.keys import make_key
from ray_embed.errors import InputError, RayEmbedError, RunError
from ray_embed.images.decode import PixelSpec
from ray_embed.sources.array_checks import is_channels_first
from ray_embed.sources.array_images import ArrayImages, open_arrays
from ray_embed.sources.base import PlannedRecords, SourceInfo
from ray_embed.sources.label_lists import (
    LABEL_LIST,
    check_not_vectors,
    find_lists,
    make_lists,
    unwrap,
)
from ray_embed.sources.label_schema import find_label_type
from ray_embed.sources.label_vectors import MULTI_HOT, VECTOR_TYPES, decode_vectors
from ray_embed.sources.pillow_images import choose_mode, convert_image, is_pillow_image

Image = np.ndarray[Any, Any]
Record = tuple[Image, Any, str | None]
_END = object()
# The fields of elements that are dicts, unless the options name others.
_IMAGE_FIELDS, _LABEL_FIELD = ("image", "img"), "label"
# A list of one label can be a single label; so many records show whether others have several.
_RECORDS_INSPECTED = 32


@dataclass(frozen=True)
class Dataset:
    """A sequential source: ``module:callable``, a function, or a dataset object.

    `image_column` and `label_column` are the fields of elements that are dicts, or None if they are
    not named. `label_type` says whether labels are one-hot or multi-hot vectors.
    """

    info: ClassVar[None] = None
    split: str
    source: Any
    kwargs: dict[str, Any]
    image_column: str | None = None
    label_column: str | None = None
    label_type: str = "text"

    @property
    def location(self) -> str:
        """The name of the callable, or of the object's type, as recorded in the run folder."""
        if isinstance(self.source, str):
            return self.source
        function = getattr(self.source, "__qualname__", None)
        return f"{self.source.__module__}:{function}" if function else type(self.source).__name__

    @property
    def where(self) -> str:
        """How messages refer to this source."""
        return f"--source {self.split}={self.location}"

    def records(self, skipped: Counter[str]) -> None:
        """Return None, because the records are not known until :class:`RecordReader` reads them."""

    def reader(self) -> "DeliveredImageReader":
        """Return a reader for the delivered images."""
        return DeliveredImageReader(self.where)


@dataclass(frozen=True)
class DeliveredImageReader:
    """Opens images that were delivered together with their shard."""

    where: str

    def open(self, records: PlannedRecords, pixels: PixelSpec) -> ArrayImages:
        """Return the delivered images.

        Raises:
            InputError: they do not fit the encoder.
        """
        return open_arrays(records.images, records.positions, pixels, self.where)

    def verify(self, rows: pa.Table) -> None:
        """Do nothing, because the record reader already compares the records with the plan."""


@dataclass(frozen=True)
class DatasetShard:
    """A shard of records: `rows` with key, label and crc, and one (H, W, C) image per row."""

    rows: pa.Table
    images: list[Image]


class RecordReader:
    """Reads the records of a dataset once, in order.

    Args:
        source: the dataset.
        limit: the maximum number of records, or None for all.

    Raises:
        InputError: the callable is missing or returns another type, the dataset is empty, or an
            image or label has the wrong type or shape.
    """

    def __init__(self, source: Dataset, limit: int | None = None) -> None:
        self._where = source.where
        self._columns = (source.image_column, source.label_column)
        self._label_option = source.label_type
        opened = source.source
        if isinstance(opened, str) or _is_function(opened):
            opened = user_code.call_reference(opened, source.kwargs, self._where)
        # "path" or "weight", decided by the third element of the first record.
        self._third_element: str | None = None
        # The mode of the first Pillow image.
        self._first_mode: str | None = None
        self._has_said_fields = False
        self._notes: list[str] = []
        records = itertools.islice(self._iterate_records(opened), limit)
        first = _read_ahead(records)
        if not first:
            raise InputError(f"{self._where}: the dataset is empty")
        self._rest = itertools.chain(first, records)
        self._position = 0
        # All labels must have the type of the first one.
        label = first[-1][1]
        are_lists = self._label_option == MULTI_HOT
        self._label_type = self._find_type(label if are_lists else unwrap(label))
        self._first = first[0][0]

    def describe(self) -> SourceInfo:
        """Return the label type, image shape and notes, based on the first record."""
        height, width, channels = self._first.shape
        dtype = "uint8" if self._first.dtype == np.uint8 else "float"
        notes = tuple(self._notes)
        if pa.types.is_null(self._label_type):
            notes += ("the records have no labels",)
        return SourceInfo(
            label_type=self._label_type,
            image_shape=(height, width, channels),
            image_dtype=dtype,
            notes=notes,
        )

    def read_shard(self, size: int) -> DatasetShard | None:
        """Read the next shard of up to `size` records, or return None at the end.

        Raises:
            InputError: an image or label has the wrong type or shape, or the label type changes.
            RunError: the dataset raised an error; the message names the record.
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
                "label": self._convert_labels(labels, start),
                "crc": pa.array([_compute_checksum(image) for image in images], pa.int64()),
            }
        )
        return DatasetShard(rows, list(images))

    def _convert_labels(self, labels: tuple[Any, ...], start: int) -> pa.Array:
        if self._label_type == LABEL_LIST:
            if self._label_option != MULTI_HOT:
                check_not_vectors(labels, self._where)
            return make_lists(labels)
        labels = tuple(map(unwrap, labels))
        for offset, label in enumerate(labels):
            type_ = self._find_type(label)
            if type_ not in (self._label_type, pa.null()):
                raise InputError(
                    f"{self._where}: record {start + offset} has the label {label!r} of type "
                    f"{type_}, but the first label has type {self._label_type}; all labels must "
                    "have the same type"
                )
        return pa.array(labels, self._label_type)

    def _find_type(self, label: Any) -> pa.DataType:
        if isinstance(label, int) and not -(2**63) <= label < 2**63:
            raise InputError(
                f"{self._where}: the label {label} does not fit in 64 bits; use text instead"
            )
        try:
            type_ = pa.scalar(label).type
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"{self._where}: {label!r} ({type(label).__name__}) is not a valid label; a label "
                "must be a single int, float, string or bool, or a list of ints or strings"
            ) from error
        return find_label_type(type_, self._where)

    def _iterate_records(self, opened: Any) -> Iterator[Record]:
        elements = self._iterate_elements(opened)
        for position in itertools.count():
            try:
                element = next(elements, _END)
            except RayEmbedError:
                raise
            except Exception as error:
                raise RunError(
                    f"{self._where}: the dataset raised an error at element {position} (counting "
                    "from 0): "
                    f"{type(error).__name__}: {error}"
                ) from error
            if element is _END:
                return
            yield from self._unpack(element, position)

    def _iterate_elements(self, opened: Any) -> Iterator[Any]:
        import tensorflow as tf

        if isinstance(opened, tf.data.Dataset):
            yield from opened.as_numpy_iterator()
        elif hasattr(opened, "__len__") and hasattr(opened, "__getitem__"):
            for position in range(len(opened)):
                yield opened[position]
        else:
            raise InputError(
                f"{self._where}: expected a tf.data.Dataset or a sequence (__len__ and "
                "__getitem__) of img, (img, gt) or (img, gt, img_path), got "
                f"{type(opened).__name__}"
            )

    def _unpack(self, element: Any, position: int) -> Iterator[Record]:
        """Yield the records of an element, which is a single record or a batch."""
        if isinstance(element, dict):
            element = self._choose_fields(element, position)
        elif hasattr(element, "shape") or is_pillow_image(element):
            element = (element,)
        if not isinstance(element, (tuple, list)) or len(element) not in (1, 2, 3):
            raise InputError(
                f"{self._where}: element {position} is {_describe(element)}; expected img, (img, "
                "gt) or (img, gt, img_path), or a dict of image and label"
            )
        image = self._to_image(element[0])
        label, third = (*element[1:], None, None)[:2]
        if image.dtype != np.uint8:
            if image.dtype.kind not in "fiu" and image.dtype.name != "bfloat16":
                raise InputError(
                    f"{self._where}: img has dtype {image.dtype}; expected numbers. Decode the "
                    "images in the dataset function"
                )
            image = image.astype(np.float32)
        if image.ndim == 2 or self._is_gray_batch(image, label):
            image = image[..., None]
        self._check_channels(image.shape)
        if image.ndim == 3:
            labels = self._read_lists([label], 1, position)
            labels = labels or self._flatten_labels(self._add_batch_axis(label, "gt"), 1)
            paths = self._flatten_paths(self._add_batch_axis(third, "img_path"), 1, position)
            yield image, labels[0], paths[0]
        elif image.ndim == 4:
            labels = self._read_lists(label, len(image), position)
            labels = labels or self._flatten_labels(label, len(image))
            yield from zip(
                image, labels, self._flatten_paths(third, len(image), position), strict=True
            )
        else:
            raise InputError(
                f"{self._where}: img has shape {image.shape}; expected (H, W, C), (H, W), or (N, "
                "H, W, C) for batches"
            )

    def _choose_fields(self, element: dict[Any, Any], position: int) -> tuple[Any, ...]:
        """Return the image and the label of an element that is a dict."""
        image, label = self._columns
        image = image or next((name for name in _IMAGE_FIELDS if name in element), _IMAGE_FIELDS[0])
        for name, flag in ((image, "--image-column"), (label, "--label-column")):
            if name is not None and name not in element:
                raise InputError(
                    f"{self._where}: element {position} is a dict without {name!r}; it has "
                    f"{_list_names(element)}; select one with {flag}, or yield (img, gt)"
                )
        label = label or _LABEL_FIELD
        others = [name for name in element if name not in (image, label)]
        if others and not self._has_said_fields:
            self._notes.append(
                f"the elements are dicts, of which {image!r}"
                + (f" and {label!r} are" if label in element else " is")
                + f" used; {_list_names(others)} {'are' if len(others) > 1 else 'is'} ignored"
            )
        self._has_said_fields = True
        return element[image], element.get(label)

    def _to_image(self, value: Any) -> Image:
        """Return an image as an array; the notes say how Pillow images are converted."""
        if not is_pillow_image(value):
            return self._to_array(value, "img")
        if self._first_mode is None:
            self._first_mode = choose_mode(value)
            self._notes.append(
                "the images are Pillow images: palette and CMYK images become RGB, and gray ones "
                "lose their alpha channel"
                + ("; gray and RGBA images become RGB" if self._first_mode == "RGB" else "")
            )
        try:
            return convert_image(value, self._first_mode)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self._where}: a Pillow image cannot be converted to an array: {error}"
            ) from error

    def _is_gray_batch(self, image: Image, label: Any) -> bool:
        """Return whether a rank-3 array is a grayscale batch (N, H, W), judging by its N labels."""
        if image.ndim != 3 or image.shape[-1] <= 4:
            return False
        if label is None or isinstance(label, (dict, tuple)):
            return False
        if (lists := find_lists(label)) is not None:
            return len(lists) == len(image)
        shape = self._to_array(label, "gt").shape
        if self._label_option in VECTOR_TYPES:
            return len(shape) == 2 and shape[0] == len(image)
        return shape in (image.shape[:1], (len(image), 1))

    def _check_channels(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (3, 4) or not is_channels_first(shape[-3:]):
            return
        order = (1, 2, 0) if len(shape) == 3 else (0, 2, 3, 1)
        raise InputError(
            f"{self._where}: img has shape {shape}, with the channels first (NCHW); they must be "
            f"last: use np.transpose(img, {order}), or dataset.map(lambda img, *others: "
            f"(tf.transpose(img, {order}), *others))"
        )

    def _read_lists(self, labels: Any, count: int, position: int) -> list[Any] | None:
        """Return labels that are lists or, with the option, vectors; None for all others.

        Args:
            labels: the labels of element `position`, one per record.
            count: how many records it has.
            position: the number of the element, for messages.
        """
        if self._label_option in VECTOR_TYPES and not _is_missing(labels):
            where = f"{self._where}: element {position}"
            vectors = self._to_array(labels, "gt")
            lists: list[Any] | None = decode_vectors(vectors, self._label_option, where)
        else:
            lists = find_lists(labels)
        if lists is not None and len(lists) != count:
            raise InputError(
                f"{self._where}: gt has {len(lists)} labels for the {count} records of element "
                f"{position}; give one label or list per record"
            )
        return lists

    def _flatten_labels(self, labels: Any, count: int) -> list[Any]:
        """Return `count` labels as Python values. Each must be a scalar or have shape (1,)."""
        advice = (
            "give one number or string per record (not the image, a mask or a one-hot vector), or "
            "use --label-type multihot for multi-hot vectors"
        )
        if _is_one_hot(labels):
            advice = (
                "this looks like a one-hot vector; use --label-type onehot, or yield the class "
                "index: tf.argmax(gt, -1), or in Keras label_mode='int'"
            )
        return self._flatten(labels, count, "gt", advice)

    def _flatten_paths(self, values: Any, count: int, position: int) -> list[str | None]:
        """Return `count` paths, or a list of None if the third element is a sample weight."""
        flat = self._flatten(values, count, "img_path", "give one string per record")
        for value in flat:
            self._check_third(value, position)
        if self._third_element == "weight":
            return [None] * count
        return [value if value is None else str(value) for value in flat]

    def _check_third(self, value: Any, position: int) -> None:
        """Check that the third element is consistently a path or a sample weight."""
        if value is None:
            return
        is_path = isinstance(value, (str, os.PathLike))
        if not is_path and not isinstance(value, numbers.Real):
            raise InputError(
                f"{self._where}: img_path is {value!r} ({type(value).__name__}) in element "
                f"{position}; expected a string, bytes or path"
            )
        meaning = "path" if is_path else "weight"
        if self._third_element is None:
            self._third_element = meaning
            if meaning == "weight":
                self._notes.append(
                    f"the third element of each record is a number ({value!r}); it is treated as a "
                    "sample weight and ignored, and positions are used as keys (to use it as a "
                    "key, convert it to text)"
                )
        elif meaning != self._third_element:
            raise InputError(
                f"{self._where}: the third element is a {meaning} ({value!r}) in element "
                f"{position}, but was a {self._third_element} before; give a path in all records "
                "or in none"
            )

    def _flatten(self, values: Any, count: int, what: str, advice: str) -> list[Any]:
        if values is None:
            return [None] * count
        if isinstance(values, (dict, tuple)):
            raise InputError(f"{self._where}: {what} is {_describe(values)}; {advice}")
        array = self._to_array(values, what)
        if array.shape not in ((count,), (count, 1)):
            if array.shape[:1] == (count,):
                shape = f"the shape {array.shape[1:]} a record, which is none"
            else:
                shape = f"the shape {array.shape} for {count} records"
            raise InputError(f"{self._where}: {what} has {shape}; {advice}")
        flat = array.reshape(-1).tolist()
        return [make_key(value) if isinstance(value, (bytes, str)) else value for value in flat]

    def _add_batch_axis(self, value: Any, what: str) -> Any:
        """Add a batch axis to the value of a single record."""
        if value is None or isinstance(value, (dict, tuple)):
            return value
        return self._to_array(value, what)[None]

    def _to_array(self, value: Any, what: str) -> np.ndarray[Any, Any]:
        try:
            return np.asarray(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self._where}: {what} cannot be converted to an array: {error}"
            ) from error


def _read_ahead(records: Iterator[Record]) -> list[Record]:
    """Read the first records, up to the first whose label is not a list of one."""
    first: list[Record] = []
    for record in itertools.islice(records, _RECORDS_INSPECTED):
        first.append(record)
        if record[1] is unwrap(record[1]):
            break
    return first


def _is_missing(labels: Any) -> bool:
    return labels is None or (isinstance(labels, list) and all(label is None for label in labels))


def _list_names(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "no keys"


def _is_function(source: Any) -> bool:
    return (
        callable(source)
        and not hasattr(source, "__getitem__")
        and not hasattr(source, "element_spec")
    )


def _is_one_hot(labels: Any) -> bool:
    """Return whether each row contains a single 1 and otherwise zeros."""
    if isinstance(labels, (dict, tuple)) or labels is None:
        return False
    rows = np.asarray(labels)
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "biuf":
        return False
    return bool(np.all((rows == 0) | (rows == 1)) and np.all(rows.sum(axis=1) == 1))


def _describe(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_describe(item) for item in value)})"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {tuple(shape)}"


def _compute_checksum(image: Image) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data, zlib.crc32(repr(image.shape).encode()))
