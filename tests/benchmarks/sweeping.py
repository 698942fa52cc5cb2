# SPDX-License-Identifier: Apache-2.0
"""A sweep over the checkpoints of a training, beside single runs and beside loops.

    python tests/benchmarks/sweeping.py --work DIR [--images 4096] [--encoders 10] [--rounds 3]

Each side is whole processes: one sweep, one `ray-embed run` after the other, and one loop (of
section1_loop.py) after the other. Single runs and loops all take the same time, so only a few of
them are started in each round, and their mean is multiplied. Ratios are those of medians.

Exit 0: done, and the features of the sweep are those of the single runs, byte for byte; 1: they
are not, or a process failed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

import sides
from corpus import make_jpegs
from machine import described
from processes import measure
from rows import Row, last_line, ratio, row, table

SWEEP, SINGLE, LOOP = SIDES = ("sweep", "single runs", "loops")
STARTED = 2  # single runs and loops in a round


def make_weights(folder: Path, count: int, model: str) -> list[Path]:
    """Write the weights of `count` checkpoints, and return their paths."""
    paths = [folder / f"epoch-{number}.weights.h5" for number in range(count)]
    if all(path.is_file() for path in paths):
        return paths
    import keras
    import models
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    encoder = getattr(models, model.partition(":")[2])()
    random = np.random.default_rng(0)
    for path in paths:
        keras.utils.set_random_seed(0)
        for variable in encoder.trainable_weights:
            variable.assign(variable + random.normal(0, 1e-3, variable.shape))
        encoder.save_weights(path)
    return paths


def time_side(
    side: str, images: Path, weights: list[Path], work: Path, model: str
) -> tuple[float, list[Path]]:
    """Return the seconds of a side for all weights, and the run folders that it wrote."""
    count = len(weights)
    shutil.rmtree(work, ignore_errors=True)
    if side == SWEEP:
        command = sides.script("sweep_job.py", images, weights[0].parent, work, model)
        seconds = measure(side, command, work).seconds
        return seconds, [work / path.name.partition(".")[0] for path in weights]
    started = weights[: min(STARTED, count)]
    taken, outs = [], []
    for path in started:
        out = work / path.name.partition(".")[0]
        options = ["--weights", str(path)]
        command = (
            sides.script("section1_loop.py", images, out)
            if side == LOOP
            else sides.ray_embed(images, out, model, options)
        )
        taken.append(measure(side, command, out).seconds)
        outs.append(out)
    return statistics.mean(taken) * count, outs


def read_parts(run: Path) -> dict[str, bytes]:
    """Return the content of the feature parts of a run."""
    return {path.name: path.read_bytes() for path in sorted((run / "features").iterdir())}


def make_rows(images: int, encoders: int, seconds: dict[str, list[float]]) -> list[Row]:
    """Return the rows of the table."""
    middle = {side: statistics.median(taken) for side, taken in seconds.items()}
    what = f"{encoders} encoders, {images:,} images"
    return [
        row(
            f"{what}: single runs' time over the sweep's",
            ">= 3",
            ratio(middle[SINGLE], middle[SWEEP]),
        ),
        row(f"{what}: loops' time over the sweep's", ">= 8", ratio(middle[LOOP], middle[SWEEP])),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--encoders", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="models:mobilenet", choices=sorted(sides.MODELS))
    parser.add_argument("--quick", action="store_true", help="few images, one round: to try it")
    given = parser.parse_args()
    images, encoders = (64, 2) if given.quick else (given.images, given.encoders)
    work = given.work.resolve()
    print(described())
    folder = work / f"images-{images}"
    make_jpegs(folder, images)
    weights = make_weights(work / f"weights-{encoders}", encoders, given.model)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    agree = True
    for number in range(1 if given.quick else given.rounds):
        outs: dict[str, list[Path]] = {}
        for side in sides.turns(SIDES, number):
            place = work / "sweeping" / side.replace(" ", "-")
            taken, outs[side] = time_side(side, folder, weights, place, given.model)
            seconds[side].append(taken)
            print(f"round {number + 1}, {side}: {taken:.1f} s for {encoders} encoders", flush=True)
        for swept, single in zip(outs[SWEEP], outs[SINGLE], strict=False):
            agree &= read_parts(swept) == read_parts(single)
    rows = make_rows(images, encoders, seconds)
    print(f"\n{table(rows)}")
    print(last_line(rows))
    if not agree:
        print("the sweep's features differ from those of single runs", file=sys.stderr)
    return int(not agree)


if __name__ == "__main__":
    sys.exit(main())
