# SPDX-License-Identifier: Apache-2.0
"""Read the state of a run, and verify its files. Imports neither TensorFlow nor Ray."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_embed import planning
from ray_embed.core.arrays import as_matrix
from ray_embed.core.text_table import align
from ray_embed.core.uri import redact_uri
from ray_embed.encoders import artifacts
from ray_embed.errors import InputError, RunError
from ray_embed.runs import integrity
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of a run. Planned counts are None while the length of a dataset is unknown."""

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
        """Return the state as JSON-like data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the state as lines of text."""
        planned = "?" if self.shards_planned is None else self.shards_planned
        records = "?" if self.records_planned is None else self.records_planned
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejects_by_reason.items())
        counts = f"{records} planned, {self.rows} embedded, {self.rejects} rejected"
        rows = [
            ("run", self.run),
            ("shards", f"{self.shards_done} of {planned} done"),
            ("records", f"{counts} ({reasons})" if reasons else counts),
            ("projector", "written" if self.projector else "not written yet"),
            ("fingerprint", self.fingerprint),
        ]
        if self.verified:
            rows.append(("verified", "problems found" if self.problems else "no problems"))
        return [*align(rows), *(f"  {problem}" for problem in self.problems)]


def read_status(run: str, *, verify: bool = False) -> Status:
    """Read the state of a run.

    Args:
        run: the run folder, a path or URI.
        verify: whether to read all files and list all problems.

    Raises:
        InputError: `run` is not a run folder.
    """
    folder = Folder.open(run)
    content = manifest.read_run(folder)
    if content is None:
        raise InputError(
            f"{redact_uri(run)}: no such run folder, or its run is still being planned"
        )
    if "fingerprint" not in content:
        raise InputError(
            f"{redact_uri(run)}: its run is still being planned, or was stopped during that; if it "
            "was stopped, run the command again"
        )
    plan = planning.load(folder)
    # List the shards once, because more of them may finish meanwhile.
    done = part_files.FinishedShards(folder)
    numbers = list(done)
    problems: list[str] = []
    reasons: dict[str, int] = {}
    rows = 0
    try:
        reasons = part_files.count_rejects(folder, done)
    except RunError as error:
        problems.append(str(error))
    for result in part_files.map_parts(folder, partial(_count_rows, folder), numbers):
        if isinstance(result, int):
            rows += result
        else:
            problems.append(result)
    if verify:
        owner = part_files.Owner(
            content["fingerprint"], manifest.get_thumbnail_fingerprint(content)
        )
        problems = list(_find_problems(folder, owner, numbers, plan))
    return Status(
        run=redact_uri(run),
        fingerprint=content["fingerprint"],
        shards_done=len(numbers),
        shards_planned=plan.shards,
        records_planned=plan.records,
        rows=rows,
        rejects=sum(reasons.values()),
        rejects_by_reason=reasons,
        projector=folder.exists(f"{layout.PROJECTOR}/{layout.PROJECTOR_CONFIG}"),
        problems=tuple(problems),
        verified=verify,
    )


def _count_rows(folder: Folder, number: int) -> int | str:
    """Return the number of rows of a part, or what is wrong with it."""
    try:
        return part_files.read_footer(folder, number).rows
    except RunError as error:
        return str(error)


def _find_problems(
    folder: Folder, owner: part_files.Owner, numbers: list[int], plan: planning.Plan
) -> Iterator[str]:
    """Read all parts, and yield problems as sentences that name the part."""

    def check_part(number: int) -> list[str]:
        name = part_files.part_name(layout.FEATURES, number)
        try:
            return list(_find_part_problems(folder, owner, number, plan))
        except RunError as error:
            return [str(error)]
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            return [f"{name}: cannot be compared with the plan: {error}"]

    for problems in part_files.map_parts(folder, check_part, numbers):
        yield from problems
    if not artifacts.is_intact(folder):
        name = folder.display_path(layout.ENCODER)
        yield f"{name}: it is missing or damaged; run again to write it"
    if plan.shards is not None and numbers != list(range(plan.shards)):
        missing = sorted(set(range(plan.shards)) - set(numbers))
        if missing:
            yield f"{len(missing)} shards are not done, the first is {missing[0]}"


def _find_part_problems(
    folder: Folder, owner: part_files.Owner, number: int, plan: planning.Plan
) -> Iterator[str]:
    name = part_files.part_name(layout.FEATURES, number)
    footer = part_files.read_footer(folder, number)
    table = part_files.read_part(folder, layout.FEATURES, number)
    kinds = [layout.FEATURES, layout.THUMBNAILS]
    rejected = pa.table({"index": pa.array([], pa.int64())})
    if folder.exists(part_files.part_name(layout.REJECTS, number)):
        kinds.append(layout.REJECTS)
        rejected = part_files.read_part(folder, layout.REJECTS, number)
    if folder.exists(part_files.part_name(layout.PCA, number)):
        kinds.append(layout.PCA)
    if (footer.fingerprint, footer.shard) != (owner.features, number):
        yield f"{name}: it belongs to another run or shard"
    if footer.rejected != rejected.num_rows:
        yield f"{name}: {rejected.num_rows} of its {footer.rejected} rejected records are listed"
    shard = _find_shard(folder, plan, number)
    if shard is None and plan.shards is not None:
        yield f"{name}: the plan has no such shard"
    if shard is not None:
        records = planning.make_record_columns(
            plan, shard, planning.read_shard(folder, shard.split, shard.local)
        )
        yield from _compare_records(name, records, table, rejected)
    thumbnails = part_files.read_part(folder, layout.THUMBNAILS, number)["index"]
    if thumbnails.to_pylist() != table["index"].to_pylist():
        yield f"{name}: its thumbnails are those of other records"
    for column in part_files.list_feature_columns(table.schema):
        if not np.isfinite(as_matrix(table[column])).all():
            yield f"{name}: {column} holds numbers that are not finite"
    for kind in kinds:
        fingerprint = owner.thumbnails if kind == layout.THUMBNAILS else owner.features
        part_files.read_part(folder, kind, number, [], fingerprint)
        if not integrity.is_as_written(folder, kind, number):
            yield f"{part_files.part_name(kind, number)}: its bytes differ from what was written"


def _compare_records(
    name: str, records: pa.Table, table: pa.Table, rejected: pa.Table
) -> Iterator[str]:
    """Compare the records and rejects of a part with the plan, and yield problems."""
    planned, embedded = records["index"].to_pylist(), table["index"].to_pylist()
    if sorted(embedded + rejected["index"].to_pylist()) != planned:
        yield f"{name}: its records and rejects are not the {len(planned)} planned ones"
    elif embedded != sorted(embedded):
        yield f"{name}: its records are out of order"
    else:
        kept = records.filter(pc.is_in(records["index"], table["index"].combine_chunks()))
        # Compare as text, in which NaN equals NaN.
        if repr(kept.to_pylist()) != repr(table.select(kept.column_names).to_pylist()):
            yield f"{name}: its keys, labels or metadata are not the planned ones"


def _find_shard(folder: Folder, plan: planning.Plan, number: int) -> planning.Shard | None:
    """Return a shard by its number, or None if it is not planned or not planned yet."""
    first = index = 0
    for split in plan.splits:
        local = number - first
        exists = (
            folder.exists(split.file_of(local)) if split.shards is None else local < split.shards
        )
        if exists:
            position = local * split.shard_size
            # Until the end of a dataset is reached, its last shard may have fewer records.
            remaining = split.shard_size if split.records is None else split.records - position
            records = min(split.shard_size, remaining)
            return planning.Shard(
                number=number,
                split=split,
                local=local,
                index=index + position,
                records=records,
            )
        if split.shards is None or split.records is None:
            return None
        first += split.shards
        index += split.records
    return None
