# SPDX-License-Identifier: Apache-2.0
"""Write, read and compare the planned records in a folder, one Parquet row group per shard."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.errors import InputError, StorageError, get_first_line
from ray_embed.planning.plan import Plan, Shard, SplitPlan
from ray_embed.sources import label_schema
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.retry import is_storage_error


def write_shard(folder: Folder, split: SplitPlan, local: int, rows: pa.Table) -> int | None:
    """Write the plan rows of a sequential shard, or compare them with previously written rows.

    Returns:
        The position within the shard of the first record that differs from the written plan, or
        None if all are the same.
    """
    name = split.file_of(local)
    written = _read_undamaged(folder, name)
    if written is None:
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, write_page_checksum=True)
        folder.write(name, sink.getvalue().to_pybytes())
        return None
    if written.equals(rows):
        return None
    pairs = zip(written.to_pylist(), rows.to_pylist(), strict=False)
    differing = (i for i, (before, now) in enumerate(pairs) if _find_changed_columns(before, now))
    if written.num_rows == rows.num_rows:
        return next(differing, None)
    return next(differing, min(written.num_rows, rows.num_rows))


def _find_changed_columns(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the columns in which two plan rows differ, treating NaN as equal to NaN."""
    return [
        name
        for name, was in before.items()
        if was != now.get(name) and (was == was or now.get(name) == now.get(name))
    ]


def read_shard(folder: Folder, split: SplitPlan, local: int) -> pa.Table:
    """Read the plan rows of shard number `local` of a split.

    Raises:
        StorageError: the rows cannot be read.
    """
    name = split.file_of(local)

    def read(stream: pa.NativeFile) -> pa.Table:
        part = pq.ParquetFile(stream, page_checksum_verification=True)
        return part.read_row_group(local % split.shards_per_file)

    try:
        return folder.read_with(name, read)
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        raise StorageError(
            f"{folder.display_path(name)}: cannot be read: {get_first_line(error)}"
        ) from error


def copy_records(plan: Plan, source: Folder, target: Folder) -> None:
    """Copy the planned records from a local folder to another folder."""
    for split in plan.splits:
        for name in _list_files(split, source):
            target.put(Path(source.join(name)), name)


def renew_records(fresh: Plan, kept: Plan, source: Folder, target: Folder) -> None:
    """Compare newly planned records with the run folder's, and replace the latter.

    Both plans have the same records, but files of the run folder may be damaged, and images may
    have moved.

    Args:
        fresh: the new plan.
        kept: the plan of the run folder.
        source: the folder with the newly planned records.
        target: the run folder.

    Raises:
        InputError: the modification time of an image that was not moved has changed.
    """
    roots = {split.ordinal: split.root for split in kept.splits}
    for split in fresh.splits:
        moved = roots.get(split.ordinal) != split.root
        for name in _list_files(split, source):
            if target.exists(name) and target.read(name) == source.read(name):
                continue
            before = _read_undamaged(target, name)
            if before is not None and not moved:
                now = pq.read_table(source.join(name), filesystem=source.filesystem)
                _refuse_changed(split, before, now)
            target.put(Path(source.join(name)), name)


def _list_files(split: SplitPlan, source: Folder) -> Iterator[str]:
    number = 0
    while source.exists(name := split.file_of(number)):
        yield name
        number += split.shards_per_file


def _read_undamaged(folder: Folder, name: str) -> pa.Table | None:
    """Read a plan file; return None if it is missing or damaged."""
    if not folder.exists(name):
        return None
    try:
        return folder.read_with(
            name, lambda stream: pq.read_table(stream, page_checksum_verification=True)
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        if is_storage_error(error) and not folder.is_local:
            raise StorageError(f"{folder.display_path(name)}: cannot be read: {error}") from error
        return None


def _refuse_changed(split: SplitPlan, before: pa.Table, now: pa.Table) -> None:
    """Refuse records of a plan file that differ from the newly planned ones."""
    for old, new in zip(before.to_pylist(), now.to_pylist(), strict=False):
        # Compare as text, in which NaN equals NaN.
        if repr(old) != repr(new):
            raise InputError(
                f"--source {split.name}={split.root}: {new['key']!r} has changed since the run "
                "was planned; restore what was there (with its time), or start again with "
                "--overwrite"
            )


def make_record_columns(plan: Plan, shard: Shard, rows: pa.Table) -> pa.Table:
    """Return the columns that come before the features in a part, for a shard's planned rows."""
    schema = plan.schema()
    count = rows.num_rows
    columns: dict[str, Any] = {
        "index": pa.array(range(shard.index, shard.index + count), pa.int64()),
        "key": rows["key"],
        "label": label_schema.cast_labels(
            rows["label"].combine_chunks(), schema.field("label").type
        ),
        "split": pa.array([shard.split.name] * count, pa.string()),
    }
    for name in plan.extras:
        columns[name] = rows[name] if name in rows.column_names else pa.nulls(count, pa.string())
    return pa.table(columns, schema=schema)


def describe_difference(kept: Folder, fresh: Folder, before: SplitPlan, now: SplitPlan) -> str:
    """Describe the first difference between two plans of a split: the key, and what differs."""
    images = [(split.image_shape, split.image_dtype) for split in (before, now)]
    if images[0] != images[1]:
        return f"its images were {images[0]} and are now {images[1]}"
    pairs = itertools.zip_longest(_iterate_rows(kept, before), _iterate_rows(fresh, now))
    for old, new in pairs:
        if old is None or new is None:
            return f"{(old or new)['key']!r} {'has been added' if old is None else 'is gone'}"
        if old["key"] != new["key"]:
            return f"{old['key']!r} was planned where there is now {new['key']!r}"
        for name in _find_changed_columns(old, new):
            if name not in ("mtime", "path"):
                emptied = (name, old[name], new.get(name)) == ("label", "", None)
                hint = "; --empty-label keep takes empty labels as before" if emptied else ""
                return (
                    f"{old['key']!r}: {name} was {old[name]!r} and is now {new.get(name)!r}{hint}"
                )
    # The digest has the types of the columns, and the checksum of arrays.
    return "its images" if now.image_shape else "the types of its labels or metadata"


def _iterate_rows(folder: Folder, split: SplitPlan) -> Iterator[dict[str, Any]]:
    for local in range(split.shards or 0):
        yield from read_shard(folder, split, local).to_pylist()
