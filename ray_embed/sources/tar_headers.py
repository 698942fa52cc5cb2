# SPDX-License-Identifier: Apache-2.0
"""Find the files in a tar by its headers.

Python's ``tarfile`` takes some 30 µs per header, which is most of the time for planning a large
tar. So the headers of plain files are read here, by the format of POSIX (ustar), and ``tarfile``
reads all others, such as those of long names.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_BLOCK = tarfile.BLOCKSIZE
_PLAIN_TYPES = (tarfile.REGTYPE[0], tarfile.AREGTYPE[0])
# The largest prime below 2**16, by which Adler-32 reduces its sums.
_ADLER_MODULUS = 65_521


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name, byte offset and size, and up to 512 bytes of its content."""

    name: str
    offset: int
    size: int
    start: bytes

    def read(self, stream: IO[bytes]) -> bytes:
        """Return the content."""
        if self.size <= len(self.start):
            return self.start[: self.size]
        stream.seek(self.offset)
        return stream.read(self.size)


def read_members(stream: IO[bytes]) -> Iterator[Member]:
    """Yield the regular files in a tar, in order. Between them, the stream may be used otherwise.

    Raises:
        tarfile.TarError: the stream is not a tar, or it is cut off.
    """
    # Opening it checks the first header.
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        position = 0
        while True:
            stream.seek(position)
            block = stream.read(2 * _BLOCK)
            found = _parse_plain(block)
            if found is not None:
                name, size = found
                offset = position + _BLOCK
                position = offset + -(-size // _BLOCK) * _BLOCK
                yield Member(name, offset, size, block[_BLOCK:])
                continue
            if not block.strip(b"\0"):
                # The end is marked by empty blocks, or by the end of the file.
                if stream.seek(0, 2) < position:
                    raise tarfile.ReadError("unexpected end of data")
                return
            stream.seek(position)
            other = tarfile.TarInfo.fromtarfile(tar)
            position = tar.offset
            if other.isfile():
                stream.seek(other.offset_data)
                yield Member(other.name, other.offset_data, other.size, stream.read(_BLOCK))


def _parse_plain(block: bytes) -> tuple[str, int] | None:
    """Return the name and size in the header of a plain file; None for any other header."""
    if len(block) < _BLOCK or block[156] not in _PLAIN_TYPES or block[257:262] != b"ustar":
        return None
    if block[345] or not _has_right_checksum(block[:_BLOCK]):
        # The start of a long name is in a field of its own.
        return None
    try:
        name = block[: block.index(0, 0, 101)].decode()
        size = int(block[124:136].rstrip(b"\0 "), 8)
    except ValueError:
        return None
    return (name, size) if name and not name.endswith("/") and size >= 0 else None


def _has_right_checksum(header: bytes) -> bool:
    """Return whether the sum of all bytes, with spaces for the checksum, is the checksum."""
    field = header[148:156]
    try:
        checksum = int(field.strip(b"\0 "), 8)
    except ValueError:
        return False
    total = checksum + sum(field) - 8 * ord(" ")
    # The lower half of Adler-32 is one more than the sum of the bytes.
    return zlib.adler32(header) & 0xFFFF == (1 + total) % _ADLER_MODULUS
