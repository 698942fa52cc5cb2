# SPDX-License-Identifier: Apache-2.0
"""`evaluate` against scikit-learn's own brute-force neighbours of the same records.

    python tests/benchmarks/evaluating.py --rows 100000 --dimension 512 --rounds 3 --work DIR
    python tests/benchmarks/evaluating.py --rows 100000 --dimension 512 --thumbnails --work DIR

DIR gets a run folder of 100 overlapping classes in one split or, with `--splits 2`, in two, made
once and kept; with `--thumbnails` of 64 × 64, so that raw pixels are judged too and
near-duplicates are looked for. The other side finds the 200 nearest of the same sample, which it
has in memory, by `NearestNeighbors(algorithm="brute")`, once by cosine and once by Euclidean
distance; with thumbnails of the pixels too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from in_turns import alternate, measure, side
from reducing import CLASSES, OWNER, PICTURES, SHARD, pngs
from rows import last_line, row, table

from ray_embed import load, planning
from ray_embed.analysis.evaluation import pixel_baseline
from ray_embed.core.arrays import as_column
from ray_embed.runs import sampling
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder

SAMPLE, NEIGHBOURS = 10_000, 200
SIDES = ("evaluate", "neighbours")
SCRIPT = Path(__file__).name


def make_run(path: Path, rows: int, dimension: int, splits: int, thumbnails: bool) -> None:
    """Write the run folder, unless it is there; `run.json` comes last."""
    folder = Folder.open(str(path))
    if folder.exists(layout.RUN):
        return
    for part in parts_of(rows, dimension, splits, thumbnails):
        part_files.write_part(folder, part, OWNER, part.features.num_rows)
    split = planning.SplitPlan(
        ordinal=0,
        name="split0",
        root="/",
        label_type="string",
        extras=(),
        shard_size=SHARD,
        shards_per_file=64,
        records=rows,
    )
    planning.save(folder, planning.Plan((split,), "string", ()))
    output = {"layer": "top", "column": "feature", "dimension": dimension}
    about = {"fingerprint": "f" * 64, "config": {}, "encoder": {"outputs": [output]}}
    manifest.write_run(folder, about, "0")


def parts_of(rows: int, dimension: int, splits: int, thumbnails: bool) -> Iterator[part_files.Part]:
    random = np.random.default_rng(0)
    pictures = list(pngs(random)) if thumbnails else []
    centres = random.normal(size=(CLASSES, dimension)).astype(np.float32)
    for number, start in enumerate(range(0, rows, SHARD)):
        index = np.arange(start, min(start + SHARD, rows))
        classes = random.integers(0, CLASSES, len(index))
        noise = random.standard_normal((len(index), dimension), np.float32)
        features = pa.table(
            {
                "index": pa.array(index),
                "key": [f"{at:06d}.jpg" for at in index],
                "label": [f"class_{c:02d}" for c in classes],
                "split": [f"split{at * splits // rows}" for at in index],
                "feature": as_column(centres[classes] + 3 * noise),
            }
        )
        shown = index if thumbnails else index[:0]
        drawn = random.integers(0, PICTURES, len(shown))
        thumbs = pa.table(
            [pa.array(shown), pa.array([pictures[at] for at in drawn], pa.binary())],
            part_files.THUMBNAIL_SCHEMA,
        )
        yield part_files.Part(number, features, part_files.REJECT_SCHEMA.empty_table(), thumbs)


def neighbours(path: Path, thumbnails: bool) -> Callable[[], None]:
    """Give finding the neighbours of the sample, which is read now."""
    from sklearn.neighbors import NearestNeighbors

    folder = Folder.open(str(path))
    drawn = sampling.draw_sample(folder, "feature", SAMPLE)
    spaces = [drawn.features]
    if thumbnails:
        small = pixel_baseline.shrink(sampling.read_thumbnails(folder, drawn.index))
        spaces.append(small.reshape(len(small), -1))
    is_first = drawn.splits == drawn.splits[0]

    def call() -> None:
        for points in spaces:
            for metric in ("cosine", "euclidean"):
                search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute", metric=metric)
                search.fit(points[is_first])
                search.kneighbors(None if is_first.all() else points[~is_first])

    return call


def evaluated(path: Path) -> Callable[[], None]:
    """Import what `evaluate` needs, and give it."""
    import scipy.stats  # noqa: F401
    import sklearn.cluster
    import sklearn.linear_model
    import sklearn.metrics
    import sklearn.model_selection
    import sklearn.neighbors  # noqa: F401

    from ray_embed.analysis.evaluation import evaluate as evaluate_module  # noqa: F401

    def call() -> None:
        load(str(path)).evaluate(sample=SAMPLE)

    return call


def measured(arguments: argparse.Namespace) -> None:
    """Do one side in this process, and print what it took."""
    path = Path(arguments.work)
    if arguments.side == "neighbours":
        call = neighbours(path, arguments.thumbnails)
    else:
        call = evaluated(path)
    measure(call)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--thumbnails", action="store_true", help="raw pixels too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", required=True, help="a folder for run folders, kept")
    parser.add_argument("--quick", action="store_true", help="few rows, one round: to try it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measured(arguments)
        return 0
    if arguments.quick:
        arguments.rows, arguments.rounds = 5_000, 1
    with_or = "with" if arguments.thumbnails else "without"
    shape = f"{arguments.rows}x{arguments.dimension}-{arguments.splits}-{with_or}"
    path = Path(arguments.work) / f"evaluate-{shape}"
    make_run(path, arguments.rows, arguments.dimension, arguments.splits, arguments.thumbnails)
    options = ["--work", path, *(["--thumbnails"] if arguments.thumbnails else [])]
    side(SCRIPT, "evaluate", *options)  # once for the page cache
    taken = alternate(SIDES, arguments.rounds, lambda name: side(SCRIPT, name, *options))
    what = (
        f"evaluate of {arguments.rows:,} × {arguments.dimension}, splits: {arguments.splits}, "
        f"{with_or} thumbnails"
    )
    over = taken["evaluate"].seconds / taken["neighbours"].seconds
    found = [
        row(f"{what}, over brute-force neighbours", "<= 1.5", over),
        row(f"{what}, peak memory", "<= 1000", taken["evaluate"].peak, "MB"),
    ]
    print(f"\n{table(found)}")
    print(last_line(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
