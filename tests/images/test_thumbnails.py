# SPDX-License-Identifier: Apache-2.0
"""Thumbnails are PNGs that any reader reads, pixel for pixel."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ray_embed.images.thumbnails import MAX_SIDE, decode_png, encode_png


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, MAX_SIDE), (MAX_SIDE, 3), (37, 41), (MAX_SIDE, MAX_SIDE)]
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
    assert np.array_equal(decode_png(png), pixels)


def test_a_part_of_a_larger_array():
    padded = np.random.default_rng(0).integers(0, 256, (MAX_SIDE, MAX_SIDE, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(padded[:20, :30]))) as image:
        assert np.array_equal(np.asarray(image), padded[:20, :30])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1"])
@pytest.mark.parametrize("compression", [0, 9])
def test_pngs_of_others_are_read_too(mode: str, compression: int):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    pixels[:] = np.arange(30, dtype=np.uint8)[:, None]  # that filters pay
    image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=compression)
    expected = tf.io.decode_png(buffer.getvalue(), channels=3).numpy()
    found = decode_png(buffer.getvalue())
    assert np.array_equal(np.broadcast_to(found, expected.shape), expected)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(40)])
def test_what_is_no_png(content: bytes):
    with pytest.raises(ValueError, match="not a PNG"):
        decode_png(content)
