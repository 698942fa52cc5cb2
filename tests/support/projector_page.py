# SPDX-License-Identifier: Apache-2.0
"""Parse a metadata file as the page of TensorBoard's projector does.

This follows the code of the page: the file is decoded in chunks of 1,000,000 bytes, each chunk is
split at line feeds, the rest of a chunk is put before the next one, blank lines are skipped, and
the first line is a header if it has a tab.
"""

CHUNK = 1_000_000
# The characters that String.prototype.trim removes.
_SPACE = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)


def _decode(chunk: bytes) -> str:
    # FileReader.readAsText: a byte order mark at the start is not part of the text.
    return chunk.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def split_lines(content: bytes) -> list[str]:
    """Split the file into lines as `streamParse` of the page does."""
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
    """Return the names of the columns, and the cells of each point, as the page has them.

    An empty cell is None. A missing cell is "undefined".
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
            [
                (cells[column] or None) if column < len(cells) else "undefined"
                for column in range(len(names))
            ]
        )
    return names, points


def unescape(cell: str) -> str:
    r"""Replace ``\\ \t \n \r`` by what they mean; any other backslash is an error."""
    text, position = [], 0
    while position < len(cell):
        if cell[position] == "\\":
            text.append({"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}[cell[position + 1]])
            position += 1
        else:
            text.append(cell[position])
        position += 1
    return "".join(text)


def assert_shows(cell: str | None, value: object) -> None:
    """Check that a cell shows a value."""
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
        text = unescape(cell)
        assert value.startswith(text)
        # A long value is cut. It may be one character shorter, because an escape takes two.
        assert text == value or len(cell) >= 999
