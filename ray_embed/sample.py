# SPDX-License-Identifier: Apache-2.0
"""A sample of the points for TensorBoard's page, which shows a limited number of them.

Stratified by split and label: every label is there, in about its share, and the same points each
time. Needs one pass to count and one to draw, and memory for the strata, not for the points.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

Stratum = tuple[Any, ...]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_SEED = 0


def count_strata(tables: Iterable[pa.Table], limit: int) -> Counter[Stratum]:
    """Count the rows of each split and label, or of each split where there are too many labels.

    Args:
        tables: with the columns `split` and `label`.
        limit: the number of points that will be drawn.
    """
    counts: Counter[Stratum] = Counter()
    by_label = True
    for table in tables:
        counts.update(_strata(table, by_label))
        if by_label and len(counts) > limit:
            by_label = False
            splits: Counter[Stratum] = Counter()
            for (split, _), count in counts.items():
                splits[(split,)] += count
            counts = splits
    return counts


def quotas(counts: Counter[Stratum], limit: int) -> dict[Stratum, int]:
    """Share `limit` points out over the strata: one each, the rest in proportion to their rows."""
    left = limit - len(counts)
    beyond = sum(counts.values()) - len(counts)
    shares = {stratum: (count - 1) * left / max(beyond, 1) for stratum, count in counts.items()}
    given = {stratum: 1 + int(share) for stratum, share in shares.items()}
    # The largest remainders get what rounding down has left; equal ones in order of appearance.
    by_remainder = sorted(shares, key=lambda stratum: int(shares[stratum]) - shares[stratum])
    for stratum in by_remainder[: limit - sum(given.values())]:
        given[stratum] += 1
    return given


def draw(tables: Iterable[pa.Table], counts: Counter[Stratum], limit: int) -> Iterator[Rows]:
    """Draw `limit` of the counted rows; yields the positions drawn in each table, in order.

    Each row is taken with the chance (points still to draw) / (rows still to come) of its stratum:
    selection sampling, Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S.
    """
    random = np.random.default_rng(_SEED)
    by_label = any(len(stratum) > 1 for stratum in counts)
    wanted, coming = quotas(counts, limit), dict(counts)
    for table in tables:
        chances = random.random(table.num_rows)
        drawn = []
        for row, stratum in enumerate(_strata(table, by_label)):
            if chances[row] * coming[stratum] < wanted[stratum]:
                wanted[stratum] -= 1
                drawn.append(row)
            coming[stratum] -= 1
        yield np.array(drawn, np.int64)


def _strata(table: pa.Table, by_label: bool) -> Iterator[Stratum]:
    splits = table["split"].to_pylist()
    if not by_label:
        return ((split,) for split in splits)
    # NaN is not equal to itself, so it would be a new stratum each time.
    labels = (None if label != label else label for label in table["label"].to_pylist())
    return zip(splits, labels, strict=True)
