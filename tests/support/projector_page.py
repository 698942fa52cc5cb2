# SPDX-License-Identifier: Apache-2.0
"""What the page of TensorBoard's projector makes of a metadata file.

Follows the page's own code step by step: the file is decoded in chunks of 1,000,000 bytes, each
chunk is split at line feeds, the rest of a chunk is put before the next one, blank lines are left
out, the first line is a header if it holds a tab.
"""

CHUNK = 1_000_000
# String.prototype.trim takes these away.
_SPACE = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)


def _decode(chunk: bytes) -> str:
    # FileReader.readAsText: a byte order mark at the start is not part of the text.
    return chunk.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def split_lines(content: bytes) -> list[str]:
    """Take the file apart as the page's `streamParse` does."""
    lines: list[str] = []
    offset, last, rest = 0, len(content) - 1, ""
    while True:
        parts = _decode(content[offset : offset + CHUNK]).split("\n")
        offset += CHUNK
        first = rest + parts[0]
        if len(parts) == 1:
            if offset > last + CHUNK:
                raise AssertionError("the page would read on for ever: no final newline")
            rest = first
            continue
        rest = parts[-1]
        lines += [first, *parts[1:-1]]
        if offset >= last:
            return [*lines, rest] if rest else lines


def parse_metadata(content: bytes) -> tuple[list[str], list[list[str | None]]]:
    """Give the names of the columns, and the cells of each point, as the page has them.

    An empty cell is None; a cell that is not there is "undefined".
    """
    names = ["label"]
    points: list[list[str | None]] = []
    count = 0
    for line in split_lines(content):
        if not line.strip(_SPACE):
            continue
        if count == 0 and "\t" in line:
            names = line.split("\t")
            count += 1
            continue
        count += 1
        cells = line.split("\t")
        points.append(
            [(cells[at] or None) if at < len(cells) else "undefined" for at in range(len(names))]
        )
    return names, points


def unescape(cell: str) -> str:
    r"""Undo ``\\ \t \n \r``; any other backslash is a mistake."""
    text, at = [], 0
    while at < len(cell):
        if cell[at] == "\\":
            text.append({"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}[cell[at + 1]])
            at += 1
        else:
            text.append(cell[at])
        at += 1
    return "".join(text)


def assert_shows(cell: str | None, value: object) -> None:
    """Check that a cell is how the value is to be written."""
    if value is None:
        assert cell == "(none)"
    elif isinstance(value, float):
        assert cell is not None
        assert float(cell) == value or (value != value and cell.lower() == "nan")
    elif not isinstance(value, str):
        assert cell == str(value)
    elif value == "":
        assert cell == "(empty)"
    else:
        assert cell is not None
        assert len(cell) <= 1000
        shown = unescape(cell)
        assert value.startswith(shown)
        # As much of it as there is room for: an escape takes two characters.
        assert shown == value or len(cell) >= 999
