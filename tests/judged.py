# SPDX-License-Identifier: Apache-2.0
"""Run folders of given features, labels and pictures, as an extraction would leave them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import description, plan, store
from ray_embed.filesystem import Folder
from ray_embed.matrix import as_column
from ray_embed.subset import Subset
from ray_embed.thumbnail import encode_png

SHARD = 64
FINGERPRINT = "f" * 64


def make_run(
    path: Path,
    features: np.ndarray | dict[str, np.ndarray],
    labels: Sequence[Any],
    splits: Sequence[str],
    label_type: pa.DataType | None = None,
    pictures: Sequence[np.ndarray] | None = None,
    keys: Sequence[str] | None = None,
) -> Path:
    """Write a run folder; features (N, D) float32, or those of each layer by its name.

    `pictures` are (h, w, 1 or 3) uint8 each; without them each is of noise of its own. The records
    of a split are next to each other.
    """
    layers = features if isinstance(features, dict) else {"top": features}
    columns = {name: f"feature_{name}" if len(layers) > 1 else "feature" for name in layers}
    label_type = label_type or pa.array(list(labels)).type
    if pictures is None:
        noise = np.random.default_rng(9).integers(0, 256, (len(labels), 8, 8, 1), np.uint8)
        pictures = list(noise)
    keys = keys or [f"{at:04d}.png" for at in range(len(labels))]
    folder = Folder.at(str(path))
    for number, start in enumerate(range(0, len(labels), SHARD)):
        rows = slice(start, start + SHARD)
        index = np.arange(len(labels))[rows]
        table = pa.table(
            {
                "index": pa.array(index),
                "key": list(keys[rows]),
                "label": pa.array(list(labels[rows]), label_type),
                "split": list(splits[rows]),
                **{columns[name]: as_column(values[rows]) for name, values in layers.items()},
            }
        )
        pngs = pa.array([encode_png(one) for one in pictures[rows]], pa.binary())
        thumbs = pa.table([pa.array(index), pngs], store.THUMBNAIL_SCHEMA)
        rejects = store.REJECT_SCHEMA.empty_table()
        store.commit(folder, store.Part(number, table, rejects, thumbs), FINGERPRINT, len(index))
    planned = plan.SplitPlan(
        0, splits[0], "files", "/", str(label_type), (), SHARD, 64, records=len(labels)
    )
    plan.save(folder, plan.Plan((planned,), str(label_type), ()))
    outputs = [
        {"layer": name, "column": columns[name], "dimension": values.shape[1]}
        for name, values in layers.items()
    ]
    about = {
        "fingerprint": FINGERPRINT,
        "config": {"projector_limit": 100_000},
        "encoder": {"outputs": outputs},
    }
    description.write_run(folder, about, "0")
    return path


def make_subset(
    features: np.ndarray,
    labels: Sequence[Any],
    splits: Sequence[str] | None = None,
    label_type: pa.DataType | None = None,
) -> Subset:
    """Give records in memory; of one split where none is given."""

    def objects(values: Sequence[Any]) -> np.ndarray:
        found = np.empty(len(values), object)
        found[:] = list(values)
        return found

    count = len(features)
    return Subset(
        np.asarray(features, np.float32),
        np.arange(count),
        objects([f"{at:04d}.png" for at in range(count)]),
        objects(labels),
        objects(splits or ["all"] * count),
        label_type or pa.array(list(labels)).type,
        count,
    )
