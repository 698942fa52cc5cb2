# SPDX-License-Identifier: Apache-2.0
"""Read image headers: the format, and the cost of decoding."""

from typing import Any

import numpy as np

from ray_embed.core.arrays import Array

UNKNOWN, JPEG, PNG, GIF, BMP, UNSUPPORTED_BMP, CMYK_JPEG, DEEP_PNG = range(8)
# A progressive JPEG can have any number of scans (usually about ten). Decoding MAX_SCANNED_PIXELS
# pixels × scans takes about ten seconds. A scan has at least _SCAN_BYTES bytes.
MAX_SCANNED_PIXELS, _SCAN_BYTES = 10**11, 10
_HEADER_BYTES = 32


def read_header(content: Any) -> tuple[Any, Any, Any]:
    """Return the format, the number of pixels, and pixels × scans of an image file.

    The last number is exact only if it can exceed MAX_SCANNED_PIXELS.
    """
    import tensorflow as tf

    def read_jpeg() -> tuple[Any, Any, Any]:
        height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(content, tf.int64))
        count = height * width
        most = count * tf.cast(tf.strings.length(content), tf.int64) // _SCAN_BYTES
        scanned = tf.where(most > MAX_SCANNED_PIXELS, content, b"")
        pieces = tf.raw_ops.StringSplitV2(input=scanned[None], sep=b"\xff\xda").values
        kind = tf.where(tf.equal(channels, 4), _constant(CMYK_JPEG), _constant(JPEG))
        return kind, count, count * tf.size(pieces, tf.int64)

    def read_gif() -> tuple[Any, Any, Any]:
        count = tf.numpy_function(_count_gif_pixels, [content], tf.int64)
        return _constant(GIF), tf.ensure_shape(count, ()), _constant(0)

    def read_other() -> tuple[Any, Any, Any]:
        return *_read_other_header(content), _constant(0)

    is_jpeg = tf.equal(tf.strings.substr(content, 0, 3), b"\xff\xd8\xff")
    is_gif = tf.equal(tf.strings.substr(content, 0, 4), b"GIF8")
    branch = tf.cast(is_jpeg, tf.int32) + 2 * tf.cast(is_gif, tf.int32)
    return tf.switch_case(branch, [read_other, read_jpeg, read_gif])  # type: ignore[no-any-return]


def _read_other_header(content: Any) -> tuple[Any, Any]:
    """Read the format and the number of pixels of other files, without slow graph branches."""
    import tensorflow as tf

    start = tf.strings.substr(content, 0, _HEADER_BYTES)
    padded = tf.strings.substr(tf.strings.join([start, "\0" * _HEADER_BYTES]), 0, _HEADER_BYTES)
    head = tf.ensure_shape(tf.cast(tf.io.decode_raw(padded, tf.uint8), tf.int64), (_HEADER_BYTES,))
    png_width, png_height, depth, bmp_width, bmp_height, bits, packed = tf.unstack(
        tf.linalg.matvec(_NUMBERS, head)
    )
    png = tf.where(tf.equal(depth, 16), _constant(DEEP_PNG), _constant(PNG))
    # TensorFlow decodes only 24-bit uncompressed BMP correctly.
    plain_bmp = tf.where(tf.equal(bits, 24) & tf.equal(packed, 0), BMP, UNSUPPORTED_BMP)
    # The height of a top-down BMP is negative.
    bmp_height = tf.minimum(bmp_height, (1 << 32) - bmp_height)
    kinds = [
        (b"\x89PNG\r\n\x1a\n", png, png_width * png_height),
        (b"BM", tf.cast(plain_bmp, tf.int64), bmp_width * bmp_height),
    ]
    format_, count = _constant(UNKNOWN), _constant(0)
    for magic, kind, pixels in kinds:
        matches = tf.equal(tf.strings.substr(content, 0, len(magic)), magic)
        format_, count = tf.where(matches, kind, format_), tf.where(matches, pixels, count)
    return format_, count


def _count_gif_pixels(given: Any) -> Any:
    """Return the number of pixels to decode for a GIF.

    The size in its header may be wrong. TensorFlow allocates an RGB image of the size of the
    largest frame, and all frames with one byte per pixel. Blocks follow the GIF89a specification.
    """
    content: bytes = given.item() if isinstance(given, np.ndarray) else given
    width, height = (int.from_bytes(content[at : at + 2], "little") for at in (6, 8))
    at = 13 + _count_color_bytes(content[10:11])
    area = 0
    while at < len(content):
        match content[at]:
            case 0x21:
                at += 2
            case 0x2C:
                frame = [int.from_bytes(content[at + i : at + i + 2], "little") for i in (5, 7)]
                width, height = max(width, frame[0]), max(height, frame[1])
                area += frame[0] * frame[1]
                at += 11 + _count_color_bytes(content[at + 9 : at + 10])
            case _:
                break
        while at < len(content) and content[at]:
            at += 1 + content[at]
        at += 1
    return np.int64(max(width * height, -(-area // 3)))


def _count_color_bytes(flags: bytes) -> int:
    """Return the size of a color table in bytes, or 0 if there is none."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _constant(value: int) -> Any:
    import tensorflow as tf

    return tf.constant(value, tf.int64)


def _make_number_matrix() -> Array:
    """Return a matrix that maps header bytes to the numbers in the header of each format."""
    little, big = 256 ** np.arange(4), 256 ** np.arange(4)[::-1]
    matrix = np.zeros((7, _HEADER_BYTES), np.int64)
    for row, (at, weights) in enumerate(
        [
            *((16, big), (20, big), (24, big[-1:])),
            *((18, little), (22, little), (28, little[:2]), (30, little[:2])),
        ]
    ):
        matrix[row, at : at + len(weights)] = weights
    return matrix


_NUMBERS = _make_number_matrix()
