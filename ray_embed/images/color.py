# SPDX-License-Identifier: Apache-2.0
"""Decode image files with TensorFlow to the channels and the depth that are wanted."""

import functools
from typing import Any

from ray_embed.images.headers import DEEP_PNG, JPEG, PNG
from ray_embed.images.pixel_spec import PixelSpec

# The numbers of channels that TensorFlow decodes to.
COLOR_CHANNELS = (1, 3, 4)
# 255 · 257 is 65535, so that white stays white.
LEVELS_PER_LEVEL = 257
# The fractions of its sides at which libjpeg decodes: 1/1, 1/2, and so on.
_FRACTIONS = (1, 2, 4, 8)


def decode_to_channels(content: Any, kind: Any, pixels: PixelSpec) -> Any:
    """Decode to 1, 3 or 4 channels, like Keras' `color_mode`, and to levels of 8 or 16 bits.

    TensorFlow decodes GIF, BMP and CMYK JPEG to three channels only; these are converted to
    grayscale with `tf.image.rgb_to_grayscale`. All formats except PNG get an opaque alpha channel.

    Args:
        content: the content of a file.
        kind: its format.
        pixels: the preprocessing, which decides how JPEG files are decoded.
    """
    import tensorflow as tf

    is_png = tf.equal(kind, PNG) | tf.equal(kind, DEEP_PNG)

    def decode_any(count: int) -> Any:
        image = tf.io.decode_image(content, channels=count, expand_animations=False)
        image.set_shape((None, None, count))
        return image

    def decode_to_bytes(count: int) -> Any:
        if pixels.jpeg_size is None and not pixels.is_jpeg_accurate:
            return decode_any(count)
        return tf.cond(
            tf.equal(kind, JPEG),
            lambda: _decode_jpeg(content, count, pixels),
            lambda: decode_any(count),
        )

    def decode_deep(count: int) -> Any:
        return tf.cond(
            is_png,
            lambda: tf.io.decode_png(content, count, tf.uint16),
            lambda: tf.cast(decode_to_bytes(count), tf.uint16) * LEVELS_PER_LEVEL,
        )

    decode = decode_to_bytes if pixels.depth == 8 else decode_deep

    match pixels.shape[2]:
        case 1:
            return tf.cond(
                is_png | tf.equal(kind, JPEG),
                lambda: decode(1),
                lambda: tf.image.rgb_to_grayscale(decode(3)),
            )
        case 4:
            return tf.cond(
                is_png,
                lambda: decode(4),
                lambda: _add_alpha(decode(3)),
            )
    return decode(3)


def _decode_jpeg(content: Any, channels: int, pixels: PixelSpec) -> Any:
    """Decode a JPEG, at the smallest of its fractions that is at least `pixels.jpeg_size`."""
    import tensorflow as tf

    decode = functools.partial(
        tf.io.decode_jpeg,
        content,
        channels,
        dct_method="INTEGER_ACCURATE" if pixels.is_jpeg_accurate else "",
    )
    if pixels.jpeg_size is None:
        return decode()
    sides = tf.io.extract_jpeg_shape(content)[:2]
    times = tf.reduce_min(sides // tf.constant(pixels.jpeg_size))
    branch = tf.reduce_sum(tf.cast(times >= tf.constant(_FRACTIONS[1:]), tf.int32))
    # The fraction is an attribute of the operation, not an input.
    return tf.switch_case(branch, [functools.partial(decode, ratio=ratio) for ratio in _FRACTIONS])


def _add_alpha(image: Any) -> Any:
    import tensorflow as tf

    opaque = tf.constant(image.dtype.max, image.dtype)
    return tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=opaque)
