# SPDX-License-Identifier: Apache-2.0
"""Make shards of the records of a dataset: their plan rows, and their images."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.core.keys import make_key
from ray_embed.errors import InputError, RunError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.dataset_objects import OpenedDataset
from ray_embed.sources.elements import ElementParser, Records
from ray_embed.sources.label_lists import LABEL_LIST, check_not_vectors, make_lists, unwrap
from ray_embed.sources.label_schema import find_label_type
from ray_embed.sources.label_vectors import MULTI_HOT

# So many records show whether labels are lists.
_RECORDS_INSPECTED = 32


@dataclass(frozen=True)
class DatasetShard:
    """A shard of records: `rows` with key, label and crc, and the images of its elements.

    Each part is an array (n, H, W, C), or a list of (H, W, C) arrays or of the contents of image
    files.
    """

    rows: pa.Table
    parts: list[Any]

    @property
    def images(self) -> Any:
        """The image of each row, see :func:`join_images`."""
        return join_images(self.parts)


def make_parser(source: Dataset, opened: OpenedDataset) -> ElementParser:
    """Return what takes the elements of a dataset apart."""
    return ElementParser(source.where, opened.fields, opened.class_names, source.label_type)


def inspect_elements(elements: Iterable[Records], limit: int | None) -> list[Records]:
    """Return the first elements, up to the first label that shows the type of all labels.

    A list of one label can be a single label; a few records show whether others have several.
    Likewise, the first records can be unlabeled.
    """
    wanted = min(_RECORDS_INSPECTED, limit or _RECORDS_INSPECTED)
    inspected: list[Records] = []
    for records in elements:
        inspected.append(records)
        wanted -= len(records)
        if wanted <= 0 or any(map(_shows_type, records.labels)):
            break
    return inspected


def _shows_type(label: Any) -> bool:
    return label is not None and label is unwrap(label)


class ShardMaker:
    """Makes the shards of a dataset. All labels must have the type of the first ones.

    Args:
        source: the dataset.
        opened: the same, open.
        parser: what takes its elements apart.
        inspected: the records of its first elements, see :func:`inspect_elements`.

    Raises:
        InputError: the first label has an unsupported type.
    """

    def __init__(
        self,
        source: Dataset,
        opened: OpenedDataset,
        parser: ElementParser,
        inspected: Sequence[Records],
    ) -> None:
        self._where, self._opened, self._parser = source.where, opened, parser
        self._label_option = source.label_type
        labels = [label for records in inspected for label in records.labels]
        known = [label for label in labels[:_RECORDS_INSPECTED] if label is not None]
        label = next(filter(_shows_type, known), known[-1] if known else None)
        are_lists = self._label_option == MULTI_HOT
        self._label_type = self._find_type(label if are_lists else unwrap(label))
        self._first = inspected[0].images[0]

    def describe(self) -> SourceInfo:
        """Return the label type, image shape and notes, based on the first record."""
        notes = (*self._opened.notes, *self._parser.notes)
        if pa.types.is_null(self._label_type):
            notes += ("the records have no labels",)
        if not isinstance(self._first, np.ndarray):
            return SourceInfo(label_type=self._label_type, notes=notes)
        height, width, channels = self._first.shape
        return SourceInfo(
            label_type=self._label_type,
            image_shape=(height, width, channels),
            image_dtype="uint8" if self._first.dtype == np.uint8 else "float",
            notes=notes,
        )

    def make(self, parts: Sequence[Records], start: int) -> DatasetShard:
        """Return a shard.

        Args:
            parts: its records.
            start: the position of the first one in the dataset.

        Raises:
            InputError: a label has another type than the first one.
        """
        labels = [label for part in parts for label in part.labels]
        paths = [path for part in parts for path in part.paths]
        images = [part.images for part in parts]
        checksums = [_compute_checksum(image) for part in images for image in part]
        rows = pa.table(
            {
                "key": pa.array(self._make_keys(paths, start), pa.string()),
                "label": self._convert_labels(labels, start),
                "crc": pa.array(checksums, pa.int64()),
            }
        )
        return DatasetShard(rows, images)

    def _make_keys(self, paths: Sequence[str | None], start: int) -> list[str]:
        listed = self._opened.paths[start : start + len(paths)]
        if listed:
            return [make_key(path) for path in listed]
        return [str(start + i) if path is None else path for i, path in enumerate(paths)]

    def _convert_labels(self, labels: list[Any], start: int) -> pa.Array:
        if self._label_type == LABEL_LIST:
            if self._label_option != MULTI_HOT:
                check_not_vectors(labels, self._where)
            return make_lists(labels)
        labels = list(map(unwrap, labels))
        for offset, label in enumerate(labels):
            type_ = self._find_type(label)
            if type_ not in (self._label_type, pa.null()):
                found = (
                    f"records have none; put one with a label among the first {_RECORDS_INSPECTED}"
                    if pa.types.is_null(self._label_type)
                    else f"label has type {self._label_type}; all labels must have the same type"
                )
                raise InputError(
                    f"{self._where}: record {start + offset} has the label {label!r} of type "
                    f"{type_}, but the first {found}"
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


def explain_failure(where: str, position: int, error: Exception) -> RunError:
    """Return the error for an element that the dataset failed to give."""
    return RunError(
        f"{where}: the dataset raised an error at element {position} (counting from 0): "
        f"{type(error).__name__}: {error}"
    )


def join_images(parts: Sequence[Any]) -> Any:
    """Join the images of elements: an array if all have one shape, else a list.

    It copies them, so a reader leaves that to the actors.
    """
    shapes = {part.shape[1:] if isinstance(part, np.ndarray) else None for part in parts}
    if len(shapes) == 1 and None not in shapes:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    return [image for part in parts for image in part]


def _compute_checksum(image: Any) -> int | None:
    if image is None or isinstance(image, bytes):
        return None if image is None else zlib.crc32(image)
    return zlib.crc32(np.ascontiguousarray(image).data, zlib.crc32(repr(image.shape).encode()))
