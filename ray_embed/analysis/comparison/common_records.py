# SPDX-License-Identifier: Apache-2.0
"""Which records runs are judged on: those that all of them hold, so that only encoders differ.

Records are the same where split and key are. Of all N records of a run only 16 bytes each are in
memory, a hash and a number, of two runs at a time; those drawn are told apart by their keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_embed.analysis.comparison.columns import Column
from ray_embed.analysis.evaluation.label_kind import LabelKind, choose_labels, with_labels
from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.runs import sampling
from ray_embed.runs.sampling import Subset
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# With fewer than these, which are less than half of the smallest run, each has its own records.
_FEW = 100


@dataclass(frozen=True)
class Records:
    """What each column is judged on.

    Of each column `subsets` holds its records; where `paired`, row i is the same record in all.
    `counts` are the numbers of records that the columns' runs hold, `shared` how many all of them
    hold. `relabelled` is how many of the judged ones have labels that differ, with a sentence
    on the first; `label_note` a sentence on how labels are taken, None where there is none.
    """

    subsets: tuple[Subset, ...]
    paired: bool
    counts: tuple[int, ...]
    shared: int
    relabelled: tuple[int, str]
    label_note: str | None = None


def draw(columns: Sequence[Column], limit: int, labels: LabelKind | None = None) -> Records:
    """Take the same records of each column into memory, at most `limit`.

    Drawn by split and label, with a fixed seed, of the first run's that the others hold too.

    Args:
        columns: at least one.
        limit: how many records at most.
        labels: whether labels that are numbers are "classes" or "values"; None for what they are.

    Raises:
        InputError: a run has no records, some have numbers as labels and others classes, or labels
            that are no numbers are to be values.
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folders = {column.run: column.folder for column in columns}
    among, counts = _shared(folders)
    shared = len(among)
    if shared < _FEW and 2 * shared < min(counts.values()):
        subsets = [sampling.draw_sample(column.folder, column.column, limit) for column in columns]
        paired = False
    else:
        subsets = _aligned(columns, folders, among, limit)
        paired = True
    choice = choose_labels(folders.values(), labels)
    subsets = [with_labels(one, choice.kind) for one in subsets]
    _refuse_mixed(columns, subsets)
    return Records(
        tuple(subsets),
        paired,
        tuple(counts[column.run] for column in columns),
        shared,
        _relabelled(columns, subsets) if paired else (0, ""),
        choice.note,
    )


def _shared(folders: dict[str, Folder]) -> tuple[Array, dict[str, int]]:
    """Give the sorted `index` of the first run's records that all hold, and how many each holds."""
    counts: dict[str, int] = {}
    shared = np.zeros((0, 2), np.int64)
    for run, folder in folders.items():
        own = _hashed(folder)
        if not len(own):
            raise InputError(f"{redact_uri(run)}: it holds no record; see its rejects")
        shared = shared[np.isin(shared[:, 0], own[:, 0])] if counts else own
        counts[run] = len(own)
    return np.sort(shared[:, 1]), counts


def _hashed(folder: Folder) -> Array:
    """Give a hash of each record's split and key, of this process only, and its `index`.

    Returns:
        (N, 2) int64.
    """

    def of_part(number: int) -> Array:
        part = part_files.read_part(folder, layout.FEATURES, number, ["split", "key", "index"])
        hashes = np.fromiter(map(hash, _identities(part)), np.int64, part.num_rows)
        return np.stack([hashes, part["index"].to_numpy()], axis=1)

    parts = part_files.map_parts(folder, of_part, part_files.list_part_numbers(folder))
    return np.concatenate([np.zeros((0, 2), np.int64), *parts])


def _identities(part: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(part["split"].to_pylist(), part["key"].to_pylist(), strict=True)


def _aligned(
    columns: Sequence[Column], folders: dict[str, Folder], among: Array, limit: int
) -> list[Subset]:
    drawn = sampling.draw_sample(columns[0].folder, columns[0].column, limit, among)
    identities = list(zip(drawn.splits, drawn.keys, strict=True))
    index = {run: _located(folder, identities) for run, folder in folders.items()}
    # Not found are keys whose hash alone was another's, and all but the first of equal ones.
    everywhere = np.all([found >= 0 for found in index.values()], axis=0)
    return [
        sampling.read_records(
            column.folder, column.column, index[column.run][everywhere], len(among)
        )
        for column in columns
    ]


def _located(folder: Folder, identities: list[tuple[str, str]]) -> Array:
    """Give the `index` of records in a run, -1 where it holds none, or where one came before."""
    wanted = {identity: at for at, identity in reversed(list(enumerate(identities)))}
    found = np.full(len(identities), -1)

    def of_part(number: int) -> list[tuple[int, int]]:
        part = part_files.read_part(folder, layout.FEATURES, number, ["split", "key", "index"])
        pairs = zip(_identities(part), part["index"].to_pylist(), strict=True)
        return [(wanted[one], index) for one, index in pairs if one in wanted]

    for pairs in part_files.map_parts(folder, of_part, part_files.list_part_numbers(folder)):
        for at, index in pairs:
            if found[at] < 0:
                found[at] = index
    return found


def _refuse_mixed(columns: Sequence[Column], subsets: Sequence[Subset]) -> None:
    """Refuse to set what floats say beside what classes say; no labels at all go with either."""
    first: dict[bool, str] = {}
    for column, one in zip(columns, subsets, strict=True):
        if any(label is not None for label in one.labels):
            first.setdefault(pa.types.is_floating(one.label_type), column.run)
    if len(first) == 2:
        raise InputError(
            f"{redact_uri(first[True])} has numbers (float) as labels, {redact_uri(first[False])} "
            "classes: their measures are not the same; compare runs of the same labels, or say "
            "--labels classes or --labels values for both"
        )


def _relabelled(columns: Sequence[Column], subsets: Sequence[Subset]) -> tuple[int, str]:
    differ = np.zeros(len(subsets[0]), bool)
    first = ""
    for column, one in zip(columns[1:], subsets[1:], strict=True):
        pairs = zip(subsets[0].labels, one.labels, strict=True)
        own = np.array([str(a) != str(b) for a, b in pairs], bool)
        if own.any() and not first:
            at = int(np.argmax(own))
            first = (
                f"{one.splits[at]} {one.keys[at]}: {subsets[0].labels[at]!r} in "
                f"{columns[0].name}, {one.labels[at]!r} in {column.name}"
            )
        differ |= own
    return int(differ.sum()), first
