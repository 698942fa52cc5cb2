# SPDX-License-Identifier: Apache-2.0
"""PNG headers and chunks (W3C PNG Specification, third edition, sections 5 and 11)."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB = 0, 2
# Filter types; each line starts with one.
NONE, UP = 0, 2


def make_header(height: int, width: int, color: int) -> bytes:
    """Return the PNG signature and header of an image with 8 bits per channel, GRAY or RGB."""
    return SIGNATURE + make_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    )


def make_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk, such as IDAT (compressed pixels) or IEND (end of file)."""
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))
