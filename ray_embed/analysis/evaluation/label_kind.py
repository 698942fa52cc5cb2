# SPDX-License-Identifier: Apache-2.0
"""Whether labels that are numbers are classes or values: as asked, else by what the numbers are.

Keras gives classes as floats where `label_mode="binary"` or `class_mode="sparse"` is set.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from ray_embed.errors import InputError
from ray_embed.options import MAX_FLOAT_CLASSES
from ray_embed.runs.sampling import Subset
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

LabelKind = Literal["classes", "values"]
KINDS: tuple[LabelKind, ...] = get_args(LabelKind)

_SHOWN = 6


@dataclass(frozen=True)
class LabelChoice:
    """How labels that are numbers are taken; None leaves them to their type.

    Whole numbers and text are classes by their type, floats are values. `note` says where that was
    not asked for, and is not by the type.
    """

    kind: LabelKind | None = None
    note: str | None = None


def choose_labels(folders: Iterable[Folder], asked: LabelKind | None = None) -> LabelChoice:
    """Decide whether the labels of runs are classes or values.

    Floats are classes where all of them are whole, of at most 50 values, each twice in the mean.
    All records are looked at, so that the answer does not depend on which are drawn.

    Args:
        folders: run folders, which are judged alike.
        asked: what the user wants, if anything.

    Raises:
        InputError: `asked` is none of the kinds.
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    if asked is not None:
        if asked not in KINDS:
            raise InputError(f"labels={asked!r}: it is {' or '.join(map(repr, KINDS))}")
        return LabelChoice(asked)
    values: set[float] = set()
    count = 0
    for folder in folders:
        for labels in part_files.map_parts(
            folder, _reader(folder), part_files.list_part_numbers(folder)
        ):
            if not pa.types.is_floating(labels.type):
                break
            known = labels.drop_null().to_numpy()
            known = known[~np.isnan(known)]
            count += len(known)
            values.update(np.unique(known).tolist())
            if len(values) > MAX_FLOAT_CLASSES or not all(value.is_integer() for value in values):
                return LabelChoice()
    if not values or 2 * len(values) > count:
        return LabelChoice()
    named = ", ".join(f"{value:.0f}" for value in sorted(values)[:_SHOWN])
    more = ", …" if len(values) > _SHOWN else ""
    return LabelChoice(
        "classes",
        f"the labels are floats, but whole and of {len(values)} values only ({named}{more}), so "
        "they are taken for classes; --labels values takes them for numbers",
    )


def _reader(folder: Folder) -> Any:
    def read(number: int) -> pa.ChunkedArray:
        return part_files.read_part(folder, layout.FEATURES, number, ["label"])["label"]

    return read


def with_labels(subset: Subset, kind: LabelKind | None) -> Subset:
    """Give records with their labels as classes or values; None leaves them as they are.

    Raises:
        InputError: labels that are no numbers are to be values.
    """
    if kind == "values":
        return _as_values(subset)
    if kind == "classes" and pa.types.is_floating(subset.label_type):
        return _as_classes(subset)
    return subset


def _as_values(subset: Subset) -> Subset:
    if pa.types.is_floating(subset.label_type):
        return subset
    known = [label for label in subset.labels if label is not None]
    if known and not pa.types.is_integer(subset.label_type):
        raise InputError(
            f"--labels values: the labels are {subset.label_type}, {known[0]!r} for one; numbers "
            "are needed: leave the option out"
        )
    labels = [None if label is None else float(label) for label in subset.labels]
    return replace(subset, labels=_objects(labels), label_type=pa.float64())


def _as_classes(subset: Subset) -> Subset:
    labels = [None if label is None or label != label else label for label in subset.labels]
    known = [label for label in labels if label is not None]
    if all(float(label).is_integer() and abs(label) < 2**63 for label in known):
        whole = [None if label is None else int(label) for label in labels]
        return replace(subset, labels=_objects(whole), label_type=pa.int64())
    # Arrow's type for a few values that are classes.
    classes = pa.dictionary(pa.int32(), pa.float64())
    return replace(subset, labels=_objects(labels), label_type=classes)


def _objects(values: list[Any]) -> np.ndarray[Any, Any]:
    found = np.empty(len(values), object)
    found[:] = values
    return found
