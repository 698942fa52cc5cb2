# SPDX-License-Identifier: Apache-2.0
"""What is decided for all formats that TensorFlow does not decode."""

import io
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tensorflow as tf
from PIL import Image
from support.pictures import picture
from support.prepared import decode_one, make_spec, pixels_of, reason_of

from ray_embed.images import decode

SIZE = (40, 56)
FORMATS = ("WEBP", "AVIF", "HEIF", "JPEG2000", "TIFF")
pillow_heif.register_heif_opener()


def encode(format_: str, seed: int = 1) -> bytes:
    sink = io.BytesIO()
    picture(seed, SIZE).save(sink, format_)
    return sink.getvalue()


@pytest.mark.parametrize("format_", FORMATS)
def test_a_missing_package_is_a_reject_that_names_the_extra(format_, monkeypatch):
    module = {
        "WEBP": "PIL.WebPImagePlugin", "AVIF": "PIL.AvifImagePlugin", "HEIF": "pillow_heif",
        "JPEG2000": "PIL.Jpeg2KImagePlugin", "TIFF": "tifffile",
    }[format_]  # fmt: skip
    content = encode(format_)
    monkeypatch.setitem(sys.modules, module, None)
    assert reason_of(content) == "needs ray_embed[formats]"


@pytest.mark.parametrize("format_", FORMATS)
def test_damaged_files_and_too_large_ones_are_rejected(format_):
    content = encode(format_)
    assert reason_of(content, max_pixels=2000) == "too many pixels"
    for size in (20, len(content) // 2):
        assert reason_of(content[:size]) in ("corrupt image", "not an image")


def test_formats_are_decoded_among_others_in_their_order(tmp_path):
    contents = [encode("PNG", 1), encode("TIFF", 2), b"no image", encode("JPEG", 3)]
    contents += [encode("JPEG2000", 4)]
    pixels = make_spec((*SIZE, 3))
    (batch,) = decode.content_batches(contents, pixels, 8, 2)
    assert batch.positions.tolist() == [0, 1, 3, 4]
    for number, seed in ((0, 1), (1, 2), (3, 4)):
        np.testing.assert_array_equal(batch.images[number], np.asarray(picture(seed, SIZE)))


def test_depth_16_keeps_all_levels_of_png_and_spreads_those_of_others(tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, SIZE, np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    batch = decode_one(tmp_path / "deep.png", (*SIZE, 1), depth=16)
    np.testing.assert_array_equal(batch.images[0][..., 0], levels)
    assert batch.reduced.tolist() == [False]
    assert decode_one(tmp_path / "deep.png", (*SIZE, 1)).reduced.tolist() == [True]
    for channels in (1, 3, 4):
        for format_ in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
            path = tmp_path / f"{channels}.{format_}"
            path.write_bytes(encode(format_))
            flat = pixels_of(path, (*SIZE, channels))
            deep = pixels_of(path, (*SIZE, channels), depth=16)
            # Gray is made of color before or after the levels are spread.
            atol = 257 if channels == 1 else 0
            np.testing.assert_allclose(deep, flat * 257, rtol=0, atol=atol)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_deep_levels_are_resized_and_scaled_like_others(resize, tmp_path):
    picture(5, (61, 47)).save(tmp_path / "a.png")
    for antialias in (False, True):
        for interpolation in ("bilinear", "bicubic", "nearest", "area", "lanczos3"):
            options = {"resize": resize, "interpolation": interpolation, "antialias": antialias}
            flat = pixels_of(tmp_path / "a.png", (*SIZE, 3), scale="unit", **options)
            deep = pixels_of(tmp_path / "a.png", (*SIZE, 3), scale="unit", depth=16, **options)
            # With antialiasing, 8 bits are rounded as in Pillow.
            np.testing.assert_allclose(deep, np.clip(deep, -0.3, 1.3))
            np.testing.assert_allclose(deep, flat, rtol=0, atol=0.12 if antialias else 1e-5)


def test_files_are_shown_in_the_preview_as_they_are_stored(tmp_path: Path):
    for format_ in FORMATS:
        assert decode.decode_file(encode(format_)).shape == (*SIZE, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode.decode_file(b"GIF89a")
