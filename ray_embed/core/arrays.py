# SPDX-License-Identifier: Apache-2.0
"""NumPy array types, conversion of features between Arrow and NumPy, and row-wise functions."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

# An array of any shape and type; docstrings state both.
Array = np.ndarray[Any, Any]
Matrix = np.ndarray[Any, np.dtype[np.float32]]

# How many rows are squared in memory at once.
_ROWS = 64


def as_matrix(column: pa.ChunkedArray) -> Matrix:
    """Return a column of fixed-size lists as an (N, D) float32 array."""
    size = column.type.list_size
    flat = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
    joined = flat[0] if len(flat) == 1 else np.concatenate([*flat, np.zeros(0, np.float32)])
    return joined.reshape(-1, size)


def as_column(values: Matrix) -> pa.FixedSizeListArray:
    """Return an (N, D) float32 array as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def as_objects(values: Collection[Any]) -> Array:
    """Return values of any type, such as lists, as an (N,) object array."""
    return np.fromiter(values, object, len(values))


def row_lengths(values: Array) -> Array:
    """Return the Euclidean length (N, 1) of each row of an (N, D) array."""
    # The squares of all values would take as much memory as the values.
    starts = range(0, max(1, len(values)), _ROWS)
    blocks = (values[start : start + _ROWS] for start in starts)
    return np.concatenate([np.linalg.norm(block, axis=1, keepdims=True) for block in blocks])


def unit_rows(values: Array, lengths: Array | None = None) -> Array:
    """Scale the rows of an (N, D) array to length one. Rows of zeros stay zeros.

    Args:
        values: (N, D).
        lengths: (N, 1), as returned by `row_lengths`. If None, they are computed.
    """
    lengths = row_lengths(values) if lengths is None else lengths
    scaled: Array = values / np.where(lengths == 0, 1, lengths)
    return scaled


def smallest_columns(values: Matrix, count: int) -> Array:
    """Return the columns (N, k) int64 of the `count` smallest values of each row, ascending.

    Ties are broken by the lower column. NaN counts as the largest.

    Args:
        values: (N, M) float32.
        count: how many values to return per row. k is `count`, or M if M is smaller.
    """
    # Floats sort like their bits, or like their inverted bits if negative. With the column in the
    # lower bits, no two keys are equal.
    bits, magnitude = values.view(np.int32), np.int32(0x7FFFFFFF)
    order = np.where(values < 0, bits ^ magnitude, bits & magnitude)
    keys = order.astype(np.int64) << 32
    keys |= np.arange(keys.shape[1])
    if keys.shape[1] > count:
        keys = np.partition(keys, count - 1, axis=1)[:, :count]
    keys.sort(axis=1)
    return keys & 0xFFFFFFFF
