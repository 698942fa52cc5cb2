# SPDX-License-Identifier: Apache-2.0
"""The pixels that an encoder gets: those of Keras, of torchvision and of timm."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from support.pictures import picture
from support.prepared import pixels_of

from ray_embed.config import make_config
from ray_embed.errors import InputError
from ray_embed.images import decode
from ray_embed.images.pixel_spec import PixelSpec

H, W = 40, 56
METHODS = ("bilinear", "bicubic", "nearest", "area", "lanczos3", "lanczos5")


def prepared(paths: list[Path], channels: int = 3, **options: Any) -> np.ndarray:
    """Decode files as an actor does."""
    pixels = PixelSpec(shape=(H, W, channels), **{"scale": "none", **options})
    names = [str(path).encode() for path in paths]
    return np.concatenate([b.images for b in decode.file_batches(names, pixels, 4, 1)])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of many shapes and kinds that Keras loads in each of its color modes."""
    root = tmp_path_factory.mktemp("pictures") / "class"
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (61, 47, 3), np.uint8)
    wide, tall = picture(1, (30, 90)), picture(2, (91, 33))
    wide.save(root / "wide.png")
    tall.save(root / "tall.jpg", quality=90)
    Image.fromarray(noise).save(root / "noise.jpg", quality=60, subsampling=2)
    Image.fromarray(noise).save(root / "noise.png")
    wide.convert("L").save(root / "gray.jpg")
    tall.convert("L").save(root / "gray.png")
    tall.convert("P").save(root / "palette.png")
    clear = picture(3, (55, 55)).convert("RGBA")
    clear.putalpha(picture(4, (55, 55)).convert("L"))
    clear.save(root / "clear.png")
    return root.parent


def by_keras(root: Path, **options: Any) -> tuple[list[Path], np.ndarray]:
    dataset = keras.utils.image_dataset_from_directory(
        root, image_size=(H, W), batch_size=4, shuffle=False, verbose=False, **options
    )
    images = np.concatenate([images.numpy() for images, _ in dataset])
    return [Path(path) for path in dataset.file_paths], images


MODES = {
    "stretch": {},
    "crop": {"crop_to_aspect_ratio": True},
    "pad": {"pad_to_aspect_ratio": True},
}


@pytest.mark.parametrize("resize", MODES)
def test_files_get_the_pixels_of_keras_in_each_color_mode_and_interpolation(pictures, resize):
    for interpolation in METHODS:
        paths, expected = by_keras(pictures, interpolation=interpolation, **MODES[resize])
        found = prepared(paths, resize=resize, interpolation=interpolation)
        np.testing.assert_array_equal(found, expected, interpolation)
    paths, expected = by_keras(pictures, color_mode="grayscale", **MODES[resize])
    np.testing.assert_array_equal(prepared(paths, 1, resize=resize), expected)


def test_files_get_the_alpha_that_keras_loads(pictures, tmp_path):
    (tmp_path / "class").mkdir()
    for path in (pictures / "class").glob("*.png"):
        (tmp_path / "class" / path.name).write_bytes(path.read_bytes())
    paths, expected = by_keras(tmp_path, color_mode="rgba")
    np.testing.assert_array_equal(prepared(paths, 4), expected)
    jpeg = prepared([pictures / "class" / "noise.jpg"], 4)
    np.testing.assert_array_equal(jpeg[..., 3], np.full((1, H, W), 255.0))


def test_gray_is_made_of_color_where_tensorflow_decodes_no_gray(tmp_path):
    color = picture(5, (50, 60))
    color.save(tmp_path / "a.bmp")
    color.quantize().convert("RGB").save(tmp_path / "b.gif")
    color.convert("CMYK").save(tmp_path / "c.jpg")
    paths = sorted(tmp_path.iterdir())
    contents = [tf.io.read_file(str(path)) for path in paths]
    colors = [tf.io.decode_image(c, 3, expand_animations=False) for c in contents]
    grays = [tf.image.resize(tf.image.rgb_to_grayscale(c), (H, W)) for c in colors]
    np.testing.assert_array_equal(prepared(paths, 1), np.stack(grays))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos3"])
@pytest.mark.parametrize("fraction", [0.875, 224 / 232, 1.0])
def test_crop_fraction_gives_the_pixels_of_torchvision_and_timm(pictures, interpolation, fraction):
    side, mean, std = 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    paths = [pictures / "class" / name for name in ("wide.png", "noise.png", "palette.png")]
    pixels = PixelSpec(
        shape=(side, side, 3), scale="unit", crop_fraction=fraction, interpolation=interpolation,
        antialias=True, mean=mean, std=std,
    )  # fmt: skip
    names = [str(path).encode() for path in paths]
    (batch,) = decode.file_batches(names, pixels, 4, 1)
    for path, found in zip(paths, batch.images, strict=True):
        expected = as_torchvision(Image.open(path).convert("RGB"), side, fraction, interpolation)
        difference = found * np.float32(std) + np.float32(mean) - expected / 255
        assert np.abs(difference * 255).max() < 1e-3


@pytest.mark.parametrize(
    ("sides", "rounded", "floored"),
    [((8, 11), (0, 2), (0, 1)), ((13, 8), (2, 0), (2, 0)), ((8, 9), (0, 0), (0, 0))],
)
def test_crop_corner_between_two_pixels(tmp_path, sides, rounded, floored):
    pixels = np.random.default_rng(6).integers(0, 256, (*sides, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    for (top, left), options in (
        (rounded, {}),
        (rounded, {"crop_corner": "round"}),
        (floored, {"crop_corner": "floor"}),
    ):
        found = pixels_of(tmp_path / "image.png", (8, 8, 3), crop_fraction=1.0, **options)
        np.testing.assert_array_equal(found, pixels[top : top + 8, left : left + 8])


def as_torchvision(image: Image.Image, side: int, fraction: float, method: str) -> np.ndarray:
    """Resize the short side and cut out the center, as Resize and CenterCrop of torchvision do."""
    short = int(side / fraction + 1e-6)
    width, height = image.size
    long = int(short * max(width, height) / min(width, height))
    size = (short, long) if width <= height else (long, short)
    resampling = getattr(Image.Resampling, method.rstrip("3").upper())
    resized = image.resize(size, resampling)
    left, top = (round((have - side) / 2) for have in size)
    return np.asarray(resized.crop((left, top, left + side, top + side)), np.float32)


def test_exif_orientation_turns_pictures_only_when_asked(tmp_path):
    image = picture(6, (40, 64))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "A maker", orientation
        exif.endian = "<" if orientation % 2 else ">"
        image.save(tmp_path / f"{orientation}.jpg", exif=exif, quality=95, subsampling=0)
    image.save(tmp_path / "none.jpg", quality=95, subsampling=0)
    paths = sorted(tmp_path.iterdir())
    upright = [np.asarray(ImageOps.exif_transpose(Image.open(path)), np.float32) for path in paths]
    expected = np.stack([tf.image.resize(pixels, (H, W)) for pixels in upright])
    # The two decoders differ by a few levels here and there.
    assert np.abs(prepared(paths, apply_orientation=True) - expected).max() <= 8
    stored = [np.asarray(Image.open(path), np.float32) for path in paths]
    as_stored = np.stack([tf.image.resize(pixels, (H, W)) for pixels in stored])
    assert np.abs(prepared(paths) - as_stored).max() <= 8
    names = [str(path).encode() for path in paths]
    pixels = PixelSpec(shape=(H, W, 3), scale="none")
    turned = [b.turned for b in decode.file_batches(names, pixels, 16, 1)]
    assert turned[0].tolist() == [False, *[True] * 7, False]


def test_channels_are_repeated_reversed_and_normalized_in_this_order():
    gray = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    pixels = PixelSpec(shape=(4, 4, 3), scale="unit", repeat_channel=True, mean=(0.1, 0.2, 0.3))
    (batch,) = decode.array_batches(gray, pixels, 2, 1)
    np.testing.assert_allclose(batch.images, gray / 255 - [0.1, 0.2, 0.3], atol=1e-6)
    color = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    pixels = PixelSpec(
        shape=(4, 4, 3), scale="none", reverse_channels=True, mean=(1, 2, 3), std=(2, 2, 4)
    )
    (batch,) = decode.array_batches(color, pixels, 2, 1)
    expected = (color[..., ::-1] - [1, 2, 3]) / np.array([2, 2, 4])
    np.testing.assert_allclose(batch.images, expected, atol=1e-6)


def test_thumbnails_show_what_a_crop_keeps(tmp_path):
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    pixels = PixelSpec(shape=(100, 100, 3), scale="none", resize="crop")
    (batch,) = decode.file_batches([str(tmp_path / "a.png").encode()], pixels, 2, 1)
    assert batch.sizes.tolist() == [[64, 64]]
    assert batch.thumbnails[0].min() == 255
    content = next(iter(batch.encode_thumbnails()))
    assert Image.open(io.BytesIO(content)).size == (64, 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resize": "pad", "crop_fraction": 0.9}, "not both"),
        ({"crop_fraction": 1.5}, "less than or equal to 1"),
        ({"std": "0.2,0,0.2"}, "greater than 0"),
        ({"mean": "123.7,116.3,103.5"}, "scale to none"),
        ({"mean": "0.5", "preprocess": "a:b"}, "takes the place of"),
        ({"interpolation": "cubic"}, "bicubic"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        make_config({"sources": ["a"], "model": "m.keras", **options})


def test_preprocessing_of_keras_has_a_short_name():
    config = make_config({"sources": ["a"], "model": "m", "preprocess": "keras:resnet50"})
    assert config.preprocess == "keras.applications.resnet50:preprocess_input"


@pytest.mark.parametrize(
    ("height", "width", "fraction"),
    [(79, 112, 1), (80, 111, 1), (80, 112, 2), (159, 500, 2), (160, 224, 4), (400, 560, 8)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_large_jpeg_is_decoded_at_a_fraction_of_its_size(
    tmp_path, height, width, fraction, channels
):
    path = tmp_path / "photo.jpg"
    picture(5, (height, width)).save(path, quality=90)
    decoded = tf.io.decode_jpeg(path.read_bytes(), channels, ratio=fraction)
    expected = tf.image.resize(decoded, (H, W))
    found = prepared([path], channels, jpeg_size=(H, W))
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_accurate_jpeg_has_the_pixels_of_pillow(tmp_path, channels):
    path = tmp_path / "photo.jpg"
    # Smooth pictures show no differences between the methods.
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=90)
    spec = PixelSpec(shape=(60, 80, channels), scale="none")
    found, fast = (
        next(iter(decode.file_batches([str(path).encode()], each, 1, 1))).images[0]
        for each in (replace(spec, is_jpeg_accurate=True), spec)
    )
    with Image.open(path) as image:
        # Only the decoder itself gives the grayscale that TensorFlow takes.
        image.draft("L" if channels == 1 else "RGB", None)
        expected = np.asarray(image, np.float32).reshape(60, 80, channels)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(fast - expected).max() >= 1
    np.testing.assert_array_equal(prepared([path], 4, is_jpeg_accurate=True)[..., 3], 255.0)


def test_other_files_are_decoded_at_their_full_size(pictures):
    paths = sorted(path for path in pictures.rglob("*") if path.suffix == ".png")
    np.testing.assert_array_equal(prepared(paths, jpeg_size=(4, 4)), prepared(paths))
