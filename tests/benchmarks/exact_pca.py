# SPDX-License-Identifier: Apache-2.0
"""The exact PCA of a run against reading its parts, and against the matrix products alone.

    python tests/benchmarks/exact_pca.py --rows 1000000 --dimension 512 --rounds 3 --work DIR

DIR gets the run folder that `reducing.py` makes, once and kept. Three sides take turns, each in a
process of its own, and the one that begins changes from round to round: `pca` is the first pass
over the parts and the eigendecomposition; `reading` reads the features of the same parts with
pyarrow and drops them; `products` multiplies the same features, which are in memory as one float64
array, with themselves, a few thousand rows a thread (faster than one product by all of NumPy's own
threads where others use the processors too). All use all processors, unless `--threads` says
otherwise. Memory is the most that a process had resident, imports and all.

Exit 0: the variances are those of NumPy on the whole array; 1: they are not.
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
from in_turns import alternate, measure, side
from reducing import SHARD, make_run
from rows import last_line, row, table
from threadpoolctl import threadpool_limits

from ray_embed.core.arrays import as_matrix
from ray_embed.core.threads import limit_blas_to_one_thread, open_ordered_map
from ray_embed.projector import covariance
from ray_embed.projector.merge_task import PartGroup

SIDES = ("pca", "reading", "products")
SCRIPT = Path(__file__).name
GROUP_BYTES = 16 << 20
TOGETHER = 8192
Call = Callable[[], np.ndarray | None]


def files_of(path: Path) -> list[Path]:
    return sorted((path / "features").iterdir())


def groups_of(path: Path, rows: int, dimension: int) -> tuple[PartGroup, ...]:
    """Cut the parts into groups as a merge does."""
    parts = range(len(files_of(path)))
    many = -(-GROUP_BYTES // (SHARD * dimension * 4))
    cut = [tuple(parts[start : start + many]) for start in parts[::many]]
    ends = [min(SHARD * (group[-1] + 1), rows) for group in cut]
    starts = [0, *ends]
    return tuple(
        PartGroup(number, group, start, end - start)
        for number, (group, start, end) in enumerate(zip(cut, starts, ends, strict=False))
    )


def pca(path: Path, rows: int, dimension: int, threads: int) -> Call:
    groups = groups_of(path, rows, dimension)

    def call() -> np.ndarray:
        with open_ordered_map(threads, covariance.count_parallel_blocks([dimension])) as mapped:
            found = covariance.compute_components(
                str(path), "f" * 64, groups, {"feature": dimension}, mapped
            )
        return found["feature"].variances

    return call


def reading(path: Path, threads: int) -> Call:
    files = files_of(path)

    def read(file: Path) -> int:
        return len(pq.read_table(file, columns=["feature"], use_threads=False))

    def call() -> None:
        with open_ordered_map(threads) as mapped:
            deque(mapped(read, files), maxlen=0)

    return call


def products(path: Path, rows: int, dimension: int, threads: int) -> Call:
    values = np.empty((rows, dimension))
    start = 0
    for file in files_of(path):
        part = as_matrix(pq.read_table(file, columns=["feature"])["feature"])
        values[start : start + len(part)] = part
        start += len(part)

    def product(start: int) -> np.ndarray:
        some = values[start : start + TOGETHER]
        return some.T @ some

    def call() -> np.ndarray:
        found = np.zeros((dimension, dimension))
        with limit_blas_to_one_thread(), open_ordered_map(threads) as mapped:
            for one in mapped(product, range(0, rows, TOGETHER)):
                found += one
        return found

    return call


def measured(arguments: argparse.Namespace) -> None:
    """Do one side in this process, and print what it took."""
    import scipy.linalg

    path, rows, dimension = Path(arguments.work), arguments.rows, arguments.dimension
    threads = arguments.threads or os.cpu_count() or 1
    if arguments.side == "pca":
        call = pca(path, rows, dimension, threads)
    elif arguments.side == "reading":
        call = reading(path, threads)
    else:
        call = products(path, rows, dimension, threads)
    with threadpool_limits(threads, "blas"):
        # A first call of each library takes a while.
        scipy.linalg.eigvalsh(np.ones((2, 600)).T @ np.ones((2, 600)))
        result = measure(call)
    if arguments.side == "products":
        mean = sum(
            as_matrix(pq.read_table(file, columns=["feature"])["feature"]).sum(0, float)
            for file in files_of(path)
        )
        result -= np.outer(mean, mean) / rows
        result = scipy.linalg.eigvalsh(result)[::-1] / (rows - 1)
    if result is not None:
        np.save(path / f"variances-{arguments.side}.npy", result)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--threads", type=int, help="[all that there are]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", required=True, help="a folder for run folders, kept")
    parser.add_argument("--quick", action="store_true", help="few rows, one round: to try it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measured(arguments)
        return 0
    if arguments.quick:
        arguments.rows, arguments.rounds = 20_000, 1
    path = Path(arguments.work) / f"{arguments.rows}x{arguments.dimension}-without"
    make_run(path, arguments.rows, arguments.dimension, False)
    options = ["--work", path, "--rows", arguments.rows, "--dimension", arguments.dimension]
    options += ["--threads", arguments.threads] if arguments.threads else []
    side(SCRIPT, "reading", *options)  # once for the page cache
    taken = alternate(SIDES, arguments.rounds, lambda name: side(SCRIPT, name, *options))
    ours, plain = (np.load(path / f"variances-{name}.npy") for name in ("pca", "products"))
    right = bool(np.allclose(ours, plain, rtol=1e-6, atol=1e-9 * plain[0]))
    print(f"variances {'are' if right else 'ARE NOT'} those of the whole array")
    what = f"exact PCA of {arguments.rows:,} × {arguments.dimension}"
    share = (taken["reading"].seconds + taken["products"].seconds) / taken["pca"].seconds
    found = [
        row(f"{what}, reading and products over it", ">= 0.8", share),
        row(f"{what}, peak memory", "<= 1000", taken["pca"].peak, "MB"),
    ]
    print(f"\n{table(found)}")
    print(last_line(found))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
