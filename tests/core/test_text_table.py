# SPDX-License-Identifier: Apache-2.0
"""Tables of plain text."""

from ray_embed.core.text_table import align


def test_columns_are_aligned():
    rows = [["", "one", "two"], ["first", "1", "22222"]]
    assert list(align(rows)) == ["       one  two", "first  1    22222"]
    assert list(align(rows, numeric=True)) == ["       one    two", "first    1  22222"]
    assert list(align([["a", "b"]], first_width=4)) == ["a     b"]
    assert list(align([])) == []
