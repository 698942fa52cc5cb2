# SPDX-License-Identifier: Apache-2.0
"""The types of labels, and the one Arrow schema that all parts of a run share."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

import pyarrow as pa
import pyarrow.compute as pc

from ray_embed.errors import InputError

OWN_COLUMNS = ("index", "key", "label", "split")

# Texts that other programs write for a missing value.
_MISSING = {"na", "n/a", "<na>", "nan", "null", "none"}
# More different labels than this are names rather than classes.
_MAX_CLASSES = 10_000
_MAX_PAIRS = 3
# Zero-width marks, the soft hyphen, and the micro sign, which looks like the Greek letter.
_SAME_LOOK = str.maketrans("\u00b5", "\u03bc", "\u200b\u2060\ufeff\u00ad")


def find_common_type(types: Iterable[pa.DataType]) -> pa.DataType:
    """Return the label type that holds the labels of all splits.

    One type stays itself, int64 and double become double, and any other mix becomes string. Splits
    without labels (null) do not count; if there is no other, the type is string.
    """
    kinds = {kind for kind in types if not pa.types.is_null(kind)}
    if len(kinds) == 1:
        return kinds.pop()
    return pa.float64() if kinds and kinds <= {pa.int64(), pa.float64()} else pa.string()


def find_label_type(kind: pa.DataType, where: str) -> pa.DataType:
    """Return the label type (int64, double, string, bool or null) that holds values of `kind`.

    Raises:
        InputError: values of `kind` cannot be labels.
    """
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return pa.string()
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return kind
    raise InputError(
        f"{where}: {kind} is no label; a label is one whole number, float, text or bool"
    )


def cast_labels(labels: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast labels to the run's label type; numbers become text as Python writes them."""
    if labels.type == target:
        return labels
    if pa.types.is_string(target) and not pa.types.is_null(labels.type):
        return pa.array([None if v is None else str(v) for v in labels.to_pylist()], pa.string())
    # Not safe: the largest whole numbers have more digits than a double.
    return labels.cast(target, safe=False)


def make_record_schema(label: pa.DataType, extras: Iterable[pa.Field]) -> pa.Schema:
    """Return the columns of a part before its features: ours, then the extra metadata columns."""
    columns = [
        pa.field("index", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("label", label),
        pa.field("split", pa.string()),
    ]
    return pa.schema([*columns, *extras])


class LabelCounts:
    """Counts the text labels of a split; of very many different ones, only those that mean none."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.nulls = 0
        self._are_few = True

    def add(self, labels: pa.Array | pa.ChunkedArray) -> None:
        """Count the labels of some records."""
        self.nulls += labels.null_count
        if not pa.types.is_string(labels.type):
            return
        labels = labels.drop_null()
        if not self._are_few:
            bare = pc.utf8_lower(pc.utf8_trim_whitespace(labels))
            labels = labels.filter(pc.is_in(bare, pa.array(["", *_MISSING])))
        values, counts = pc.value_counts(labels).flatten()
        self.counts.update(dict(zip(values.to_pylist(), counts.to_pylist(), strict=True)))
        if self._are_few and len(self.counts) > _MAX_CLASSES:
            self._are_few = False
            self.counts = Counter({n: c for n, c in self.counts.items() if means_no_label(n)})

    def notes(self) -> Iterator[str]:
        """Yield a note on the texts that may mean no label, each with its count."""
        empty = {text: count for text, count in self.counts.items() if means_no_label(text)}
        if empty:
            named = ", ".join(f"{text!r} ({count:,})" for text, count in sorted(empty.items()))
            yield f"labels that may mean no label are kept as classes: {named}"


def means_no_label(label: str) -> bool:
    """Return whether a text label is blank, or what other programs write for a missing value."""
    return not label.strip() or label.strip().casefold() in _MISSING


def describe_look_alikes(names: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield a line on different labels that look the same: accents composed or not, spaces, case.

    Labels that differ in case alone are described only if no split has both.

    Args:
        names: the labels of each split.
    """
    splits: dict[str, list[str]] = {}
    for split, labels in names.items():
        for label in labels:
            splits.setdefault(label, []).append(split)
    groups: dict[str, list[str]] = {}
    for label in splits:
        groups.setdefault(_normalize_label(label).casefold(), []).append(label)
    pairs = [
        (a, b)
        for labels in groups.values()
        for a, b in combinations(labels, 2)
        if _normalize_label(a) == _normalize_label(b) or not set(splits[a]) & set(splits[b])
    ]
    for pair in pairs[:_MAX_PAIRS]:
        # In ASCII, so that what differs is seen.
        a, b = (f"{label!a} in {' and '.join(splits[label])}" for label in pair)
        how = (
            "look the same" if len(set(map(_normalize_label, pair))) == 1 else "differ only in case"
        )
        yield f"two labels {how}, but are two classes: {a}, {b}; rename one"
    if len(pairs) > _MAX_PAIRS:
        yield f"{len(pairs) - _MAX_PAIRS} more such pairs of labels"


def _normalize_label(label: str) -> str:
    """Return a label without what nobody sees: composition, outer spaces, zero-width marks."""
    text = unicodedata.normalize("NFC", label).translate(_SAME_LOOK)
    return " ".join(text.split())
