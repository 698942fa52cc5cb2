# SPDX-License-Identifier: Apache-2.0
"""Convert Pillow images, which datasets of PyTorch and Hugging Face yield, to arrays.

Files are decoded to the channels of the encoder. A dataset gives images one at a time, and all
must have the channels of the first one, so images of other modes are converted.
"""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Modes whose pixels are not gray, RGB or numbers, or that have an alpha channel of no use here.
_TARGETS = {
    "1": "L",
    "LA": "L",
    "La": "L",
    "P": "RGB",
    "PA": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
    "RGBX": "RGB",
    "RGBa": "RGBA",
}
# What an RGB image may become without a loss of color.
_JOINING_RGB = ("L", "RGBA")


def is_pillow_image(value: Any) -> bool:
    """Return whether a value is a Pillow image. Pillow is not imported for that."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def choose_mode(image: "Image.Image") -> str:
    """Return the mode in which an image becomes an array: L, RGB, RGBA, or one of numbers."""
    return _TARGETS.get(image.mode, image.mode)


def convert_image(image: "Image.Image", first_mode: str) -> np.ndarray[Any, Any]:
    """Return an image as an array, (H, W) or (H, W, C).

    Args:
        image: the image.
        first_mode: the mode of the first image. If it is RGB, gray images and images with an alpha
            channel become RGB too.
    """
    mode = choose_mode(image)
    if first_mode == "RGB" and mode in _JOINING_RGB:
        mode = first_mode
    return np.asarray(image if image.mode == mode else image.convert(mode))
