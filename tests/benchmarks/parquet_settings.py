# SPDX-License-Identifier: Apache-2.0
"""How the settings of the Parquet parts bear on size, writing and reading of the features.

    python tests/benchmarks/parquet_settings.py --work DIR [--rows 8192] [--dimension 1280]

Two kinds of features: `relu`, pooled from the ReLU of a random network over smooth images, float32
with all its noise; and `smooth`, from a slow random walk over rows. Parts of 512 rows, as a run has
them. Times are the best of some rounds, from a warm page cache, for all parts; the other columns
(index, key, label, split) are there, as in a run.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.core.arrays import as_column

SHARD = 512
SPLIT = {"use_byte_stream_split": ["feature.list.element"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "none, plain (now)": {"compression": "none"},
    "none, dictionary": {"compression": "none", "use_dictionary": True},
    "lz4, plain": {"compression": "lz4"},
    "zstd 1, plain": {"compression": "zstd", "compression_level": 1},
    "lz4, split": {"compression": "lz4", **SPLIT},
    "zstd 1, split": {"compression": "zstd", "compression_level": 1, **SPLIT},
    "zstd 3, split": {"compression": "zstd", "compression_level": 3, **SPLIT},
    "zstd 9, split": {"compression": "zstd", "compression_level": 9, **SPLIT},
}


def relu(rows: int, dimension: int) -> np.ndarray[Any, Any]:
    """Pool the ReLU of random filters over 7 × 7 places, as a convolutional encoder does."""
    random = np.random.default_rng(0)
    weights = random.normal(0, 1, (64, dimension)).astype(np.float32)
    features = np.empty((rows, dimension), np.float32)
    for start in range(0, rows, SHARD):
        count = min(SHARD, rows - start)
        scene = random.normal(0, 1, (count, 1, 64)) + random.normal(0, 0.7, (count, 49, 64))
        active = np.maximum(scene.astype(np.float32) @ weights - 8, 0)
        features[start : start + count] = active.mean(1)
    return features


def smooth(rows: int, dimension: int) -> np.ndarray[Any, Any]:
    """Walk slowly from row to row, as features of consecutive frames do."""
    random = np.random.default_rng(0)
    steps = random.normal(0, 1e-3, (rows, dimension))
    return (np.cumsum(steps, 0) + random.normal(0, 1, dimension)).astype(np.float32)


def tables(features: np.ndarray[Any, Any]) -> list[pa.Table]:
    found = []
    for start in range(0, len(features), SHARD):
        values = features[start : start + SHARD]
        index = np.arange(start, start + len(values))
        records = {
            "index": index,
            "key": [f"class_{i % 100:02d}/{i:06d}.jpg" for i in index],
            "label": [f"class_{i % 100:02d}" for i in index],
            "split": ["valid"] * len(index),
        }
        found.append(pa.table(records).append_column("feature", as_column(values)))
    return found


def write(folder: Path, parts: list[pa.Table], settings: dict[str, Any]) -> None:
    text = ["key", "label", "split"]
    for number, part in enumerate(parts):
        pq.write_table(
            part,
            folder / f"part-{number:08d}.parquet",
            **{"use_dictionary": text, **settings},
            write_statistics=["index", *text],
            write_page_checksum=True,
        )


def by_duckdb(folder: Path) -> Any:
    return duckdb.sql(f"select sum(feature[1] + feature[-1]) from '{folder}/*.parquet'").fetchall()


def by_duckdb_whole(folder: Path) -> Any:
    return duckdb.sql(f"select index, label, feature from '{folder}/*.parquet'").to_arrow_table()


def by_polars(folder: Path) -> Any:
    return pl.read_parquet(f"{folder}/*.parquet")


def by_pandas(folder: Path) -> Any:
    return pd.read_parquet(folder)


def by_pyarrow(folder: Path) -> Any:
    return pq.read_table(folder)


READERS: dict[str, Callable[[Path], Any]] = {
    "duckdb sum": by_duckdb,
    "duckdb": by_duckdb_whole,
    "polars": by_polars,
    "pandas": by_pandas,
    "pyarrow": by_pyarrow,
}


def best(call: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dimension", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", required=True, help="a folder for the files")
    arguments = parser.parse_args()
    names = " | ".join(f"{name} s" for name in READERS)
    print(f"| features | settings | MB | write s | {names} |")
    print("|" + "---|" * (4 + len(READERS)))
    for kind in (relu, smooth):
        parts = tables(kind(arguments.rows, arguments.dimension))
        for name, settings in SETTINGS.items():
            folder = Path(arguments.work) / "settings"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            taken = best(lambda: write(folder, parts, settings), arguments.rounds)  # noqa: B023
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            reads = [best(lambda: r(folder), arguments.rounds) for r in READERS.values()]  # noqa: B023
            cells = [f"{size:.1f}", *(f"{seconds:.2f}" for seconds in (taken, *reads))]
            print(f"| {kind.__name__} | {name} | {' | '.join(cells)} |", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
