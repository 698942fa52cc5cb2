# SPDX-License-Identifier: Apache-2.0
"""Pictures to embed, and folders of them."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """Make a smooth picture (height, width) that differs from every other seed's."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def make_folder(root: Path, counts: dict[str, int], ending: str = ".png", seed: int = 0) -> Path:
    """Write `counts[label]` pictures into ``root/label``."""
    for at, (label, count) in enumerate(counts.items()):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(seed + 1000 * at + number).save(root / label / f"{number:04d}{ending}")
    return root
