# SPDX-License-Identifier: Apache-2.0
"""Draw a sample of rows, stratified by split and label, with a fixed seed.

Every label is represented in proportion to its rows. This takes one pass to count the rows and one
to draw them, and memory only for the strata, not for the rows.
"""

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Stratum = tuple[Any, ...]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_SEED = 0


class Strata:
    """Counts the rows of each split and label, or of each split if there are too many labels.

    A list of labels counts as one label.

    Args:
        limit: the number of rows that will be drawn.
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
    """Return how many of `limit` rows to draw from each stratum.

    One row is drawn from every stratum, and the others in proportion to the rows. If there are more
    strata than `limit`, one row is drawn from each of the largest.
    """
    if len(counts) > limit:
        chosen = set(sorted(counts, key=lambda stratum: -counts[stratum])[:limit])
        return {stratum: int(stratum in chosen) for stratum in counts}
    remaining = limit - len(counts)
    other_rows = sum(counts.values()) - len(counts)
    shares = {
        stratum: (count - 1) * remaining / max(other_rows, 1) for stratum, count in counts.items()
    }
    result = {stratum: 1 + int(share) for stratum, share in shares.items()}
    # Rows left by rounding down go to the largest remainders; ties, in order of appearance.
    by_remainder = sorted(shares, key=lambda stratum: int(shares[stratum]) - shares[stratum])
    for stratum in by_remainder[: limit - sum(result.values())]:
        result[stratum] += 1
    return result


class Draw:
    """Draws `limit` of the counted rows, table by table, in the order in which they were counted.

    Within a stratum, every choice of rows is equally likely.

    Args:
        counts: the number of rows of each stratum, as counted by `Strata`.
        limit: the number of rows to draw.
    """

    def __init__(self, counts: Counter[Stratum], limit: int) -> None:
        random = Random(_SEED)  # noqa: S311
        self._by_label = any(len(stratum) > 1 for stratum in counts)
        # For each stratum, the positions to draw within it, and how many of its rows have passed.
        self._drawn = {
            stratum: np.sort(np.array(random.sample(range(counts[stratum]), quota), np.int64))
            for stratum, quota in allocate_quotas(counts, limit).items()
        }
        self._passed = dict.fromkeys(counts, 0)

    def take(self, table: pa.Table) -> Rows:
        """Return the positions drawn in the next table, in order."""
        if not table.num_rows:
            return np.zeros(0, np.int64)
        strata, rows = _find_strata(table, self._by_label)
        by_stratum = np.argsort(rows, kind="stable")
        ends = np.cumsum(np.bincount(rows, minlength=len(strata)))
        positions = []
        for stratum, members in zip(strata, np.split(by_stratum, ends[:-1]), strict=True):
            drawn, passed = self._drawn[stratum], self._passed[stratum]
            first, last = np.searchsorted(drawn, (passed, passed + len(members)))
            positions.append(members[drawn[first:last] - passed])
            self._passed[stratum] += len(members)
        return np.sort(np.concatenate(positions))


def _find_strata(table: pa.Table, by_label: bool) -> tuple[list[Stratum], Rows]:
    """Return the strata of a table in order of appearance, and the number of each row's stratum."""
    columns = ["split", "label"] if by_label else ["split"]
    coded = [_to_values(table[name]).dictionary_encode("encode") for name in columns]
    values = [column.dictionary.to_pylist() for column in coded]
    codes = np.zeros(table.num_rows, np.int64)
    for column, known in zip(coded, values, strict=True):
        codes = codes * len(known) + column.indices.to_numpy()
    _, first, rows = np.unique(codes, return_index=True, return_inverse=True)
    numbers: dict[Stratum, int] = {}
    number_of_code = np.zeros(len(first), np.int64)
    for position in np.argsort(first):
        row = int(first[position])
        stratum = tuple(
            _replace_nan(known[column.indices[row].as_py()])
            for column, known in zip(coded, values, strict=True)
        )
        number_of_code[position] = numbers.setdefault(stratum, len(numbers))
    return list(numbers), number_of_code[rows]


def _to_values(column: pa.ChunkedArray) -> pa.Array:
    """Return a column whose values can be compared; a list becomes one text."""
    values = column.combine_chunks()
    return pc.binary_join(values, "\n") if pa.types.is_list(values.type) else values


def _replace_nan(value: Any) -> Any:
    # NaN is not equal to itself, so every NaN would be a new stratum.
    return None if value != value else value
