# SPDX-License-Identifier: Apache-2.0
"""Principal components of any number of points: from their moments, in memory D² and not N×D.

Moments of some points are summed up where these are, and added; one eigendecomposition of the
covariance then gives what scikit-learn's ``PCA(svd_solver="full")`` gives of all points at once
(Pearson 1901; Jolliffe 2002, Principal Component Analysis, chapters 1 and 3). All in float64.

In a run folder they are the file `pca.parquet`, which needs neither TensorFlow nor Ray.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_embed import description, store
from ray_embed.errors import InputError, RunError, first_line
from ray_embed.filesystem import Folder
from ray_embed.matrix import Matrix

Array = np.ndarray[Any, np.dtype[np.float64]]

FILE = "pca.parquet"
# A row a component, and one before them, numbered 0, whose vector is the mean.
SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("component", pa.int64()),
        ("variance", pa.float64()),
        ("ratio", pa.float64()),
        ("vector", pa.list_(pa.float64())),
    ]
)
# Moments of more dimensions than these take half a gigabyte, and their components minutes.
MOST_DIMENSIONS = 8192
# Of more components the coordinates are not kept.
KEPT = 50
# Enough for a product to run at full speed, and to be added up at little cost.
_ROWS = 1024


@dataclass(frozen=True)
class Moments:
    """Of `count` points x: the sums (D,) and the sums of products (D, D) of x - shift."""

    count: int
    sums: Array
    products: Array


@dataclass(frozen=True)
class Components:
    """What a PCA gives.

    `mean` is (D,); `variances` (D,) are those of all components, the largest first, over N - 1;
    `vectors` (k, D) are the first components, of length 1. All float64.
    """

    mean: Array
    variances: Array
    vectors: Array

    @property
    def ratios(self) -> Array:
        """The share of each component in the whole variance (D,); 0 where there is none."""
        total = self.variances.sum()
        return self.variances / total if total else np.zeros_like(self.variances)

    def project(self, features: Matrix) -> Matrix:
        """Give the coordinates (n, k) float32 of features (n, D) float32."""
        found = np.empty((len(features), len(self.vectors)), np.float32)
        for start in range(0, len(features), _ROWS):
            rows = features[start : start + _ROWS].astype(np.float64)
            rows -= self.mean
            found[start : start + _ROWS] = rows @ self.vectors.T
        return found


def moments(matrices: Iterable[Matrix], shift: Array) -> Moments:
    """Sum up the moments of points, given some at a time.

    Args:
        matrices: the points, (n, D) float32 each.
        shift: (D,) somewhere among the points. Squares of numbers far from 0 would be rounded to
            more than the variance.
    """
    size = len(shift)
    count, sums, products = 0, np.zeros(size), np.zeros((size, size))
    rows, product = np.empty((_ROWS, size)), np.empty((size, size))
    filled = 0

    def add() -> None:
        taken = rows[:filled]
        # NumPy sees that it is symmetric, and computes half of it.
        np.matmul(taken.T, taken, out=product)
        np.add(products, product, out=products)
        np.add(sums, taken.sum(axis=0), out=sums)

    for values in matrices:
        count += len(values)
        start = 0
        while start < len(values):
            given = values[start : start + _ROWS - filled]
            target = rows[filled : filled + len(given)]
            # Converting and subtracting at once is slower.
            target[:] = given
            target -= shift
            start += len(given)
            filled += len(given)
            if filled == _ROWS:
                add()
                filled = 0
    if filled:
        add()
    return Moments(count, sums, products)


def joined(parts: Iterable[Moments], size: int) -> Moments:
    """Add moments of `size` dimensions up, in the order given."""
    count, sums, products = 0, np.zeros(size), np.zeros((size, size))
    for part in parts:
        count += part.count
        sums += part.sums
        products += part.products
    return Moments(count, sums, products)


def kept(points: int, dimensions: int) -> int:
    """Give how many components are kept: at least one, and no more than the points span."""
    return max(1, min(KEPT, dimensions, points - 1))


def components(found: Moments, shift: Array) -> Components:
    """Give the principal components of points of which the moments are known.

    Args:
        found: the moments of one point or more.
        shift: (D,) as they were made with.
    """
    from scipy.linalg import eigh, eigvalsh

    size, degrees = len(shift), found.count - 1
    offset = found.sums / found.count
    covariance = found.products - found.count * np.outer(offset, offset)
    covariance /= max(degrees, 1)
    variances = eigvalsh(covariance)[::-1].copy()
    # What rounding leaves of no variance.
    variances[variances <= variances[0] * size * np.finfo(np.float64).eps] = 0
    variances[degrees:] = 0
    first = size - kept(found.count, size)
    vectors = eigh(covariance, subset_by_index=[first, size - 1], overwrite_a=True)[1].T[::-1]
    return Components(shift + offset, variances, _signed(np.ascontiguousarray(vectors)))


def _signed(vectors: Array) -> Array:
    """Make the largest entry of each vector positive, as scikit-learn does: both signs are right"""
    largest = np.abs(vectors).argmax(axis=1)
    signs = np.sign(vectors[np.arange(len(vectors)), largest])
    return np.asarray(vectors * signs[:, None])


def column_of(column: str) -> str:
    """Name the coordinates of a feature column: `pca` or `pca_<layer>`."""
    return "pca" + column.removeprefix("feature")


def save(folder: Folder, found: dict[str, Components], fingerprint: str) -> None:
    """Write the components of a run, by layer."""
    tables = [_table(layer, of_one) for layer, of_one in found.items()]
    footer = {"ray_embed.fingerprint": fingerprint}
    folder.write(FILE, store.encoded(pa.concat_tables(tables).replace_schema_metadata(footer)))


def _table(layer: str, found: Components) -> pa.Table:
    size = len(found.variances)
    vectors = [found.mean, *found.vectors] + [None] * (size - len(found.vectors))
    return pa.table(
        [
            [layer] * (size + 1),
            np.arange(size + 1),
            pa.concat_arrays([pa.nulls(1, pa.float64()), pa.array(found.variances)]),
            pa.concat_arrays([pa.nulls(1, pa.float64()), pa.array(found.ratios)]),
            pa.array(vectors, pa.list_(pa.float64())),
        ],
        schema=SCHEMA,
    )


def load(folder: Folder, column: str) -> Components:
    """Read the components of a feature column of a reduced run.

    Raises:
        InputError: there are none: it has not been reduced, or has too many dimensions.
        RunError: the file is not what was written.
        StorageError: it cannot be read.
    """
    again = f"`ray-embed reduce {folder.shown()}` writes it"
    run = description.read_run(folder) or {}
    output = description.output_of(run, column)
    if output["dimension"] > MOST_DIMENSIONS:
        raise InputError(
            f"{folder.shown()}: {column} has {output['dimension']} dimensions; there is an exact "
            f"PCA of {MOST_DIMENSIONS} at most"
        )
    if not folder.exists(FILE):
        raise InputError(f"{folder.shown(FILE)}: no such file; {again}")
    content = pa.BufferReader(folder.read(FILE))
    try:
        table = pq.ParquetFile(content, page_checksum_verification=True).read()
        rows = table.filter(pc.equal(table["layer"], output["layer"]))
        vectors = [vector.values.to_numpy() for vector in rows["vector"] if vector.is_valid]
        return Components(vectors[0], rows["variance"].to_numpy()[1:], np.stack(vectors[1:]))
    except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
        raise RunError(
            f"{folder.shown(FILE)}: damaged: {first_line(error)}; {again} again", goes_on=False
        ) from error
