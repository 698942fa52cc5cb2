# SPDX-License-Identifier: Apache-2.0
"""Compute the PCA of any number of points from their moments, in memory for D², not N×D.

The moments of blocks of points are computed separately and added. One eigendecomposition of the
covariance then gives the result of scikit-learn's ``PCA(svd_solver="full")`` on all points (Pearson
1901; Jolliffe 2002, Principal Component Analysis, chapters 1 and 3). Everything is computed in
float64.

A run folder holds them as `pca.parquet`, which can be read without TensorFlow and Ray.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_embed.core.arrays import Array, Matrix
from ray_embed.errors import InputError, RunError, get_first_line
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder

Result = TypeVar("Result")

# One row for each component, numbered from 1. They are preceded by row 0, whose vector is the mean.
SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("component", pa.int64()),
        ("variance", pa.float64()),
        ("ratio", pa.float64()),
        ("vector", pa.list_(pa.float64())),
    ]
)
# How the components of a layer were computed, as JSON. If absent, they are exact, from moments.
_METHOD = "ray_embed.pca."
# With more dimensions, moments take over half a gigabyte, and components minutes. See `wide_pca`.
MAX_EXACT_DIMENSIONS = 8192
# The coordinates of later components are not kept.
KEPT = 50
# Rows per product: enough to run at full speed, and to make adding up products cheap.
_ROWS = 1024
# With more dimensions, fewer rows are taken at a time, so that they need no more memory.
_NUMBERS = _ROWS * MAX_EXACT_DIMENSIONS


@dataclass(frozen=True)
class Moments:
    """The sums (D,) and the sums of products (D, D) of x - shift, over `count` points x."""

    count: int
    sums: Array
    products: Array


COVARIANCE, GRAM, KRYLOV = "covariance", "gram", "krylov"


@dataclass(frozen=True)
class Method:
    """How principal components were computed, and how exact they are.

    `name` is COVARIANCE (exact, from the products of the dimensions), GRAM (exact, from the
    products of the records) or KRYLOV (approximate). `passes` is how many times the parts were read
    to compute the components. `total` is the exact total variance, or None if the variances of all
    components are known. `residuals` (k,), for KRYLOV only, holds |Cv - λv| for each component v
    with variance λ, where C is the covariance: C has an eigenvalue no further from λ than this.
    """

    name: str
    passes: int
    total: float | None = None
    residuals: tuple[float, ...] = ()


@dataclass(frozen=True)
class Components:
    """The result of a PCA.

    `mean` is (D,). `variances` (c,) holds the variances of the components, the largest first, with
    divisor N - 1: for all D components, for the N - 1 that the points span, or for the first k.
    `vectors` (k, D) holds the first components, which have length 1. All are float64. `method`
    tells how they were computed.
    """

    mean: Array
    variances: Array
    vectors: Array
    method: Method = Method(COVARIANCE, 1)

    @property
    def is_complete(self) -> bool:
        """Whether all variances are known, except those that are 0."""
        return self.method.total is None

    @property
    def ratios(self) -> Array:
        """The share of each component in the total variance (c,), or 0 if there is no variance."""
        total = self.variances.sum() if self.method.total is None else self.method.total
        return self.variances / total if total else np.zeros_like(self.variances)

    @property
    def error(self) -> float:
        """The largest residual, as a share of its variance; 0 for exact components."""
        pairs = zip(self.method.residuals, self.variances, strict=False)
        return max((residual / variance for residual, variance in pairs if variance), default=0.0)

    def project(self, features: Matrix) -> Matrix:
        """Return the coordinates (n, k) float32 of features (n, D) float32."""
        coordinates = np.empty((len(features), len(self.vectors)), np.float32)
        size = max(1, min(_ROWS, _NUMBERS // len(self.mean)))
        for start in range(0, len(features), size):
            rows = features[start : start + size].astype(np.float64)
            rows -= self.mean
            coordinates[start : start + size] = rows @ self.vectors.T
        return coordinates


def compute_moments(matrices: Iterable[Matrix], shift: Array) -> Moments:
    """Compute the moments of points.

    Args:
        matrices: the points, as arrays (n, D) float32.
        shift: (D,), a position near the points. Without it, rounding errors in the squares of
            numbers far from 0 could exceed the variance.
    """
    size = len(shift)
    count, sums, products = 0, np.zeros(size), np.zeros((size, size))
    rows, product = np.empty((_ROWS, size)), np.empty((size, size))
    filled = 0

    def add() -> None:
        filled_rows = rows[:filled]
        # NumPy detects the symmetry and computes only half of the product.
        np.matmul(filled_rows.T, filled_rows, out=product)
        np.add(products, product, out=products)
        np.add(sums, filled_rows.sum(axis=0), out=sums)

    for values in matrices:
        count += len(values)
        start = 0
        while start < len(values):
            taken = values[start : start + _ROWS - filled]
            target = rows[filled : filled + len(taken)]
            # Converting and subtracting in one step would be slower.
            target[:] = taken
            target -= shift
            start += len(taken)
            filled += len(taken)
            if filled == _ROWS:
                add()
                filled = 0
    if filled:
        add()
    return Moments(count, sums, products)


def add_moments(parts: Iterable[Moments], size: int) -> Moments:
    """Add up moments of `size` dimensions, in the given order."""
    count, sums, products = 0, np.zeros(size), np.zeros((size, size))
    for part in parts:
        count += part.count
        sums += part.sums
        products += part.products
    return Moments(count, sums, products)


def count_kept(points: int, dimensions: int) -> int:
    """Return how many components are kept: at least one, and no more than the points span."""
    return max(1, min(KEPT, dimensions, points - 1))


def compute_components(moments: Moments, shift: Array) -> Components:
    """Compute the principal components of points from their moments.

    Args:
        moments: the moments of at least one point.
        shift: (D,), the shift that the moments were computed with.
    """
    from scipy.linalg import eigh, eigvalsh

    size, degrees = len(shift), moments.count - 1
    offset = moments.sums / moments.count
    covariance = moments.products - moments.count * np.outer(offset, offset)
    covariance /= max(degrees, 1)
    variances = remove_rounding(eigvalsh(covariance)[::-1], size)
    variances[degrees:] = 0
    first = size - count_kept(moments.count, size)
    vectors = eigh(covariance, subset_by_index=[first, size - 1], overwrite_a=True)[1].T[::-1]
    return Components(shift + offset, variances, fix_signs(np.ascontiguousarray(vectors)))


def remove_rounding(variances: Array, size: int) -> Array:
    """Set variances (c,), the largest first, to zero if they are only rounding errors."""
    cleaned = variances.copy()
    cleaned[cleaned <= cleaned[0] * size * np.finfo(np.float64).eps] = 0
    return cleaned


def fix_signs(vectors: Array) -> Array:
    """Make the largest entry of each vector positive, as in scikit-learn; both signs are valid."""
    largest = np.abs(vectors).argmax(axis=1)
    signs = np.sign(vectors[np.arange(len(vectors)), largest])
    return np.asarray(vectors * signs[:, None])


def save(folder: Folder, by_layer: dict[str, Components], fingerprint: str) -> None:
    """Write the components of a run, by layer."""
    tables = [_make_table(layer, components) for layer, components in by_layer.items()]
    footer = {"ray_embed.fingerprint": fingerprint}
    for layer, components in by_layer.items():
        if components.method.name != COVARIANCE:
            footer[_METHOD + layer] = json.dumps(asdict(components.method))
    folder.write(
        layout.COMPONENTS,
        part_files.encode_part(pa.concat_tables(tables).replace_schema_metadata(footer)),
    )


def _make_table(layer: str, components: Components) -> pa.Table:
    size = len(components.variances)
    unknown = [None] * (size - len(components.vectors))
    vectors = [components.mean, *components.vectors, *unknown]
    return pa.table(
        [
            [layer] * (size + 1),
            np.arange(size + 1),
            pa.concat_arrays([pa.nulls(1, pa.float64()), pa.array(components.variances)]),
            pa.concat_arrays([pa.nulls(1, pa.float64()), pa.array(components.ratios)]),
            pa.array(vectors, pa.list_(pa.float64())),
        ],
        schema=SCHEMA,
    )


def load(folder: Folder, column: str) -> Components:
    """Read the components of a feature column of a reduced run.

    Raises:
        InputError: there are no components, because the run has not been reduced.
        RunError: the file is damaged.
        StorageError: the file cannot be read.
    """
    return _read(folder, column, _read_components)


def load_method(folder: Folder, column: str) -> tuple[Method, float]:
    """Read how a feature column's components were computed, and their error, without the vectors.

    Raises:
        See :func:`load`.
    """

    def read(file: pq.ParquetFile, layer: str) -> tuple[Method, float]:
        rows = _read_rows(file, layer, ["layer", "variance"])
        method = _read_method(file, layer)
        none = np.zeros((0, 0))
        return method, Components(none, rows["variance"].to_numpy()[1:], none, method).error

    return _read(folder, column, read)


def _read(folder: Folder, column: str, read: Callable[[pq.ParquetFile, str], Result]) -> Result:
    again = f"`ray-embed reduce {folder.display_path()}` writes it"
    run = manifest.read_run(folder) or {}
    layer = manifest.find_output(run, column)["layer"]
    if not folder.exists(layout.COMPONENTS):
        raise InputError(f"{folder.display_path(layout.COMPONENTS)}: no such file; {again}")
    content = pa.BufferReader(folder.read(layout.COMPONENTS))
    try:
        return read(pq.ParquetFile(content, page_checksum_verification=True), layer)
    except _NoLayerError:
        # Earlier versions wrote no components for layers with many dimensions.
        raise InputError(
            f"{folder.display_path(layout.COMPONENTS)}: no PCA of the layer {layer}; {again}"
        ) from None
    except (OSError, ValueError, KeyError, IndexError, TypeError, pa.ArrowException) as error:
        raise RunError(
            f"{folder.display_path(layout.COMPONENTS)}: damaged: {get_first_line(error)}; {again} "
            "again",
            can_resume=False,
        ) from error


class _NoLayerError(Exception):
    """The file has no components of the layer."""


def _read_components(file: pq.ParquetFile, layer: str) -> Components:
    rows = _read_rows(file, layer, SCHEMA.names)
    vectors = [vector.values.to_numpy() for vector in rows["vector"] if vector.is_valid]
    variances = rows["variance"].to_numpy()[1:]
    return Components(vectors[0], variances, np.stack(vectors[1:]), _read_method(file, layer))


def _read_rows(file: pq.ParquetFile, layer: str, columns: list[str]) -> pa.Table:
    table = file.read(columns)
    rows = table.filter(pc.equal(table["layer"], layer))
    if not len(rows):
        raise _NoLayerError
    return rows


def _read_method(file: pq.ParquetFile, layer: str) -> Method:
    content = (file.schema_arrow.metadata or {}).get((_METHOD + layer).encode())
    if content is None:
        return Method(COVARIANCE, 1)
    method = json.loads(content)
    return Method(**method | {"residuals": tuple(method["residuals"])})
