# SPDX-License-Identifier: Apache-2.0
"""`ray-embed run` of the same images in each form of source, and other libraries reading them.

    python tests/benchmarks/sources.py --work DIR [--images 16384] [--rounds 3]
    python tests/benchmarks/sources.py --work DIR --sides folder,parquet,ray-data-parquet

Each side is a whole process, from starting Python to the last file. The sides take turns, and the
one that begins changes from round to round; ratios are those of medians. Exit 0: done, and the
features of each form equal those of the folder (those of HDF5 hold pixels that Pillow decoded, and
are not compared); 1: they do not, or a process failed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import sides
from corpus import make_jpegs
from machine import described
from processes import measure
from rows import Row, last_line, ratio, row, table
from source_files import FORMS, make_form
from source_rivals import SIDES as RIVALS

FOLDER = "folder"
SLOWEST = "<= 1.05"  # times as long as the folder


def read_features(run: Path) -> tuple[np.ndarray, list[str]]:
    """Return the features and labels of a run, in a fixed order, whatever the order of records."""
    rows: Any = pq.read_table(run / "features", columns=["label", "feature"])
    features = rows["feature"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    order = np.lexsort(features.T[:8])
    labels = rows["label"].to_pylist()
    return features[order], [labels[i] for i in order]


def get_form(side: str) -> str:
    """Return the form that a side reads."""
    if side not in RIVALS:
        return side
    return "parquet" if side.startswith("datasets") else side.rpartition("-")[2]


def make_command(side: str, source: str, out: Path, options: Sequence[str]) -> list[str]:
    """Return the command of a side, which is a form of source or another library."""
    if side in RIVALS:
        return sides.script("source_rivals.py", side, source, out)
    return sides.ray_embed(source, out, options=options)


def agree_with_folder(outs: dict[str, Path]) -> bool:
    """Return whether the runs of all forms have the features and labels of the folder's."""
    if FOLDER not in outs:
        return True
    features, labels = read_features(outs[FOLDER])
    agree = True
    for name in outs.keys() - {FOLDER, "hdf5", *RIVALS}:
        found, found_labels = read_features(outs[name])
        if found_labels != labels or not np.array_equal(found, features):
            print(f"{name}: other features or labels than the folder's", file=sys.stderr)
            agree = False
    return agree


def run_rounds(
    names: Sequence[str], sources: dict[str, str], work: Path, rounds: int, options: Sequence[str]
) -> tuple[dict[str, list[float]], bool]:
    """Return the seconds of each side by round, and whether the features agree."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    agree = True
    for number in range(rounds):
        shutil.rmtree(work, ignore_errors=True)
        outs = {name: work / f"{name}-{number + 1}" for name in names}
        for name in sides.turns(names, number):
            command = make_command(name, sources[get_form(name)], outs[name], options)
            done = measure(name, command, outs[name])
            seconds[name].append(done.seconds)
            memory = f"{done.peak_pss_mb:,.0f} MB" if done.peak_pss_mb else ""
            print(f"{outs[name].name}: {done.seconds:.2f} s {memory}", flush=True)
        agree &= agree_with_folder(outs)
    shutil.rmtree(work)
    return seconds, agree


def rows_of(images: int, seconds: dict[str, list[float]]) -> list[Row]:
    """Return the rows of the table."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, median in medians.items():
        if name in RIVALS:
            form = get_form(name)
            what = f"{images:,} images: time of {name} over ray-embed's from {form}"
            rows.append(row(what, None, ratio(median, medians.get(form))))
        elif name != FOLDER:
            what = f"{images:,} images: time from {name} over the folder's"
            rows.append(row(what, SLOWEST, ratio(median, medians.get(FOLDER))))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--images", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", default=",".join([FOLDER, *FORMS, *RIVALS]))
    parser.add_argument("--quick", action="store_true", help="256 images, one round")
    parser.add_argument("options", nargs="*", help="after --: options for ray-embed")
    given = parser.parse_args()
    images, rounds = (256, 1) if given.quick else (given.images, given.rounds)
    work = given.work.resolve()
    names = given.sides.split(",")
    folder = work / f"images-{images}"
    print(described())
    make_jpegs(folder, images)
    forms = {get_form(name) for name in names} - {FOLDER}
    sources = {form: make_form(form, folder, work) for form in sorted(forms)}
    sources[FOLDER] = str(folder)
    seconds, agree = run_rounds(names, sources, work / "sources", rounds, given.options)
    rows = rows_of(images, seconds)
    print(f"\n{table(rows)}")
    print(last_line(rows))
    return int(not agree)


if __name__ == "__main__":
    sys.exit(main())
