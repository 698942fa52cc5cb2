# SPDX-License-Identifier: Apache-2.0
"""WebP, AVIF, HEIC and JPEG 2000 files, whatever their names."""

from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from support.pictures import picture
from support.prepared import decode_one, pixels_of

SIZE = (40, 56)
LOSSLESS = {"WEBP": {"lossless": True}, "JPEG2000": {}}
# What these formats lose of smooth pictures at their best quality.
LOSSY = {"AVIF": {"quality": 100}, "HEIF": {"quality": 100, "chroma": 444}}
pillow_heif.register_heif_opener()


def save(image: Image.Image, path: Path, format_: str) -> Path:
    image.save(path, format_, **{**LOSSLESS, **LOSSY}[format_])
    return path


@pytest.mark.parametrize("format_", LOSSLESS)
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 3), ("L", 1), ("RGBA", 4)])
def test_lossless_files_give_the_pixels_of_a_png(format_, mode, channels, tmp_path):
    image = picture(1, SIZE).convert(mode)
    image.save(tmp_path / "a.png")
    path = save(image, tmp_path / "a.jpg", format_)
    expected = pixels_of(tmp_path / "a.png", (*SIZE, channels))
    np.testing.assert_array_equal(pixels_of(path, (*SIZE, channels)), expected)


@pytest.mark.parametrize("format_", LOSSY)
def test_lossy_files_give_nearly_the_pixels_of_a_png(format_, tmp_path):
    image = picture(2, SIZE)
    path = save(image, tmp_path / "a.png", format_)
    difference = np.abs(pixels_of(path, (*SIZE, 3)) - np.asarray(image))
    assert difference.max() <= 16
    assert difference.mean() < 2


@pytest.mark.parametrize("format_", [*LOSSLESS, *LOSSY])
def test_the_thumbnail_shows_the_image(format_, tmp_path):
    image = picture(3, SIZE)
    batch = decode_one(save(image, tmp_path / "a", format_), (*SIZE, 3))
    shown = batch.thumbnails[0][:40, :56].astype(float)
    assert batch.sizes.tolist() == [list(SIZE)]
    assert np.abs(shown - np.asarray(image)).mean() < 2


def test_gray_jpeg_2000_may_have_16_bits(tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, SIZE, np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.jp2")
    batch = decode_one(tmp_path / "a.jp2", (*SIZE, 1))
    np.testing.assert_array_equal(batch.images[0][..., 0], levels >> 8)
    assert batch.reduced.tolist() == [True]
    found = pixels_of(tmp_path / "a.jp2", (*SIZE, 1), depth=16)
    np.testing.assert_array_equal(found[..., 0], levels)


def test_an_alpha_channel_is_left_out_for_rgb(tmp_path):
    clear = picture(4, SIZE).convert("RGBA")
    clear.putalpha(picture(5, SIZE).convert("L"))
    clear.save(tmp_path / "a.webp", lossless=True, exact=True)
    expected = np.asarray(clear)[..., :3]
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.webp", (*SIZE, 3)), expected)


@pytest.mark.parametrize("format_", ["WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_the_orientation_is_counted_and_applied_when_asked(format_, orientation, tmp_path):
    image = picture(6, SIZE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format_ == "WEBP" else {}
    image.save(tmp_path / "a", format_, exif=exif, **options)
    image.save(tmp_path / "a.png", exif=exif)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    batch = decode_one(tmp_path / "a", (*SIZE, 3))
    assert batch.turned.tolist() == [orientation != 1]
    np.testing.assert_array_equal(batch.images[0], np.asarray(image))
    turned = pixels_of(tmp_path / "a", upright.shape, apply_orientation=True)
    np.testing.assert_array_equal(turned, upright)
