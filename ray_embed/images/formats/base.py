# SPDX-License-Identifier: Apache-2.0
"""What each decoder provides: how to recognize a format, and how to open an image of it."""

from collections.abc import Callable
from dataclasses import dataclass

from ray_embed.core.arrays import Array

_RGB_BYTES = 3


class RejectedImage(Exception):  # noqa: N818 - not an error of the program
    """Why an image cannot be used: one of the fixed reject reasons."""


@dataclass(frozen=True, kw_only=True)
class OpenedImage:
    """An image whose header was read.

    `pixels` is the cost of decoding; see :func:`count_pixels`. `decode` returns the image, (h, w,
    c): levels as uint8 or uint16, which use the whole range of their type, or values as float32.
    `has_alpha` is whether the last of four channels is the opacity. `orientation` is that of Exif,
    1 to 8, if `decode` does not apply it. `pages` is the number of pages or frames of the file.
    """

    pixels: int
    decode: Callable[[], Array]
    has_alpha: bool = False
    orientation: int = 1
    pages: int = 1


@dataclass(frozen=True)
class Format:
    """A format.

    `matches` is given the first bytes of a file. `open` is given the whole content and the number
    of a page. It reads only the header, and raises an error of any kind if that is not valid.
    """

    matches: Callable[[bytes], bool]
    open: Callable[[bytes, int], OpenedImage]


def count_pixels(height: int, width: int, pixel_bytes: float) -> int:
    """Return how many pixels an image has, or as how many RGB pixels it counts if it is deeper."""
    return max(height * width, int(height * width * pixel_bytes) // _RGB_BYTES)
