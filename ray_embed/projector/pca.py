# SPDX-License-Identifier: Apache-2.0
"""Principal components of any number of points: from their moments, in memory D² and not N×D.

Moments of some points are summed up where these are, and added; one eigendecomposition of the
covariance then gives what scikit-learn's ``PCA(svd_solver="full")`` gives of all points at once
(Pearson 1901; Jolliffe 2002, Principal Component Analysis, chapters 1 and 3). All in float64.

In a run folder they are the file `pca.parquet`, which needs neither TensorFlow nor Ray.
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
# How the components of a layer were found, as JSON; layers without it are exact, by their moments.
_METHOD = "ray_embed.pca."
# Moments of more dimensions than these take half a gigabyte, and their components minutes; see
# `wide_pca` for these.
MOST_DIMENSIONS = 8192
# Of more components the coordinates are not kept.
KEPT = 50
# Enough for a product to run at full speed, and to be added up at little cost.
_ROWS = 1024
# Of more dimensions fewer rows, so that they take no more memory.
_NUMBERS = _ROWS * MOST_DIMENSIONS


@dataclass(frozen=True)
class Moments:
    """Of `count` points x: the sums (D,) and the sums of products (D, D) of x - shift."""

    count: int
    sums: Array
    products: Array


COVARIANCE, GRAM, KRYLOV = "covariance", "gram", "krylov"


@dataclass(frozen=True)
class Method:
    """How principal components were computed, and how exact they are.

    `name` is COVARIANCE (exact, from the products of the dimensions), GRAM (exact, from the
    products of the records) or KRYLOV (approximate). `passes` is how often the parts were read to
    find them. `total` is the whole variance, exact, None where the variances of all components are
    known. `residuals` (k,), of KRYLOV, are |Cv - λv| of each component v with variance λ, where C
    is the covariance: C has an eigenvalue no further from λ than that.
    """

    name: str
    passes: int
    total: float | None = None
    residuals: tuple[float, ...] = ()


@dataclass(frozen=True)
class Components:
    """What a PCA gives.

    `mean` is (D,); `variances` (c,) are those of the components, the largest first, over N - 1:
    of all D of them, of the N - 1 that the points span, or of the first k. `vectors` (k, D) are the
    first components, of length 1. All float64. `method` is how they were computed.
    """

    mean: Array
    variances: Array
    vectors: Array
    method: Method = Method(COVARIANCE, 1)

    @property
    def is_complete(self) -> bool:
        """Whether all variances are known, but for those that are 0."""
        return self.method.total is None

    @property
    def ratios(self) -> Array:
        """The share of each component in the whole variance (c,); 0 where there is none."""
        total = self.variances.sum() if self.method.total is None else self.method.total
        return self.variances / total if total else np.zeros_like(self.variances)

    @property
    def error(self) -> float:
        """The largest residual, as a share of its variance; 0 for exact components."""
        pairs = zip(self.method.residuals, self.variances, strict=False)
        return max((residual / variance for residual, variance in pairs if variance), default=0.0)

    def project(self, features: Matrix) -> Matrix:
        """Give the coordinates (n, k) float32 of features (n, D) float32."""
        found = np.empty((len(features), len(self.vectors)), np.float32)
        together = max(1, min(_ROWS, _NUMBERS // len(self.mean)))
        for start in range(0, len(features), together):
            rows = features[start : start + together].astype(np.float64)
            rows -= self.mean
            found[start : start + together] = rows @ self.vectors.T
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
    return Components(shift + offset, variances, signed(np.ascontiguousarray(vectors)))


def signed(vectors: Array) -> Array:
    """Make the largest entry of each vector positive, as scikit-learn does: both signs are right"""
    largest = np.abs(vectors).argmax(axis=1)
    signs = np.sign(vectors[np.arange(len(vectors)), largest])
    return np.asarray(vectors * signs[:, None])


def save(folder: Folder, found: dict[str, Components], fingerprint: str) -> None:
    """Write the components of a run, by layer."""
    tables = [_table(layer, of_one) for layer, of_one in found.items()]
    footer = {"ray_embed.fingerprint": fingerprint}
    for layer, of_one in found.items():
        if of_one.method.name != COVARIANCE:
            footer[_METHOD + layer] = json.dumps(asdict(of_one.method))
    folder.write(
        layout.COMPONENTS,
        part_files.encode_part(pa.concat_tables(tables).replace_schema_metadata(footer)),
    )


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
        InputError: there are none, as it has not been reduced.
        RunError: the file is not what was written.
        StorageError: it cannot be read.
    """
    return _read(folder, column, _components)


def method(folder: Folder, column: str) -> tuple[Method, float]:
    """Read how the components of a feature column were computed, and their error; not the vectors.

    Raises:
        As :func:`load`.
    """

    def read(file: pq.ParquetFile, layer: str) -> tuple[Method, float]:
        rows = _rows(file, layer, ["layer", "variance"])
        found = _method(file, layer)
        none = np.zeros((0, 0))
        return found, Components(none, rows["variance"].to_numpy()[1:], none, found).error

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
        # An earlier version wrote none of a layer with many dimensions.
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


def _components(file: pq.ParquetFile, layer: str) -> Components:
    rows = _rows(file, layer, SCHEMA.names)
    vectors = [vector.values.to_numpy() for vector in rows["vector"] if vector.is_valid]
    variances = rows["variance"].to_numpy()[1:]
    return Components(vectors[0], variances, np.stack(vectors[1:]), _method(file, layer))


def _rows(file: pq.ParquetFile, layer: str, columns: list[str]) -> pa.Table:
    table = file.read(columns)
    rows = table.filter(pc.equal(table["layer"], layer))
    if not len(rows):
        raise _NoLayerError
    return rows


def _method(file: pq.ParquetFile, layer: str) -> Method:
    content = (file.schema_arrow.metadata or {}).get((_METHOD + layer).encode())
    if content is None:
        return Method(COVARIANCE, 1)
    found = json.loads(content)
    return Method(**found | {"residuals": tuple(found["residuals"])})
