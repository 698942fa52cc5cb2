# SPDX-License-Identifier: Apache-2.0
"""What Keras tells about a dataset of `image_dataset_from_directory`: class names and file paths.

The attributes are used only where they provably belong to the records.
"""

from collections.abc import Iterator
from typing import Any

# The steps of a tf.data pipeline that keep all records in their order.
_ORDERED_STEPS = {
    "BatchDataset",
    "MapDataset",
    "ParallelBatchDataset",
    "ParallelMapDataset",
    "PrefetchDataset",
    "TensorSliceDataset",
    "ZipDataset",
}


def find_class_names(dataset: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the classes by their numbers, or nothing, and notes for the user."""
    names = _get_texts(dataset, "class_names")
    if not names:
        return (), ()
    # For labels that were given as a list, Keras takes the sorted labels for the names.
    are_numbers = all(name.lstrip("-").isdecimal() for name in names)
    if are_numbers and names != [str(number) for number in range(len(names))]:
        note = "the class_names of the dataset are numbers that may not be the positions of classes"
        return (), (f"{note}; labels are used as they are",)
    return tuple(names), (f"labels are the class_names of the dataset: {_shorten(names)}",)


def find_paths(dataset: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the path of each record, or nothing, and notes for the user."""
    paths = _get_texts(dataset, "file_paths")
    if not paths:
        return (), ()
    if not _keeps_order(dataset) or len(paths) != _count_records(dataset):
        note = "the dataset is shuffled or changed, so that its file_paths are in another order"
        return (), (f"{note}; positions are used as keys (with shuffle=False, file_paths are)",)
    return tuple(paths), ()


def _get_texts(dataset: Any, name: str) -> list[str]:
    values = getattr(dataset, name, None)
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    return []


def _keeps_order(dataset: Any) -> bool:
    """Return whether all steps of a tf.data pipeline are known to keep the order."""
    return all(
        type(step).__name__.lstrip("_") in _ORDERED_STEPS
        and getattr(step, "_deterministic", None) != "false"
        for step in _list_steps(dataset)
    )


def _list_steps(dataset: Any) -> Iterator[Any]:
    yield dataset
    for step in getattr(dataset, "_inputs", tuple)():
        yield from _list_steps(step)


def _count_records(dataset: Any) -> int | None:
    """Return the number of records of a pipeline that keeps the order, or None if unknown."""
    for step in _list_steps(dataset):
        if type(step).__name__.lstrip("_") == "TensorSliceDataset":
            return int(step.cardinality())
    return None


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
