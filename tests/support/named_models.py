# SPDX-License-Identifier: Apache-2.0
"""What the tests of models of libraries need."""

from pathlib import Path

import numpy as np


def make_pictures(folder: Path, count: int = 4) -> None:
    """Write a few pictures of two classes to `folder` / pictures."""
    from PIL import Image

    noise = np.random.default_rng(5)
    for number in range(count):
        path = folder / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (40 + number, 64, 3), np.uint8)
        Image.fromarray(pixels).save(path)
