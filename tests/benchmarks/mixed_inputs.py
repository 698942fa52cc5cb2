# SPDX-License-Identifier: Apache-2.0
"""Whether broken, large and slow files among plain ones stall the pipeline.

    python tests/benchmarks/mixed_inputs.py --work DIR [--images 4096] [--rounds 3]

In each corpus every 20th file is another one:

    corrupt  a JPEG cut in half, which has to be set aside
    large    a JPEG of 6 million pixels
    slow     a plain file whose reading sleeps 20 ms: see slow_files.py, also for what this cannot
             show; it is held against the same dataset without the sleep

Each is run by `ray-embed extract`, taking turns, and each is decoded alone, by bounds.py or by
walking the dataset. A pipeline that does not stall takes a plain run's time an image and what the
decoding alone takes longer: img/s are held against that prediction. All are once warm, see
rates.py, and the medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

import rates
import sides
from corpus import make_jpegs
from machine import described
from processes import measure
from rows import Row, last_line, row, table
from slow_files import EVERY

PLAIN, CORRUPT, LARGE = "plain", "corrupt", "large"
DATASET, SLOW = "dataset", "slow"
AGAINST = {CORRUPT: PLAIN, LARGE: PLAIN, SLOW: DATASET}
SLEEP = {DATASET: 0.0, SLOW: 0.02}  # seconds
LARGE_SIDE = 2450  # pixels; a square of it is 6 million
SHARD = 128


def make_corpora(work: Path, images: int) -> dict[str, Path]:
    """Make the folders; give them by name."""
    plain = work / f"images-{images}"
    names = make_jpegs(plain, images)
    chosen = names[::EVERY]
    pictures = work / f"large-{len(chosen)}"
    large = make_jpegs(pictures, len(chosen), size=LARGE_SIDE)
    halves = work / f"halves-{len(chosen)}"
    halves.mkdir(exist_ok=True)
    for at, name in enumerate(chosen):
        content = (plain / name).read_bytes()
        (halves / f"{at}.jpg").write_bytes(content[: len(content) // 2])
    corrupt = {name: halves / f"{at}.jpg" for at, name in enumerate(chosen)}
    bigger = {name: pictures / large[at] for at, name in enumerate(chosen)}
    return {
        PLAIN: plain,
        CORRUPT: _mixed(work / f"corrupt-{images}", plain, names, corrupt),
        LARGE: _mixed(work / f"mixed-{images}", plain, names, bigger),
        DATASET: plain,
        SLOW: plain,
    }


def _mixed(root: Path, plain: Path, names: list[str], others: dict[str, Path]) -> Path:
    """A folder of links to plain files, and to others in the place of some."""
    shutil.rmtree(root, ignore_errors=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(others.get(name, plain / name), root / name)
    return root


def run(name: str, folder: Path, out: Path) -> float:
    """Images a second of ray-embed once warm."""
    source: Path | str = folder
    options = ["--shard-size", str(SHARD)]
    if name in SLEEP:
        source = "slow_files:dataset"
        arguments = {"valid": {"folder": str(folder), "seconds": SLEEP[name]}}
        options += ["--source-kwargs", json.dumps(arguments)]
    shutil.rmtree(out, ignore_errors=True)
    measure(name, sides.ray_embed(source, out, options=options, command="extract"), out)
    rate = rates.of_run(out)
    shutil.rmtree(out)
    if rate is None:
        sys.exit(f"{folder}: too few images for a rate")
    return rate


def decode(name: str, folder: Path, images: int, out: Path) -> float:
    """Images a second of decoding alone."""
    if name in SLEEP:
        line = sides.script("slow_files.py", folder, "--seconds", SLEEP[name])
        return float(measure(name, line, out).said()["decode"])
    line = sides.script("bounds.py", folder, "--images", images, "--only", "thumbnails")
    return float(measure(name, line, out).said()["thumbnails"])


def rows_of(runs: dict[str, float], decoded: dict[str, float]) -> list[Row]:
    """The rows of each corpus against the plain one."""
    rows = []
    for name, plain in AGAINST.items():
        extra = max(0.0, 1 / decoded[name] - 1 / decoded[plain])
        predicted = 1 / (1 / runs[plain] + extra)
        what = f"5 % {name} files: img/s"
        rows.append(row(f"{what} over the plain ones'", None, runs[name] / runs[plain]))
        rows.append(row(f"{what} over plain and extra decoding", ">= 0.9", runs[name] / predicted))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1,024 images, one round")
    given = parser.parse_args()
    work = given.work.resolve()
    images, rounds = (1024, 1) if given.quick else (given.images, given.rounds)
    print(described())
    corpora = make_corpora(work, images)
    runs: dict[str, list[float]] = {name: [] for name in corpora}
    decoded: dict[str, list[float]] = {name: [] for name in corpora}
    for number in range(rounds):
        for name in sides.turns(list(corpora), number):
            out = work / "mixed_inputs" / f"{name}-{number + 1}"
            runs[name].append(run(name, corpora[name], out))
            alone = out.with_name(f"{out.name}-decode")
            decoded[name].append(decode(name, corpora[name], images, alone))
    print(f"\n{images} images, img/s by round: ray-embed once warm | decoding alone")
    for name in corpora:
        shown = [" ".join(f"{value:9.1f}" for value in each[name]) for each in (runs, decoded)]
        print(f"  {name:8} {' | '.join(shown)}")
    medians = [{k: statistics.median(v) for k, v in each.items()} for each in (runs, decoded)]
    rows = rows_of(*medians)
    print(f"\n{table(rows)}")
    print(last_line(rows))


if __name__ == "__main__":
    main()
