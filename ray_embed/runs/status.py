# SPDX-License-Identifier: Apache-2.0
"""What a run folder holds, and whether it is sound; imports neither TensorFlow nor Ray."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_embed import planning
from ray_embed.core.arrays import as_matrix
from ray_embed.core.uri import redact_uri
from ray_embed.encoders import artifacts
from ray_embed.errors import InputError, RunError
from ray_embed.runs import integrity
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder


@dataclass(frozen=True)
class Status:
    """The state of a run; counts are None where a stream's length is not known yet."""

    run: str
    fingerprint: str
    shards_done: int
    shards_planned: int | None
    records_planned: int | None
    rows: int
    rejects: int
    rejects_by_reason: dict[str, int]
    projector: bool
    problems: tuple[str, ...] = field(default=())
    verified: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give the state as plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Give the state as lines for a reader."""
        planned = "?" if self.shards_planned is None else self.shards_planned
        records = "?" if self.records_planned is None else self.records_planned
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejects_by_reason.items())
        lines = [
            f"run          {self.run}",
            f"shards       {self.shards_done} of {planned} done",
            f"records      {records} planned, {self.rows} embedded, {self.rejects} rejected"
            + (f" ({reasons})" if reasons else ""),
            f"projector    {'written' if self.projector else 'not written yet'}",
            f"fingerprint  {self.fingerprint}",
        ]
        if self.verified:
            lines.append(f"verified     {'sound' if not self.problems else 'NOT sound'}")
        return lines + [f"  {problem}" for problem in self.problems]


def read_status(run: str, *, verify: bool = False) -> Status:
    """Look at a run folder; with `verify` read all of it and list what is wrong.

    Raises:
        InputError: no run folder.
    """
    folder = Folder.open(run)
    about = manifest.read_run(folder)
    if about is None:
        raise InputError(
            f"{redact_uri(run)}: no such run folder, or its run is still being planned"
        )
    if "fingerprint" not in about:
        raise InputError(
            f"{redact_uri(run)}: its run is still being planned, or was stopped before; then run "
            "the command again"
        )
    outline = planning.load(folder)
    # Of one moment, as more may be done meanwhile.
    done = part_files.FinishedShards(folder)
    numbers = list(done)
    problems: list[str] = []
    reasons: dict[str, int] = {}
    rows = 0
    try:
        reasons = part_files.count_rejects(folder, done)
    except RunError as error:
        problems.append(str(error))
    for found in part_files.map_parts(folder, partial(_count_rows, folder), numbers):
        if isinstance(found, int):
            rows += found
        else:
            problems.append(found)
    if verify:
        problems = list(_find_problems(folder, about["fingerprint"], numbers, outline))
    return Status(
        redact_uri(run),
        about["fingerprint"],
        len(numbers),
        outline.shards,
        outline.records,
        rows,
        sum(reasons.values()),
        reasons,
        folder.exists(f"{layout.PROJECTOR}/{layout.PROJECTOR_CONFIG}"),
        tuple(problems),
        verify,
    )


def _count_rows(folder: Folder, number: int) -> int | str:
    """Give the rows of a part, or say what is wrong with it."""
    try:
        return part_files.read_footer(folder, number).rows
    except RunError as error:
        return str(error)


def _find_problems(
    folder: Folder, fingerprint: str, numbers: list[int], outline: planning.Plan
) -> Iterator[str]:
    """Read every part; yield what is wrong, in a sentence that names the part."""

    def of_one(number: int) -> list[str]:
        name = part_files.part_name(layout.FEATURES, number)
        try:
            return list(_find_part_problems(folder, fingerprint, number, outline))
        except RunError as error:
            return [str(error)]
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            return [f"{name}: cannot be compared with the plan: {error}"]

    for problems in part_files.map_parts(folder, of_one, numbers):
        yield from problems
    if not artifacts.is_intact(folder):
        name = folder.display_path(layout.ENCODER)
        yield f"{name}: it is gone or damaged; run again to write it"
    if outline.shards is not None and numbers != list(range(outline.shards)):
        missing = sorted(set(range(outline.shards)) - set(numbers))
        if missing:
            yield f"{len(missing)} shards are not done, the first is {missing[0]}"


def _find_part_problems(
    folder: Folder, fingerprint: str, number: int, outline: planning.Plan
) -> Iterator[str]:
    name = part_files.part_name(layout.FEATURES, number)
    about = part_files.read_footer(folder, number)
    table = part_files.read_part(folder, layout.FEATURES, number)
    kinds = [layout.FEATURES, layout.THUMBNAILS]
    rejected = pa.table({"index": pa.array([], pa.int64())})
    if folder.exists(part_files.part_name(layout.REJECTS, number)):
        kinds.append(layout.REJECTS)
        rejected = part_files.read_part(folder, layout.REJECTS, number)
    if folder.exists(part_files.part_name(layout.PCA, number)):
        kinds.append(layout.PCA)
    if (about.fingerprint, about.shard) != (fingerprint, number):
        yield f"{name}: belongs to another run or shard"
    if about.rejected != rejected.num_rows:
        yield f"{name}: its rejects are not the {about.rejected} there were"
    shard = _find_shard(folder, outline, number)
    if shard is None and outline.shards is not None:
        yield f"{name}: no such shard was planned"
    if shard is not None:
        records = planning.record_columns(
            outline, shard, planning.read_shard(folder, shard.split, shard.local)
        )
        yield from _compare_records(name, records, table, rejected)
    pictured = part_files.read_part(folder, layout.THUMBNAILS, number)["index"]
    if pictured.to_pylist() != table["index"].to_pylist():
        yield f"{name}: its thumbnails are of other records"
    for column in part_files.list_feature_columns(table.schema):
        if not np.isfinite(as_matrix(table[column])).all():
            yield f"{name}: {column} holds numbers that are not finite"
    for kind in kinds:
        part_files.read_part(folder, kind, number, [], fingerprint)
        if not integrity.is_as_written(folder, kind, number):
            yield f"{part_files.part_name(kind, number)}: its bytes are not those that were written"


def _compare_records(
    name: str, records: pa.Table, table: pa.Table, rejected: pa.Table
) -> Iterator[str]:
    """Compare the records of a part, and its rejects, with the planned ones."""
    planned, found = records["index"].to_pylist(), table["index"].to_pylist()
    if sorted(found + rejected["index"].to_pylist()) != planned:
        yield f"{name}: its records and rejects are not the {len(planned)} planned ones"
    elif found != sorted(found):
        yield f"{name}: its records are out of order"
    else:
        kept = records.filter(pc.is_in(records["index"], table["index"].combine_chunks()))
        # As text, in which NaN is the same as NaN.
        if repr(kept.to_pylist()) != repr(table.select(kept.column_names).to_pylist()):
            yield f"{name}: its keys, labels or metadata are not the planned ones"


def _find_shard(folder: Folder, outline: planning.Plan, number: int) -> planning.Shard | None:
    """Give the shard of a number; None where none was planned, or a stream before it goes on."""
    first = index = 0
    for split in outline.splits:
        local = number - first
        there = (
            folder.exists(split.file_of(local)) if split.shards is None else local < split.shards
        )
        if there:
            position = local * split.shard_size
            # Of a stream that has not ended, the last shard may have fewer.
            left = split.shard_size if split.records is None else split.records - position
            records = min(split.shard_size, left)
            return planning.Shard(number, split, local, index + position, position, records)
        if split.shards is None or split.records is None:
            return None
        first += split.shards
        index += split.records
    return None
