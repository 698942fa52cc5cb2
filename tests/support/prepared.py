# SPDX-License-Identifier: Apache-2.0
"""Decode image files as an actor does."""

from pathlib import Path
from typing import Any

import numpy as np

from ray_embed.images import decode
from ray_embed.images.decode import Batch
from ray_embed.images.pixel_spec import PixelSpec


def make_spec(shape: tuple[int, int, int], **options: Any) -> PixelSpec:
    """A preprocessing that leaves images of this shape as they are."""
    return PixelSpec(shape=shape, **{"scale": "none", "max_pixels": 10**6, **options})


def decode_one(path: Path, shape: tuple[int, int, int], page: int = 0, **options: Any) -> Batch:
    """The batch of one file, which is not rejected."""
    pixels = make_spec(shape, **options)
    (batch,) = decode.file_batches([bytes(path)], pixels, 4, 1, [page])
    return batch


def pixels_of(path: Path, shape: tuple[int, int, int], **options: Any) -> np.ndarray:
    """The pixels of one file, (H, W, C) float32."""
    return decode_one(path, shape, **options).images[0]


def reason_of(content: bytes | Path, channels: int = 3, **options: Any) -> str:
    """Why an image is rejected, by the fast path and by the diagnosis."""
    content = content.read_bytes() if isinstance(content, Path) else content
    pixels = make_spec((8, 9, channels), **options)
    assert list(decode.content_batches([content], pixels, 4, 1)) == []
    reason = decode.diagnose(content, pixels)
    assert isinstance(reason, str)
    return reason
