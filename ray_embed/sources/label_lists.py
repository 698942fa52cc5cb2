# SPDX-License-Identifier: Apache-2.0
"""Labels that are lists (multi-label): their type, and the conversion of lists of any form."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.core.keys import make_key
from ray_embed.errors import InputError

# Parquet names the items of a list "element". With the same name, what is read is what was written.
LABEL_LIST = pa.list_(pa.field("element", pa.string()))


def is_list(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a list of any form."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def make_lists(labels: Iterable[Any]) -> pa.Array:
    """Return lists of labels, or single labels, as an array of type `LABEL_LIST`.

    Numbers become text, and a single label becomes a list of one. Items that are null or empty text
    are left out. A list without items is null: the record is unlabeled.
    """
    return pa.array([_make_list(label) or None for label in labels], LABEL_LIST)


def _make_list(label: Any) -> list[str]:
    items = label if _holds_items(label) else [label]
    texts = [make_key(item) if isinstance(item, bytes) else item for item in items]
    return [str(text) for text in texts if text is not None and text != ""]


def _holds_items(label: Any) -> bool:
    return isinstance(label, Sequence) and not isinstance(label, (str, bytes))


def unwrap(label: Any) -> Any:
    """Return the label in a list of one, or else the label itself."""
    return label[0] if isinstance(label, list) and len(label) == 1 else label


def check_not_vectors(labels: Iterable[Any], where: str) -> None:
    """Refuse one-hot and multi-hot vectors, whose zeros and ones would be mistaken for labels.

    Lists are taken for vectors if there are several, all are equally long with two or more items,
    and all items are 0 or 1, unless all are [0, 1].

    Raises:
        InputError: the lists look like vectors.
    """
    lists = [label for label in labels if label is not None]
    lengths = {len(label) if _holds_items(label) else 0 for label in lists}
    if len(lists) < 2 or len(lengths) > 1 or min(lengths) < 2:
        return
    is_binary = all(item in (0, 1) for label in lists for item in label)
    if is_binary and any(list(label) != [0, 1] for label in lists):
        raise InputError(
            f"{where}: the labels look like one-hot or multi-hot vectors, such as "
            f"{list(lists[0])}; write the numbers of the classes instead: np.flatnonzero(vector). "
            "In arrays and datasets, use --label-type onehot or --label-type multihot"
        )


def find_lists(labels: Any) -> list[list[Any] | None] | None:
    """Return the labels of some records of a dataset as lists, or None if they are not lists.

    Python lists, the rows of ragged tensors, and arrays of texts are lists. Arrays of numbers are
    not, as they may be vectors.

    Args:
        labels: one label per record.
    """
    rows = labels.to_list() if hasattr(labels, "to_list") else labels
    if not isinstance(rows, list) and not (isinstance(rows, np.ndarray) and rows.ndim):
        return None
    lists = [_find_list(row) for row in rows]
    are_lists = [found is not None or row is None for found, row in zip(lists, rows, strict=True)]
    return lists if all(are_lists) and any(found is not None for found in lists) else None


def _find_list(label: Any) -> list[Any] | None:
    if isinstance(label, np.ndarray) and label.ndim == 1 and label.dtype.kind in "SUO":
        label = label.tolist()
    if not isinstance(label, list) or not all(map(_can_be_item, label)):
        return None
    return [make_key(item) if isinstance(item, bytes) else item for item in label]


def _can_be_item(item: Any) -> bool:
    return item is None or isinstance(item, (str, bytes, Integral))
