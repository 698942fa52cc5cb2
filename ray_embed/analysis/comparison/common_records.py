# SPDX-License-Identifier: Apache-2.0
"""The records that all runs hold, on which they are evaluated, so that only encoders differ.

Records are the same if split and key are the same. At most two runs are in memory at a time, with
16 bytes for each record: a hash and an index. Sampled records are compared by their keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_embed.analysis.comparison.columns import Column
from ray_embed.analysis.evaluation.label_kind import LabelKind, choose_labels, convert_labels
from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.runs import sampling
from ray_embed.runs.sampling import Subset
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# Runs are not paired if they share fewer records than this, and less than half of the smallest.
_FEW = 100


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records that each column is evaluated on.

    `subsets` holds the records of each column. If `paired`, row i is the same record in all.
    `counts` are the numbers of records that the columns' runs hold; `shared` of them are in all.
    `relabeled` is the number of evaluated records with labels that differ, and a phrase about the
    first. `label_note` says how labels are treated, None where there is nothing to say.
    """

    subsets: tuple[Subset, ...]
    paired: bool
    counts: tuple[int, ...]
    shared: int
    relabeled: tuple[int, str]
    label_note: str | None = None


def draw_common_records(
    columns: Sequence[Column], limit: int, labels: LabelKind | None = None
) -> Records:
    """Read the same records of each column into memory, at most `limit`.

    They are drawn by split and label, with a fixed seed, from those that all runs hold.

    Args:
        columns: at least one.
        limit: the most records.
        labels: whether labels that are numbers are "classes" or "values". None for what they are.

    Raises:
        InputError: a run has no records, some have numbers as labels and others classes, or
            `labels` is "values" and they are not numbers.
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folders = {column.run: column.folder for column in columns}
    shared_index, counts = _find_shared(folders)
    shared = len(shared_index)
    if shared < _FEW and 2 * shared < min(counts.values()):
        subsets = [sampling.draw_sample(column.folder, column.column, limit) for column in columns]
        paired = False
    else:
        subsets = _draw_aligned(columns, folders, shared_index, limit)
        paired = True
    choice = choose_labels(folders.values(), labels)
    subsets = [convert_labels(subset, choice.kind) for subset in subsets]
    _refuse_mixed(columns, subsets)
    return Records(
        subsets=tuple(subsets),
        paired=paired,
        counts=tuple(counts[column.run] for column in columns),
        shared=shared,
        relabeled=_compare_labels(columns, subsets) if paired else (0, ""),
        label_note=choice.note,
    )


def _find_shared(folders: dict[str, Folder]) -> tuple[Array, dict[str, int]]:
    """Return the sorted first-run indexes of records that all runs hold, and all counts."""
    counts: dict[str, int] = {}
    shared = np.zeros((0, 2), np.int64)
    for run, folder in folders.items():
        hashes = _hash_records(folder)
        if not len(hashes):
            raise InputError(f"{redact_uri(run)}: it holds no record; see its rejects")
        shared = shared[np.isin(shared[:, 0], hashes[:, 0])] if counts else hashes
        counts[run] = len(hashes)
    return np.sort(shared[:, 1]), counts


def _hash_records(folder: Folder) -> Array:
    """Return a hash of each record's split and key, and its `index`.

    The hashes can be compared within this process only.

    Returns:
        (N, 2) int64.
    """

    def hash_part(number: int) -> Array:
        part = part_files.read_part(folder, layout.FEATURES, number, ["split", "key", "index"])
        hashes = np.fromiter(map(hash, _identify_records(part)), np.int64, part.num_rows)
        return np.stack([hashes, part["index"].to_numpy()], axis=1)

    parts = part_files.map_parts(folder, hash_part, part_files.list_part_numbers(folder))
    return np.concatenate([np.zeros((0, 2), np.int64), *parts])


def _identify_records(part: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(part["split"].to_pylist(), part["key"].to_pylist(), strict=True)


def _draw_aligned(
    columns: Sequence[Column], folders: dict[str, Folder], shared_index: Array, limit: int
) -> list[Subset]:
    drawn = sampling.draw_sample(columns[0].folder, columns[0].column, limit, shared_index)
    identities = list(zip(drawn.splits, drawn.keys, strict=True))
    index = {run: _locate_records(folder, identities) for run, folder in folders.items()}
    # A record is missing if only its hash equaled that of another key, or if its key repeats one.
    is_in_all = np.all([located >= 0 for located in index.values()], axis=0)
    return [
        sampling.read_records(
            column.folder, column.column, index[column.run][is_in_all], len(shared_index)
        )
        for column in columns
    ]


def _locate_records(folder: Folder, identities: list[tuple[str, str]]) -> Array:
    """Return the `index` of records in a run; -1 for missing and for repeated ones."""
    rows = {identity: row for row, identity in reversed(list(enumerate(identities)))}
    located = np.full(len(identities), -1)

    def locate_in_part(number: int) -> list[tuple[int, int]]:
        part = part_files.read_part(folder, layout.FEATURES, number, ["split", "key", "index"])
        pairs = zip(_identify_records(part), part["index"].to_pylist(), strict=True)
        return [(rows[identity], index) for identity, index in pairs if identity in rows]

    for pairs in part_files.map_parts(folder, locate_in_part, part_files.list_part_numbers(folder)):
        for row, index in pairs:
            if located[row] < 0:
                located[row] = index
    return located


def _refuse_mixed(columns: Sequence[Column], subsets: Sequence[Subset]) -> None:
    """Refuse to compare floats with classes. Runs without labels go with both."""
    first: dict[bool, str] = {}
    for column, subset in zip(columns, subsets, strict=True):
        if any(label is not None for label in subset.labels):
            first.setdefault(pa.types.is_floating(subset.label_type), column.run)
    if len(first) == 2:
        raise InputError(
            f"{redact_uri(first[True])} has numbers (float) as labels, {redact_uri(first[False])} "
            "classes: they have different measures; compare runs with the same kind of labels, or "
            "use --labels classes or --labels values for both"
        )


def _compare_labels(columns: Sequence[Column], subsets: Sequence[Subset]) -> tuple[int, str]:
    """Count the records with labels that differ, and describe the first."""
    base = subsets[0]
    differ = np.zeros(len(base), bool)
    first = ""
    for column, subset in zip(columns[1:], subsets[1:], strict=True):
        pairs = zip(base.labels, subset.labels, strict=True)
        differ_here = np.array([str(a) != str(b) for a, b in pairs], bool)
        if differ_here.any() and not first:
            row = int(np.argmax(differ_here))
            first = (
                f"{subset.splits[row]} {subset.keys[row]}: {base.labels[row]!r} in "
                f"{columns[0].name}, {subset.labels[row]!r} in {column.name}"
            )
        differ |= differ_here
    return int(differ.sum()), first
