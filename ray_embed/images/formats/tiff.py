# SPDX-License-Identifier: Apache-2.0
"""TIFF of any depth and number of channels, decoded by tifffile and imagecodecs."""

import io
import logging
from functools import partial
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError
from ray_embed.images.formats.base import Format, OpenedImage, RejectedImage, count_pixels

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

# Classic and big, of either byte order.
_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274
# Values of the tags PhotometricInterpretation and ExtraSamples.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ALPHA = (1, 2)
_JPEG_COMPRESSIONS = (6, 7)


def _is_tiff(head: bytes) -> bool:
    return head.startswith(_SIGNATURES)


def count_pages(stream: IO[bytes]) -> int:
    """Return the number of pages of a TIFF file. Only the headers are read.

    Raises:
        ImportError: tifffile is not installed.
        Exception: the file is not a valid TIFF.
    """
    return len(_open_file(stream).pages)


def check_installed() -> None:
    """Check that TIFF files can be read.

    Raises:
        InputError: a package is missing; names the extra that installs it.
    """
    if not (find_spec("tifffile") and find_spec("imagecodecs")):
        raise InputError("--pages all needs other packages: pip install 'ray_embed[formats]'")


def _open_file(stream: IO[bytes]) -> "TiffFile":
    # tifffile needs it only later, to decode, and hides that it is missing.
    import imagecodecs  # noqa: F401
    import tifffile

    # It logs what is odd in a file.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    # Without a name, tifffile expects that of the stream to be text.
    return tifffile.TiffFile(stream, name="image")


def _open(content: bytes, number: int) -> OpenedImage:
    file = _open_file(io.BytesIO(content))
    page = file.pages[number].aspage()
    pixel_bytes = _check_supported(page)
    if any(
        start + length > len(content)
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        raise ValueError("the file is cut off")
    height, width = page.imagelength, page.imagewidth
    if page.is_tiled:
        height, width = max(height, page.tilelength), max(width, page.tilewidth)
    tag = page.tags.get(_ORIENTATION)
    has_four = page.samplesperpixel == 4
    return OpenedImage(
        pixels=count_pixels(height, width, pixel_bytes),
        decode=partial(_decode, page),
        has_alpha=has_four and page.photometric == _RGB and _ends_with_alpha(page),
        orientation=1 if tag is None else int(tag.value),
        pages=len(file.pages),
    )


def _check_supported(page: "TiffPage") -> int:
    """Check that the values of the pixels are levels of gray or of color, or numbers; return the
    number of bytes of a pixel.

    Raises:
        RejectedImage: they are others, such as CMYK.
    """
    photometric = page.photometric
    known = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE)
    if photometric == _YCBCR:
        known = page.compression in _JPEG_COMPRESSIONS
    if not known or page.dtype is None or page.dtype.kind not in "buif" or page.imagedepth != 1:
        raise RejectedImage("unsupported image")
    return int(page.samplesperpixel * page.dtype.itemsize)


def _ends_with_alpha(page: "TiffPage") -> bool:
    return bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA


def _decode(page: "TiffPage") -> Array:
    pixels: Array = page.asarray(maxworkers=1)
    shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        pixels = np.moveaxis(pixels.reshape(shape[2], *shape[:2]), 0, 2)
    pixels = pixels.reshape(shape)
    if page.photometric == _PALETTE:
        # The colors have 16 bits, but are written with 8 significant ones.
        colors: Array = (np.asarray(page.colormap) >> 8).astype(np.uint8).T
        return colors[pixels[..., 0]]
    if shape[2] == 2 and _ends_with_alpha(page):
        pixels = pixels[..., :1]
    if pixels.dtype.kind in "if":
        return pixels.astype(np.float32)
    levels = _spread_levels(pixels, page.bitspersample)
    return ~levels if page.photometric == _WHITE_IS_ZERO else levels


def _spread_levels(pixels: Array, bits: int) -> Array:
    """Return levels of any number of bits as levels from 0 to 255, or to 65535 if they have more
    than 8 bits."""
    if bits <= 8:
        pixels = pixels.astype(np.uint16) * 255 // (2**bits - 1)
        return pixels.astype(np.uint8)
    if bits < 16:
        # The upper bits fill the lower ones, so that white stays white.
        pixels = pixels << (16 - bits) | pixels >> (2 * bits - 16)
    elif bits > 16:
        pixels = pixels >> (bits - 16)
    return pixels.astype(np.uint16)


FORMAT = Format(_is_tiff, _open)
