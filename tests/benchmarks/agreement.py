# SPDX-License-Identifier: Apache-2.0
"""Whether two sides gave the same features, by key: within 1e-5*|g| + 1e-5*max|g|."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

RELATIVE, ABSOLUTE = 1e-5, 1e-5

Features = tuple[list[str], np.ndarray]


def read_loop(folder: Path) -> Features:
    """Keys and features of the loop, by key."""
    keys = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
    return keys, np.load(folder / "features.npy")


def read_run(folder: Path) -> Features:
    """Keys and features of a run folder, by key; ValueError where rows are not what they say."""
    parts = sorted((folder / "features").glob("*.parquet"))
    if not parts:
        raise ValueError(f"no parts in {folder / 'features'}")
    keys: list[str] = []
    indices: list[int] = []
    blocks: list[np.ndarray] = []
    for part in parts:
        rows: Any = pq.read_table(part, columns=["index", "key", "feature"])
        if rows.num_rows == 0:
            continue
        keys += rows["key"].to_pylist()
        indices += rows["index"].to_pylist()
        values = rows["feature"].combine_chunks().flatten().to_numpy()
        blocks.append(values.reshape(rows.num_rows, -1))
    if indices != list(range(len(indices))):
        raise ValueError(f"{folder}: the indices of the rows are not 0, 1, 2, …")
    if not blocks:
        raise ValueError(f"{folder}: no rows")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [keys[i] for i in order], np.concatenate(blocks)[order]


def violation(features: np.ndarray, expected: np.ndarray) -> float:
    """The largest |f-g| in units of what is allowed: at most 1 is agreement."""
    if features.shape != expected.shape:
        raise ValueError(f"shapes differ: {features.shape} and {expected.shape}")
    f, g = features.astype(np.float64), expected.astype(np.float64)
    allowed = RELATIVE * np.abs(g) + ABSOLUTE * np.abs(g).max()
    difference = np.abs(f - g)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.where(difference == 0, 0.0, difference / allowed)
    return float(np.nan_to_num(units, nan=np.inf, posinf=np.inf).max())


def read_ray_data(folder: Path) -> Features:
    """Keys and features of what ray_data_job.py wrote, by key."""
    rows: Any = pq.read_table(folder, columns=["key", "feature"]).sort_by("key")
    features = rows["feature"].combine_chunks().flatten().to_numpy()
    return rows["key"].to_pylist(), features.reshape(rows.num_rows, -1)


READERS: dict[str, Callable[[Path], Features]] = {
    "loop": read_loop,
    "ray-embed": read_run,
    "ray-data": read_ray_data,
}


def distance(side: str, folder: Path, expected: Features) -> float:
    """How far a side's features are from the expected ones, in units of what is allowed.

    Raises:
        ValueError: the keys or shapes differ, or the rows of a run are not what they say.
    """
    keys, features = READERS[side](folder)
    if keys != expected[0]:
        different = sorted(set(keys) ^ set(expected[0]))[:3]
        raise ValueError(f"{len(keys)} and {len(expected[0])} keys, differing: {different}")
    return violation(features, expected[1])


def distance_of_some(side: str, folder: Path, count: int, expected: Features) -> float:
    """The same where the expected ones are some of `count` keys.

    Raises:
        ValueError: there are not `count` different keys, or one of the expected ones is missing.
    """
    keys, features = READERS[side](folder)
    rows = {key: row for row, key in enumerate(keys)}
    missing = [key for key in expected[0] if key not in rows]
    if missing or len(rows) != count or len(keys) != count:
        raise ValueError(
            f"{len(keys)} keys, {len(rows)} different ones of {count}; no {missing[:3]}"
        )
    return violation(features[[rows[key] for key in expected[0]]], expected[1])
