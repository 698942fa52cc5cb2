# SPDX-License-Identifier: Apache-2.0
"""``metadata.tsv``: a line for each point, in the format that the projector's page reads.

Arrow formats many rows at once. Only values that need escapes are formatted one by one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_CELL = 1000
_PAGE_CHUNK = 1_000_000
_BYTE_ORDER_MARK = "\ufeff".encode()
_NULL, _EMPTY = "(none)", "(empty)"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
# Between the labels of a list, and how a label that contains it is written.
_SEPARATOR, _BAR = " | ", {ord("|"): "\\|"}
_ESCAPED = tuple(chr(code).encode() for code in _ESCAPES)


def order_columns(records: Iterable[str]) -> list[str]:
    """Return the columns of the file, in order, given the columns of the records."""
    first = ["label", "split", "key", "index"]
    return [*first, *(name for name in records if name not in first)]


def name_mark(label: str) -> str:
    """Return the name of the column that tells which records have a label in their list."""
    return f"label: {label}"


def lines(table: pa.Table, marked: Sequence[str] = ()) -> bytes:
    """Return the lines for a table's rows, each ending with a line feed.

    Args:
        table: the records.
        marked: labels that get a column, which is 1 for the records with this label in their list,
            and 0 for the others.
    """
    if not table.num_rows:
        return b""
    cells = [
        _format_cells(table[name].combine_chunks()) for name in order_columns(table.column_names)
    ]
    if marked:
        cells += _mark_labels(table["label"].combine_chunks(), marked)
    rows = pc.binary_join_element_wise(*cells, "\t")
    return _join(pc.binary_join_element_wise(rows, "", "\n"))


def _mark_labels(lists: pa.Array, marked: Sequence[str]) -> Iterator[pa.Array]:
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(lists)), lengths)
    labels = pc.list_flatten(lists)
    for label in marked:
        marks = np.zeros(len(lists), np.int64)
        marks[rows[pc.equal(labels, label).to_numpy(zero_copy_only=False)]] = 1
        yield pa.array(marks).cast(pa.string())


def _format_cells(column: pa.Array) -> pa.Array:
    if pa.types.is_integer(column.type):
        return column.cast(pa.string()).fill_null(_NULL)
    if not pa.types.is_string(column.type):
        return pa.array([cell(value) for value in column.to_pylist()], pa.string())
    if not _is_plain(column):
        coded = column.dictionary_encode()
        cells = [cell(value) for value in coded.dictionary.to_pylist()]
        column = pa.array(cells, pa.string()).take(coded.indices)
    return column.fill_null(_NULL)


def _is_plain(column: pa.Array) -> bool:
    """Return whether every text can be used as a cell unchanged."""
    lengths = pc.min_max(pc.binary_length(column)).as_py()
    # These lengths are in bytes, not characters, so some texts are formatted unnecessarily.
    if lengths["min"] is not None and not 1 <= lengths["min"] <= lengths["max"] <= _CELL:
        return False
    content = _join(column)
    return not any(mark in content for mark in _ESCAPED)


def _join(texts: pa.Array) -> bytes:
    """Join all texts."""
    _, offsets, content = texts.buffers()
    if content is None:
        return b""
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    joined: bytes = content[int(ends[0]) : int(ends[-1])].to_pybytes()
    return joined


def cell(value: Any) -> str:
    r"""Format a value as a cell that the page shows as it is.

    ``\\ \t \n \r`` are escaped, null becomes ``(none)``, empty text becomes ``(empty)``, and a cell
    has at most 1,000 characters. The labels of a list are joined by `` | ``, and ``|`` within a
    label is escaped.
    """
    if value is None:
        return _NULL
    if isinstance(value, list):
        text = _SEPARATOR.join(label.translate(_ESCAPES | _BAR) for label in value)
    else:
        text = str(value)[:_CELL].translate(_ESCAPES)
    if len(text) > _CELL:
        # An odd number of backslashes at the end would be half an escape.
        text = text[:_CELL]
        if (len(text) - len(text.rstrip("\\"))) % 2:
            text = text[:-1]
    return text or _EMPTY


class Writer:
    """Writes the lines so that no character is lost at a boundary of the page's chunks.

    The page decodes the file in chunks of 1,000,000 bytes. It would lose a character that a
    boundary splits, and a byte order mark that starts a chunk. To prevent this, trailing spaces are
    added to the preceding row.

    Args:
        file: the file, empty.
        names: the columns.
    """

    def __init__(self, file: IO[bytes], names: list[str]) -> None:
        self._file = file
        header = "\t".join(cell(name) for name in names).encode("utf-8", "replace")
        file.write(header)
        # Where the next line starts. The line feed before it is not written yet, as spaces may come
        # first.
        self._start = len(header) + 1

    def add(self, content: bytes) -> None:
        """Write lines, each of which ends with a line feed."""
        if not content:
            return
        if content.isascii() or -self._start % _PAGE_CHUNK >= len(content):
            self._put(content[:-1], 0)
            return
        for line in content[:-1].split(b"\n"):
            self._put(line, _count_padding(self._start, line))

    def end(self) -> None:
        """Write the final line feed."""
        self._file.write(b"\n")

    def _put(self, content: bytes, pad: int) -> None:
        self._file.write(b" " * pad + b"\n" + content)
        self._start += pad + len(content) + 1


def _count_padding(start: int, line: bytes) -> int:
    """Return how many bytes later a line must start so that no boundary loses a character."""
    for pad in range(len(line) + 1):
        first = -(start + pad) % _PAGE_CHUNK
        cuts = range(first, len(line), _PAGE_CHUNK)
        if not any(_loses_character(line, cut) for cut in cuts):
            return pad
    return 0


def _loses_character(line: bytes, cut: int) -> bool:
    return line[cut] & 0xC0 == 0x80 or line.startswith(_BYTE_ORDER_MARK, cut)
