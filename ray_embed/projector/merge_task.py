# SPDX-License-Identifier: Apache-2.0
"""One piece of the merge: consecutive parts become a data file of the checkpoint, and text.

The coordinates of their points among the principal components are written too.

Pieces do not depend on each other, so that any process may do any of them; what joins them needs
only their indexes and their text.
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

# TensorBoard's page spherizes tensors of this many dimensions or more, and above 200 dimensions it
# first applies a random projection. With one dimension fewer it uses them unchanged. It does not
# spherize narrower tensors, although its t-SNE and UMAP need that.
_SPHERED = 50
# It shows nothing of a tensor with two dimensions, as it looks for a third component.
_FLAT = 2
_AT_ONCE_BYTES = 1 << 30


@dataclass(frozen=True)
class Group:
    """Consecutive parts that become the data file `number`.

    `start` is the number of rows before theirs, `rows` that of theirs.
    """

    number: int
    parts: tuple[int, ...]
    start: int
    rows: int


@dataclass(frozen=True)
class Piece:
    """A group, and the rows sampled from its parts; `first` is the number sampled before."""

    group: Group
    drawn: tuple[stratified.Rows, ...] = ()
    first: int = 0


def count_parallel_pieces(groups: Iterable[Group], width: int) -> int:
    """Return how many groups may be merged at a time, so that they fit in memory.

    Args:
        groups: all of them.
        width: the numbers of a record, of all layers.
    """
    largest = max(group.rows * width * 4 for group in groups)
    return max(1, min(MAX_THREADS, _AT_ONCE_BYTES // (2 * max(largest, 1))))


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What all pieces of a merge have in common.

    `out` is the run folder; `target` is the folder of the data files, relative to it. The
    checkpoint has `files` data files, one of which holds the object graph instead of rows, and
    `points` rows, of which `shown` are on the page. `components` holds the principal components
    by column.
    """

    out: str
    target: str
    fingerprint: str
    columns: tuple[str, ...]
    records: tuple[str, ...]
    points: int
    shown: int
    files: int
    components: dict[str, pca.Components]

    @property
    def views(self) -> dict[str, str]:
        """The variables that hold the first coordinates of what is shown, by column.

        A column has none if it has one dimension, or if the name is that of a layer's variable.
        :func:`_prepare_coordinates` defines what is written.
        """
        named = [checkpoint.variable_of(column) for column in self.columns]
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
class Merged:
    """What joining needs of a piece: the index of its data file, and the lines of the metadata."""

    index: bytes | None
    texts: tuple[bytes, ...]


def merge_piece(merge: Merge, piece: Piece) -> Merged:
    """Write the data file of a piece, and the coordinates of its points.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: the storage fails.
    """
    folder = merge.folder
    tables = [
        part_files.read_part(folder, layout.FEATURES, number, fingerprint=merge.fingerprint)
        for number in piece.group.parts
    ]
    with limit_blas_to_one_thread():
        coordinates = {
            column: [found.project(as_matrix(table[column])) for table in tables]
            for column, found in merge.components.items()
        }
    if coordinates:
        parts = [_make_coordinates_part(table, coordinates, at) for at, table in enumerate(tables)]
        contents = dict(zip(piece.group.parts, parts, strict=True))
        write = partial(_write_coordinates, folder, contents)
        for _ in part_files.map_parts(folder, write, contents):
            pass
    slices = list(_make_slices(merge, piece, tables, coordinates))
    index = _write_slices(merge, piece, slices) if slices else None
    records = pa.concat_tables([table.select(merge.records) for table in tables])
    texts = [metadata.lines(records)]
    if piece.drawn:
        starts = np.cumsum([0, *map(len, tables)])[:-1]
        rows = [at + start for at, start in zip(piece.drawn, starts, strict=True)]
        texts.append(metadata.lines(records.take(pa.array(np.concatenate(rows)))))
    return Merged(index, tuple(texts))


def _make_coordinates_part(
    table: pa.Table, coordinates: dict[str, list[Matrix]], at: int
) -> pa.Table:
    """Make the part that says where the points of a features part are."""
    columns = {layout.pca_column(name): as_column(found[at]) for name, found in coordinates.items()}
    return pa.table({"index": table["index"], **columns}, metadata=table.schema.metadata)


def _write_coordinates(folder: Folder, parts: dict[int, pa.Table], number: int) -> None:
    folder.write(part_files.part_name(layout.PCA, number), part_files.encode_part(parts[number]))


def _write_slices(merge: Merge, piece: Piece, slices: list[checkpoint.Slice]) -> bytes:
    """Write the slices to their place; gives their index."""
    folder = merge.folder
    name = f"{merge.target}/{checkpoint.data_file(piece.group.number, merge.files)}"
    above = Path(folder.join(merge.target)) if folder.is_local else None
    with tempfile.TemporaryDirectory(prefix=".piece-", dir=above) as scratch:
        index, data = checkpoint.write_slices(Path(scratch), slices)
        if folder.is_local:
            data.replace(folder.join(name))
        else:
            folder.put(data, name)
    return index


def _make_slices(
    merge: Merge,
    piece: Piece,
    tables: list[pa.Table],
    coordinates: dict[str, list[Matrix]],
) -> Iterator[checkpoint.Slice]:
    """Yield the slices of each variable: one for each part, and one for each group's sample."""
    for column in merge.columns:
        name = checkpoint.variable_of(column)
        parts = [as_matrix(table[column]) for table in tables]
        yield from _slice_all(merge, piece, name, parts)
        yield from _slice_sample(merge, piece, checkpoint.sampled(name), parts)
    for column, name in merge.views.items():
        parts = [_prepare_coordinates(part) for part in coordinates[column]]
        if merge.shown < merge.points:
            yield from _slice_sample(merge, piece, name, parts)
        else:
            yield from _slice_all(merge, piece, name, parts)


def _prepare_coordinates(coordinates: Matrix) -> Matrix:
    """Return rows of coordinates (n, k) as the page needs them.

    Two dimensions get a third one of zeros. More are cut to 49, and each row is scaled to length
    one, as the page's own "Spherize data" does. Its t-SNE and UMAP find neighbors by 1 - x·y. For
    rows of other lengths this can be negative, and then they fail.
    """
    if coordinates.shape[1] == _FLAT:
        return np.pad(coordinates, ((0, 0), (0, 1)))
    rows = coordinates[:, : _SPHERED - 1]
    return np.ascontiguousarray(unit_rows(rows))


def _slice_all(
    merge: Merge, piece: Piece, name: str, parts: list[Matrix]
) -> Iterator[checkpoint.Slice]:
    start = piece.group.start
    for part in parts:
        if len(part):
            yield checkpoint.Slice(name, start, merge.points, part)
        start += len(part)


def _slice_sample(
    merge: Merge, piece: Piece, name: str, parts: list[Matrix]
) -> Iterator[checkpoint.Slice]:
    if any(map(len, piece.drawn)):
        rows = np.concatenate([part[at] for part, at in zip(parts, piece.drawn, strict=True)])
        yield checkpoint.Slice(name, piece.first, merge.shown, rows)
