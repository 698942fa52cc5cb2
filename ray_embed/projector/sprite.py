# SPDX-License-Identifier: Apache-2.0
"""Write ``sprite.png``, a square grid of thumbnails, one grid row at a time.

TensorFlow encodes a PNG on one thread and tries all filters for every line. Here, grid rows are
compressed independently (which DEFLATE allows if each ends with a full flush), and every line uses
the "up" filter. The rows can therefore be compressed in parallel, and the sprite is never held in
memory as a whole.
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


def choose_cell_size(points: int) -> int:
    """Return the side of a sprite cell in pixels, or 0 if there are too many points for one."""
    return min(64, SPRITE_SIDE // _count_cells_per_row(points))


def _count_cells_per_row(points: int) -> int:
    """Return the number of cells per row of the grid."""
    return math.isqrt(max(points, 1) - 1) + 1


def write_sprite(path: Path, points: int, pngs: Iterable[bytes], mapped: OrderedMap = map) -> None:
    """Write the sprite row by row, fitting each image into a square cell.

    Args:
        path: the file.
        points: the number of images.
        pngs: the images, as PNG.
        mapped: the `map` function for the grid rows: the builtin, or one that uses threads.
    """
    side, grid = choose_cell_size(points), _count_cells_per_row(points)
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
    """Yield the images of each grid row. The last rows may have fewer images or none."""
    remaining = iter(pngs)
    for _ in range(grid):
        yield list(islice(remaining, grid))


def _pack_row(side: int, grid: int, pngs: list[bytes]) -> tuple[Pixels, bytes]:
    """Return the filtered lines of a grid row, and the PNG chunk that contains them."""
    lines = _filter_lines(_draw_row(side, grid, pngs))
    # Z_RLE takes half the time, and the result is hardly larger.
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=zlib.Z_RLE)
    return lines, png.make_chunk(
        b"IDAT", packer.compress(lines.data) + packer.flush(zlib.Z_FULL_FLUSH)
    )


def _draw_row(side: int, grid: int, pngs: list[bytes]) -> Pixels:
    row = np.full((side, grid * side, 3), 255, np.uint8)
    for cell, content in enumerate(pngs):
        _draw_fitted(thumbnails.decode_png(content), row[:, cell * side : (cell + 1) * side])
    return row


def _draw_fitted(picture: Pixels, cell: Pixels) -> None:
    """Draw an image into a square cell, as large as possible, keeping the aspect ratio."""
    side = len(cell)
    rows, columns = _map_pixels(picture.shape[0], picture.shape[1], side)
    top, left = (side - len(rows)) // 2, (side - len(columns)) // 2
    if picture.shape[:2] != (side, side):
        picture = picture.take(rows, 0).take(columns, 1)
    cell[top : top + len(rows), left : left + len(columns)] = picture


@lru_cache(maxsize=4096)
def _map_pixels(height: int, width: int, side: int) -> tuple[Any, Any]:
    """Return the rows and columns to sample for a cell of `side` pixels.

    Nearest-neighbor sampling keeps small images sharp.
    """
    factor = side / max(height, width)
    rows = np.minimum(np.arange(max(1, round(height * factor))) / factor, height - 1).astype(int)
    columns = np.minimum(np.arange(max(1, round(width * factor))) / factor, width - 1).astype(int)
    return rows, columns


def _filter_lines(row: Pixels) -> Pixels:
    """Apply PNG's "up" filter to all lines but the first, which is unfiltered."""
    flat = row.reshape(len(row), -1)
    lines = np.empty((len(flat), flat.shape[1] + 1), np.uint8)
    lines[0, 0], lines[1:, 0] = png.NONE, png.UP
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    return lines
