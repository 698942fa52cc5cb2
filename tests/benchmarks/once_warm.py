# SPDX-License-Identifier: Apache-2.0
"""Images a second of `ray-embed extract` once warm, over the bounds that the machine sets.

    python tests/benchmarks/once_warm.py --work DIR [--images 16384] [--heavy-images 1024]
        [--rounds 3]

A light encoder (MobileNetV2 at 96 px) is held against decoding alone and forward alone, each on all
cores, one after the other: 1/(1/decode + 1/forward). A heavy one (ResNet50 at 224 px) is held
against forward alone. The bounds are measured by bounds.py in processes of their own that take
turns with the runs. What decoding with thumbnails would make of the bound is shown, too, without a
target. Images a second once warm: see rates.py. The ratios are those of the medians.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import rates
import sides
from corpus import make_jpegs
from machine import described
from processes import measure
from rows import Row, last_line, ratio, row, table

RUN, BOUNDS = "run", "bounds"
BATCH = 16  # of ray-embed by default


@dataclass(frozen=True)
class Found:
    """By round: the run's images a second, and the bounds."""

    run: list[float]
    bounds: dict[str, list[float]]

    def shown(self) -> str:
        """All rounds."""
        figures = {"ray-embed, once warm": self.run, **self.bounds}
        lines = [
            f"  {name:22}" + "".join(f"{value:10.1f}" for value in values)
            for name, values in figures.items()
        ]
        return "\n".join(lines)

    def of(self, name: str) -> float:
        """The median of a bound, or of the run."""
        return statistics.median(self.run if name == RUN else self.bounds[name])


def compare(work: Path, images: int, model: str, asked: str, shard: int, rounds: int) -> Found:
    """Let runs and bounds take turns."""
    folder = work / f"images-{images}"
    make_jpegs(folder, images)
    found = Found([], {name: [] for name in asked.split(",")})
    for number in range(rounds):
        for name in sides.turns((RUN, BOUNDS), number):
            out = work / "once_warm" / f"{model.partition(':')[2]}-{name}-{number + 1}"
            shutil.rmtree(out, ignore_errors=True)
            if name == BOUNDS:
                line = sides.script("bounds.py", folder, "--model", model, "--only", asked)
                for bound, value in measure(name, line, out).said().items():
                    found.bounds[bound].append(value)
            else:
                options = ("--shard-size", str(shard))
                measure(name, sides.ray_embed(folder, out, model, options, "extract"), out)
                rate = rates.of_run(out)
                if rate is None:
                    sys.exit(f"{images} images are too few for a rate")
                found.run.append(rate)
                shutil.rmtree(out)
    print(f"\n{model}, {images} images, img/s by round\n{found.shown()}", flush=True)
    return found


def light(found: Found) -> list[Row]:
    """The rows against decoding and forward, one after the other."""

    def over(decode: str) -> float | None:
        bound = 1 / (1 / found.of(decode) + 1 / found.of("forward"))
        return ratio(found.of(RUN), bound)

    what = "img/s once warm over 1/(1/decode + 1/forward)"
    return [
        row(what, ">= 0.92", over("decode")),
        row(f"{what}, thumbnails in decode", None, over("thumbnails")),
        row("decoding and resizing alone, all cores", None, found.of("decode"), "img/s"),
        row("the same with thumbnails", None, found.of("thumbnails"), "img/s"),
        row("forward alone, all cores", None, found.of("forward"), "img/s"),
    ]


def heavy(found: Found) -> list[Row]:
    """The row against forward."""
    over = ratio(found.of(RUN), found.of("forward"))
    return [row("heavy encoder: img/s once warm over forward alone", ">= 0.95", over)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--images", type=int, default=16384)
    parser.add_argument("--heavy-images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few images, one round")
    given = parser.parse_args()
    work = given.work.resolve()
    images, heavy_images, rounds = given.images, given.heavy_images, given.rounds
    if given.quick:
        images, heavy_images, rounds = 512, 256, 1
    print(described())
    # Several shards have to be completed after the first tenth, in whatever number of images; but
    # less than a batch would be padded to one.
    shard, heavy_shard = (max(BATCH, min(512, n // 16)) for n in (images, heavy_images))
    bounds = "decode,thumbnails,forward"
    rows = light(compare(work, images, "models:mobilenet", bounds, shard, rounds))
    rows += heavy(compare(work, heavy_images, "models:resnet50", "forward", heavy_shard, rounds))
    print(f"\n{table(rows)}")
    print(last_line(rows))


if __name__ == "__main__":
    main()
