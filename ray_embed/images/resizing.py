# SPDX-License-Identifier: Apache-2.0
"""Ways to bring an image to the encoder's height and width.

`stretch`, `crop` and `pad` work as in ``keras.utils.image_dataset_from_directory``: they stretch
the image, take its largest center crop of the wanted aspect ratio (``crop_to_aspect_ratio``), or
pad it with black to that aspect ratio (``pad_to_aspect_ratio``). A crop fraction works like the
evaluation transform of torchvision and timm: the short side is resized to the wanted side divided
by the fraction, and the center is cropped.

Bytes are antialiased by Pillow, as in torchvision and timm, which is also faster than TensorFlow.
"""

import functools
import math
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array

# The names of Pillow's filters, by those of TensorFlow.
_FILTERS = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos3": "LANCZOS"}
# The modes of Pillow whose channels are independent of each other, by the number of channels. In
# RGBA, colors would be weighted by their alpha.
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


def resize(
    image: Any,
    size: tuple[int, int],
    mode: str = "stretch",
    crop_fraction: float | None = None,
    interpolation: str = "bilinear",
    antialias: bool = False,
    crop_corner: str = "round",
) -> Any:
    """Resize an image.

    Args:
        image: (h, w, c), any numeric type.
        size: the wanted height and width.
        mode: `stretch`, `crop` or `pad`; ignored if there is a crop fraction.
        crop_fraction: the fraction of the resized image's short side to keep, above 0 and at most
            1.
        interpolation: a method of `tf.image.resize`.
        antialias: whether to apply an antialiasing filter when the image shrinks. Byte images then
            stay whole levels from 0 to 255.
        crop_corner: the pixel at which the center crop begins, if its corner is between two: the
            even one (`round`) or the first one (`floor`).

    Returns:
        (height, width, c) float32.
    """
    import tensorflow as tf

    height, width = size
    if crop_fraction is not None:
        covering = _find_covering_size(image, height, width, crop_fraction)
        resized = _resize(image, covering, interpolation, antialias)
        return tf.cast(_crop_center(resized, height, width, crop_corner), tf.float32)
    if mode == "crop":
        image = _crop_to_aspect_ratio(image, height, width)
    elif mode == "pad":
        padded = tf.image.resize_with_pad(image, height, width, interpolation, antialias=antialias)
        padded = tf.cast(padded, tf.float32)
        return _round_levels(padded) if antialias and image.dtype == tf.uint8 else padded
    resized = tf.cast(_resize(image, size, interpolation, antialias), tf.float32)
    return tf.ensure_shape(resized, (height, width, None))


def _resize(image: Any, size: Any, interpolation: str, antialias: bool) -> Any:
    import tensorflow as tf

    if not (antialias and image.dtype == tf.uint8):
        return tf.image.resize(image, size, interpolation, antialias=antialias)
    if interpolation not in _FILTERS:
        return _round_levels(tf.image.resize(image, size, interpolation, antialias=True))
    use_pillow = functools.partial(_resize_with_pillow, interpolation=interpolation)
    resized = tf.numpy_function(use_pillow, [image, size], tf.uint8, stateful=False)
    return tf.ensure_shape(resized, (None, None, image.shape[-1]))


def _resize_with_pillow(image: Array, size: Array, *, interpolation: str) -> Array:
    """Resize an image, (h, w, c) uint8, to a height and width."""
    from PIL import Image

    height, width, channels = image.shape
    if channels not in _MODES:
        bands = (image[..., at : at + 1] for at in range(channels))
        resized = [_resize_with_pillow(b, size, interpolation=interpolation) for b in bands]
        return np.concatenate(resized, -1)
    pixels = np.ascontiguousarray(image)
    picture = Image.frombuffer(_MODES[channels], (width, height), pixels, "raw", _MODES[channels])
    sides = (int(size[1]), int(size[0]))
    found = np.asarray(picture.resize(sides, Image.Resampling[_FILTERS[interpolation]]))
    return found.reshape(*found.shape[:2], channels)


def _round_levels(image: Any) -> Any:
    import tensorflow as tf

    return tf.round(tf.clip_by_value(tf.cast(image, tf.float32), 0.0, 255.0))


def _crop_to_aspect_ratio(image: Any, height: int, width: int) -> Any:
    import tensorflow as tf

    own_height, own_width = tf.unstack(tf.shape(image)[:2])
    kept_height = tf.maximum(tf.minimum(own_height, _scale_side(own_width, height, width)), 1)
    kept_width = tf.maximum(tf.minimum(own_width, _scale_side(own_height, width, height)), 1)
    top, left = (own_height - kept_height) // 2, (own_width - kept_width) // 2
    return image[top : top + kept_height, left : left + kept_width]


def _scale_side(side: Any, wanted: int, other: int) -> Any:
    """Return the side that goes with `side` in the wanted aspect ratio, rounded down."""
    import tensorflow as tf

    # Compute in float32, as Keras does.
    return tf.cast(tf.cast(side * wanted, tf.float32) / other, tf.int32)


def _find_covering_size(image: Any, height: int, width: int, crop_fraction: float) -> Any:
    """Return the size, in the image's own aspect ratio, from which the center is cropped."""
    import tensorflow as tf

    # A fraction such as 224 / 232 is not exact.
    wanted_height, wanted_width = (
        math.floor(side / crop_fraction + 1e-6) for side in (height, width)
    )
    own_height, own_width = tf.unstack(tf.shape(image, tf.int64)[:2])
    is_tall = own_height * wanted_width >= own_width * wanted_height
    tall = tf.stack([own_height * wanted_width // own_width, wanted_width])
    wide = tf.stack([wanted_height, own_width * wanted_height // own_height])
    return tf.cast(tf.where(is_tall, tall, wide), tf.int32)


def _crop_center(image: Any, height: int, width: int, corner: str) -> Any:
    import tensorflow as tf

    spare = tf.cast(tf.shape(image)[:2] - [height, width], tf.float32)
    # A half pixel is rounded to the even number, as Python's `round` does.
    find_whole = tf.floor if corner == "floor" else tf.round
    top, left = tf.unstack(tf.cast(find_whole(spare / 2), tf.int32))
    cut = image[top : top + height, left : left + width]
    return tf.ensure_shape(cut, (height, width, None))
