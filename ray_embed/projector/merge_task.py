# SPDX-License-Identifier: Apache-2.0
"""One merge task: turn consecutive parts into a checkpoint data file and metadata lines, and write
the PCA coordinates of their points.

Pieces are independent, so any process can merge any task. Joining the tasks needs only their
indexes and metadata lines.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Matrix, as_column, as_matrix, unit_rows
from ray_embed.core.threads import MAX_THREADS, limit_blas_to_one_thread
from ray_embed.projector import checkpoint, metadata, pca
from ray_embed.runs import stratified
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# TensorBoard "spherizes" tensors from this many dimensions on (and above 200 dimensions first
# applies a random projection), but not tensors with fewer, although its t-SNE and UMAP need
# normalized rows.
_SPHERED = 50
# TensorBoard cannot show tensors with two dimensions, because it expects a third component.
_FLAT = 2
_AT_ONCE_BYTES = 1 << 30


@dataclass(frozen=True)
class PartGroup:
    """Consecutive parts that become data file `number`.

    `start` is their first row in the checkpoint; `rows` is their number of rows.
    """

    number: int
    parts: tuple[int, ...]
    start: int
    rows: int


@dataclass(frozen=True)
class MergeTask:
    """A group, and the rows sampled from its parts.

    `first` is the position of the first sampled row in the sample.
    """

    group: PartGroup
    drawn: tuple[stratified.Rows, ...] = ()
    first: int = 0


def count_parallel_tasks(groups: Iterable[PartGroup], width: int) -> int:
    """Return the number of groups that can be merged in parallel within the memory limit.

    Args:
        groups: all groups.
        width: the number of values per record, over all layers.
    """
    largest = max(group.rows * width * 4 for group in groups)
    return max(1, min(MAX_THREADS, _AT_ONCE_BYTES // (2 * max(largest, 1))))


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """The settings shared by all tasks of a merge.

    `out` is the run folder; `target` is the folder of the data files, relative to `out`. The
    checkpoint has `files` data files (one of which contains the object graph instead of rows) and
    `points` rows, of which TensorBoard shows `shown`. `components` are the principal components by
    column. `marked` are the labels that get a column of metadata.
    """

    out: str
    target: str
    fingerprint: str
    thumbnail_fingerprint: str
    columns: tuple[str, ...]
    records: tuple[str, ...]
    points: int
    shown: int
    files: int
    components: dict[str, pca.Components]
    marked: tuple[str, ...] = ()

    @property
    def views(self) -> dict[str, str]:
        """The names of the PCA variables, by column.

        Columns with one dimension, or whose PCA name collides with a layer's variable, have none.
        See :func:`_prepare_coordinates` for their contents.
        """
        named = [checkpoint.get_variable_name(column) for column in self.columns]
        taken = {*named, *map(checkpoint.sampled, named)}
        views = {}
        for column, found in self.components.items():
            name = layout.pca_column(column)
            name = f"sample_{name}" if self.shown < self.points else name
            if len(found.vectors) > 1 and name not in taken:
                views[column] = name
        return views

    @property
    def folder(self) -> Folder:
        """The run folder."""
        return Folder.open(self.out)


@dataclass(frozen=True)
class MergeResult:
    """The result of a merge task: the index of its data file, and its metadata lines."""

    index: bytes | None
    texts: tuple[bytes, ...]


def merge_parts(settings: MergeSettings, task: MergeTask) -> MergeResult:
    """Write the data file of a task and the PCA coordinates of its points.

    Raises:
        DamagedError: a part is damaged.
        StorageError: the storage fails.
    """
    folder = settings.folder
    tables = [
        part_files.read_part(folder, layout.FEATURES, number, fingerprint=settings.fingerprint)
        for number in task.group.parts
    ]
    with limit_blas_to_one_thread():
        coordinates = {
            column: [found.project(as_matrix(table[column])) for table in tables]
            for column, found in settings.components.items()
        }
    if coordinates:
        parts = [_make_coordinates_part(table, coordinates, at) for at, table in enumerate(tables)]
        contents = dict(zip(task.group.parts, parts, strict=True))
        write = partial(_write_coordinates, folder, contents)
        for _ in part_files.map_parts(folder, write, contents):
            pass
    slices = list(_make_slices(settings, task, tables, coordinates))
    index = _write_slices(settings, task, slices) if slices else None
    records = pa.concat_tables([table.select(settings.records) for table in tables])
    texts = [metadata.lines(records, settings.marked)]
    if task.drawn:
        starts = np.cumsum([0, *map(len, tables)])[:-1]
        rows = [at + start for at, start in zip(task.drawn, starts, strict=True)]
        sample = records.take(pa.array(np.concatenate(rows)))
        texts.append(metadata.lines(sample, settings.marked))
    return MergeResult(index, tuple(texts))


def _make_coordinates_part(
    table: pa.Table, coordinates: dict[str, list[Matrix]], at: int
) -> pa.Table:
    """Make the ``pca/`` part of a features part."""
    columns = {layout.pca_column(name): as_column(found[at]) for name, found in coordinates.items()}
    return pa.table({"index": table["index"], **columns}, metadata=table.schema.metadata)


def _write_coordinates(folder: Folder, parts: dict[int, pa.Table], number: int) -> None:
    folder.write(part_files.part_name(layout.PCA, number), part_files.encode_part(parts[number]))


def _write_slices(
    settings: MergeSettings, task: MergeTask, slices: list[checkpoint.Slice]
) -> bytes:
    """Write the slices to the data file, and return its index."""
    folder = settings.folder
    name = f"{settings.target}/{checkpoint.data_file(task.group.number, settings.files)}"
    above = Path(folder.join(settings.target)) if folder.is_local else None
    with tempfile.TemporaryDirectory(prefix=".task-", dir=above) as scratch:
        index, data = checkpoint.write_slices(Path(scratch), slices)
        if folder.is_local:
            data.replace(folder.join(name))
        else:
            folder.put(data, name)
    return index


def _make_slices(
    settings: MergeSettings,
    task: MergeTask,
    tables: list[pa.Table],
    coordinates: dict[str, list[Matrix]],
) -> Iterator[checkpoint.Slice]:
    """Yield the slices of each variable: one per part, and one for the group's sample."""
    for column in settings.columns:
        name = checkpoint.get_variable_name(column)
        parts = [as_matrix(table[column]) for table in tables]
        yield from _slice_all(settings, task, name, parts)
        yield from _slice_sample(settings, task, checkpoint.sampled(name), parts)
    for column, name in settings.views.items():
        parts = [_prepare_coordinates(part) for part in coordinates[column]]
        if settings.shown < settings.points:
            yield from _slice_sample(settings, task, name, parts)
        else:
            yield from _slice_all(settings, task, name, parts)


def _prepare_coordinates(coordinates: Matrix) -> Matrix:
    """Prepare PCA coordinates, (n, k), for TensorBoard.

    Two dimensions are padded with zeros to three. Otherwise at most 49 dimensions are kept and rows
    are L2-normalized, as "Spherize data" does: TensorBoard's t-SNE and UMAP use the distance 1 -
    x·y, which fails if it is negative.
    """
    if coordinates.shape[1] == _FLAT:
        return np.pad(coordinates, ((0, 0), (0, 1)))
    rows = coordinates[:, : _SPHERED - 1]
    return np.ascontiguousarray(unit_rows(rows))


def _slice_all(
    settings: MergeSettings, task: MergeTask, name: str, parts: list[Matrix]
) -> Iterator[checkpoint.Slice]:
    start = task.group.start
    for part in parts:
        if len(part):
            yield checkpoint.Slice(name, start, settings.points, part)
        start += len(part)


def _slice_sample(
    settings: MergeSettings, task: MergeTask, name: str, parts: list[Matrix]
) -> Iterator[checkpoint.Slice]:
    if any(map(len, task.drawn)):
        rows = np.concatenate([part[at] for part, at in zip(parts, task.drawn, strict=True)])
        yield checkpoint.Slice(name, task.first, settings.shown, rows)
