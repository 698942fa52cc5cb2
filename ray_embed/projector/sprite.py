# SPDX-License-Identifier: Apache-2.0
"""``sprite.png``: a square grid of pictures, made and packed a row of the grid at a time.

TensorFlow packs a sheet as one piece on one thread, and chooses a filter for every line by trying
all. Here each row of the grid is packed alone (DEFLATE allows it where rows end in a full flush),
each line as its difference from the one above, so that threads share the work and the sheet is
never in memory.
"""

import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed.core.threads import OrderedMap
from ray_embed.images import png, thumbnails

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SPRITE_SIDE = 8192
_ZLIB_HEADER, _LAST_BLOCK = b"\x78\x01", b"\x03\x00"


def sprite_cell(points: int) -> int:
    """Give the side in pixels of one picture in the sprite; 0 where no sprite can hold them."""
    return min(64, SPRITE_SIDE // _grid(points))


def _grid(points: int) -> int:
    return math.isqrt(max(points, 1) - 1) + 1


def write_sprite(path: Path, points: int, pngs: Iterable[bytes], mapped: OrderedMap = map) -> None:
    """Write the sprite: a square grid, row by row, of pictures fitted into square cells.

    Args:
        path: the file.
        points: the number of pictures.
        pngs: the pictures.
        mapped: how to go over the rows of the grid: `map`, or one that works on threads.
    """
    side, grid = sprite_cell(points), _grid(points)
    length = side * grid
    checksum = zlib.adler32(b"")
    with open(path, "wb") as file:
        file.write(png.make_header(length, length, png.RGB) + png.make_chunk(b"IDAT", _ZLIB_HEADER))
        rows = mapped(partial(_packed_row, side, grid), _rows(pngs, grid))
        for lines, packed in rows:
            checksum = zlib.adler32(lines.data, checksum)
            file.write(packed)
        file.write(png.make_chunk(b"IDAT", _LAST_BLOCK + struct.pack(">I", checksum)))
        file.write(png.make_chunk(b"IEND", b""))


def _rows(pngs: Iterable[bytes], grid: int) -> Iterator[list[bytes]]:
    """Give the pictures of each row of the grid; of the last ones there may be fewer, or none."""
    left = iter(pngs)
    for _ in range(grid):
        yield list(islice(left, grid))


def _packed_row(side: int, grid: int, pngs: list[bytes]) -> tuple[Pixels, bytes]:
    """Give the filtered lines of a row of the grid, and the PNG chunk that holds them."""
    lines = _filtered(_row(side, grid, pngs))
    # Runs and no longer matches: half the time, and hardly larger.
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=zlib.Z_RLE)
    return lines, png.make_chunk(
        b"IDAT", packer.compress(lines.data) + packer.flush(zlib.Z_FULL_FLUSH)
    )


def _row(side: int, grid: int, pngs: list[bytes]) -> Pixels:
    row = np.full((side, grid * side, 3), 255, np.uint8)
    for at, content in enumerate(pngs):
        _fit(thumbnails.decode_png(content), row[:, at * side : (at + 1) * side])
    return row


def _fit(picture: Pixels, cell: Pixels) -> None:
    """Put a picture into a square cell, as large as it goes, its proportions kept."""
    side = len(cell)
    rows, columns = _nearest(picture.shape[0], picture.shape[1], side)
    top, left = (side - len(rows)) // 2, (side - len(columns)) // 2
    if picture.shape[:2] != (side, side):
        picture = picture.take(rows, 0).take(columns, 1)
    cell[top : top + len(rows), left : left + len(columns)] = picture


@lru_cache(maxsize=4096)
def _nearest(height: int, width: int, side: int) -> tuple[Any, Any]:
    """Give the rows and columns of a picture to show in a cell of `side` pixels.

    The nearest pixel keeps the few pixels of a small picture sharp.
    """
    factor = side / max(height, width)
    rows = np.minimum(np.arange(max(1, round(height * factor))) / factor, height - 1).astype(int)
    columns = np.minimum(np.arange(max(1, round(width * factor))) / factor, width - 1).astype(int)
    return rows, columns


def _filtered(row: Pixels) -> Pixels:
    """Filter lines as PNG has it: each but the first as its difference from the one above."""
    flat = row.reshape(len(row), -1)
    lines = np.empty((len(flat), flat.shape[1] + 1), np.uint8)
    lines[0, 0], lines[1:, 0] = png.NONE, png.UP
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    return lines
