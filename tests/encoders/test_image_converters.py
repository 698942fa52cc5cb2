# SPDX-License-Identifier: Apache-2.0
"""The pixels of a run equal those of KerasHub's ImageConverter, of which the options are found."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from ray_embed.encoders.image_converters import find_pixel_options
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.images.preparing import prepare_image

keras_hub = pytest.importorskip("keras_hub", reason="needs the extra `hub`")

PHOTO, _ = load_sample_images().images
SHAPES = ((120, 200), (200, 90), (20, 30))
SIZE = (32, 40)
DEVIATIONS = (0.229, 0.224, 0.225)
IMAGENET = {
    "scale": [1 / 255 / deviation for deviation in DEVIATIONS],
    "offset": [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
}


def find_options(**settings: Any) -> tuple[Any, dict[str, Any]]:
    """Make a converter; gives it, and its options."""
    converter = keras_hub.layers.ImageConverter(**{"image_size": SIZE, **settings})
    return converter, find_pixel_options(converter, keras_hub.layers.ImageConverter, "m")


def find_differences(dtype: Any = np.float32, **settings: Any) -> np.ndarray:
    """Return the differences of pixels of photos, which the converter gets in a type."""
    import tensorflow as tf

    converter, options = find_options(**settings)
    options["resize"] = options["resize"] or "stretch"
    pixels = PixelSpec(shape=(*SIZE, 3), **options)
    differences = []
    for height, width in SHAPES:
        image = PHOTO[150 : 150 + height, 200 : 200 + width]
        ours, *_ = prepare_image(tf.constant(image), tf.constant(image), pixels)
        theirs = np.asarray(converter(image[None].astype(dtype)))[0]
        differences.append(np.abs(ours - theirs))
    return np.concatenate(differences)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos3"])
@pytest.mark.parametrize(
    "values",
    [
        IMAGENET,
        {"scale": 1 / 255},
        {"scale": 1 / 127.5, "offset": -1},
        {"offset": [-123.68, -116.78, -103.94]},
        {"scale": 1 / 255, "offset": [0.0, 0.1, -0.1]},
        {},
    ],
    ids=str,
)
def test_same_pixels(crop: bool, interpolation: str, values: Any):
    settings = {"crop_to_aspect_ratio": crop, "interpolation": interpolation, **values}
    assert find_differences(**settings).max() < (1e-3 if "scale" not in values else 1e-5)


@pytest.mark.parametrize(
    ("interpolation", "largest"), [("bilinear", 1), ("bicubic", 4), ("lanczos3", 12)]
)
def test_antialiased_pixels_are_whole_levels(interpolation: str, largest: int):
    # The converter rounds bytes and clips them to 0 to 255, too, but not after each side.
    differences = find_differences(np.uint8, antialias=True, interpolation=interpolation)
    assert differences.max() <= largest
    assert differences.mean() < 0.2


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (IMAGENET, ("unit", (0.485, 0.456, 0.406), DEVIATIONS)),
        ({"scale": 1 / 255}, ("unit", (), ())),
        ({"scale": 1 / 127.5, "offset": -1}, ("symmetric", (), ())),
        ({"offset": -3.0}, ("none", (3.0,), ())),
        ({}, ("none", (), ())),
    ],
    ids=str,
)
def test_options_in_the_usual_numbers(values: Any, wanted: Any):
    _, options = find_options(**values)
    assert (options["scale"], options["mean"], options["std"]) == wanted


def test_nothing_about_size_without_a_size():
    _, options = find_options(image_size=None, scale=1 / 255)
    assert set(options) == {"scale", "mean", "std"}
