# SPDX-License-Identifier: Apache-2.0
"""Merges the parts, in the order of the shards, into the projector's files."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_embed import plan, projector, store
from ray_embed.errors import InputError, RunError
from ray_embed.filesystem import TEMPORARY, Folder
from ray_embed.matrix import Matrix, as_matrix
from ray_embed.progress import say

PROJECTOR = "projector"
# Boundaries of slices follow from the plan, so that the bytes do: whole parts, about this much.
_SLICE_BYTES = 64 << 20


@dataclass(frozen=True)
class _Group:
    """Consecutive parts that become one slice of each variable."""

    parts: tuple[int, ...]
    start: int
    rows: int


def reduce(out: str) -> int:
    """Merge the parts of a finished extraction into ``projector/``, replacing what was there.

    Args:
        out: the run folder.

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
    numbers = _all_parts(folder)
    schema = store.read_part(folder, store.FEATURES, numbers[0]).schema
    columns = store.feature_columns(schema)
    width = sum(schema.field(name).type.list_size for name in columns)
    groups = list(_groups(folder, numbers, width, run["fingerprint"]))
    points = sum(group.rows for group in groups)
    if points == 0:
        raise RunError(
            f"{out}: every record was rejected, so there is nothing to show; see {out}/rejects"
        )
    base = Path(folder.join(TEMPORARY))
    base.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix="projector-", dir=base))
    try:
        _write(folder, groups, numbers, columns, points, target)
        target.chmod(0o755)
        folder.move(f"{TEMPORARY}/{target.name}", PROJECTOR)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    for warning in unseen(folder):
        say(f"warning: {warning}")
    return points


def unseen(folder: Folder) -> Iterator[str]:
    """Say which tensors TensorBoard will not list: those of one row or one column."""
    numbers = list(store.part_numbers(folder))
    schema = store.read_part(folder, store.FEATURES, numbers[0]).schema
    points = sum(store.footer(folder, number)[0] for number in numbers)
    for column in store.feature_columns(schema):
        dimension = schema.field(column).type.list_size
        if points == 1 or dimension == 1:
            few = "one point" if points == 1 else "one dimension"
            yield (
                f"{projector.variable_of(column)} has only {few}: TensorBoard lists tensors of "
                "two and more points and dimensions, so it will not show it"
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


def _write(
    folder: Folder,
    groups: list[_Group],
    numbers: list[int],
    columns: list[str],
    points: int,
    target: Path,
) -> None:
    variables = [projector.variable_of(column) for column in columns]
    slices = (
        projector.Slice(variable, group.start, points, _features(folder, group, column))
        for group in groups
        if group.rows
        for column, variable in zip(columns, variables, strict=True)
    )
    projector.write_checkpoint(target, variables, slices)
    projector.write_metadata(target / "metadata.tsv", _records(folder, numbers, columns))
    side = projector.sprite_cell(points)
    if side:
        projector.write_sprite(target / "sprite.png", points, _thumbnails(folder, numbers))
    projector.write_config(target / "projector_config.pbtxt", variables, side)
    projector.write_event_file(target)


def _features(folder: Folder, group: _Group, column: str) -> Matrix:
    arrays = [
        as_matrix(store.read_part(folder, store.FEATURES, number, [column])[column])
        for number in group.parts
    ]
    return np.concatenate(arrays)


def _records(folder: Folder, numbers: list[int], columns: list[str]) -> Iterator[pa.Table]:
    wanted: list[str] | None = None
    for number in numbers:
        if wanted is None:
            names = store.read_part(folder, store.FEATURES, number).column_names
            wanted = [name for name in names if name not in columns]
        yield store.read_part(folder, store.FEATURES, number, wanted)


def _thumbnails(folder: Folder, numbers: list[int]) -> Iterator[bytes]:
    for number in numbers:
        yield from store.read_part(folder, store.THUMBNAILS, number, ["png"])["png"].to_pylist()
