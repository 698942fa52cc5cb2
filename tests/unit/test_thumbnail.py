# SPDX-License-Identifier: Apache-2.0
"""Thumbnails are PNGs that any reader reads, pixel for pixel."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ray_embed.thumbnail import SIDE, encode_png


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, SIDE), (SIDE, 3), (37, 41), (SIDE, SIDE)]
)
def test_pixels_are_kept(height: int, width: int, channels: int):
    pixels = np.random.default_rng(height + width).integers(0, 256, (height, width, channels))
    pixels = pixels.astype(np.uint8)
    png = encode_png(pixels)
    with Image.open(io.BytesIO(png)) as image:
        image.verify()
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB" if channels == 3 else "L")
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    assert np.array_equal(tf.io.decode_png(png).numpy(), pixels)


def test_a_part_of_a_larger_array():
    padded = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(padded[:20, :30]))) as image:
        assert np.array_equal(np.asarray(image), padded[:20, :30])
