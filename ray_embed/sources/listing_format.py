# SPDX-License-Identifier: Apache-2.0
"""Detect the encoding, delimiter and header of a listing."""

import csv
import io
import shlex
from collections import Counter
from collections.abc import Sequence

from ray_embed.errors import InputError
from ray_embed.sources.image_walk import IMAGE_ENDINGS

SAMPLE_BYTES = 1 << 16
DELIMITERS = (",", ";", "\t", "|")
DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF16_MARKS = {b"\xff\xfe": "UTF-16-LE", b"\xfe\xff": "UTF-16-BE"}
_MAX_SAMPLE_ROWS = 20


def check_encoding(sample: bytes, name: str) -> None:
    """Reject UTF-16 listings and column names that are not UTF-8.

    Args:
        sample: the first bytes of the file.
        name: the listing, for the message.

    Raises:
        InputError: the encoding is wrong; the message suggests how to convert the file.
    """
    mark = _UTF16_MARKS.get(sample[:2])
    if mark or b"\0" in sample:
        zero = sample.find(b"\0")
        encoding = mark or ("UTF-16-LE" if zero % 2 else "UTF-16-BE")
        evidence = "it starts with a byte order mark" if mark else f"byte {zero} is 0"
        raise InputError(
            f"{name}: the file looks like {encoding} ({evidence}); "
            f"{_suggest_conversion(name, encoding)}"
        )
    header = sample.partition(b"\n")[0]
    try:
        header.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: the column names are not valid UTF-8: byte {error.start} is "
            f"0x{header[error.start]:02x}, which is {_decode_cp1252(header)!r} in Windows-1252; "
            f"{_suggest_conversion(name)}"
        ) from error


def explain_encoding(name: str, row: int, column: str, value: bytes) -> InputError:
    """Return the error for a cell that is not UTF-8. `row` 1 is the first row below the header."""
    return InputError(
        f"{name}: row {row}, column {column!r}: {value!r} is not UTF-8; in Windows-1252 it is "
        f"{_decode_cp1252(value)!r}; {_suggest_conversion(name)}"
    )


def _suggest_conversion(name: str, encoding: str = "WINDOWS-1252") -> str:
    return (
        'save the file as UTF-8 (in Excel: "CSV UTF-8"), or: '
        f"iconv -f {encoding.removesuffix('-LE').removesuffix('-BE')} -t UTF-8 {name} > utf8.csv"
    )


def _decode_cp1252(value: bytes) -> str:
    return value.decode("cp1252", "replace").strip()


def find_delimiter(sample: bytes, expected: str, path_column: str) -> str:
    """Detect the delimiter.

    Tries, in this order: the expected delimiter, if it yields the path column; any other delimiter
    that does; the result of `csv.Sniffer`, if all rows then have the same length; the expected
    delimiter.

    Args:
        sample: the first bytes of the file.
        expected: the delimiter implied by the file extension.
        path_column: the name of the path column.
    """
    text = _decode_sample(sample)
    for delimiter in (expected, *DELIMITERS):
        if path_column in _read_first_row(text, delimiter):
            return delimiter
    if len(_read_first_row(text, expected)) > 1:
        return expected
    try:
        # Sniffing long texts is slow.
        lines = "\n".join(text.splitlines()[:_MAX_SAMPLE_ROWS])
        sniffed = csv.Sniffer().sniff(lines, "".join(DELIMITERS)).delimiter
    except csv.Error:
        return expected
    lengths = {len(row) for row in read_rows(sample, sniffed)}
    return sniffed if sniffed in DELIMITERS and len(lengths) == 1 else expected


def read_rows(sample: bytes, delimiter: str) -> list[list[str]]:
    """Return the header and the first rows of a listing."""
    rows = csv.reader(io.StringIO(_decode_sample(sample), newline=""), delimiter=delimiter)
    first = []
    try:
        for row in rows:
            if row:
                first.append(row)
            if len(first) == _MAX_SAMPLE_ROWS:
                break
    except csv.Error:
        pass
    return first


def refuse_missing_header(header: Sequence[str], name: str) -> None:
    """Refuse a listing whose first row is a record.

    Raises:
        InputError: a column has the name of an image.
    """
    first = next((cell for cell in header if _is_image_path(cell)), None)
    if first is not None:
        raise InputError(
            f"{name}: the header is missing: {first!r} in the first row looks like a path; add a "
            "header row such as path,label"
        )


def refuse_duplicates(header: Sequence[str], name: str) -> None:
    """Refuse a table in which two columns have the same name.

    Raises:
        InputError: names the first such column.
    """
    duplicates = [column for column, count in Counter(header).items() if count > 1]
    if duplicates:
        raise InputError(f"{name}: duplicate column {duplicates[0]!r}; rename one of them")


def explain_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], name: str, path_column: str
) -> InputError:
    """Return the error for a listing without a path column, which names others with paths.

    Args:
        header: the names of the columns.
        rows: the first rows.
        name: the listing, for the message.
        path_column: the column that is missing.
    """
    problem = f"{name}: no column {path_column!r}; the columns are {', '.join(header)}"
    found = find_path_columns(header, rows)
    if not found:
        return InputError(f"{problem}; select the path column with --path-column")
    listed = " and ".join(map(repr, found))
    return InputError(
        f"{problem}; {listed} may have the paths: use --path-column {shlex.quote(found[0])}"
    )


def find_path_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the columns that have paths of images in all rows."""
    columns = zip(header, zip(*rows, strict=True), strict=True) if rows else ()
    return [name for name, cells in columns if all(map(_is_image_path, cells))]


def _is_image_path(cell: str) -> bool:
    text = cell.strip().lower()
    return text.endswith(IMAGE_ENDINGS) and not text.startswith(("http://", "https://"))


def _read_first_row(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:
        return []


def _decode_sample(sample: bytes) -> str:
    """Decode the sample, without the last line, which may be truncated."""
    if len(sample) >= SAMPLE_BYTES:
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    return sample.decode("utf-8-sig", "surrogateescape")
