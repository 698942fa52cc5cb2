# SPDX-License-Identifier: Apache-2.0
"""What a label may be, and the one Arrow schema that all parts of a run share."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

import pyarrow as pa
import pyarrow.compute as pc

from ray_embed.errors import InputError

OWN_COLUMNS = ("index", "key", "label", "split")

# Texts that other programs write for a value that is missing.
_MISSING = {"na", "n/a", "<na>", "nan", "null", "none"}
# More different labels than these are names rather than classes.
_NAMES_HELD = 10_000
_PAIRS_NAMED = 3
# Zero-width marks, the soft hyphen, and the micro sign, which looks like the Greek letter.
_SAME_LOOK = str.maketrans("\u00b5", "\u03bc", "\u200b\u2060\ufeff\u00ad")


def common_type(types: Iterable[pa.DataType]) -> pa.DataType:
    """Give the label type that holds the labels of all splits.

    One type stays itself, int64 and double give double, any other mix gives string, and splits
    without labels (null) do not count; none at all gives string.
    """
    found = {kind for kind in types if not pa.types.is_null(kind)}
    if len(found) == 1:
        return found.pop()
    return pa.float64() if found and found <= {pa.int64(), pa.float64()} else pa.string()


def label_type_of(kind: pa.DataType, where: str) -> pa.DataType:
    """Give the label type (int64, double, string, bool or null) that holds values of `kind`.

    Raises:
        InputError: `kind` is no label.
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


def cast(labels: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast labels to the run's label type; numbers become text as Python writes them."""
    if labels.type == target:
        return labels
    if pa.types.is_string(target) and not pa.types.is_null(labels.type):
        return pa.array([None if v is None else str(v) for v in labels.to_pylist()], pa.string())
    # Not safe: the largest whole numbers have more digits than a double.
    return labels.cast(target, safe=False)


def record_schema(label: pa.DataType, extras: Iterable[pa.Field]) -> pa.Schema:
    """Give the columns of a part up to the features: ours, then the extra metadata columns."""
    own = [
        pa.field("index", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("label", label),
        pa.field("split", pa.string()),
    ]
    return pa.schema([*own, *extras])


def union(extras: Iterable[pa.Schema]) -> list[pa.Field]:
    """Give the union of the splits' extra columns, in order of first appearance."""
    fields: dict[str, pa.Field] = {}
    for schema in extras:
        for field in schema:
            fields.setdefault(field.name, field)
    return list(fields.values())


class LabelCounts:
    """Counts the text labels of a split; of very many different ones, only those of no label."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.nulls = 0
        self._are_few = True

    def add(self, labels: pa.Array | pa.ChunkedArray) -> None:
        """Count some labels."""
        self.nulls += labels.null_count
        if not pa.types.is_string(labels.type):
            return
        labels = labels.drop_null()
        if not self._are_few:
            bare = pc.utf8_lower(pc.utf8_trim_whitespace(labels))
            labels = labels.filter(pc.is_in(bare, pa.array(["", *_MISSING])))
        values, counts = pc.value_counts(labels).flatten()
        self.counts.update(dict(zip(values.to_pylist(), counts.to_pylist(), strict=True)))
        if self._are_few and len(self.counts) > _NAMES_HELD:
            self._are_few = False
            self.counts = Counter({n: c for n, c in self.counts.items() if stands_for_none(n)})

    def notes(self) -> Iterator[str]:
        """Name the texts that may have been meant for no label, each with its count."""
        found = {text: count for text, count in self.counts.items() if stands_for_none(text)}
        if found:
            named = ", ".join(f"{text!r} ({count:,})" for text, count in sorted(found.items()))
            yield f"labels that may mean no label are kept as classes: {named}"


def stands_for_none(label: str) -> bool:
    """Whether a text label is blank, or what other programs write for a missing value."""
    return not label.strip() or label.strip().casefold() in _MISSING


def look_alikes(names: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Describe different labels that look the same: accents composed or not, spaces, case.

    Labels that differ in case alone are described only where no split has both.

    Args:
        names: the labels of each split.
    """
    splits: dict[str, list[str]] = {}
    for split, labels in names.items():
        for label in labels:
            splits.setdefault(label, []).append(split)
    groups: dict[str, list[str]] = {}
    for label in splits:
        groups.setdefault(_appearance(label).casefold(), []).append(label)
    pairs = [
        (a, b)
        for alike in groups.values()
        for a, b in combinations(alike, 2)
        if _appearance(a) == _appearance(b) or not set(splits[a]) & set(splits[b])
    ]
    for pair in pairs[:_PAIRS_NAMED]:
        # In ASCII, so that what differs is seen.
        a, b = (f"{label!a} in {' and '.join(splits[label])}" for label in pair)
        how = "look the same" if len(set(map(_appearance, pair))) == 1 else "differ only in case"
        yield f"two labels {how}, but are two classes: {a}, {b}; rename one"
    if len(pairs) > _PAIRS_NAMED:
        yield f"{len(pairs) - _PAIRS_NAMED} more such pairs of labels"


def _appearance(label: str) -> str:
    """Give a label without what nobody sees: composition, spaces at its ends, zero-width marks."""
    text = unicodedata.normalize("NFC", label).translate(_SAME_LOOK)
    return " ".join(text.split())
