# SPDX-License-Identifier: Apache-2.0
"""Write the plan rows of datasets while they are read, and compare them with those of before."""

from collections.abc import Sequence

from ray_embed import planning
from ray_embed.core.console import say
from ray_embed.errors import InputError, StorageError
from ray_embed.planning import Plan, SplitPlan
from ray_embed.sources.base import ImageReader
from ray_embed.sources.dataset_shards import DatasetShard
from ray_embed.sources.indexed_records import IndexedReader, choose_probes
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder


def record_rows(folder: Folder, split: SplitPlan, local: int, shard: DatasetShard) -> None:
    """Write the plan rows of shard number `local`, or compare them if they exist already.

    Raises:
        InputError: the dataset yields other records than before.
    """
    first_difference = planning.write_shard(folder, split, local, shard.rows)
    if first_difference is not None:
        position = local * split.shard_size + first_difference
        raise explain_not_repeatable(split, f"now yields a different record {position}")


def check_indexed(
    folder: Folder, fresh: Plan, kept: Plan | None, readers: Sequence[ImageReader]
) -> None:
    """Compare the datasets that actors read by position with the plan of the run folder.

    Args:
        folder: the run folder.
        fresh: the new plan.
        kept: the plan of the run folder, or None if it is damaged.
        readers: what opens the images, by the ordinal of the split.

    Raises:
        InputError: a dataset has another length, or other records.
    """
    for split, reader in zip(fresh.splits, readers, strict=True):
        if isinstance(reader, IndexedReader):
            records = kept.splits[split.ordinal].records if kept else None
            _check_probes(folder, split, reader, records)


def _check_probes(
    folder: Folder, split: SplitPlan, reader: IndexedReader, records: int | None
) -> None:
    if records not in (None, reader.records):
        raise explain_not_repeatable(split, f"now has {reader.records} records, and had {records}")
    end = -(-reader.records // split.shard_size)
    if folder.exists(split.file_of(end)):
        raise explain_not_repeatable(split, f"now ends before record {end * split.shard_size}")
    for probe, position in enumerate(choose_probes(reader.records)):
        local, row = divmod(position, split.shard_size)
        try:
            planned = planning.read_shard(folder, split, local).slice(row, 1)
        except StorageError:
            # It is not there yet, or damaged and will be written again.
            continue
        # Compare as text, in which NaN equals NaN.
        if repr(planned.to_pylist()) != repr(reader.probes.slice(probe, 1).to_pylist()):
            raise explain_not_repeatable(split, f"now yields a different record {position}")


def discard_unplanned_shards(folder: Folder, plan: Plan, readers: Sequence[ImageReader]) -> None:
    """Delete the feature parts of shards whose plan rows are missing or damaged.

    Actors write the plan rows of these shards again when they extract them.
    """
    done = set(part_files.list_part_numbers(folder))
    first = 0
    for split, reader in zip(plan.splits, readers, strict=True):
        if split.shards is None:
            return
        for local in range(split.shards) if isinstance(reader, IndexedReader) else ():
            if first + local not in done:
                continue
            try:
                planning.read_shard(folder, split, local)
            except StorageError as error:
                say(f"{error}; shard {first + local} is extracted again")
                folder.delete(part_files.part_name(layout.FEATURES, first + local))
        first += split.shards


def explain_not_repeatable(split: SplitPlan, how: str) -> InputError:
    """Return the error for a dataset that yields other records than before."""
    return InputError(
        f"--source {split.name}={split.root}: the dataset {how}. It must yield the same records "
        "in the same order as when the run was started (is it shuffled without a fixed seed?). "
        "Fix the dataset, or start over with --overwrite"
    )
