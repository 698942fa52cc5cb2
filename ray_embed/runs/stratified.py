# SPDX-License-Identifier: Apache-2.0
"""A sample of the points for TensorBoard's page, which shows a limited number of them.

Stratified by split and label: every label is there, in about its share, and the same points each
time. Needs one pass to count and one to draw, and memory for the strata, not for the points.
"""

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

Stratum = tuple[Any, ...]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_SEED = 0


class Strata:
    """Counts the rows of each split and label, or of each split where there are too many labels.

    Args:
        limit: the number of points that will be drawn.
    """

    def __init__(self, limit: int) -> None:
        self.counts: Counter[Stratum] = Counter()
        self._limit = limit
        self._by_label = True

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table with the columns `split` and `label`."""
        strata, rows = _find_strata(table, self._by_label)
        for stratum, count in zip(strata, np.bincount(rows, minlength=len(strata)), strict=True):
            self.counts[stratum] += int(count)
        if self._by_label and len(self.counts) > self._limit:
            self._by_label = False
            splits: Counter[Stratum] = Counter()
            for (split, _), count in self.counts.items():
                splits[(split,)] += count
            self.counts = splits


def allocate_quotas(counts: Counter[Stratum], limit: int) -> dict[Stratum, int]:
    """Share `limit` points out over the strata: one each, the rest in proportion to their rows.

    Where there are more strata than points, the largest have one.
    """
    if len(counts) > limit:
        chosen = set(sorted(counts, key=lambda stratum: -counts[stratum])[:limit])
        return {stratum: int(stratum in chosen) for stratum in counts}
    left = limit - len(counts)
    beyond = sum(counts.values()) - len(counts)
    shares = {stratum: (count - 1) * left / max(beyond, 1) for stratum, count in counts.items()}
    given = {stratum: 1 + int(share) for stratum, share in shares.items()}
    # The largest remainders get what rounding down has left; equal ones in order of appearance.
    by_remainder = sorted(shares, key=lambda stratum: int(shares[stratum]) - shares[stratum])
    for stratum in by_remainder[: limit - sum(given.values())]:
        given[stratum] += 1
    return given


class Draw:
    """Draws `limit` of the counted rows, table by table in the order they were counted in.

    Of each stratum every choice of its rows is as likely as any other one.

    Args:
        counts: of the strata, by `Strata`.
        limit: the number of points to draw.
    """

    def __init__(self, counts: Counter[Stratum], limit: int) -> None:
        random = Random(_SEED)  # noqa: S311
        self._by_label = any(len(stratum) > 1 for stratum in counts)
        # Of each stratum: which of its rows are drawn, counted within it, and how many have passed.
        self._drawn = {
            stratum: np.sort(np.array(random.sample(range(counts[stratum]), quota), np.int64))
            for stratum, quota in allocate_quotas(counts, limit).items()
        }
        self._passed = dict.fromkeys(counts, 0)

    def take(self, table: pa.Table) -> Rows:
        """Give the positions drawn in the next table, in order."""
        if not table.num_rows:
            return np.zeros(0, np.int64)
        strata, rows = _find_strata(table, self._by_label)
        by_stratum = np.argsort(rows, kind="stable")
        ends = np.cumsum(np.bincount(rows, minlength=len(strata)))
        found = []
        for stratum, own in zip(strata, np.split(by_stratum, ends[:-1]), strict=True):
            drawn, passed = self._drawn[stratum], self._passed[stratum]
            first, last = np.searchsorted(drawn, (passed, passed + len(own)))
            found.append(own[drawn[first:last] - passed])
            self._passed[stratum] += len(own)
        return np.sort(np.concatenate(found))


def _find_strata(table: pa.Table, by_label: bool) -> tuple[list[Stratum], Rows]:
    """Give the strata of a table's rows in order of appearance, and which one each row is in."""
    columns = ["split", "label"] if by_label else ["split"]
    coded = [table[name].combine_chunks().dictionary_encode("encode") for name in columns]
    values = [column.dictionary.to_pylist() for column in coded]
    joined = np.zeros(table.num_rows, np.int64)
    for column, known in zip(coded, values, strict=True):
        joined = joined * len(known) + column.indices.to_numpy()
    _, first, rows = np.unique(joined, return_index=True, return_inverse=True)
    numbers: dict[Stratum, int] = {}
    found = np.zeros(len(first), np.int64)
    for at in np.argsort(first):
        row = int(first[at])
        stratum = tuple(
            _replace_nan(known[column.indices[row].as_py()])
            for column, known in zip(coded, values, strict=True)
        )
        found[at] = numbers.setdefault(stratum, len(numbers))
    return list(numbers), found[rows]


def _replace_nan(value: Any) -> Any:
    # NaN is not equal to itself, so it would be a new stratum each time.
    return None if value != value else value
