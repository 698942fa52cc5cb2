# SPDX-License-Identifier: Apache-2.0
"""The rows of a listing, whatever the format of its file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ray_embed.core.keys import make_key
from ray_embed.core.uri import get_parent_uri, is_uri
from ray_embed.errors import InputError
from ray_embed.sources.listing_format import explain_encoding

_ROWS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class ListingRows:
    """The rows of a listing, in file order.

    `name` is the listing, for messages. `folder` is the base of relative paths, a path or URI.
    `schema` has the columns. `read` yields some columns of all rows; a column of text may come as
    binary, because it may have file names, which may be any bytes. It raises InputError if the file
    cannot be read. `notes` are messages for the user.
    """

    name: str
    folder: str
    schema: pa.Schema
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    notes: tuple[str, ...] = ()


def read_texts(
    batch: pa.RecordBatch, column: str, numbers: Sequence[int], listing: str
) -> pa.Array:
    """Return a column of scalars as text.

    Args:
        batch: the rows.
        column: the name of the column.
        numbers: the number of each row in the listing, from 1.
        listing: the listing, for the message.

    Raises:
        InputError: a cell is not UTF-8; the message names it.
    """
    cells = batch[column]
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    try:
        return cells.cast(pa.string())
    except pa.ArrowInvalid as error:
        for number, cell in zip(numbers, cells.to_pylist(), strict=True):
            try:
                cell.decode()
            except UnicodeDecodeError:
                raise explain_encoding(listing, number, column, cell) from error
        raise


def find_folder(uri: str) -> str:
    """Return the folder of a file, a path or URI."""
    return get_parent_uri(uri) if is_uri(uri) else str(Path(uri).parent)


def read_numbered(
    rows: ListingRows, columns: Sequence[str]
) -> Iterator[tuple[Sequence[int], pa.RecordBatch]]:
    """Yield some columns of all rows, and the numbers of these rows, from 1."""
    start = 1
    for batch in rows.read(columns):
        yield range(start, start + batch.num_rows), batch
        start += batch.num_rows


def read_first_texts(rows: ListingRows) -> list[list[str]]:
    """Return the first rows as text, to find out what their columns are; lists are left empty."""
    first = next(rows.read(rows.schema.names), None)
    if first is None:
        return []
    return [
        [_show_cell(value) for value in row.values()]
        for row in first.slice(0, _ROWS_SHOWN).to_pylist()
    ]


def _show_cell(value: object) -> str:
    if isinstance(value, bytes):
        return make_key(value)
    return value if isinstance(value, str) else ""


def read_paths(cells: pa.Array, numbers: Sequence[int], listing: str) -> list[bytes]:
    """Return the paths of some rows.

    Raises:
        InputError: a row has no path, or that of a web page; the message names the row.
    """
    if not (pa.types.is_binary(cells.type) or pa.types.is_string(cells.type)):
        cells = cells.cast(pa.string())
    paths: list[bytes] = cells.cast(pa.binary()).to_pylist()
    for number, path in zip(numbers, paths, strict=True):
        if not path:
            raise InputError(f"{listing}: row {number} has no path; add one or remove the row")
        if path.startswith((b"http://", b"https://")):
            raise InputError(
                f"{listing}: row {number} has the web address {make_key(path)!r}; download the "
                "images, and list their files"
            )
    return paths
