# SPDX-License-Identifier: Apache-2.0
"""What a label may be, and the one Arrow schema that all parts of a run share."""

from collections.abc import Iterable

import pyarrow as pa

from ray_embed.errors import InputError

OWN_COLUMNS = ("index", "key", "label", "split")


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
