# SPDX-License-Identifier: Apache-2.0
"""Batches of the in-memory images of a shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError, RunError
from ray_embed.images import decode
from ray_embed.images.decode import Batch
from ray_embed.images.pixel_spec import PixelSpec

# Number of images used to estimate the value range of a shard.
_RANGE_SAMPLE_IMAGES = 16


@dataclass(frozen=True)
class ArrayImages:
    """In-memory images: an array (n, H, W, C), or a list of (H, W, C) arrays of different sizes."""

    images: Any
    pixels: PixelSpec

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """The size of the images in bytes."""
        return sum(image.nbytes for image in self.images)

    def find_value_range(self) -> tuple[float, float] | None:
        """Return the minimum and maximum of the first images, or None for uint8 images."""
        if not len(self) or self.images[0].dtype == np.uint8:
            return None
        first = [image[np.isfinite(image)] for image in self.images[:_RANGE_SAMPLE_IMAGES]]
        values = np.concatenate(first)
        return (float(values.min()), float(values.max())) if values.size else None

    def batches(self, batch_size: int, threads: int) -> Iterator[Batch]:
        """Yield batches of preprocessed images."""
        if not len(self):
            return iter(())
        return decode.array_batches(self.images, self.pixels, batch_size, threads)

    def diagnose(self, number: int) -> str | Batch:
        """Never called, because arrays need no decoding; raise an error.

        Raises:
            RunError: always.
        """
        raise RunError(f"image {number} of an in-memory shard was not preprocessed")

    def load(self, number: int) -> Array:
        """Return an unmodified image, (h, w, c)."""
        image: Array = self.images[number]
        return image


def open_arrays(images: Any, positions: Array, pixels: PixelSpec, where: str) -> ArrayImages:
    """Check that in-memory images fit the encoder, and return them as ArrayImages.

    Args:
        images: each (h, w, c).
        positions: the positions of the images in their split.
        pixels: how images are preprocessed.
        where: how error messages refer to the source.

    Raises:
        InputError: the number of channels differs, or the size differs and resizing is off.
    """
    for position, image in zip(positions, images, strict=False):
        channels = image.shape[-1]
        if channels == 1 and pixels.repeat_channel:
            channels = pixels.shape[2]
        fits = pixels.resize is not None or image.shape[:2] == pixels.shape[:2]
        if channels != pixels.shape[2] or not fits:
            raise InputError(
                f"{where}: image {position} has shape {image.shape}, but the encoder takes "
                f"{pixels.shape}; give "
                + ("--image-size to have images resized" if not fits else "all images its channels")
            )
    return ArrayImages(images, pixels)
