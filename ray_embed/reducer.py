# SPDX-License-Identifier: Apache-2.0
"""Merges the parts, in the order of the shards, into the projector's files."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_embed import plan, projector, sample, store
from ray_embed.errors import InputError, RunError
from ray_embed.filesystem import TEMPORARY, Folder
from ray_embed.matrix import Matrix, as_matrix

PROJECTOR = "projector"
METADATA, SAMPLE = "metadata.tsv", "sample.tsv"
# Boundaries of slices follow from the plan, so that the bytes do: whole parts, about this much.
_SLICE_BYTES = 64 << 20


@dataclass(frozen=True)
class _Group:
    """Consecutive parts that become one slice of each variable."""

    parts: tuple[int, ...]
    start: int
    rows: int


@dataclass(frozen=True)
class _Merge:
    """The parts to be merged, read a few at a time; `drawn` is the rows taken of each part."""

    folder: Folder
    groups: tuple[_Group, ...]
    columns: tuple[str, ...]
    records: tuple[str, ...]
    points: int

    def slices(self, drawn: list[sample.Rows] | None) -> Iterator[projector.Slice]:
        """Give each group's slice of each variable, and of its sample."""
        start = first = 0
        for group in self.groups:
            rows = None if drawn is None else drawn[first : first + len(group.parts)]
            taken = 0 if rows is None else sum(map(len, rows))
            for column in self.columns if group.rows else ():
                name = projector.variable_of(column)
                parts = [self._features(number, column) for number in group.parts]
                yield projector.Slice(name, group.start, self.points, np.concatenate(parts))
                if rows is not None and drawn is not None and taken:
                    values = [part[at] for part, at in zip(parts, rows, strict=True)]
                    total = sum(map(len, drawn))
                    yield projector.Slice(_sampled(name), start, total, np.concatenate(values))
            start += taken
            first += len(group.parts)

    def tables(
        self, columns: Sequence[str], drawn: list[sample.Rows] | None = None
    ) -> Iterator[pa.Table]:
        """Give some columns of each part."""
        return self._read(store.FEATURES, columns, drawn)

    def thumbnails(self, drawn: list[sample.Rows] | None) -> Iterator[bytes]:
        """Give the picture of each point."""
        for table in self._read(store.THUMBNAILS, ["png"], drawn):
            yield from table["png"].to_pylist()

    def _read(
        self, kind: str, columns: Sequence[str], drawn: list[sample.Rows] | None
    ) -> Iterator[pa.Table]:
        numbers = [number for group in self.groups for number in group.parts]
        for at, number in enumerate(numbers):
            table = store.read_part(self.folder, kind, number, list(columns))
            yield table if drawn is None else table.take(pa.array(drawn[at]))

    def _features(self, number: int, column: str) -> Matrix:
        return as_matrix(store.read_part(self.folder, store.FEATURES, number, [column])[column])


def reduce(out: str, limit: int | None = None) -> int:
    """Merge the parts of a finished extraction into ``projector/``, replacing what was there.

    Args:
        out: the run folder.
        limit: the points that TensorBoard's page is given; None for what the run was started
            with. Where there are more, a sample is written beside all of them.

    Returns:
        The number of points.

    Raises:
        InputError: no run folder.
        RunError: shards are missing, a part cannot be read, or no record was embedded.
    """
    folder = Folder.at(out)
    run = store.read_run(folder)
    if run is None or "fingerprint" not in run:
        raise InputError(f"{out}: not a run folder; `ray-embed extract` writes one")
    limit = limit or int(run["config"]["projector_limit"])
    numbers = _all_parts(folder)
    schema = store.read_part(folder, store.FEATURES, numbers[0]).schema
    columns = store.feature_columns(schema)
    width = sum(schema.field(name).type.list_size for name in columns)
    groups = tuple(_groups(folder, numbers, width, run["fingerprint"]))
    points = sum(group.rows for group in groups)
    if points == 0:
        raise RunError(
            f"{out}: every record was rejected, so there is nothing to show; see {out}/rejects",
            goes_on=False,
        )
    records = [name for name in schema.names if name not in columns]
    merge = _Merge(folder, groups, tuple(columns), tuple(records), points)
    base = Path(folder.join(TEMPORARY))
    base.mkdir(parents=True, exist_ok=True)
    for left in base.glob("projector-*"):
        # By a merge that was killed.
        shutil.rmtree(left, ignore_errors=True)
    target = Path(tempfile.mkdtemp(prefix="projector-", dir=base))
    try:
        _write(merge, target, limit)
        target.chmod(0o755)
        folder.move(f"{TEMPORARY}/{target.name}", PROJECTOR)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return points


def unseen(folder: Folder, points: int, limit: int | None = None) -> Iterator[str]:
    """Say what TensorBoard's page will not show of a reduced run.

    Args:
        folder: the run folder.
        points: the number of its points.
        limit: as `reduce` was given it.
    """
    run = store.read_run(folder) or {}
    limit = limit or int(run["config"]["projector_limit"])
    if points > limit:
        yield (
            f"the page shows a sample of {limit} of the {points} points (the tensor `sample`), "
            "drawn by split and label; --projector-limit changes the number"
        )
    for output in run["encoder"]["outputs"]:
        if points == 1 or output["dimension"] == 1:
            few = "one point" if points == 1 else "one dimension"
            yield (
                f"warning: {projector.variable_of(output['column'])} has only {few}: TensorBoard "
                "lists tensors of two and more points and dimensions, so it will not show it"
            )


def _all_parts(folder: Folder) -> list[int]:
    shards = plan.load(folder).shards
    numbers = list(store.part_numbers(folder))
    if shards is None or numbers != list(range(shards)):
        done = len(numbers) if shards is None else len(set(numbers) & set(range(shards)))
        raise RunError(
            f"{folder.path}: only {done} of {'?' if shards is None else shards} shards are done; "
            "run `ray-embed extract` (or `run`) again with the same options to do the rest"
        )
    return numbers


def _groups(folder: Folder, numbers: list[int], width: int, fingerprint: str) -> Iterator[_Group]:
    waiting: list[int] = []
    start = rows = planned = 0
    for number in numbers:
        count, footer = store.footer(folder, number)
        if footer.get("fingerprint") != fingerprint or footer.get("shard") != str(number):
            raise InputError(
                f"{folder.join(store.part_name(store.FEATURES, number))}: it is of another run or "
                "shard; delete it and run `ray-embed extract` again"
            )
        waiting.append(number)
        rows += count
        planned += int(footer["planned"])
        if planned * width * 4 >= _SLICE_BYTES:
            yield _Group(tuple(waiting), start, rows)
            waiting, start, rows, planned = [], start + rows, 0, 0
    if waiting:
        yield _Group(tuple(waiting), start, rows)


def _write(merge: _Merge, target: Path, limit: int) -> None:
    drawn = None
    if merge.points > limit:
        counts = sample.count_strata(merge.tables(["split", "label"]), limit)
        drawn = list(sample.draw(merge.tables(["split", "label"]), counts, limit))
    everything = [projector.variable_of(column) for column in merge.columns]
    shown = everything if drawn is None else [_sampled(name) for name in everything]
    projector.write_checkpoint(
        target, list(dict.fromkeys([*everything, *shown])), merge.slices(drawn)
    )
    projector.write_metadata(target / METADATA, merge.tables(merge.records))
    metadata = METADATA
    if drawn is not None:
        metadata = SAMPLE
        projector.write_metadata(target / SAMPLE, merge.tables(merge.records, drawn))
    points = merge.points if drawn is None else limit
    side = projector.sprite_cell(points)
    if side:
        projector.write_sprite(target / "sprite.png", points, merge.thumbnails(drawn))
    projector.write_config(target / "projector_config.pbtxt", shown, metadata, side)
    projector.write_event_file(target)


def _sampled(variable: str) -> str:
    return "sample" + variable.removeprefix("embedding")
