# SPDX-License-Identifier: Apache-2.0
"""Images in memory, of a shard, as batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.errors import InputError, RunError
from ray_embed.images import decode
from ray_embed.images.decode import Batch, PixelSpec

# The number of images that show the range of a shard's values.
_IMAGES_MEASURED = 16


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: an array (n, H, W, C), or a list of (H, W, C) of any sizes."""

    images: Any
    pixels: PixelSpec

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """The bytes in memory."""
        return sum(image.nbytes for image in self.images)

    def find_value_range(self) -> tuple[float, float] | None:
        """Return the lowest and highest value of the first images; None for uint8."""
        if not len(self) or self.images[0].dtype == np.uint8:
            return None
        first = [image[np.isfinite(image)] for image in self.images[:_IMAGES_MEASURED]]
        values = np.concatenate(first)
        return (float(values.min()), float(values.max())) if values.size else None

    def batches(self, batch_size: int, threads: int) -> Iterator[Batch]:
        """Yield the images as the encoder takes them."""
        if not len(self):
            return iter(())
        return decode.array_batches(self.images, self.pixels, batch_size, threads)

    def diagnose(self, number: int) -> str | Batch:
        """Refuse: arrays need no decoding, so none can be left out.

        Raises:
            RunError: always.
        """
        raise RunError(f"image {number} of a shard in memory was not prepared")

    def load(self, number: int) -> Array:
        """Return an image as it is, (h, w, c)."""
        image: Array = self.images[number]
        return image


def open_arrays(images: Any, positions: Array, pixels: PixelSpec, where: str) -> ArrayImages:
    """Return images in memory once they are known to fit the encoder.

    Args:
        images: each (h, w, c).
        positions: those of the images in their split.
        pixels: what the encoder takes.
        where: the source, for the message.

    Raises:
        InputError: one has another number of channels, or another size and is not to be resized.
    """
    for position, image in zip(positions, images, strict=False):
        channels = image.shape[-1]
        if channels == 1 and pixels.repeat_channel:
            channels = pixels.shape[2]
        fits = pixels.resize is not None or image.shape[:2] == pixels.shape[:2]
        if channels != pixels.shape[2] or not fits:
            raise InputError(
                f"{where}: image {position} has the shape {image.shape}, the encoder takes "
                f"{pixels.shape}; give "
                + ("--image-size to have images resized" if not fits else "all images its channels")
            )
    return ArrayImages(images, pixels)
