# SPDX-License-Identifier: Apache-2.0
"""Decode image files with TensorFlow to the channels and the depth that are wanted."""

import functools
from typing import Any

from ray_embed.images.headers import DEEP_PNG, JPEG, PNG

# The numbers of channels that TensorFlow decodes to.
COLOR_CHANNELS = (1, 3, 4)
# 255 · 257 is 65535, so that white stays white.
LEVELS_PER_LEVEL = 257
# The fractions of its sides at which libjpeg decodes: 1/1, 1/2, and so on.
_FRACTIONS = (1, 2, 4, 8)


def decode_to_channels(
    content: Any,
    kind: Any,
    channels: int,
    depth: int,
    jpeg_size: tuple[int, int] | None = None,
) -> Any:
    """Decode to 1, 3 or 4 channels, like Keras' `color_mode`, and to levels of 8 or 16 bits.

    TensorFlow decodes GIF, BMP and CMYK JPEG to three channels only; these are converted to
    grayscale with `tf.image.rgb_to_grayscale`. All formats except PNG get an opaque alpha channel.

    With `jpeg_size`, (H, W), JPEG files are decoded at the smallest fraction of their size that is
    at least this large.
    """
    import tensorflow as tf

    is_png = tf.equal(kind, PNG) | tf.equal(kind, DEEP_PNG)

    def decode_whole(count: int) -> Any:
        image = tf.io.decode_image(content, channels=count, expand_animations=False)
        image.set_shape((None, None, count))
        return image

    def decode_to_bytes(count: int) -> Any:
        if jpeg_size is None:
            return decode_whole(count)
        return tf.cond(
            tf.equal(kind, JPEG),
            lambda: _decode_fraction(content, count, jpeg_size),
            lambda: decode_whole(count),
        )

    def decode_deep(count: int) -> Any:
        return tf.cond(
            is_png,
            lambda: tf.io.decode_png(content, count, tf.uint16),
            lambda: tf.cast(decode_to_bytes(count), tf.uint16) * LEVELS_PER_LEVEL,
        )

    decode = decode_to_bytes if depth == 8 else decode_deep

    match channels:
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


def _decode_fraction(content: Any, channels: int, size: tuple[int, int]) -> Any:
    """Decode a JPEG at the smallest of its fractions, by sides, that is at least `size`."""
    import tensorflow as tf

    sides = tf.io.extract_jpeg_shape(content)[:2]
    times = tf.reduce_min(sides // tf.constant(size))
    branch = tf.reduce_sum(tf.cast(times >= tf.constant(_FRACTIONS[1:]), tf.int32))
    # The fraction is an attribute of the operation, not an input.
    return tf.switch_case(
        branch,
        [
            functools.partial(tf.io.decode_jpeg, content, channels, ratio=ratio)
            for ratio in _FRACTIONS
        ],
    )


def _add_alpha(image: Any) -> Any:
    import tensorflow as tf

    opaque = tf.constant(image.dtype.max, image.dtype)
    return tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=opaque)
