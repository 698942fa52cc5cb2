# SPDX-License-Identifier: Apache-2.0
"""One piece of the merge: consecutive parts become a data file of the checkpoint, and text.

Pieces do not depend on each other, so that any process may do any of them; what joins them needs
only their indexes and their text.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_embed import metadata, projector, sample, store
from ray_embed.filesystem import Folder
from ray_embed.matrix import as_matrix


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
    """A group, and the rows drawn of each of its parts; `first` is the number drawn before them."""

    group: Group
    drawn: tuple[sample.Rows, ...] = ()
    first: int = 0


@dataclass(frozen=True)
class Merge:
    """What all pieces of a merge have in common.

    `out` is the run folder; `target` is where data files go, relative to it. There will be `files`
    of them, of `points` rows, of which `shown` are in the sample.
    """

    out: str
    target: str
    fingerprint: str
    columns: tuple[str, ...]
    records: tuple[str, ...]
    points: int
    shown: int
    files: int

    @property
    def folder(self) -> Folder:
        """The run folder."""
        return Folder.at(self.out)


@dataclass(frozen=True)
class Merged:
    """What joining needs of a piece: the index of its data file, and the lines of the metadata."""

    index: bytes | None
    texts: tuple[bytes, ...]


def merge_piece(merge: Merge, piece: Piece) -> Merged:
    """Write the data file of a piece.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: the storage fails.
    """
    folder = merge.folder
    tables = [
        store.read_part(folder, store.FEATURES, number, fingerprint=merge.fingerprint)
        for number in piece.group.parts
    ]
    slices = list(_slices(merge, piece, tables))
    index = _write(merge, piece, slices) if slices else None
    records = pa.concat_tables([table.select(merge.records) for table in tables])
    texts = [metadata.lines(records)]
    if piece.drawn:
        starts = np.cumsum([0, *map(len, tables)])[:-1]
        rows = [at + start for at, start in zip(piece.drawn, starts, strict=True)]
        texts.append(metadata.lines(records.take(pa.array(np.concatenate(rows)))))
    return Merged(index, tuple(texts))


def _write(merge: Merge, piece: Piece, slices: list[projector.Slice]) -> bytes:
    """Write the slices to their place; gives their index."""
    folder = merge.folder
    name = f"{merge.target}/{projector.data_file(piece.group.number, merge.files)}"
    above = Path(folder.join(merge.target)) if folder.is_local else None
    with tempfile.TemporaryDirectory(prefix=".piece-", dir=above) as scratch:
        index, data = projector.write_slices(Path(scratch), slices)
        if folder.is_local:
            data.replace(folder.join(name))
        else:
            folder.put(data, name)
    return index


def _slices(merge: Merge, piece: Piece, tables: list[pa.Table]) -> Iterator[projector.Slice]:
    """Give a slice a part of each variable, and one a group of its sample."""
    for column in merge.columns:
        name = projector.variable_of(column)
        parts = [as_matrix(table[column]) for table in tables]
        start = piece.group.start
        for part in parts:
            if len(part):
                yield projector.Slice(name, start, merge.points, part)
            start += len(part)
        if any(map(len, piece.drawn)):
            values = [part[at] for part, at in zip(parts, piece.drawn, strict=True)]
            rows = np.concatenate(values)
            yield projector.Slice(projector.sampled(name), piece.first, merge.shown, rows)
