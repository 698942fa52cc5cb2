# SPDX-License-Identifier: Apache-2.0
"""The first 50 components of wide features against reading their parts, in time and memory.

    python tests/benchmarks/wide_pca.py --shapes 3000x230400,200x230400,20000x20000 --work DIR

DIR gets a run folder a shape, made once and kept; `--shard` is the number of records a part. Two
sides take turns, each in a process of its own: `pca` computes the components (exact ones of few
records, else by the Krylov method) without writing them; `reading` reads the features of the same
parts with pyarrow, some rows at a time, and drops them. Both use all processors, unless
`--threads` says otherwise. Memory is the most that a process had resident, imports and all.

Exit 0: the variances are at most their residuals away from those of a sketch that NumPy makes of
the whole array (`--check`, only where it fits into memory), or were not checked; 1: they are not.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from exact_pca import files_of
from in_turns import alternate, measure, side
from rows import Row, last_line, row, table

from ray_embed import planning
from ray_embed.core.arrays import as_column, as_matrix
from ray_embed.core.threads import open_ordered_map
from ray_embed.projector import covariance, pca
from ray_embed.projector.merge_task import PartGroup
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder

OWNER = part_files.Owner("f" * 64, "f" * 64)
SIDES = ("pca", "reading")
SCRIPT = Path(__file__).name
DIRECTIONS = 200
BATCH_BYTES = 8 << 20


def shapes_of(text: str) -> list[tuple[int, int]]:
    """Read `ROWSxDIMENSIONS,…`."""
    found = []
    for shape in text.split(","):
        rows, _, dimension = shape.partition("x")
        found.append((int(rows), int(dimension)))
    return found


def make_run(path: Path, rows: int, dimension: int, shard: int) -> None:
    """Write a run folder of features whose variance falls as 1/j, unless it is there."""
    import pyarrow as pa

    folder = Folder.open(str(path))
    if folder.exists(layout.RUN):
        return
    random = np.random.default_rng(0)
    directions = random.standard_normal((DIRECTIONS, dimension), np.float32)
    widths = np.arange(1, DIRECTIONS + 1, dtype=np.float32) ** -0.5
    for number, start in enumerate(range(0, rows, shard)):
        index = np.arange(start, min(start + shard, rows))
        factors = random.standard_normal((len(index), DIRECTIONS), np.float32) * widths
        values = factors @ directions + random.standard_normal((len(index), dimension), np.float32)
        features = pa.table(
            {
                "index": pa.array(index),
                "key": [f"{at:06d}.jpg" for at in index],
                "label": ["one"] * len(index),
                "split": ["valid"] * len(index),
                "feature": as_column(values),
            }
        )
        thumbnails = part_files.THUMBNAIL_SCHEMA.empty_table()
        part = part_files.Part(number, features, part_files.REJECT_SCHEMA.empty_table(), thumbnails)
        part_files.write_part(folder, part, OWNER, len(index))
    split = planning.SplitPlan(
        ordinal=0,
        name="valid",
        root="/",
        label_type="string",
        extras=(),
        shard_size=shard,
        shards_per_file=64,
        records=rows,
    )
    planning.save(folder, planning.Plan((split,), "string", ()))
    output = {"layer": "top", "column": "feature", "dimension": dimension}
    about = {"config": {"projector_limit": 100_000}, "encoder": {"outputs": [output]}}
    manifest.write_run(folder, {"fingerprint": "f" * 64, **about}, "0")


def components(path: Path, threads: int) -> Callable[[], pca.Components]:
    folder = Folder.open(str(path))
    groups, start, dimension = [], 0, 0
    for number in part_files.list_part_numbers(folder):
        about = part_files.read_footer(folder, number)
        dimension = dict(about.columns)["feature"].list_size
        groups.append(PartGroup(number, (number,), start, about.rows))
        start += about.rows

    def call() -> pca.Components:
        with open_ordered_map(threads, covariance.count_parallel_blocks([dimension])) as mapped:
            return covariance.compute_components(
                str(path), "f" * 64, tuple(groups), {"feature": dimension}, mapped
            )["feature"]

    return call


def reading(path: Path, threads: int) -> Callable[[], None]:
    def read(file: Path) -> None:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as part:
            kind = part.schema_arrow.field("feature").type
            rows = max(1, BATCH_BYTES // (4 * kind.list_size))
            deque(part.iter_batches(rows, columns=["feature"], use_threads=False), maxlen=0)

    def call() -> None:
        with open_ordered_map(threads) as mapped:
            deque(mapped(read, files_of(path)), maxlen=0)

    return call


def right(path: Path, found: pca.Components) -> bool:
    """Say whether the variances are as near to exact ones as they claim; needs all in memory."""
    values = np.concatenate(
        [as_matrix(pq.read_table(file, columns=["feature"])["feature"]) for file in files_of(path)]
    ).astype(np.float64)
    values -= values.mean(axis=0)
    small = values @ values.T if len(values) < values.shape[1] else values.T @ values
    exact = np.linalg.eigvalsh(small)[::-1] / (len(values) - 1)
    kept = found.variances[: len(found.vectors)]
    residuals = np.array(found.method.residuals or [0.0] * len(kept))
    away = np.abs(kept[:, None] - exact).min(axis=1)
    return bool((away <= residuals + 1e-9 * exact[0]).all())


def measured(arguments: argparse.Namespace) -> None:
    """Do one side in this process, and print what it took."""
    import scipy.linalg

    # A first call of each library takes a while.
    scipy.linalg.eigvalsh(np.ones((2, 600)).T @ np.ones((2, 600)))
    path, threads = Path(arguments.work), arguments.threads or os.cpu_count() or 1
    if arguments.side == "reading":
        measure(reading(path, threads))
        return
    call = components(path, threads)
    results: list[pca.Components] = []
    measure(lambda: results.append(call()))
    (found,) = results
    print(
        f"{found.method.name}, {found.method.passes} passes, error {100 * found.error:.2g} %",
        file=sys.stderr,
    )
    if arguments.check:
        (path / "wrong").unlink(missing_ok=True)
        if not right(path, found):
            (path / "wrong").touch()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="3000x230400,200x230400,20000x20000")
    parser.add_argument("--shard", type=int, default=512, help="records a part")
    parser.add_argument("--threads", type=int, help="[all that there are]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", required=True, help="a folder for run folders, kept")
    parser.add_argument("--check", action="store_true", help="compare with NumPy, in memory")
    parser.add_argument("--quick", action="store_true", help="small shapes: to try it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measured(arguments)
        return 0
    if arguments.quick:
        arguments.shapes, arguments.check, arguments.shard = "300x9000,4200x8200", True, 100
    found: list[Row] = []
    fine = True
    for rows, dimension in shapes_of(arguments.shapes):
        path = Path(arguments.work) / f"wide-{rows}x{dimension}"
        make_run(path, rows, dimension, arguments.shard)
        options = ["--work", path, *(["--check"] if arguments.check else [])]
        options += ["--threads", arguments.threads] if arguments.threads else []
        taken = alternate(
            SIDES, arguments.rounds, lambda name, options=options: side(SCRIPT, name, *options)
        )
        what = f"components of {rows:,} × {dimension:,}"
        over = taken["pca"].seconds / taken["reading"].seconds
        found += [
            row(what, None, taken["pca"].seconds, "s"),
            row(f"{what}, over reading", None, over),
            row(f"{what}, peak memory", "<= 2000", taken["pca"].peak, "MB"),
        ]
        fine = fine and not (path / "wrong").exists()
    print(f"\n{table(found)}")
    print(last_line(found))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
