# SPDX-License-Identifier: Apache-2.0
"""The rows of a listing in JSON Lines: one object per line."""

import io
import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.sources.files import locate_file, open_file
from ray_embed.sources.label_lists import is_list
from ray_embed.sources.label_schema import find_common_type
from ray_embed.sources.listing_rows import ListingRows, find_folder
from ray_embed.storage.retry import explain_error

_ROWS_PER_BATCH = 4096
# Objects, and the items of lists of lists and objects, are neither labels nor metadata.
_NESTED = pa.struct([])
_TYPES: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    dict: _NESTED,
}
_EMPTY_LIST = pa.list_(pa.null())
_TEXT_LIST = pa.list_(pa.string())
_ITEM_TYPES = {pa.null(), pa.int64(), pa.string()}
_ADVICE = "write one object per line (in pandas: to_json(path, orient='records', lines=True))"
_Row = dict[str, Any]


def open_json(uri: str) -> ListingRows:
    """Open a JSON Lines file, a path or URI, and read it once to find the types of its fields.

    A missing field is null. Integers and floats become floats. A mix of texts or integers and lists
    of them becomes lists of text, and any other mix of types becomes text.

    Raises:
        InputError: the file cannot be read or is empty, or a line is not a JSON object.
    """
    types: dict[str, set[pa.DataType]] = {}
    for rows in _read_batches(uri):
        for name in dict.fromkeys(name for row in rows for name in row):
            types.setdefault(name, set()).update(_find_types([row.get(name) for row in rows]))
    name = redact_uri(uri)
    if not types:
        raise InputError(f"{name}: the file is empty; {_ADVICE}")
    schema = pa.schema([(name, _join_types(found)) for name, found in types.items()])
    mixed = [
        name
        for name, found in types.items()
        if len(found - {pa.null()}) > 1 and pa.types.is_string(schema.field(name).type)
    ]
    note = f"{name}: fields of several types become text: {', '.join(mixed)}"
    return ListingRows(
        name=name,
        folder=find_folder(uri),
        schema=schema,
        read=partial(_read_columns, uri, schema),
        notes=(note,) if mixed else (),
    )


def _read_columns(uri: str, schema: pa.Schema, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    fields = [schema.field(column) for column in columns]
    for rows in _read_batches(uri):
        arrays = [
            _make_array([row.get(field.name) for row in rows], field.type) for field in fields
        ]
        yield pa.record_batch(arrays, pa.schema(fields))


def _find_types(values: list[Any]) -> set[pa.DataType]:
    types = {_TYPES[kind] for kind in set(map(type, values)) if kind in _TYPES}
    if any(type(value) is int and not -(2**63) <= value < 2**63 for value in values):
        types.add(pa.string())
    lists = [value for value in values if isinstance(value, list)]
    if lists:
        types.add(pa.list_(_find_item_type(list(chain.from_iterable(lists)))))
    return types


def _find_item_type(items: list[Any]) -> pa.DataType:
    if any(isinstance(item, (list, dict)) for item in items):
        return _NESTED
    types = _find_types(items)
    return find_common_type(types) if types else pa.null()


def _join_types(types: set[pa.DataType]) -> pa.DataType:
    """Return the type of a field, given the types of its values."""
    lists = {kind for kind in types if is_list(kind)}
    if lists - {_EMPTY_LIST}:
        types = types - {_EMPTY_LIST}
    items = {kind.value_type if kind in lists else kind for kind in types}
    if lists and len(types - {pa.null()}) > 1 and items <= _ITEM_TYPES:
        return _TEXT_LIST
    return find_common_type(types)


def _make_array(values: list[Any], target: pa.DataType) -> pa.Array:
    if target in (_NESTED, pa.list_(_NESTED)):
        return pa.nulls(len(values), target)
    if pa.types.is_string(target):
        values = list(map(_to_text, values))
    elif target == _TEXT_LIST:
        lists = [value if value is None or isinstance(value, list) else [value] for value in values]
        values = [items and list(map(_to_text, items)) for items in lists]
    return pa.array(values, target)


def _to_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _read_batches(uri: str) -> Iterator[list[_Row]]:
    rows = _read_rows(uri)
    while batch := list(islice(rows, _ROWS_PER_BATCH)):
        yield batch


def _read_rows(uri: str) -> Iterator[_Row]:
    where = redact_uri(uri)
    try:
        with (
            open_file(locate_file(uri)) as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig") as lines,
        ):
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse_line(line, number, where)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: {error}; save the file as UTF-8") from error
    except OSError as error:
        raise InputError(f"{where}: cannot be read as a listing: {explain_error(error)}") from error


def parse_object(text: str) -> _Row:
    """Parse a JSON object.

    Raises:
        ValueError: it is not valid JSON, or not an object; the message says which.
    """
    try:
        row = json.loads(text)
        if "\\u" in text:
            # Escapes may be half of a character, which is no text.
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    return row


def _parse_line(line: str, number: int, where: str) -> _Row:
    try:
        return parse_object(line)
    except ValueError as error:
        raise InputError(f"{where}: line {number} {error}; {_ADVICE}") from error
