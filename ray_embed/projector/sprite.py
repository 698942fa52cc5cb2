# SPDX-License-Identifier: Apache-2.0
"""``sprite.png``: a square grid of images, made and compressed by rows of the grid.

TensorFlow compresses an image as a whole on one thread, and tries all filters for every line. Here
each row of the grid is compressed alone (DEFLATE allows this if rows end with a full flush), and
each line is its difference from the line above. So threads share the work, and the sprite is never
in memory as a whole.
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
    """Return the side in pixels of an image in the sprite; 0 where no sprite can hold them."""
    return min(64, SPRITE_SIDE // _count_cells(points))


def _count_cells(points: int) -> int:
    """Return the number of cells in a row of the grid."""
    return math.isqrt(max(points, 1) - 1) + 1


def write_sprite(path: Path, points: int, pngs: Iterable[bytes], mapped: OrderedMap = map) -> None:
    """Write the sprite: a square grid, row by row, of images fitted into square cells.

    Args:
        path: the file.
        points: the number of images.
        pngs: the images.
        mapped: processes the rows of the grid: `map`, or a map on threads.
    """
    side, grid = sprite_cell(points), _count_cells(points)
    length = side * grid
    checksum = zlib.adler32(b"")
    with open(path, "wb") as file:
        file.write(png.make_header(length, length, png.RGB) + png.make_chunk(b"IDAT", _ZLIB_HEADER))
        rows = mapped(partial(_pack_row, side, grid), _divide_into_rows(pngs, grid))
        for lines, packed in rows:
            checksum = zlib.adler32(lines.data, checksum)
            file.write(packed)
        file.write(png.make_chunk(b"IDAT", _LAST_BLOCK + struct.pack(">I", checksum)))
        file.write(png.make_chunk(b"IEND", b""))


def _divide_into_rows(pngs: Iterable[bytes], grid: int) -> Iterator[list[bytes]]:
    """Yield the images of each row of the grid. The last rows may have fewer images, or none."""
    remaining = iter(pngs)
    for _ in range(grid):
        yield list(islice(remaining, grid))


def _pack_row(side: int, grid: int, pngs: list[bytes]) -> tuple[Pixels, bytes]:
    """Return the filtered lines of a row of the grid, and the PNG chunk that holds them."""
    lines = _filter_lines(_draw_row(side, grid, pngs))
    # Matching only runs takes half the time, and the result is hardly larger.
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=zlib.Z_RLE)
    return lines, png.make_chunk(
        b"IDAT", packer.compress(lines.data) + packer.flush(zlib.Z_FULL_FLUSH)
    )


def _draw_row(side: int, grid: int, pngs: list[bytes]) -> Pixels:
    row = np.full((side, grid * side, 3), 255, np.uint8)
    for cell, content in enumerate(pngs):
        _fit(thumbnails.decode_png(content), row[:, cell * side : (cell + 1) * side])
    return row


def _fit(picture: Pixels, cell: Pixels) -> None:
    """Draw an image into a square cell, as large as fits, with its proportions."""
    side = len(cell)
    rows, columns = _map_pixels(picture.shape[0], picture.shape[1], side)
    top, left = (side - len(rows)) // 2, (side - len(columns)) // 2
    if picture.shape[:2] != (side, side):
        picture = picture.take(rows, 0).take(columns, 1)
    cell[top : top + len(rows), left : left + len(columns)] = picture


@lru_cache(maxsize=4096)
def _map_pixels(height: int, width: int, side: int) -> tuple[Any, Any]:
    """Return the rows and columns of an image to show in a cell of `side` pixels.

    Taking the nearest pixel keeps small images sharp.
    """
    factor = side / max(height, width)
    rows = np.minimum(np.arange(max(1, round(height * factor))) / factor, height - 1).astype(int)
    columns = np.minimum(np.arange(max(1, round(width * factor))) / factor, width - 1).astype(int)
    return rows, columns


def _filter_lines(row: Pixels) -> Pixels:
    """Apply a filter of PNG: each line but the first is its difference from the line above."""
    flat = row.reshape(len(row), -1)
    lines = np.empty((len(flat), flat.shape[1] + 1), np.uint8)
    lines[0, 0], lines[1:, 0] = png.NONE, png.UP
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    return lines
