# SPDX-License-Identifier: Apache-2.0
"""Decode image files with TensorFlow to the channels and the depth that are wanted."""

from typing import Any

from ray_embed.images.headers import DEEP_PNG, JPEG, PNG

# The numbers of channels that TensorFlow decodes to.
COLOR_CHANNELS = (1, 3, 4)
# 255 · 257 is 65535, so that white stays white.
LEVELS_PER_LEVEL = 257


def decode_to_channels(content: Any, kind: Any, channels: int, depth: int) -> Any:
    """Decode to 1, 3 or 4 channels, like Keras' `color_mode`, and to levels of 8 or 16 bits.

    TensorFlow decodes GIF, BMP and CMYK JPEG to three channels only; these are converted to
    grayscale with `tf.image.rgb_to_grayscale`. All formats except PNG get an opaque alpha channel.
    """
    import tensorflow as tf

    is_png = tf.equal(kind, PNG) | tf.equal(kind, DEEP_PNG)

    def decode_to_bytes(count: int) -> Any:
        image = tf.io.decode_image(content, channels=count, expand_animations=False)
        image.set_shape((None, None, count))
        return image

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


def _add_alpha(image: Any) -> Any:
    import tensorflow as tf

    opaque = tf.constant(image.dtype.max, image.dtype)
    return tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=opaque)
