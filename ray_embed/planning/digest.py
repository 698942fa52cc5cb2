# SPDX-License-Identifier: Apache-2.0
"""A checksum of planned records that does not depend on the batches they come in."""

import hashlib
from collections import defaultdict

import numpy as np
import pyarrow as pa


class Digest:
    """The checksum of a table's columns, updated with some rows at a time.

    Args:
        about: plain values that are part of it, too.
    """

    def __init__(self, about: tuple[object, ...]) -> None:
        self._about = repr(about)
        # The lengths of the texts, and the texts, each as one long row of bytes: batches leave no
        # trace.
        self._columns: defaultdict[str, tuple[hashlib._Hash, hashlib._Hash]] = defaultdict(
            lambda: (hashlib.sha256(), hashlib.sha256())
        )

    def update(self, rows: pa.Table) -> None:
        """Add rows, any number; a missing value differs from an empty text."""
        for name, column in zip(rows.column_names, rows.columns, strict=True):
            lengths, texts = self._columns[name]
            # Numbers as text, too: every NaN is the same.
            values = column.cast(pa.string()).to_pylist()
            counts = [-1 if value is None else len(value) for value in values]
            lengths.update(np.array(counts, "<i4").tobytes())
            texts.update("".join(value or "" for value in values).encode())

    def hexdigest(self) -> str:
        """Return the checksum of all rows so far, in hex."""
        columns = [
            (name, *(part.hexdigest() for part in parts)) for name, parts in self._columns.items()
        ]
        return hashlib.sha256(repr((self._about, columns)).encode()).hexdigest()
