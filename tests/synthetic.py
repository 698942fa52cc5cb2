# SPDX-License-Identifier: Apache-2.0
"""Run folders with given features, labels and pictures, written without an encoder or Ray."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import description, labels, plan, store, thumbnail
from ray_embed.filesystem import Folder
from ray_embed.matrix import as_column

FINGERPRINT = "f" * 16
_SHARD = 512


def write_run(
    out: str | Path,
    layers: Mapping[str, np.ndarray],
    classes: Sequence[Any],
    *,
    splits: Mapping[str, int] | None = None,
    keys: Sequence[str] | None = None,
    label_type: pa.DataType | None = None,
    limit: int = 100_000,
    fingerprint: str = FINGERPRINT,
    pictures: Sequence[np.ndarray] | None = None,
    missing: int = 0,
) -> None:
    """Write a run folder of the features `layers[name]` (N, D), N labels, and N pictures.

    `splits` has the number of records of each split, in order. The last `missing` shards are not
    done.
    """
    folder = Folder.at(str(out))
    label_type = label_type or pa.array(classes).type
    columns = {name: "feature" if len(layers) == 1 else f"feature_{name}" for name in layers}
    outputs = [
        {"layer": name, "column": columns[name], "dimension": values.shape[1]}
        for name, values in layers.items()
    ]
    description.write_run(
        folder,
        {
            "fingerprint": fingerprint,
            "config": {"projector_limit": limit},
            "encoder": {"outputs": outputs},
        },
        "0",
    )
    splits = splits or {"valid": len(classes)}
    made = [
        plan.SplitPlan(at, name, "list", "", str(label_type), (), _SHARD, 256, records=count)
        for at, (name, count) in enumerate(splits.items())
    ]
    outline = plan.Plan(tuple(made), str(label_type), ())
    plan.save(folder, outline)
    number = start = 0
    for split, count in splits.items():
        for first in range(start, start + count, _SHARD):
            rows = slice(first, min(first + _SHARD, start + count))
            index = np.arange(rows.start, rows.stop)
            if number < (outline.shards or 0) - missing:
                part = _part(number, split, index, columns, layers, classes, keys, label_type)
                pngs = [thumbnail.encode_png(_picture(pictures, at)) for at in index]
                thumbs = pa.table([index, pngs], schema=store.THUMBNAIL_SCHEMA)
                none = store.REJECT_SCHEMA.empty_table()
                store.commit(
                    folder, store.Part(number, part, none, thumbs), fingerprint, len(index)
                )
            number += 1
        start += count


def _part(
    number: int,
    split: str,
    index: np.ndarray,
    columns: Mapping[str, str],
    layers: Mapping[str, np.ndarray],
    classes: Sequence[Any],
    keys: Sequence[str] | None,
    label_type: pa.DataType,
) -> pa.Table:
    names = [keys[at] if keys else f"{split}/{at:05d}.png" for at in index]
    own = [index, names, pa.array([classes[at] for at in index], label_type), [split] * len(index)]
    table = pa.table(own, schema=labels.record_schema(label_type, []))
    for name, values in layers.items():
        column = as_column(values[index].astype(np.float32))
        table = table.append_column(columns[name], column)
    return table


def _picture(pictures: Sequence[np.ndarray] | None, at: int) -> np.ndarray:
    if pictures is not None:
        return pictures[at]
    return np.random.default_rng(at).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def clusters(
    classes: int, records: int, dimensions: int = 16, spread: float = 0.6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Make features (N, D) float32 of classes (N,), of which the first have the most records."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, classes + 1) ** 0.5
    codes = random.choice(classes, records, p=weights / weights.sum())
    middles = random.normal(0, 1, (classes, dimensions))
    features = middles[codes] + random.normal(0, spread, (records, dimensions))
    return np.abs(features).astype(np.float32), codes
