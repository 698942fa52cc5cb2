# SPDX-License-Identifier: Apache-2.0
"""Images to test an encoder with: noise or black, as pixels or as the contents of image files."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import Encoder, EncoderSpec

# The side length of the noise that smooth images are interpolated from.
_COARSE = 4


def probe_images(
    loaded: LoadedModel,
    spec: EncoderSpec,
    shape: tuple[int, int, int],
    count: int,
    levels: bool = False,
) -> Array:
    """Return noise in the encoder's input format: float32 pixels, or the contents of image files.

    Args:
        loaded: the model.
        spec: the request. If it has a preprocessing function, pixels are from 0 to 255.
        shape: (H, W, C) of the images.
        count: the number of images.
        levels: whether the model expects pixels from 0 to 255 instead of 0 to 1.
    """
    if loaded.takes_bytes:
        return encoded_noise(count)
    return pixel_noise(count, shape, levels or spec.preprocess is not None)


def pixel_noise(count: int, shape: tuple[int, int, int], levels: bool) -> Array:
    """Return noise from 0 to 1, or from 0 to 255 if `levels`.

    Every second image is smooth, like most of a photograph. On smooth images, kernels cancel out
    and leave small features with comparatively large rounding errors.
    """
    height, width, channels = shape
    random = np.random.default_rng(0)
    images = random.random((count, *shape), np.float32)
    coarse = random.random((count // 2, _COARSE, _COARSE, channels), np.float32)
    weights = (_linear_weights(height), _linear_weights(width))
    images[1::2] = np.einsum("hi,wj,nijc->nhwc", *weights, coarse)
    return images * np.float32(255) if levels else images


def _linear_weights(size: int) -> Array:
    """Return (size, _COARSE) float32 weights that interpolate `_COARSE` values linearly."""
    positions = np.linspace(0, _COARSE - 1, size, dtype=np.float32)
    distances = np.abs(positions[:, None] - np.arange(_COARSE, dtype=np.float32))
    weights: Array = np.maximum(0, 1 - distances)
    return weights


def blank_batch(encoder: Encoder, count: int) -> Array:
    """Return black images in the encoder's input format: float32 pixels, or contents of files."""
    if encoder.takes_bytes:
        return _as_objects([_black_file()] * count)
    return np.zeros((count, *encoder.image_shape), np.float32)


def encoded_noise(count: int) -> Array:
    """Return the contents of JPEG files of noise, in several sizes; every call returns the same."""
    random = np.random.default_rng(0)
    return _as_objects(
        _encode_jpeg(random.integers(0, 256, (48 + 8 * index, 64, 3), np.uint8))
        for index in range(count)
    )


@functools.cache
def _black_file() -> bytes:
    return _encode_jpeg(np.zeros((64, 64, 3), np.uint8))


def _encode_jpeg(image: Any) -> bytes:
    import tensorflow as tf

    content: bytes = tf.io.encode_jpeg(image).numpy()
    return content


def _as_objects(contents: Iterable[bytes]) -> Array:
    # NumPy's own bytes type drops trailing zeros.
    values = list(contents)
    array = np.empty(len(values), object)
    array[:] = values
    return array
