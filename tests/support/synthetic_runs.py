# SPDX-License-Identifier: Apache-2.0
"""Run folders of given features, labels and pictures, as an extraction would leave them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import planning
from ray_embed.core.arrays import as_column
from ray_embed.images.thumbnails import encode_png
from ray_embed.runs.sampling import Subset
from ray_embed.sources import label_schema
from ray_embed.storage import manifest, part_files
from ray_embed.storage.filesystem import Folder

SHARD = 64
FINGERPRINT = "f" * 64


def make_run(
    path: Path | str,
    features: np.ndarray | Mapping[str, np.ndarray],
    values: Sequence[Any] | None = None,
    splits: Sequence[str] | None = None,
    label_type: pa.DataType | None = None,
    *,
    pictures: Sequence[np.ndarray] | None = None,
    keys: Sequence[str] | None = None,
    rejected: Collection[int] = (),
    missing: int = 0,
    shard: int = SHARD,
    limit: int = 100_000,
    fingerprint: str = FINGERPRINT,
) -> Path | str:
    """Write a run folder without an encoder or Ray; gives its path.

    Args:
        path: the folder, a path or URI.
        features: (N, D), or those of each layer by its name.
        values: the labels; seven classes where none are given.
        splits: of each record; those of a split are next to each other. "valid" where not given.
        label_type: of the labels, where they are None or it is not plain.
        pictures: (h, w, 1 or 3) uint8 each; without them each is of noise of its own.
        keys: by number where not given.
        rejected: positions of the records that are set aside.
        missing: so many of the last shards are not done.
        shard: records a shard.
        limit: the points that TensorBoard's page is given.
        fingerprint: of the run.
    """
    layers = features if isinstance(features, Mapping) else {"top": features}
    columns = {name: f"feature_{name}" if len(layers) > 1 else "feature" for name in layers}
    count = len(next(iter(layers.values())))
    values = [f"class {at % 7}" for at in range(count)] if values is None else list(values)
    label_type = label_type or pa.array(values).type
    splits = splits or ["valid"] * count
    records = pa.table(
        [
            np.arange(count),
            list(keys or [f"{at:04d}.png" for at in range(count)]),
            pa.array(values, label_type),
            list(splits),
        ],
        schema=label_schema.record_schema(label_type, []),
    )
    for name, of_layer in layers.items():
        records = records.append_column(columns[name], as_column(of_layer.astype(np.float32)))
    folder = Folder.open(str(path))
    lengths = {name: len(list(same)) for name, same in groupby(splits)}
    assert sum(lengths.values()) == count, "the records of a split must be next to each other"
    outline = planning.Plan(
        tuple(
            planning.SplitPlan(
                at, name, "files", "/", str(label_type), (), shard, 64, records=length
            )
            for at, (name, length) in enumerate(lengths.items())
        ),
        str(label_type),
        (),
    )
    planning.save(folder, outline)
    noise = np.random.default_rng(9).integers(0, 256, (count, 8, 8, 1), np.uint8)
    pictures = noise if pictures is None else pictures
    planned = list(_shards(lengths, shard))
    for number, index in enumerate(planned[: len(planned) - missing]):
        part = _part(number, records, index, rejected, pictures)
        part_files.write_part(folder, part, fingerprint, len(index))
    outputs = [
        {"layer": name, "column": columns[name], "dimension": of_layer.shape[1]}
        for name, of_layer in layers.items()
    ]
    about = {
        "fingerprint": fingerprint,
        "config": {"projector_limit": limit},
        "encoder": {"outputs": outputs},
    }
    manifest.write_run(folder, about, "0")
    return path


def _shards(lengths: Mapping[str, int], shard: int) -> Iterator[np.ndarray]:
    start = 0
    for length in lengths.values():
        for first in range(start, start + length, shard):
            yield np.arange(first, min(first + shard, start + length))
        start += length


def _part(
    number: int,
    records: pa.Table,
    index: np.ndarray,
    rejected: Collection[int],
    pictures: Sequence[np.ndarray],
) -> part_files.Part:
    is_gone = np.isin(index, list(rejected))
    kept, gone = index[~is_gone], index[is_gone]
    aside = records.take(pa.array(gone)).select(["index", "key", "split"])
    reasons = pa.array(["not an image"] * len(gone), pa.string())
    pngs = pa.array([encode_png(pictures[at]) for at in kept], pa.binary())
    return part_files.Part(
        number,
        records.take(pa.array(kept)),
        aside.append_column("reason", reasons).cast(part_files.REJECT_SCHEMA),
        pa.table([pa.array(kept, pa.int64()), pngs], part_files.THUMBNAIL_SCHEMA),
    )


def make_subset(
    features: np.ndarray,
    values: Sequence[Any],
    splits: Sequence[str] | None = None,
    label_type: pa.DataType | None = None,
) -> Subset:
    """Give records in memory; of one split where none is given."""

    def objects(given: Sequence[Any]) -> np.ndarray:
        found = np.empty(len(given), object)
        found[:] = list(given)
        return found

    count = len(features)
    return Subset(
        np.asarray(features, np.float32),
        np.arange(count),
        objects([f"{at:04d}.png" for at in range(count)]),
        objects(values),
        objects(splits or ["all"] * count),
        label_type or pa.array(list(values)).type,
        count,
    )


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
