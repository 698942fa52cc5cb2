# SPDX-License-Identifier: Apache-2.0
"""Turn a decoded image into the encoder's input and a thumbnail, in TensorFlow graphs."""

from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.images.color import LEVELS_PER_LEVEL
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.images.resizing import resize
from ray_embed.images.thumbnails import MAX_SIDE


def prepare_image(image: Any, levels: Any, pixels: PixelSpec) -> tuple[Any, Any, Any]:
    """Return the preprocessed image and its thumbnail.

    Args:
        image: the decoded image, (h, w, c).
        levels: the same image with values from 0 to 255.
        pixels: the preprocessing.

    Returns:
        The preprocessed image, (H, W, C) float32; the uint8 thumbnail, padded to a square; and the
        height and width of the thumbnail.
    """
    import tensorflow as tf

    height, width, _ = pixels.shape
    if pixels.resize is None:
        resized = tf.cast(image, tf.float32)
    else:
        resized = resize(
            image,
            (height, width),
            pixels.resize,
            pixels.crop_fraction,
            pixels.interpolation,
            pixels.antialias,
            pixels.crop_corner,
        )
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    if image is levels and min(height, width) >= MAX_SIDE:
        # Downscaling the resized image is much faster than downscaling a large original.
        if pixels.resize != "stretch" or pixels.crop_fraction is not None:
            sides = tf.constant([height, width], tf.float32)
        method = "bilinear" if max(height, width) < 2 * MAX_SIDE else "area"
        factor = MAX_SIDE / tf.reduce_max(sides)
        picture = _make_thumbnail(resized, sides * factor, method)
    else:
        factor = MAX_SIDE / tf.reduce_max(sides)
        picture = _make_thumbnail(levels, sides * tf.minimum(1.0, factor), "area")
    return tf.ensure_shape(_normalize(resized, pixels), pixels.shape), *picture


def _normalize(image: Any, pixels: PixelSpec) -> Any:
    """Convert resized pixels, (H, W, c) float32, to the encoder's channels and value range."""
    import tensorflow as tf

    if pixels.repeat_channel and image.shape[-1] == 1:
        image = tf.image.grayscale_to_rgb(image)
    if pixels.reverse_channels:
        image = image[..., ::-1]
    highest = 2.0**pixels.depth - 1
    match pixels.scale:
        case "unit":
            image = image / highest
        case "symmetric":
            image = image / (highest / 2) - 1.0
    if not (pixels.mean or pixels.std):
        return image
    # TensorFlow broadcasts long rows much faster than single pixels.
    height, width, channels = pixels.shape
    rows = tf.reshape(image, (height, width * channels))
    if pixels.mean:
        rows = rows - _repeat_values(pixels.mean, width, channels)
    if pixels.std:
        rows = rows / _repeat_values(pixels.std, width, channels)
    return tf.reshape(rows, pixels.shape)


def _repeat_values(values: tuple[float, ...], width: int, channels: int) -> Array:
    """Return one number, or one per channel, for each value of a row."""
    return np.tile(np.broadcast_to(np.array(values, np.float32), channels), width)


def _make_thumbnail(image: Any, sides: Any, method: str) -> tuple[Any, Any]:
    """Downscale an image with values from 0 to 255.

    Return the padded thumbnail, and its height and width.
    """
    import tensorflow as tf

    channels = image.shape[-1]
    if channels not in (1, 3):
        image = image[..., : 3 if channels > 3 else 1]
    size = tf.maximum(1, tf.cast(tf.round(sides), tf.int32))
    small = tf.image.resize(image[None], size, method)[0]
    right = [
        [0, MAX_SIDE - size[0]],
        [0, MAX_SIDE - size[1]],
        [0, 0],
    ]
    return tf.pad(tf.saturate_cast(tf.round(small), tf.uint8), right), size


def scale_to_255(image: Any) -> Any:
    """Scale float pixels from [0, 1], [-1, 1] or [0, 255] to [0, 255]; stretch other ranges."""
    import tensorflow as tf

    image = tf.cast(image, tf.float32)
    image = tf.where(tf.math.is_finite(image), image, 0.0)
    low, high = tf.reduce_min(image), tf.reduce_max(image)
    stretched = (image - low) * 255.0 / tf.maximum(high - low, 1e-12)
    levels = tf.where((low >= 0.0) & (high <= 255.0), image, stretched)
    levels = tf.where((low >= -1.0) & (high <= 1.0), (image + 1.0) * 127.5, levels)
    return tf.where((low >= 0.0) & (high <= 1.0), image * 255.0, levels)


def reduce_levels(image: Any) -> Any:
    """Return levels of 8 or 16 bits as levels from 0 to 255."""
    import tensorflow as tf

    return image if image.dtype == tf.uint8 else tf.cast(image, tf.float32) / LEVELS_PER_LEVEL
