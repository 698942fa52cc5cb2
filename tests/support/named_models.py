# SPDX-License-Identifier: Apache-2.0
"""What the tests of models of libraries need."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from support.command import Result


def make_pictures(folder: Path, count: int = 4) -> None:
    """Write a few pictures of two classes to `folder` / pictures."""
    from PIL import Image

    noise = np.random.default_rng(5)
    for number in range(count):
        path = folder / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (40 + number, 64, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def write_photos(folder: Path, endings: tuple[str, ...] = ("png",)) -> list[Path]:
    """Write smooth pictures of several shapes, as photos are."""
    from PIL import Image

    random = np.random.default_rng(2)
    folder.mkdir(exist_ok=True)
    paths = []
    for number, size in enumerate([(301, 201), (150, 431), (90, 61), (224, 224), (513, 333)]):
        small = random.integers(0, 256, (9, 12, 3), np.uint8)
        picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        paths.append(folder / f"{number}.{endings[number % len(endings)]}")
        picture.save(paths[-1])
    return paths


def check_goes_on(run: Path, go_on: Callable[[], Result]) -> None:
    """Remove a part of a run, and check that going on writes the same one again."""
    part = run / "features" / "part-00000001.parquet"
    before = part.read_bytes()
    part.unlink()
    done = go_on()
    assert done.code == 0, done.err
    assert part.read_bytes() == before
