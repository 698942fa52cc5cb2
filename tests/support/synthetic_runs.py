# SPDX-License-Identifier: Apache-2.0
"""Write run folders of given features, labels and pictures, as an extraction would."""

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
    """Write a run folder without an encoder or Ray, and return its path.

    Args:
        path: the folder, a path or URI.
        features: (N, D), or a mapping from the layers to their features.
        values: the labels; seven classes by default.
        splits: the split of each record, with the records of a split next to each other; "valid"
            by default.
        label_type: the type of the labels, if it does not follow from the values.
        pictures: (h, w, 1 or 3) uint8 each; noise by default.
        keys: the keys; numbered names by default.
        rejected: positions of rejected records.
        missing: the number of shards at the end that are not finished.
        shard: records per shard.
        limit: the most points on TensorBoard's page.
        fingerprint: the fingerprint of the run.
    """
    layers = features if isinstance(features, Mapping) else {"top": features}
    columns = {name: f"feature_{name}" if len(layers) > 1 else "feature" for name in layers}
    count = len(next(iter(layers.values())))
    values = [f"class {number % 7}" for number in range(count)] if values is None else list(values)
    label_type = label_type or pa.array(values).type
    splits = splits or ["valid"] * count
    records = pa.table(
        [
            np.arange(count),
            list(keys or [f"{number:04d}.png" for number in range(count)]),
            pa.array(values, label_type),
            list(splits),
        ],
        schema=label_schema.make_record_schema(label_type, []),
    )
    for name, matrix in layers.items():
        records = records.append_column(columns[name], as_column(matrix.astype(np.float32)))
    folder = Folder.open(str(path))
    lengths = {name: len(list(group)) for name, group in groupby(splits)}
    assert sum(lengths.values()) == count, "the records of a split must be next to each other"
    plan = planning.Plan(
        tuple(
            planning.SplitPlan(
                ordinal=number,
                name=name,
                root="/",
                label_type=str(label_type),
                extras=(),
                shard_size=shard,
                shards_per_file=64,
                records=length,
            )
            for number, (name, length) in enumerate(lengths.items())
        ),
        str(label_type),
        (),
    )
    planning.save(folder, plan)
    noise = np.random.default_rng(9).integers(0, 256, (count, 8, 8, 1), np.uint8)
    pictures = noise if pictures is None else pictures
    planned = list(_shards(lengths, shard))
    for number, index in enumerate(planned[: len(planned) - missing]):
        part = _part(number, records, index, rejected, pictures)
        owner = part_files.Owner(fingerprint, fingerprint)
        part_files.write_part(folder, part, owner, len(index))
    outputs = [
        {"layer": name, "column": columns[name], "dimension": matrix.shape[1]}
        for name, matrix in layers.items()
    ]
    content = {
        "fingerprint": fingerprint,
        "config": {"projector_limit": limit},
        "encoder": {"outputs": outputs},
    }
    manifest.write_run(folder, content, "0")
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
    is_rejected = np.isin(index, list(rejected))
    kept, rejects = index[~is_rejected], index[is_rejected]
    reject_table = records.take(pa.array(rejects)).select(["index", "key", "split"])
    reasons = pa.array(["not an image"] * len(rejects), pa.string())
    pngs = pa.array([encode_png(pictures[record]) for record in kept], pa.binary())
    return part_files.Part(
        number,
        records.take(pa.array(kept)),
        reject_table.append_column("reason", reasons).cast(part_files.REJECT_SCHEMA),
        pa.table([pa.array(kept, pa.int64()), pngs], part_files.THUMBNAIL_SCHEMA),
    )


def make_subset(
    features: np.ndarray,
    values: Sequence[Any],
    splits: Sequence[str] | None = None,
    label_type: pa.DataType | None = None,
) -> Subset:
    """Return records in memory; all are of one split by default."""

    def to_objects(items: Sequence[Any]) -> np.ndarray:
        array = np.empty(len(items), object)
        array[:] = list(items)
        return array

    count = len(features)
    return Subset(
        features=np.asarray(features, np.float32),
        index=np.arange(count),
        keys=to_objects([f"{number:04d}.png" for number in range(count)]),
        labels=to_objects(values),
        splits=to_objects(splits or ["all"] * count),
        label_type=label_type or pa.array(list(values)).type,
        total=count,
    )


def clusters(
    classes: int, records: int, dimensions: int = 16, spread: float = 0.6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Make features (N, D) float32 and their classes (N,); the first classes have most records."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, classes + 1) ** 0.5
    codes = random.choice(classes, records, p=weights / weights.sum())
    centers = random.normal(0, 1, (classes, dimensions))
    features = centers[codes] + random.normal(0, spread, (records, dimensions))
    return np.abs(features).astype(np.float32), codes
