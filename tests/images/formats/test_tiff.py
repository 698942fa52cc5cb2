# SPDX-License-Identifier: Apache-2.0
"""TIFF files of many depths, numbers of channels and layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.pictures import picture
from support.prepared import decode_one, pixels_of, reason_of

SIZE = (40, 56)
RGB = np.asarray(picture(1, SIZE))
GRAY = np.asarray(picture(2, SIZE).convert("L"))
DEEP = GRAY.astype(np.uint16) * 256 + GRAY[::-1]
CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
FLOATS = np.random.default_rng(0).normal(size=(*SIZE, 5)).astype(np.float32)


def write(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "lzw": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "deflate"},
    "zstd": {"compression": "zstd"},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 16)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_stored_pixels(layout, tmp_path):
    path = write(tmp_path / "a.png", RGB, **LAYOUTS[layout])
    np.testing.assert_array_equal(pixels_of(path, RGB.shape), RGB)


def test_channels_may_be_stored_one_after_the_other(tmp_path):
    planes = np.moveaxis(RGB, 2, 0)
    path = write(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(pixels_of(path, RGB.shape), RGB)


def test_gray_palette_and_inverted_images_get_the_channels_of_the_encoder(tmp_path):
    gray = GRAY[..., None].astype(np.float32)
    plain = write(tmp_path / "a.tif", GRAY)
    np.testing.assert_array_equal(pixels_of(plain, (*SIZE, 1)), gray)
    np.testing.assert_array_equal(pixels_of(plain, (*SIZE, 3)), gray.repeat(3, 2))
    inverted = write(tmp_path / "b.tif", 255 - GRAY, photometric="miniswhite")
    np.testing.assert_array_equal(pixels_of(inverted, (*SIZE, 1)), gray)
    Image.fromarray(RGB).quantize(64).save(tmp_path / "c.tif")
    palette = np.asarray(Image.open(tmp_path / "c.tif").convert("RGB"))
    np.testing.assert_array_equal(pixels_of(tmp_path / "c.tif", RGB.shape), palette)
    Image.fromarray(GRAY).convert("1").save(tmp_path / "d.tif")
    two = np.asarray(Image.open(tmp_path / "d.tif").convert("L"))
    np.testing.assert_array_equal(pixels_of(tmp_path / "d.tif", (*SIZE, 1))[..., 0], two)


def test_color_becomes_gray_and_opaque(tmp_path):
    path = write(tmp_path / "a.tif", RGB)
    gray = np.asarray(Image.fromarray(RGB).convert("L"), np.float32)
    assert np.abs(pixels_of(path, (*SIZE, 1))[..., 0] - gray).max() <= 1
    found = pixels_of(path, (*SIZE, 4))
    np.testing.assert_array_equal(found[..., :3], RGB)
    assert (found[..., 3] == 255).all()


def test_an_alpha_channel_is_left_out_but_other_channels_are_not(tmp_path):
    four = np.dstack([RGB, GRAY])
    clear = write(tmp_path / "a.tif", four, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(pixels_of(clear, RGB.shape), RGB)
    infrared = write(tmp_path / "b.tif", four, photometric="rgb", extrasamples=["unspecified"])
    assert reason_of(infrared, 3) == "wrong number of channels"
    np.testing.assert_array_equal(pixels_of(infrared, four.shape), four)


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (DEEP, {}),
        (DEEP >> 4, {"bitspersample": 12, "compression": None}),
        (DEEP.astype(np.uint32) << 16, {}),
    ],
    ids=["16", "12", "32"],
)
def test_deep_levels_are_reduced_to_the_upper_8_bits(pixels, options, tmp_path):
    batch = decode_one(write(tmp_path / "a.tif", pixels, **options), (*SIZE, 1))
    np.testing.assert_array_equal(batch.images[0][..., 0], DEEP >> 8)
    assert batch.reduced.tolist() == [True]


def test_depth_16_keeps_all_levels_and_scales_them(tmp_path):
    deep, flat = write(tmp_path / "a.tif", DEEP), write(tmp_path / "b.tif", GRAY)
    batch = decode_one(deep, (*SIZE, 1), depth=16)
    np.testing.assert_array_equal(batch.images[0][..., 0], DEEP)
    assert batch.reduced.tolist() == [False]
    assert np.abs(batch.thumbnails[0, :40, :56, 0] - DEEP / 257).max() <= 0.5
    np.testing.assert_array_equal(pixels_of(flat, (*SIZE, 1), depth=16)[..., 0], GRAY * 257.0)
    unit = pixels_of(deep, (*SIZE, 1), depth=16, scale="unit")
    np.testing.assert_allclose(unit[..., 0], DEEP / 65535, rtol=1e-6)


def test_numbers_are_given_as_they_are(tmp_path):
    floats = write(tmp_path / "a.tif", FLOATS, **CONTIGUOUS)
    np.testing.assert_array_equal(pixels_of(floats, FLOATS.shape, scale="unit"), FLOATS)
    signed = (DEEP.astype(np.int32) - 1000).astype(np.int16)
    path = write(tmp_path / "b.tif", signed)
    np.testing.assert_array_equal(pixels_of(path, (*SIZE, 1))[..., 0], signed)
    assert decode_one(path, (*SIZE, 1)).reduced.tolist() == [False]


def test_any_number_of_channels_must_be_that_of_the_encoder(tmp_path):
    path = write(tmp_path / "a.tif", (FLOATS * 20 + 99).astype(np.uint8), **CONTIGUOUS)
    assert pixels_of(path, FLOATS.shape).shape == FLOATS.shape
    for channels in (1, 3, 4, 6):
        assert reason_of(path, channels) == "wrong number of channels"
    picture(3, SIZE).save(tmp_path / "a.png")
    assert reason_of(tmp_path / "a.png", 5) == "wrong number of channels"


def test_the_first_page_is_taken_and_the_others_are_counted(tmp_path):
    path = write(
        tmp_path / "a.tif", np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]]), photometric="minisblack"
    )
    batch = decode_one(path, (*SIZE, 1))
    np.testing.assert_array_equal(batch.images[0][..., 0], GRAY)
    assert batch.passed_over.tolist() == [2]
    last = decode_one(path, (*SIZE, 1), page=2).images[0]
    np.testing.assert_array_equal(last[..., 0], GRAY[:, ::-1])


def test_damaged_and_odd_files_are_rejected(tmp_path):
    whole = write(tmp_path / "a.tif", RGB).read_bytes()
    for size in (8, 100, len(whole) // 2, len(whole) - 1):
        assert reason_of(whole[:size]) == "corrupt image"
    packed = write(tmp_path / "b.tif", RGB, compression="lzw").read_bytes()
    assert reason_of(packed[:-5]) == "corrupt image"
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "c.tif")
    assert reason_of(tmp_path / "c.tif") == "unsupported image"
    volume = write(tmp_path / "d.tif", np.zeros((16, 32, 32), np.uint8), volumetric=True)
    assert reason_of(volume, 1) in ("unsupported image", "corrupt image")


def test_large_files_are_refused_by_their_header(tmp_path):
    large = write(tmp_path / "a.tif", np.zeros((2000, 2000), np.uint8), compression="deflate")
    assert reason_of(large, max_pixels=10**6) == "too many pixels"
    # 500,000 pixels of 24 bytes each need the memory of four million RGB pixels.
    deep = np.zeros((500, 1000, 3))
    path = write(tmp_path / "b.tif", deep, photometric="rgb", compression="deflate")
    assert reason_of(path, max_pixels=10**6) == "too many pixels"
    tile = write(tmp_path / "c.tif", np.zeros((8, 9), np.uint8), tile=(4096, 4096))
    assert reason_of(tile, max_pixels=10**6) == "too many pixels"
