# SPDX-License-Identifier: Apache-2.0
"""Tables with a column of encoded images: what each column is for, and the records of its rows.

The image column is binary, or a struct of `bytes` and `path` (the `Image` feature of Hugging Face
datasets, https://huggingface.co/docs/datasets/image_load).
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_embed.config import RunConfig
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, get_first_line
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.files import SizeAndTime
from ray_embed.sources.label_lists import LABEL_LIST, check_not_vectors, is_list, make_lists
from ray_embed.sources.label_schema import describe_reserved, find_label_type, is_reserved
from ray_embed.sources.packed_images import make_packed_records


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns are for; `class_names` are those of integer labels, if the schema has them.

    `key` and `label` are None where there is no such column.
    """

    image: str
    is_struct: bool
    key: str | None
    label: str | None
    extras: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def content(self) -> str:
        """The path of the column of encoded images."""
        return f"{self.image}.bytes" if self.is_struct else self.image


def get_wanted_columns(config: RunConfig) -> Columns:
    """Return the columns that the options name, for `find_columns`."""
    return Columns(
        image=config.image_column or "",
        is_struct=False,
        key=config.key_column,
        label=config.label_column,
        extras=(),
        class_names=(),
    )


def find_columns(schema: pa.Schema, where: str, wanted: Columns) -> Columns:
    """Find out what each column is for.

    Args:
        schema: the columns, with the metadata of Hugging Face if it has some.
        where: the file, for the message.
        wanted: `image` (empty to choose it), `key` and `label` as asked for.

    Raises:
        InputError: there is no column with images, or no key column of the name given.
    """
    image = wanted.image or _choose_image_column(schema, where)
    if image not in schema.names:
        raise InputError(
            f"{where}: no column {image!r} for --image-column; the columns are "
            f"{_describe_schema(schema)}"
        )
    type_ = schema.field(image).type
    is_struct = pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0
    if not is_struct and not _is_binary(type_):
        raise _explain_no_bytes(image, type_, where)
    if wanted.key is not None and wanted.key not in schema.names:
        raise InputError(
            f"{where}: no column {wanted.key!r} for --key-column; the columns are "
            f"{_describe_schema(schema)}"
        )
    label = wanted.label if wanted.label in schema.names else None
    extras = _list_scalars(schema, {image, wanted.key, label})
    return Columns(
        image=image,
        is_struct=is_struct,
        key=wanted.key,
        label=label,
        extras=tuple(name for name in extras if not is_reserved(name)),
        class_names=read_class_names(schema, label or ""),
    )


def _list_scalars(schema: pa.Schema, used: set[str | None]) -> list[str]:
    return [field.name for field in schema if field.name not in used and is_scalar(field)]


def check_columns(schema: pa.Schema, columns: Columns, where: str, first: str) -> None:
    """Check that a file has the columns of the first file.

    Args:
        schema: the columns of the file.
        columns: those of the first file.
        where: the file, for the message.
        first: the first file, for the message.

    Raises:
        InputError: a column is missing, added, or is for something else.
    """
    found = find_columns(schema, where, columns)
    if found.class_names != columns.class_names:
        names = ", ".join(found.class_names) or "none"
        raise InputError(
            f"{where}: its class names ({names}) differ from those of {first}; write all files "
            "with the same ClassLabel, or give such files as another --source"
        )
    if found != columns:
        raise InputError(
            f"{where}: its columns ({_describe_schema(schema)}) differ from those of {first}; give "
            "such files as another --source"
        )


def describe_source(
    schema: pa.Schema, columns: Columns, config: RunConfig, named: str, where: str
) -> SourceInfo:
    """Return the properties of a source, with notes if columns are left out or none has labels.

    Args:
        schema: the columns of its first file.
        columns: what they are for.
        config: the options, which name the label column.
        named: the source, for the note.
        where: the first file, for the message.

    Raises:
        InputError: the label column has an unsupported type.
    """
    unlabeled = ""
    if columns.label is None:
        unlabeled = (
            f"{redact_uri(named)}: no column {config.label_column!r}, so the records are "
            f"unlabeled; the columns are {_describe_schema(schema)}; select the label column with "
            "--label-column"
        )
    scalars = _list_scalars(schema, {columns.image, columns.key, columns.label})
    reserved = list(filter(is_reserved, scalars))
    return SourceInfo(
        label_type=_find_label_type(schema, columns, where),
        extras=columns.extras,
        has_label_column=columns.label is not None,
        notes=describe_reserved(redact_uri(named), "columns", reserved),
        unlabeled=unlabeled,
    )


def make_records(
    batch: pa.RecordBatch,
    columns: Columns,
    label_type: pa.DataType,
    name: str,
    stat: SizeAndTime,
    *,
    start: int,
    positions: pa.Array,
    lengths: pa.Array,
) -> pa.RecordBatch:
    """Return the records of some rows of a file.

    Args:
        batch: the rows: at least the columns of keys, labels and extras.
        columns: what the columns are for.
        label_type: the label type of the source.
        name: the name of the file, below the location of the source.
        stat: its size and modification time.
        start: the number of the first of these rows in the file.
        positions: where the images are in the file.
        lengths: their lengths in bytes; null if they are not known.
    """
    with _explain_values(columns.key or columns.image, name):
        converted = {"key": _make_keys(batch, columns, name, start)}
    with _explain_values(columns.label, name):
        labels = pa.nulls(batch.num_rows) if columns.label is None else batch[columns.label]
        converted["label"] = convert_labels(labels, columns.class_names, label_type, name)
    for extra in columns.extras:
        with _explain_values(extra, name):
            converted[extra] = _to_text(batch[extra])
    return make_packed_records(
        converted,
        name,
        stat,
        positions=positions,
        lengths=lengths,
    )


@contextlib.contextmanager
def _explain_values(column: str | None, where: str) -> Iterator[None]:
    """Turn an error about the values of a column into one for the user."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowIndexError) as error:
        raise InputError(
            f"{where}: the column {column!r} has values that are no text, numbers or classes: "
            f"{get_first_line(error)}; write them as text"
        ) from error


def convert_labels(
    labels: pa.Array, names: Sequence[str], target: pa.DataType, where: str
) -> pa.Array:
    """Return labels as the label type of the source; class numbers become the names of classes.

    Args:
        labels: the labels as they are stored.
        names: the class names of whole numbers; empty if there are none.
        target: the label type.
        where: the file, for the message.

    Raises:
        InputError: lists of numbers look like one-hot or multi-hot vectors.
        pa.ArrowException: a label is not text, is too large, or not the number of a class.
    """
    if is_list(labels.type):
        items = convert_labels(pc.list_flatten(labels), names, pa.string(), where)
        if not names:
            check_not_vectors(labels.to_pylist(), where)
        return make_lists(_nest_items(items, labels))
    if names:
        # Hugging Face writes -1 for a record without a label.
        known = pc.if_else(pc.greater_equal(labels, 0), labels, pa.scalar(None, labels.type))
        return pa.array(list(names), pa.string()).take(known.cast(pa.int64()))
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    return labels.cast(target)


def _nest_items(items: pa.Array, lists: pa.Array) -> Iterator[list[str | None]]:
    """Yield the converted items of each list, given those of all lists."""
    rest = iter(items.to_pylist())
    for length in pc.list_value_length(lists).fill_null(0).to_pylist():
        yield list(islice(rest, length))


def _make_keys(batch: pa.RecordBatch, columns: Columns, name: str, start: int) -> pa.Array:
    """Return the keys: the key column, else the paths of the images, else file and row."""
    rows = pa.array([f"{name}#{start + i}" for i in range(batch.num_rows)], pa.string())
    if columns.key is not None:
        return pc.coalesce(_to_text(batch[columns.key]), rows)
    index = batch.schema.get_field_index(columns.image)
    if index < 0 or not _has_paths(batch.schema.field(index).type):
        return rows
    return pc.coalesce(_to_text(pc.struct_field(batch[columns.image], "path")), rows)


def _has_paths(type_: pa.DataType) -> bool:
    return bool(pa.types.is_struct(type_) and type_.get_field_index("path") >= 0)


def read_class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names of a column of integers or lists of them; empty if there are none."""
    feature = _read_features(schema).get(label, {})
    # Of a list of a ClassLabel, the names are one level further in.
    return tuple(feature.get("names") or _get_inner(feature).get("names") or ())


def _read_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features that Hugging Face datasets keeps in the schema's metadata."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return {}
    try:
        features = json.loads(content)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    # Older versions write the feature of a list as a list of one.
    named = {
        name: {"feature": value[0]} if isinstance(value, list) and value else value
        for name, value in features.items()
    }
    return {name: value for name, value in named.items() if isinstance(value, dict)}


def _get_inner(feature: dict[str, Any]) -> dict[str, Any]:
    """Return the feature of the items, if a feature of Hugging Face is a list."""
    inner = feature.get("feature")
    return inner if isinstance(inner, dict) else {}


def _choose_image_column(schema: pa.Schema, where: str) -> str:
    features = _read_features(schema)
    declared = [name for name, value in features.items() if value.get("_type") == "Image"]
    binary = [field.name for field in schema if may_hold_images(field.type)]
    for names in (declared, [name for name in binary if name == "image"], binary):
        if len(names) == 1:
            return names[0]
        if names:
            raise InputError(
                f"{where}: several columns may hold the images: {', '.join(names)}; choose one "
                "with --image-column"
            )
    for name in ("image", "img", "url", "path", "file_name"):
        if name in schema.names:
            raise _explain_no_bytes(name, schema.field(name).type, where)
    raise InputError(
        f"{where}: no column with encoded images; the columns are {_describe_schema(schema)}"
    )


def _explain_no_bytes(name: str, type_: pa.DataType, where: str) -> InputError:
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return InputError(
            f"{where}: the column {name!r} has text, such as paths or URLs, and not the bytes of "
            f"images; download what it names, and give a listing: a .csv file with the columns "
            "path and label"
        )
    return InputError(
        f"{where}: the column {name!r} has the type {type_}; encoded images (JPEG, PNG, …) are "
        "binary, or a struct with a field bytes"
    )


def _find_label_type(schema: pa.Schema, columns: Columns, where: str) -> pa.DataType:
    if columns.label is None:
        return pa.null()
    type_ = schema.field(columns.label).type
    if columns.class_names:
        return LABEL_LIST if is_list(type_) else pa.string()
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return find_label_type(type_, f"{where}: column {columns.label!r}")


def _to_text(values: pa.Array) -> pa.Array:
    """Return scalar values as text; a dictionary is decoded."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.string())


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def may_hold_images(type_: pa.DataType) -> bool:
    """Return whether a column of this type may hold encoded images."""
    if pa.types.is_struct(type_):
        index = type_.get_field_index("bytes")
        return index >= 0 and _is_binary(type_.field(index).type)
    return _is_binary(type_)


def is_scalar(field: pa.Field) -> bool:
    """Return whether a column has single values, which can be metadata."""
    type_ = field.type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if isinstance(type_, pa.BaseExtensionType):
        # Such as the arrays of Hugging Face, if its library is imported.
        return False
    is_bytes = _is_binary(type_) or pa.types.is_fixed_size_binary(type_)
    return not (pa.types.is_nested(type_) or is_bytes or pa.types.is_null(type_))


def _describe_schema(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
