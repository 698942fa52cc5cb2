# SPDX-License-Identifier: Apache-2.0
"""Recognize an image by its first bytes, and decode it to what the encoder takes."""

from dataclasses import dataclass

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.images.formats import dicom, pillow, tiff
from ray_embed.images.formats.base import OpenedImage, RejectedImage

NEEDS_EXTRA = "needs ray_embed[formats]"
WRONG_CHANNELS = "wrong number of channels"
FORMATS = (
    pillow.WEBP,
    pillow.AVIF,
    pillow.HEIC,
    pillow.JPEG2000,
    tiff.FORMAT,
    dicom.FORMAT,
)
_HEAD_BYTES = 256
# The weights of `tf.image.rgb_to_grayscale`.
_GRAY_WEIGHTS = np.array([0.2989, 0.587, 0.114], np.float32)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an image must become.

    `depth` is 8 or 16, the bits of its levels. Images that cost more than `max_pixels` are
    rejected. `upright` is whether to apply the Exif orientation.
    """

    channels: int
    depth: int
    max_pixels: int
    upright: bool


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded image, (h, w, c): levels as uint8 or uint16, or values as float32.

    `is_turned` is whether its Exif orientation is not upright, `is_reduced` whether it has more
    than the wanted 8 bits, and `passed_over` the number of the other pages of its file.
    """

    image: Array
    is_turned: bool
    is_reduced: bool
    passed_over: int


def decode_image(content: bytes, page: int, wanted: Wanted) -> DecodedImage:
    """Decode an image of one of the formats.

    Raises:
        RejectedImage: with the reason.
    """
    opened = open_image(content, page)
    if opened.pixels > wanted.max_pixels:
        raise RejectedImage("too many pixels")
    stored = _decode(opened)
    image = _set_depth(stored, wanted.depth)
    image = _set_channels(image, wanted.channels, opened.has_alpha)
    return DecodedImage(
        image=_turn_upright(image, opened.orientation) if wanted.upright else image,
        is_turned=2 <= opened.orientation <= 8,
        is_reduced=stored.dtype == np.uint16 and wanted.depth == 8,
        passed_over=opened.pages - 1,
    )


def decode_as_stored(content: bytes, page: int) -> Array:
    """Decode an image without changing its channels and depth, to (h, w, c).

    Raises:
        RejectedImage: with the reason.
    """
    return _decode(open_image(content, page))


def open_image(content: bytes, page: int) -> OpenedImage:
    """Read the header of an image.

    Raises:
        RejectedImage: with the reason.
    """
    head = content[:_HEAD_BYTES]
    format_ = next((format_ for format_ in FORMATS if format_.matches(head)), None)
    if format_ is None:
        raise RejectedImage("not an image")
    try:
        return format_.open(content, page)
    except RejectedImage:
        raise
    except ImportError as error:
        raise RejectedImage(NEEDS_EXTRA) from error
    except Exception as error:
        raise RejectedImage("corrupt image") from error


def _decode(opened: OpenedImage) -> Array:
    try:
        image = opened.decode()
    except RejectedImage:
        raise
    except Exception as error:
        # The libraries raise errors of all kinds.
        raise RejectedImage("corrupt image") from error
    if not image.size:
        raise RejectedImage("corrupt image")
    return image


def _set_depth(image: Array, depth: int) -> Array:
    if image.dtype == np.uint16 and depth == 8:
        # As TensorFlow does with PNG.
        return (image >> 8).astype(np.uint8)
    if image.dtype == np.uint8 and depth == 16:
        return image.astype(np.uint16) * 257
    return image


def _set_channels(image: Array, channels: int, has_alpha: bool) -> Array:
    """Convert an image between gray, RGB and RGBA, as TensorFlow does with PNG.

    Raises:
        RejectedImage: the image has other channels than the encoder takes.
    """
    if image.shape[2] == channels:
        return image
    if has_alpha:
        image = image[..., :3]
    match image.shape[2], channels:
        case (same, wanted) if same == wanted:
            return image
        case 1, 3:
            return np.repeat(image, 3, axis=2)
        case 3, 1:
            gray = (image.astype(np.float32) @ _GRAY_WEIGHTS)[..., None]
            return gray if image.dtype == np.float32 else np.round(gray).astype(image.dtype)
        case (1 | 3, 4) if image.dtype != np.float32:
            color = np.broadcast_to(image, (*image.shape[:2], 3))
            opaque = np.full((*image.shape[:2], 1), np.iinfo(image.dtype).max, image.dtype)
            return np.concatenate([color, opaque], axis=2)
    raise RejectedImage(WRONG_CHANNELS)


def _turn_upright(image: Array, orientation: int) -> Array:
    if 5 <= orientation <= 8:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
