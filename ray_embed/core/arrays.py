# SPDX-License-Identifier: Apache-2.0
"""Types of NumPy arrays, and the conversion of features between Arrow and NumPy."""

from typing import Any

import numpy as np
import pyarrow as pa

# An array of any shape and type; docstrings give both.
Array = np.ndarray[Any, Any]
Matrix = np.ndarray[Any, np.dtype[np.float32]]


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
