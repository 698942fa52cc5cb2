# SPDX-License-Identifier: Apache-2.0
"""A folder of distinct JPEG files cut from scikit-learn's two sample photographs.

    python tests/benchmarks/corpus.py FOLDER --images 4096

Picture i depends on (seed, i) and the other arguments alone, so a small corpus is the beginning
of a larger one. The marker that remembers the arguments lies beside the folder, not in it:
`FOLDER.corpus.json`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

QUALITY = 90
EDGES = (96, 320)  # side of the square cut out of a photograph, in its pixels


def make_jpegs(
    root: Path,
    n: int,
    size: int | tuple[int, int] = 224,
    classes: int = 8,
    seed: int = 0,
) -> list[str]:
    """Write n JPEG files as `root/class_k/000123.jpg`; return the relative paths, sorted.

    `size` is the side of the square pictures, or a pair (low, high): then height and width are
    drawn from that range, each for itself. What is there already is not written again.

    A class is a region of one of the photographs and a tint, so that classes differ in what is
    seen and overlap as real ones do.

    Raises ValueError where `root` holds something else than this corpus or a part of it.
    """
    root = Path(root)
    names = [f"class_{i % classes}/{i:06d}.jpg" for i in range(n)]
    arguments = {"size": size, "classes": classes, "seed": seed, "quality": QUALITY}
    there = _claim(root, arguments, set(names))
    missing = [i for i, name in enumerate(names) if name not in there]
    if missing:
        photographs = _photographs()
        for k in range(min(classes, n)):
            (root / f"class_{k}").mkdir(parents=True, exist_ok=True)
        for i in missing:
            rng = np.random.default_rng([seed, i])
            picture = _picture(photographs, i % classes, classes, size, rng)
            target = root / names[i]
            temporary = target.with_suffix(".tmp")
            picture.save(temporary, format="JPEG", quality=QUALITY)
            os.replace(temporary, target)
    return sorted(names)


def _claim(root: Path, arguments: Mapping[str, object], names: set[str]) -> set[str]:
    """Make sure that `root` is ours, and return which of the files are there."""
    marker = root.parent / f"{root.name}.corpus.json"
    text = json.dumps(dict(arguments), sort_keys=True)
    there = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".tmp"
    }
    if there and (not marker.is_file() or marker.read_text() != text):
        raise ValueError(f"{root} holds other files: remove it or choose another folder")
    if there - names:
        more = sorted(there - names)
        raise ValueError(f"{root} holds {len(more)} files too many, such as {more[0]}: remove it")
    root.mkdir(parents=True, exist_ok=True)
    if not there:
        marker.write_text(text)
    return there


def _photographs() -> Sequence[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def _picture(
    photographs: Sequence[Image.Image],
    label: int,
    classes: int,
    size: int | tuple[int, int],
    rng: np.random.Generator,
) -> Image.Image:
    """One random cut of the label's region, turned, tinted, brightened and scaled."""
    photograph = photographs[label % len(photographs)]
    regions = -(-classes // len(photographs))
    region = label // len(photographs)
    wide, high = photograph.size
    edge = rng.uniform(EDGES[0], min(EDGES[1], wide, high))
    left = (wide - edge) * np.clip((region + rng.uniform(-0.2, 1.2)) / regions, 0, 1)
    top = (high - edge) * rng.uniform()
    if isinstance(size, tuple):
        height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
    else:
        height = width = size
    picture = photograph.resize(
        (width, height),
        Image.Resampling.BILINEAR,
        box=(float(left), float(top), float(left + edge), float(top + edge)),
        reducing_gap=None,
    )
    if rng.uniform() < 0.5:
        picture = ImageOps.mirror(picture)
    if rng.uniform() < 0.1:
        picture = ImageOps.flip(picture)
    picture = ImageEnhance.Color(picture).enhance(float(rng.uniform(0.5, 1.5)))
    picture = ImageEnhance.Contrast(picture).enhance(float(rng.uniform(0.7, 1.3)))
    tint = 1.0 + 0.15 * np.cos(2 * np.pi * (label / classes + np.arange(3) / 3))
    gains = tint * rng.uniform(0.8, 1.2) * rng.uniform(0.95, 1.05, 3)
    table = np.clip(np.arange(256) * gains[:, None], 0, 255).astype(np.uint8)
    return picture.point(table.ravel().tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = make_jpegs(given.folder, given.images, given.size, given.classes, given.seed)
    print(f"{len(names)} pictures in {given.folder}")


if __name__ == "__main__":
    main()
