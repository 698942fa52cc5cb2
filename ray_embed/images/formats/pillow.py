# SPDX-License-Identifier: Apache-2.0
"""WebP, AVIF, JPEG 2000 and HEIC, decoded by Pillow."""

import io
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.images.formats.base import Format, OpenedImage, RejectedImage, count_pixels

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
# The modes that become an array as they are; all others become RGB, or gray if they have no color.
_MODES = ("L", "I;16", "RGB", "RGBA")
_GRAY_MODES = ("1", "LA", "La")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
# Brands of the container; those of the codec follow in the list of compatible brands.
_SHARED_BRANDS = (b"mif1", b"msf1")


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_jpeg2000(head: bytes) -> bool:
    return head.startswith((b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n"))


def _is_avif(head: bytes) -> bool:
    return _has_brand(head, _AVIF_BRANDS)


def _is_heic(head: bytes) -> bool:
    return _has_brand(head, _HEIC_BRANDS)


def _has_brand(head: bytes, brands: tuple[bytes, ...]) -> bool:
    """Return whether the first box of a HEIF container names one of these brands."""
    if head[4:8] != b"ftyp":
        return False
    box = head[8 : int.from_bytes(head[:4])]
    listed = [box[at : at + 4] for at in range(8, len(box), 4)] if box[:4] in _SHARED_BRANDS else []
    return any(brand in brands for brand in (box[:4], *listed))


# The classes of the formats are called themselves, because `Image.open` tries all formats.
def _open_webp(content: bytes, page: int) -> OpenedImage:
    from PIL.WebPImagePlugin import WebPImageFile

    return _open(WebPImageFile, content)


def _open_avif(content: bytes, page: int) -> OpenedImage:
    from PIL.AvifImagePlugin import AvifImageFile

    return _open(AvifImageFile, content)


def _open_jpeg2000(content: bytes, page: int) -> OpenedImage:
    from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

    return _open(Jpeg2KImageFile, content)


def _open_heic(content: bytes, page: int) -> OpenedImage:
    from pillow_heif import HeifImageFile

    return _open(HeifImageFile, content)


def _open(read_header: Callable[[io.BytesIO], "Image.Image"], content: bytes) -> OpenedImage:
    from PIL import Image

    try:
        image = read_header(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise RejectedImage("too many pixels") from error
    return OpenedImage(
        pixels=count_pixels(image.height, image.width, 1),
        decode=partial(_decode, image),
        has_alpha=image.mode == "RGBA",
        orientation=_read_orientation(image),
    )


def _decode(image: "Image.Image") -> Array:
    mode = image.mode
    if mode not in _MODES:
        mode = "L" if mode in _GRAY_MODES else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read_orientation(image: "Image.Image") -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # The pixels may be fine even if the metadata are not.
        return 1


WEBP = Format(_is_webp, _open_webp)
AVIF = Format(_is_avif, _open_avif)
HEIC = Format(_is_heic, _open_heic)
JPEG2000 = Format(_is_jpeg2000, _open_jpeg2000)
