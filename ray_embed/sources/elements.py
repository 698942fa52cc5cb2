# SPDX-License-Identifier: Apache-2.0
"""The elements of a dataset: the image, the label and the path of a record or of a batch."""

import numbers
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core.keys import make_key
from ray_embed.errors import InputError
from ray_embed.sources.element_images import ImageConverter, to_array
from ray_embed.sources.image_contents import is_content
from ray_embed.sources.label_lists import find_lists
from ray_embed.sources.label_vectors import VECTOR_TYPES, decode_vectors
from ray_embed.sources.pillow_images import is_pillow_image

# The fields of elements that are dicts, in the order of preference, unless the options name others.
IMAGE_FIELDS = ("image", "img", "jpg", "jpeg", "png")
LABEL_FIELDS = ("label", "cls")
# The pipelines of WebDataset give it to all samples.
_KEY_FIELDS = ("__key__",)
_SCALARS = (str, bytes, numbers.Number, type(None))


@dataclass(frozen=True)
class Fields:
    """The names of the image, the label and the key in elements that are dicts; None if unnamed."""

    image: str | None = None
    label: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Records:
    """Some records of a dataset.

    `images` is an array (n, H, W, C), or a list of (H, W, C) arrays or of the contents of image
    files, in which None stands for a record without an image. A path is None if there is none.
    """

    images: Any
    labels: list[Any]
    paths: list[str | None]

    def __len__(self) -> int:
        return len(self.labels)

    def slice(self, start: int, stop: int | None) -> "Records":
        """Return the records from `start` to `stop`."""
        rows = slice(start, stop)
        return Records(self.images[rows], self.labels[rows], self.paths[rows])


class ElementParser:
    """Takes the elements of one dataset apart. All must be like the first one.

    `notes` are messages for the user about what was decided.

    Args:
        where: how messages refer to the dataset.
        fields: the names of fields in elements that are dicts.
        class_names: the names of labels that are whole numbers, or nothing.
        label_type: the option, which says whether labels are vectors.
    """

    def __init__(
        self,
        where: str,
        fields: Fields,
        class_names: Sequence[str] = (),
        label_type: str = "text",
    ) -> None:
        self.notes: list[str] = []
        self._where, self._fields, self._class_names = where, fields, class_names
        self._label_option = label_type
        self._images = ImageConverter(where, self.notes, label_type)
        # "path", "weight" or "key": decided by the third element of the first record, or by fields.
        self._third_element: str | None = None
        self._has_said_fields = False

    def parse(self, element: Any, position: int) -> Records:
        """Return the records of an element, which is a single record or a batch.

        Args:
            element: img, (img, gt), (img, gt, img_path), or a dict of them.
            position: its number in the dataset, for messages.

        Raises:
            InputError: it is something else, or unlike the first one.
            StorageError: the file of an image cannot be read.
        """
        image, label, third = self._take_apart(element, position)
        images, paths, is_batch = self._images.convert(image, label, position)
        count = len(images)
        labels = self._read_lists(label if is_batch else [label], count, position)
        if not is_batch:
            label, third = (
                self._add_batch_axis(value, what)
                for value, what in ((label if labels is None else None, "gt"), (third, "img_path"))
            )
        labels = self._name_classes(labels or self._flatten_labels(label, count))
        if third is not None:
            paths = self._flatten_paths(third, count, position)
        return Records(images, labels, paths)

    def _take_apart(self, element: Any, position: int) -> tuple[Any, Any, Any]:
        if isinstance(element, dict) and not is_content(element):
            return self._choose_fields(element, position)
        if hasattr(element, "shape") or is_pillow_image(element) or is_content(element):
            element = (element,)
        if not isinstance(element, (tuple, list)) or len(element) not in (1, 2, 3):
            raise InputError(
                f"{self._where}: element {position} is {_describe(element)}; expected img, (img, "
                "gt) or (img, gt, img_path), or a dict of image and label"
            )
        image, label, third = (*element, None, None)[:3]
        return image, label, third

    def _choose_fields(self, element: dict[Any, Any], position: int) -> tuple[Any, Any, Any]:
        """Return the image, the label and the key of an element that is a dict."""
        wanted = self._fields
        chosen: list[Any] = []
        for name, usual, flag in (
            (wanted.image, IMAGE_FIELDS, "--image-column"),
            (wanted.label, LABEL_FIELDS, "--label-column"),
            (wanted.key, _KEY_FIELDS, "--key-column"),
        ):
            found = name or next((field for field in usual if field in element), None)
            is_needed = name is not None or usual is IMAGE_FIELDS
            if is_needed and found not in element:
                raise InputError(
                    f"{self._where}: element {position} is a dict without {found or usual[0]!r}; "
                    f"it has {_list_names(element)}; select one with {flag}, or yield (img, gt)"
                )
            chosen.append(found)
        others = [name for name in element if name not in chosen]
        if others and not self._has_said_fields:
            used = [repr(name) for name in chosen if name is not None]
            self.notes.append(
                f"the elements are dicts, of which {' and '.join(used)} "
                f"{'are' if len(used) > 1 else 'is'} used; {_list_names(others)} "
                f"{'are' if len(others) > 1 else 'is'} ignored"
            )
        self._has_said_fields = True
        if chosen[2] is not None:
            self._third_element = "key"
        image, label, key = (None if name is None else element[name] for name in chosen)
        return image, label, key

    def _read_lists(self, labels: Any, count: int, position: int) -> list[Any] | None:
        """Return labels that are lists or, with the option, vectors; None for all others.

        Args:
            labels: the labels of element `position`, one per record.
            count: how many records it has.
            position: the number of the element, for messages.
        """
        if self._label_option in VECTOR_TYPES and not _is_missing(labels):
            where = f"{self._where}: element {position}"
            vectors = to_array(labels, self._where, "gt")
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

    def _name_classes(self, labels: list[Any]) -> list[Any]:
        """Return the names of labels that are whole numbers, if classes have names."""
        if not self._class_names:
            return labels
        return [
            [self._find_name(item) for item in label]
            if isinstance(label, list)
            else self._find_name(label)
            for label in labels
        ]

    def _find_name(self, label: Any) -> str | None:
        # Hugging Face gives -1 for a record without a label.
        if label is None or label == -1:
            return None
        try:
            return self._class_names[range(len(self._class_names)).index(label)]
        except ValueError as error:
            raise InputError(
                f"{self._where}: the label {label!r} is not the number of one of the "
                f"{len(self._class_names)} classes, {_list_names(self._class_names)}"
            ) from error

    def _flatten_paths(self, values: Any, count: int, position: int) -> list[str | None]:
        """Return `count` paths, or a list of None if the third element is a sample weight."""
        flat = self._flatten(values, count, "img_path", "give one string per record")
        if self._third_element != "key":
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
                self.notes.append(
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
        if isinstance(values, tuple) and all(isinstance(v, _SCALARS) for v in values):
            # PyTorch gives the strings of a batch as a tuple.
            values = list(values)
        if isinstance(values, (dict, tuple)):
            raise InputError(f"{self._where}: {what} is {_describe(values)}; {advice}")
        array = to_array(values, self._where, what)
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
        return to_array(value, self._where, what)[None]


def _is_missing(labels: Any) -> bool:
    return labels is None or (isinstance(labels, list) and all(label is None for label in labels))


def _list_names(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "no keys"


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
