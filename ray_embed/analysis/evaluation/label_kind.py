# SPDX-License-Identifier: Apache-2.0
"""Decide whether numeric labels are classes or values: as requested, or from the numbers.

Keras returns classes as floats with `label_mode="binary"` or `class_mode="sparse"`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import as_objects
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
    """Whether labels are classes or values; if `kind` is None, their type decides.

    By their type, whole numbers and text are classes, and floats are values. `note` explains a
    choice that was made by neither the user nor the type.
    """

    kind: LabelKind | None = None
    note: str | None = None


def choose_label_kind(folders: Iterable[Folder], requested: LabelKind | None = None) -> LabelChoice:
    """Decide whether the labels of runs are classes or values.

    Floats are classes if all of them are whole and have at most 50 distinct values, which occur at
    least twice on average. All records are read, so that the choice does not depend on which are
    drawn.

    Args:
        folders: run folders. One choice is made for all of them.
        requested: the kind that the user asked for, if any.

    Raises:
        InputError: `requested` is not one of the kinds.
        DamagedError: a part differs from what was written.
        StorageError: a part cannot be read.
    """
    if requested is not None:
        if requested not in KINDS:
            raise InputError(f"labels={requested!r}: it must be {' or '.join(map(repr, KINDS))}")
        return LabelChoice(requested)
    values: set[float] = set()
    count = 0
    for folder in folders:
        for labels in part_files.map_parts(
            folder, _make_label_reader(folder), part_files.list_part_numbers(folder)
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
        f"the labels are floats, but all are whole, with only {len(values)} values "
        f"({named}{more}), so they are treated as classes; --labels values treats them as numbers",
    )


def _make_label_reader(folder: Folder) -> Any:
    def read(number: int) -> pa.ChunkedArray:
        return part_files.read_part(folder, layout.FEATURES, number, ["label"])["label"]

    return read


def convert_labels(subset: Subset, kind: LabelKind | None) -> Subset:
    """Convert labels to classes or values; if `kind` is None, leave them as they are.

    Raises:
        InputError: `kind` is "values", and the labels are not numbers.
    """
    if kind == "values":
        return _convert_to_values(subset)
    if kind == "classes" and pa.types.is_floating(subset.label_type):
        return _convert_to_classes(subset)
    return subset


def _convert_to_values(subset: Subset) -> Subset:
    if pa.types.is_floating(subset.label_type):
        return subset
    known = [label for label in subset.labels if label is not None]
    if known and not pa.types.is_integer(subset.label_type):
        raise InputError(
            f"--labels values: the labels are {subset.label_type} and not numbers, for example "
            f"{known[0]!r}; leave the option out"
        )
    labels = [None if label is None else float(label) for label in subset.labels]
    return replace(subset, labels=as_objects(labels), label_type=pa.float64())


def _convert_to_classes(subset: Subset) -> Subset:
    labels = [None if label is None or label != label else label for label in subset.labels]
    known = [label for label in labels if label is not None]
    if all(float(label).is_integer() and abs(label) < 2**63 for label in known):
        whole = [None if label is None else int(label) for label in labels]
        return replace(subset, labels=as_objects(whole), label_type=pa.int64())
    # This is Arrow's type for classes that are not whole numbers.
    classes = pa.dictionary(pa.int32(), pa.float64())
    return replace(subset, labels=as_objects(labels), label_type=classes)
