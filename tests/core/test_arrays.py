# SPDX-License-Identifier: Apache-2.0
"""Row lengths, unit rows, and the smallest values of rows."""

import numpy as np
import pytest

from ray_embed.core import arrays


def test_unit_rows_are_the_same_a_few_rows_at_a_time(monkeypatch):
    values = np.random.default_rng(0).normal(size=(40, 300)).astype(np.float32)
    whole = values / np.linalg.norm(values, axis=1, keepdims=True)
    monkeypatch.setattr(arrays, "_ROWS", 7)
    assert arrays.unit_rows(values).tobytes() == whole.tobytes()
    assert arrays.unit_rows(values).dtype == np.float32
    assert arrays.unit_rows(values[:0]).shape == (0, 300)


def test_rows_of_zeros_stay_zeros():
    values = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert arrays.row_lengths(values).tolist() == [[5], [0]]
    assert arrays.unit_rows(values).tolist() == [[0.6, 0.8], [0, 0]]


@pytest.mark.parametrize("count", [1, 3, 40, 50])
def test_smallest_columns_are_those_of_a_stable_sort(count):
    values = np.random.default_rng(0).integers(-4, 5, (30, 40)).astype(np.float32) / 8
    values[values == 0] *= -1
    values[3, [5, 9]], values[4, [0, 7]] = (np.inf, -np.inf), (np.nan, -np.nan)
    columns = arrays.smallest_columns(values, count)
    assert columns.tolist() == np.argsort(values, axis=1, kind="stable")[:, :count].tolist()
