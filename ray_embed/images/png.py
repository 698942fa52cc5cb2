# SPDX-License-Identifier: Apache-2.0
"""The frame of a PNG file: W3C, Portable Network Graphics, third edition, sections 5 and 11."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
# Filters, with which each line begins.
NONE, UP = 0, 2


def header(height: int, width: int, color: int) -> bytes:
    """Give what comes before the pixels of a picture with 8 bits a channel: GREY or RGB."""
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0))


def chunk(kind: bytes, content: bytes) -> bytes:
    """Frame one chunk; pixels, deflated, are of the kind IDAT, and IEND ends the file."""
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))
