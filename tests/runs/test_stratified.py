# SPDX-License-Identifier: Apache-2.0
"""The stratified sample: every label has its share, and the same rows are drawn each time."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_embed.runs.stratified import Draw, Strata, allocate_quotas


def tables(labels: list, split: str = "valid", rows: int = 70) -> list[pa.Table]:
    table = pa.table({"split": [split] * len(labels), "label": labels})
    return [table.slice(start, rows) for start in range(0, len(labels), rows)]


def positions(parts: list[pa.Table], limit: int) -> list[list[int]]:
    strata = Strata(limit)
    for table in parts:
        strata.add(table)
    draw = Draw(strata.counts, limit)
    return [draw.take(table).tolist() for table in parts]


def drawn(parts: list[pa.Table], limit: int) -> list[tuple]:
    taken = positions(parts, limit)
    rows = [table.take(pa.array(at)).to_pylist() for table, at in zip(parts, taken, strict=True)]
    return [(row["split"], row["label"]) for part in rows for row in part]


def test_sample_has_the_exact_size_and_every_label_in_its_share():
    labels = ["common"] * 900 + ["seldom"] * 95 + ["once"] * 5
    counts = Counter(drawn(tables(labels), 100))
    assert sum(counts.values()) == 100
    assert counts["valid", "once"] >= 1
    assert abs(counts["valid", "common"] - 90) <= 2
    assert abs(counts["valid", "seldom"] - 9.5) <= 2


def test_order_of_labels_does_not_change_the_sample():
    labels = [str(number % 7) for number in range(700)]
    assert Counter(drawn(tables(labels), 70)) == Counter(drawn(tables(sorted(labels)), 70))


def test_splits_are_strata_too():
    parts = tables(["a"] * 500, "valid") + tables(["a"] * 100, "test")
    counts = Counter(drawn(parts, 60))
    assert sum(counts.values()) == 60
    assert abs(counts["valid", "a"] - 50) <= 1
    assert abs(counts["test", "a"] - 10) <= 1


def test_same_rows_are_drawn_each_time_and_in_order():
    parts = tables([str(number % 3) for number in range(300)])
    first, second = (positions(parts, 50) for _ in range(2))
    assert first == second
    assert all(rows == sorted(set(rows)) for rows in first)


@settings(deadline=None)
@given(
    labels=st.lists(st.sampled_from([None, 0.0, -0.0, 1.5, float("nan")]), min_size=2, max_size=60),
    rows=st.integers(1, 60),
    limit=st.integers(1, 30),
)
def test_rows_drawn_do_not_depend_on_the_tables(labels, rows, limit):
    if limit >= len(labels):
        return
    found = [
        [
            (at, row)
            for at, part in zip(range(0, len(labels), size), taken, strict=True)
            for row in part
        ]
        for size in (rows, len(labels))
        for taken in [positions(tables(labels, rows=size), limit)]
    ]
    flat = [[start + row for start, row in one] for one in found]
    assert flat[0] == flat[1]
    assert len(flat[0]) == limit


def test_all_rows_of_a_stratum_are_equally_likely():
    labels = [str(number // 10) for number in range(20_000)]
    taken = np.array(drawn_rows(labels, 4_000))
    counts = np.bincount(taken % 10)
    # Binomial, 2,000 draws with a chance of 0.2: four standard deviations are 72.
    assert counts.sum() == 4_000
    assert abs(counts - 400).max() < 72


def drawn_rows(labels: list, limit: int) -> list[int]:
    parts = tables(labels)
    starts = np.cumsum([0, *map(len, parts)])
    return [
        int(start) + row
        for start, part in zip(starts, positions(parts, limit), strict=False)
        for row in part
    ]


@pytest.mark.parametrize(
    "labels", [[str(n) for n in range(400)], [None] * 400, [float("nan")] * 400]
)
def test_sample_size_with_too_many_or_no_labels_and_nan(labels):
    assert len(drawn(tables(labels), 30)) == 30


def test_quotas_add_up_and_never_exceed_a_stratum():
    counts = Counter({("s", label): size for label, size in enumerate([1, 1, 2, 3, 50, 1000])})
    for limit in (6, 7, 10, 100, 1056):
        given = allocate_quotas(counts, limit)
        assert sum(given.values()) == limit
        assert all(1 <= given[stratum] <= size for stratum, size in counts.items())
