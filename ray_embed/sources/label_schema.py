# SPDX-License-Identifier: Apache-2.0
"""Label types, label checks, and the record schema shared by all parts of a run."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import pyarrow as pa
import pyarrow.compute as pc

from ray_embed.errors import InputError
from ray_embed.sources.label_lists import LABEL_LIST, is_list

_RESERVED_COLUMNS = ("index", "key", "label", "split", "feature")

# Common representations of missing values.
_MISSING_VALUES = {"na", "n/a", "<na>", "nan", "null", "none"}
# With more distinct labels than this, labels are identifiers rather than classes.
_MAX_CLASSES = 10_000
_MAX_PAIRS = 3
# Map the micro sign to the Greek mu, and remove zero-width characters and soft hyphens.
_LOOK_ALIKES = str.maketrans("\u00b5", "\u03bc", "\u200b\u2060\ufeff\u00ad")


def is_reserved(column: str) -> bool:
    """Return whether a column of metadata cannot have this name, because parts use it."""
    return column in _RESERVED_COLUMNS or column.startswith("feature_")


def describe_reserved(named: str, what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return a note about metadata that is left out because of its names, or nothing.

    Args:
        named: the source.
        what: what has these names, such as ``columns``.
        names: the reserved names.
    """
    if not names:
        return ()
    return (f"{named}: left out the {what} {', '.join(names)}, because these names are reserved",)


def find_common_type(types: Iterable[pa.DataType]) -> pa.DataType:
    """Return the common label type of all splits.

    A single type is kept, int64 and double become double, a mix with lists becomes lists, and any
    other mix becomes string. Unlabeled splits (null) are ignored; if all splits are unlabeled, the
    type is string.
    """
    kinds = {kind for kind in types if not pa.types.is_null(kind)}
    if LABEL_LIST in kinds:
        return LABEL_LIST
    if len(kinds) == 1:
        return kinds.pop()
    return pa.float64() if kinds and kinds <= {pa.int64(), pa.float64()} else pa.string()


def find_label_type(kind: pa.DataType, where: str) -> pa.DataType:
    """Return the label type (int64, double, string, bool, null or lists) for Arrow type `kind`.

    Raises:
        InputError: `kind` is not a supported label type.
    """
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if _is_text(kind):
        return pa.string()
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return kind
    if is_list(kind) and _can_be_items(kind.value_type):
        return LABEL_LIST
    raise InputError(
        f"{where}: labels cannot be of type {kind}; a label must be a single int, float, string or "
        "bool, or a list of ints or strings"
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    )


def _can_be_items(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_null(kind) or _is_text(kind)


def parse_type(text: str) -> pa.DataType:
    """Return the label type that a plan stores as text."""
    return LABEL_LIST if text == str(LABEL_LIST) else pa.type_for_alias(text)


def cast_labels(labels: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast labels to the run's label type. Numbers are converted to text with `str`, and single
    labels to lists of one.
    """
    if labels.type == target:
        return labels
    if target == LABEL_LIST:
        return pa.array([None if v is None else [str(v)] for v in labels.to_pylist()], LABEL_LIST)
    if pa.types.is_string(target) and not pa.types.is_null(labels.type):
        return pa.array([None if v is None else str(v) for v in labels.to_pylist()], pa.string())
    # Unsafe cast, because large integers cannot be represented exactly as doubles.
    return labels.cast(target, safe=False)


def make_record_schema(label: pa.DataType, extras: Iterable[pa.Field]) -> pa.Schema:
    """Return the schema of a part without features: built-in columns, then the extra columns."""
    columns = [
        pa.field("index", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("label", label),
        pa.field("split", pa.string()),
    ]
    return pa.schema([*columns, *extras])


class LabelCounts:
    """Counts the text labels of a split, alone or in lists.

    If there are too many distinct labels, counts only those that look like missing values.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.nulls = 0
        self._are_few = True

    def add(self, labels: pa.Array | pa.ChunkedArray) -> None:
        """Add the labels of a batch of records."""
        self.nulls += labels.null_count
        if is_list(labels.type):
            labels = pc.list_flatten(labels)
        if not pa.types.is_string(labels.type):
            return
        labels = labels.drop_null()
        if not self._are_few:
            bare = pc.utf8_lower(pc.utf8_trim_whitespace(labels))
            labels = labels.filter(pc.is_in(bare, pa.array(["", *_MISSING_VALUES])))
        values, counts = pc.value_counts(labels).flatten()
        self.counts.update(dict(zip(values.to_pylist(), counts.to_pylist(), strict=True)))
        if self._are_few and len(self.counts) > _MAX_CLASSES:
            self._are_few = False
            self.counts = Counter({n: c for n, c in self.counts.items() if looks_missing(n)})

    def notes(self) -> Iterator[str]:
        """Yield a note that lists labels that look like missing values, with their counts."""
        empty = {text: count for text, count in self.counts.items() if looks_missing(text)}
        if empty:
            named = ", ".join(f"{text!r} ({count:,})" for text, count in sorted(empty.items()))
            yield f"some labels look like missing values, but are kept as classes: {named}"


def looks_missing(label: str) -> bool:
    """Return whether a text label is blank or looks like a missing value."""
    return not label.strip() or label.strip().casefold() in _MISSING_VALUES


def describe_look_alikes(names: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield a warning for each pair of labels that look alike (Unicode composition, whitespace,
    case).

    Labels that differ only in case are reported only if no split contains both.

    Args:
        names: the labels by split.
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
        # ASCII representation, to make the difference visible.
        a, b = (f"{label!a} in {' and '.join(splits[label])}" for label in pair)
        how = (
            "look the same" if len(set(map(_normalize_label, pair))) == 1 else "differ only in case"
        )
        yield f"these two labels {how}, but are separate classes: {a}, {b}; rename one of them"
    if len(pairs) > _MAX_PAIRS:
        yield f"… and {len(pairs) - _MAX_PAIRS} more pairs of similar labels"


def _normalize_label(label: str) -> str:
    """Normalize Unicode composition and whitespace, and remove zero-width characters."""
    text = unicodedata.normalize("NFC", label).translate(_LOOK_ALIKES)
    return " ".join(text.split())
