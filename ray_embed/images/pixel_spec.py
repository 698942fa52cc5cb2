# SPDX-License-Identifier: Apache-2.0
"""How the images of a source become the encoder's input."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PixelSpec:
    """The preprocessing of the images of a source.

    `shape` is (H, W, C). `resize` is `stretch`, `crop` or `pad`, or None if the images must already
    have this shape; `crop_fraction`, `crop_corner`, `interpolation` and `antialias` are those of
    `ray_embed.images.resizing.resize`. `scale` is `unit`, `symmetric` or `none`. Then `mean` is
    subtracted and the result is divided by `std`; each is one number, or one per channel in the
    encoder's channel order. `repeat_channel` converts one channel to three.

    Files are decoded to levels of `depth` bits, 8 or 16. Files with floats are scaled by
    `float_scale`. JPEG files are decoded at a fraction of their size, as long as that is at least
    `jpeg_size`, (H, W); if it is None, at their full size. `is_jpeg_accurate` is whether their
    cosine transform is computed accurately.
    """

    shape: tuple[int, int, int]
    scale: str
    resize: str | None = "stretch"
    crop_fraction: float | None = None
    crop_corner: str = "round"
    interpolation: str = "bilinear"
    antialias: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    reverse_channels: bool = False
    repeat_channel: bool = False
    apply_orientation: bool = False
    max_pixels: int = 1 << 62
    takes_bytes: bool = False
    depth: int = 8
    float_scale: str = "none"
    jpeg_size: tuple[int, int] | None = None
    is_jpeg_accurate: bool = False
