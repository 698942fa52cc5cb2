# SPDX-License-Identifier: Apache-2.0
"""Read the outermost fields of a Protocol Buffers file, to recognize what it holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Wire types of message fields: varints, and values with a length (strings and messages).
VARINT, SIZED = 0, 2
_MAX_FIELDS = 10_000
_ONNX_NEEDED = {(1, VARINT), (7, SIZED), (8, SIZED)}
_ONNX_FIELDS = {
    (1, VARINT),
    (5, VARINT),
    *((number, SIZED) for number in (2, 3, 4, 6, 7, 8, 14, 20, 25, 26)),
}


def is_onnx(path: Path) -> bool:
    """Return whether a file has the fields of an ONNX model, whatever its name."""
    try:
        with path.open("rb") as file:
            fields, _ = read_fields(file)
    except OSError:
        return False
    return _ONNX_NEEDED <= fields <= _ONNX_FIELDS


def read_fields(file: BinaryIO) -> tuple[set[tuple[int, int]], bytes]:
    """Return the numbers and wire types of the fields, and the first bytes of the first field.

    There are no fields if the file is no message.
    """
    fields: set[tuple[int, int]] = set()
    first = b""
    for index, (number, kind, start) in enumerate(_scan(file)):
        if number == 0:
            return set(), b""
        if index == 0:
            first = start
        fields.add((number, kind))
        if index > _MAX_FIELDS:
            break
    return fields, first


def _scan(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, wire type and first bytes of each field; number 0 means no valid field."""
    size = file.seek(0, 2)
    file.seek(0)
    while file.tell() < size:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        start = b""
        if kind == VARINT:
            _varint(file)
        elif kind == SIZED:
            length = _varint(file)
            end = file.tell() + length
            start = file.read(min(length, 16))
            file.seek(end)
        else:
            number = 0
        if file.tell() > size:
            number = 0
        yield number, kind, start
        if number == 0:
            return


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80 or shift > 63:
            return value
        shift += 7
    # The file is truncated; no field has this number.
    return 0
