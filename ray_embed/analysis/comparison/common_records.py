# SPDX-License-Identifier: Apache-2.0
"""Records that all runs have in common: evaluated on these, runs differ only in their encoders.

Two records are the same if both their split and their key match. At most two runs are in memory at
a time, at 16 bytes per record: a hash and an index. Sampled records are compared by their keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_embed.analysis.comparison.columns import Column
from ray_embed.analysis.evaluation.label_kind import LabelKind, choose_label_kind, convert_labels
from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.runs import sampling
from ray_embed.runs.sampling import Subset
from ray_embed.sources.label_lists import is_list
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# Runs are not paired if they share fewer records than this and under half of the smallest run.
_MIN_SHARED_RECORDS = 100
_LISTS = "lists"


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records that each column is evaluated on.

    `subsets` holds the records of each column. If `paired`, row i is the same record in every
    subset. `counts` holds the number of records in each column's run; `shared` is the number of
    records that all runs have in common. `relabeled` is a pair: the number of evaluated records
    whose labels differ between runs, and a phrase that describes the first one. `label_note` says
    how labels are treated, or is None if there is nothing to say.
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

    The records are drawn by split and label, with a fixed seed, from the records that all runs
    hold.

    Args:
        columns: at least one.
        limit: the maximum number of records.
        labels: whether to treat numeric labels as "classes" or "values". If None, the labels
            themselves decide.

    Raises:
        InputError: a run has no records, the runs have different kinds of labels (numbers, classes
            or lists), or `labels` is "values" and the labels are not numbers.
        DamagedError: a part differs from what was written.
        StorageError: a part cannot be read.
    """
    folders = {column.run: column.folder for column in columns}
    shared_index, counts = _find_shared(folders)
    shared = len(shared_index)
    if shared < _MIN_SHARED_RECORDS and 2 * shared < min(counts.values()):
        subsets = [sampling.draw_sample(column.folder, column.column, limit) for column in columns]
        paired = False
    else:
        subsets = _draw_aligned(columns, folders, shared_index, limit)
        paired = True
    choice = choose_label_kind(folders.values(), labels)
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
    """Return the shared records' sorted indexes in the first run, and each run's record count."""
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
    # A record is missing if its hash only collided with another key's, or if its key is a repeat.
    is_in_all = np.all([located >= 0 for located in index.values()], axis=0)
    return [
        sampling.read_records(
            column.folder, column.column, index[column.run][is_in_all], len(shared_index)
        )
        for column in columns
    ]


def _locate_records(folder: Folder, identities: list[tuple[str, str]]) -> Array:
    """Return the `index` of each record in a run, or -1 if it is missing or a repeat."""
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
    """Refuse to compare labels of different kinds. Runs without labels are compatible with all."""
    first: dict[str, str] = {}
    for column, subset in zip(columns, subsets, strict=True):
        if any(label is not None for label in subset.labels):
            first.setdefault(_describe_kind(subset.label_type), redact_uri(column.run))
    if len(first) > 1:
        (kind, run), (other_kind, other), *_ = first.items()
        option = "" if _LISTS in first else ", or use --labels classes or --labels values for both"
        raise InputError(
            f"{run} has {kind} as labels, but {other} has {other_kind} as labels: they have "
            f"different measures; compare runs with the same kind of labels{option}"
        )


def _describe_kind(label_type: pa.DataType) -> str:
    if is_list(label_type):
        return _LISTS
    return "numbers (float)" if pa.types.is_floating(label_type) else "classes"


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
