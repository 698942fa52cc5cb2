# SPDX-License-Identifier: Apache-2.0
"""The frame of a PNG file: W3C, Portable Network Graphics, third edition, sections 5 and 11."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB = 0, 2
# Filters, with which each line begins.
NONE, UP = 0, 2


def make_header(height: int, width: int, color: int) -> bytes:
    """Return what comes before the pixels of an image with 8 bits a channel: GRAY or RGB."""
    return SIGNATURE + make_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    )


def make_chunk(kind: bytes, content: bytes) -> bytes:
    """Return one chunk: IDAT for deflated pixels, IEND at the end of the file."""
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))
