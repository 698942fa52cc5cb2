# SPDX-License-Identifier: Apache-2.0
"""The planned records in a folder: a Parquet row group a shard, written, read and compared."""

import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed import labels
from ray_embed.filesystem import Folder
from ray_embed.plan.outline import Plan, Shard, SplitPlan


def write_streamed(folder: Folder, split: SplitPlan, local: int, rows: pa.Table) -> int | None:
    """Keep the plan rows of a streamed shard, or compare them with those kept before.

    Returns:
        The position within the shard of the first record that differs from the kept plan, or
        None where all is the same.
    """
    name = split.file_of(local)
    if not folder.exists(name):
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        folder.write(name, sink.getvalue().to_pybytes())
        return None
    kept = pq.read_table(folder.join(name), filesystem=folder.filesystem)
    if kept.equals(rows):
        return None
    pairs = zip(kept.to_pylist(), rows.to_pylist(), strict=False)
    differing = (at for at, (before, now) in enumerate(pairs) if _changed(before, now))
    if kept.num_rows == rows.num_rows:
        return next(differing, None)
    return next(differing, min(kept.num_rows, rows.num_rows))


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the columns in which two plan rows differ; NaN is the same as NaN."""
    return [
        name
        for name, was in before.items()
        if was != now.get(name) and (was == was or now.get(name) == now.get(name))
    ]


def read_shard(folder: Folder, split: SplitPlan, local: int) -> pa.Table:
    """Read the plan rows of the shard number `local` of a split."""
    with folder.filesystem.open_input_file(folder.join(split.file_of(local))) as stream:
        return pq.ParquetFile(stream).read_row_group(local % split.shards_a_file)


def copy_records(plan: Plan, source: Folder, target: Folder) -> None:
    """Copy the planned records of all listed splits to another folder; both are local."""
    for split in plan.splits:
        number = 0
        while source.exists(name := split.file_of(number)):
            with target.staged(name) as temporary:
                shutil.copyfile(source.join(name), temporary)
            number += split.shards_a_file


def record_columns(plan: Plan, shard: Shard, rows: pa.Table) -> pa.Table:
    """Give the columns of a part before its features, for all planned rows of a shard."""
    schema = plan.schema()
    count = rows.num_rows
    columns: dict[str, Any] = {
        "index": pa.array(range(shard.index, shard.index + count), pa.int64()),
        "key": rows["key"],
        "label": labels.cast(rows["label"].combine_chunks(), schema.field("label").type),
        "split": pa.array([shard.split.split] * count, pa.string()),
    }
    for name in plan.extras:
        columns[name] = rows[name] if name in rows.column_names else pa.nulls(count, pa.string())
    return pa.table(columns, schema=schema)


def first_difference(kept: Folder, fresh: Folder, before: SplitPlan, now: SplitPlan) -> str:
    """Say where two plans of a listed split part ways: the first key that differs, and how."""
    images = [(split.image_shape, split.image_dtype) for split in (before, now)]
    if images[0] != images[1]:
        return f"its images were {images[0]} and are now {images[1]}"
    for local in range(max(before.shards or 0, now.shards or 0)):
        rows = [
            read_shard(folder, split, local) if local < (split.shards or 0) else None
            for folder, split in ((kept, before), (fresh, now))
        ]
        old, new = ([] if table is None else table.to_pylist() for table in rows)
        for was, found in zip(old, new, strict=False):
            changed = [name for name in _changed(was, found) if name not in ("mtime", "path")]
            if was["key"] != found["key"]:
                return f"{was['key']!r} was planned where there is now {found['key']!r}"
            if changed:
                name = changed[0]
                return f"{was['key']!r}: {name} was {was[name]!r} and is now {found.get(name)!r}"
        if len(old) != len(new):
            longer, word = (old, "is gone") if len(old) > len(new) else (new, "has been added")
            return f"{longer[min(len(old), len(new))]['key']!r} {word}"
    return "the order of its records"
