# SPDX-License-Identifier: Apache-2.0
"""A checksum of planned records that is independent of batch boundaries."""

import hashlib
import json
from collections import defaultdict

import numpy as np
import pyarrow as pa


class Digest:
    """An incremental checksum of the columns of a table.

    Args:
        about: plain values to include in the checksum.
    """

    def __init__(self, about: tuple[object, ...]) -> None:
        self._about = repr(about)
        # Hash lengths and texts separately, as two byte streams, so that batch boundaries have no
        # effect.
        self._columns: defaultdict[str, tuple[hashlib._Hash, hashlib._Hash]] = defaultdict(
            lambda: (hashlib.sha256(), hashlib.sha256())
        )

    def update(self, rows: pa.Table) -> None:
        """Add any number of rows. Null and the empty string have different checksums."""
        for name, column in zip(rows.column_names, rows.columns, strict=True):
            lengths, texts = self._columns[name]
            values = _to_texts(column)
            counts = [-1 if value is None else len(value) for value in values]
            lengths.update(np.array(counts, "<i4").tobytes())
            texts.update("".join(value or "" for value in values).encode())

    def hexdigest(self) -> str:
        """Return the checksum of all rows so far, as hex."""
        columns = [
            (name, *(part.hexdigest() for part in parts)) for name, parts in self._columns.items()
        ]
        return hashlib.sha256(repr((self._about, columns)).encode()).hexdigest()


def _to_texts(column: pa.ChunkedArray) -> list[str | None]:
    """Return values as text. All NaNs are equal then, and different lists differ."""
    if pa.types.is_list(column.type):
        return [None if value is None else json.dumps(value) for value in column.to_pylist()]
    texts: list[str | None] = column.cast(pa.string()).to_pylist()
    return texts
