# SPDX-License-Identifier: Apache-2.0
"""Compute the PCA of features too wide for a D x D matrix, in memory for D x 60 or N x N.

For few records (N), exact components are computed from the products of records, N x N. For more, a
block Krylov method approximates them: each pass over the parts multiplies 60 vectors by the
covariance C, and the components are the best ones (Rayleigh-Ritz) in the space of all products so
far (Musco and Musco 2015, Randomized Block Krylov Methods; Halko, Martinsson and Tropp 2011,
Finding Structure with Randomness). Their variances are never too large, and their residuals |Cv -
λv| bound their error. The total variance is exact, because it is a sum of squares.

As in `covariance`, blocks depend only on the parts and are added up in order, so the result is the
same bit for bit whichever threads or machines process them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array, Matrix
from ray_embed.core.threads import OrderedMap, limit_blas_to_one_thread
from ray_embed.errors import DamagedError
from ray_embed.projector import pca
from ray_embed.projector.merge_task import PartGroup
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# With more records, computing their products takes longer than the passes of the Krylov method.
MOST_RECORDS = 4096
# A block has ten more vectors than there are components, as its last vectors converge slowly.
WIDTH = pca.KEPT + 10
PASSES = 4
_SEED = 0
# A block of parts has this many times the bytes of its products, which are sent and added up.
_FEATURE_BYTES_PER_RESULT_BYTE = 4
# Bytes of float32 features in memory at once: of a chunk to multiply, and of a strip's rows.
_CHUNK_BYTES, _STRIP_BYTES = 64 << 20, 256 << 20
_MOST_ROWS = 1024
# How many dimensions are in memory at once in double precision.
_PANEL = 4096
_AT_ONCE_BYTES = 1 << 30


@dataclass(frozen=True)
class Block:
    """Consecutive parts that are processed together.

    `shift` (D,) is the same for all blocks. `start` is the number of rows before the block.
    """

    column: str
    shift: Array
    parts: tuple[int, ...]
    start: int


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The rows from `skip` to `skip + rows` of `parts`, to be multiplied with all later rows.

    `parts` includes all later parts. `shift` (D,) is the same for all strips.
    """

    column: str
    shift: Array
    parts: tuple[int, ...]
    skip: int
    rows: int


@dataclass(frozen=True)
class Sums:
    """Sums over `count` points x minus a shift: the sums of x (D,), of squares, and of products.

    `products` (D, k) holds the sums of x times each of k numbers that belong to the point.
    """

    count: int
    sums: Array
    squares: float
    products: Array


def count_parallel_blocks(dimension: int) -> int:
    """Return how many blocks or strips may be processed at a time, so that they fit in memory."""
    block = 2 * 8 * dimension * WIDTH + 2 * _CHUNK_BYTES
    return max(1, _AT_ONCE_BYTES // max(block, _STRIP_BYTES + 2 * _CHUNK_BYTES))


def compute_components(
    out: str,
    fingerprint: str,
    groups: tuple[PartGroup, ...],
    column: str,
    shift: Array,
    mapped: OrderedMap,
) -> pca.Components:
    """Compute the first principal components of all points.

    Args:
        out: the run folder.
        fingerprint: the fingerprint of the run.
        groups: all parts, in order. At least one has rows.
        column: the column of the features.
        shift: (D,), a position near the points.
        mapped: the ordered map that processes the blocks.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    features = _Features(
        out=out, fingerprint=fingerprint, groups=groups, column=column, mapped=mapped
    )
    if features.points <= MOST_RECORDS:
        return _compute_exact(features, shift)
    return _approximate(features, shift)


@dataclass(frozen=True, kw_only=True)
class _Features:
    """The points of a feature column. Each method reads all parts at least once."""

    out: str
    fingerprint: str
    groups: tuple[PartGroup, ...]
    column: str
    mapped: OrderedMap

    @property
    def points(self) -> int:
        return sum(group.rows for group in self.groups)

    def multiply(self, shift: Array) -> Array:
        """Return the products (N, N) of the points minus a shift."""
        gram = np.zeros((self.points, self.points))
        strips = self._divide_into_strips(shift)
        start = 0
        for rows in self.mapped(partial(multiply_strip, self.out, self.fingerprint), strips):
            gram[start : start + len(rows), start:] = rows
            start += len(rows)
        upper = np.triu(gram, 1)
        gram = np.triu(gram)
        gram += upper.T
        return gram

    def apply(self, shift: Array, vectors: Array) -> Sums:
        """Return the sums of x (x · v) for each of the `vectors` (D, k)."""
        return self._add_up(
            shift, partial(apply_block, self.out, self.fingerprint, vectors), vectors
        )

    def combine(self, shift: Array, weights: Array) -> Sums:
        """Return the sums of the points times their `weights` (N, k)."""
        return self._add_up(
            shift, partial(combine_block, self.out, self.fingerprint, weights), weights
        )

    def _add_up(self, shift: Array, function: Any, vectors: Array) -> Sums:
        size = len(shift)
        count, squares = 0, 0.0
        sums, products = np.zeros(size), np.zeros((size, vectors.shape[1]), order="F")
        for part in self.mapped(function, self._divide_into_blocks(shift)):
            count += part.count
            squares += part.squares
            sums += part.sums
            products += part.products
        return Sums(count, sums, squares, products)

    def _divide_into_blocks(self, shift: Array) -> Iterator[Block]:
        size = len(shift)
        waiting: list[int] = []
        start = rows = 0
        for group in self.groups:
            waiting += group.parts
            rows += group.rows
            if (
                rows * size * 4 >= _FEATURE_BYTES_PER_RESULT_BYTE * size * WIDTH * 8
                or group is self.groups[-1]
            ):
                yield Block(self.column, shift, tuple(waiting), start)
                waiting, start, rows = [], start + rows, 0

    def _divide_into_strips(self, shift: Array) -> Iterator[Strip]:
        rows = max(1, _STRIP_BYTES // (4 * len(shift)))
        for start in range(0, self.points, rows):
            remaining = [group for group in self.groups if group.start + group.rows > start]
            yield Strip(
                column=self.column,
                shift=shift,
                parts=tuple(number for group in remaining for number in group.parts),
                skip=start - remaining[0].start,
                rows=min(rows, self.points - start),
            )


def _compute_exact(features: _Features, shift: Array) -> pca.Components:
    """Compute exact components from the products of the points (N, N)."""
    from scipy.linalg import eigh, eigvalsh

    size, points = len(shift), features.points
    gram = features.multiply(shift)
    with limit_blas_to_one_thread():
        _center(gram)
        largest = points - pca.count_kept(points, size)
        variances = eigvalsh(gram)[::-1] / max(points - 1, 1)
        weights = eigh(gram, subset_by_index=[largest, points - 1], overwrite_a=True)[1][:, ::-1]
    del gram
    sums = features.combine(shift, weights)
    with limit_blas_to_one_thread():
        # The vectors are orthogonal except for rounding. Vectors without variance have length zero.
        vectors = _orthonormalize(sums.products)
    variances = pca.remove_rounding(variances, size)[: max(1, min(points - 1, size))]
    vectors = pca.fix_signs(np.ascontiguousarray(vectors.T))
    return pca.Components(shift + sums.sums / points, variances, vectors, pca.Method(pca.GRAM, 2))


def _center(gram: Array) -> None:
    """Turn the products of points into the products of the centered points, in place."""
    means = gram.mean(axis=0)
    gram -= means
    gram -= means[:, None]
    gram += means.mean()


def _approximate(features: _Features, shift: Array) -> pca.Components:
    """Compute approximate components, and their residuals."""
    from scipy.linalg import eigh

    size, degrees = len(shift), features.points - 1
    width = min(WIDTH, size)
    start = np.random.default_rng(_SEED).standard_normal((width, size)).T
    with limit_blas_to_one_thread():
        basis = [_orthonormalize(start)]
    # More blocks than fit into the space would not be linearly independent.
    passes = min(PASSES, size // width)
    matrix = np.zeros((passes * width, passes * width))
    total = 0.0
    for number in range(passes):
        sums = features.apply(shift, basis[-1])
        with limit_blas_to_one_thread():
            offset = sums.sums / sums.count
            rest = sums.products
            rest -= np.outer(offset * sums.count, offset @ basis[-1])
            rest /= degrees
            total = (sums.squares - sums.count * float(offset @ offset)) / degrees
            # From the next pass on, the points are centered.
            shift = shift + offset
            column = slice(number * width, (number + 1) * width)
            matrix[: column.stop, column] = _remove(rest, basis)
            if number + 1 < passes:
                rest = _orthonormalize(rest)
                _remove(rest, basis)
                basis.append(_orthonormalize(rest))
    with limit_blas_to_one_thread():
        variances, weights = eigh(matrix, lower=False)
        kept = pca.count_kept(features.points, size)
        variances, weights = variances[::-1][:kept], weights[:, ::-1][:, :kept]
        # Apart from `rest`, the products of C and the components lie in the span of the basis.
        residuals = np.linalg.norm(rest @ weights[-width:], axis=0)
        del rest
        vectors = np.zeros((size, kept), order="F")
        for number, block in enumerate(basis):
            vectors += block @ weights[number * width : (number + 1) * width]
    variances = pca.remove_rounding(variances, size)
    total = max(total, float(variances.sum()))
    method = pca.Method(pca.KRYLOV, passes, total, tuple(residuals.tolist()))
    return pca.Components(shift, variances, pca.fix_signs(np.ascontiguousarray(vectors.T)), method)


def _orthonormalize(vectors: Array) -> Array:
    """Return an orthonormal basis (D, k) of the span of `vectors`, which are overwritten.

    If they are not independent, other orthogonal vectors complete the basis.
    """
    from scipy.linalg import qr

    basis: Array = qr(
        np.asfortranarray(vectors), overwrite_a=True, mode="economic", check_finite=False
    )[0]
    return basis


def _remove(vectors: Array, basis: list[Array]) -> Array:
    """Subtract from vectors (D, k) their projections onto a basis; return their coordinates."""
    removed = np.zeros((sum(block.shape[1] for block in basis), vectors.shape[1]))
    # The second round removes what rounding errors leave.
    for _ in range(2):
        start = 0
        for block in basis:
            coordinates = block.T @ vectors
            for panel in _divide_into_panels(len(vectors)):
                vectors[panel] -= block[panel] @ coordinates
            removed[start : start + len(coordinates)] += coordinates
            start += len(coordinates)
    return removed


def _divide_into_panels(size: int) -> Iterator[slice]:
    for start in range(0, size, _PANEL):
        yield slice(start, min(start + _PANEL, size))


def apply_block(out: str, fingerprint: str, vectors: Array, block: Block) -> Sums:
    """Sum up x (x · v) over the points of a block, for each of the vectors v (D, k).

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """

    def compute_factors(rows: Matrix, start: int) -> Array:
        factors = np.zeros((len(rows), vectors.shape[1]))
        for panel, values in _convert_panels(rows, block.shift):
            factors += values @ vectors[panel]
        return factors

    return _sum_up(out, fingerprint, block, vectors.shape[1], compute_factors)


def combine_block(out: str, fingerprint: str, weights: Array, block: Block) -> Sums:
    """Sum up the points of a block, times their weights (N, k).

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """

    def get_factors(rows: Matrix, start: int) -> Array:
        return weights[start : start + len(rows)]

    return _sum_up(out, fingerprint, block, weights.shape[1], get_factors)


def _sum_up(out: str, fingerprint: str, block: Block, width: int, get_factors: Any) -> Sums:
    """Sum up the points of a block, their squares, and the points times their factors (n, k)."""
    folder, size = Folder.open(out), len(block.shift)
    count, squares = 0, 0.0
    sums, products = np.zeros(size), np.zeros((size, width), order="F")
    with limit_blas_to_one_thread():
        for rows in _read_chunks(folder, fingerprint, block.column, block.parts, size):
            factors = get_factors(rows, block.start + count)
            for panel, values in _convert_panels(rows, block.shift):
                sums[panel] += values.sum(axis=0)
                squares += float(np.vdot(values, values))
                products[panel] += values.T @ factors
            count += len(rows)
    if not np.isfinite(squares):
        _check_finite(folder, fingerprint, block.column, block.parts, size)
    return Sums(count, sums, squares, products)


def multiply_strip(out: str, fingerprint: str, strip: Strip) -> Array:
    """Return the products of the rows of a strip with all rows from its first row on.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folder, size = Folder.open(out), len(strip.shift)
    strip_rows = np.empty((strip.rows, size), np.float32)
    filled = 0
    for rows in _read_from_strip(folder, fingerprint, strip):
        taken = rows[: strip.rows - filled]
        strip_rows[filled : filled + len(taken)] = taken
        filled += len(taken)
        if filled == strip.rows:
            break
    products: list[Array] = []
    with limit_blas_to_one_thread():
        for rows in _read_from_strip(folder, fingerprint, strip):
            product = np.zeros((strip.rows, len(rows)))
            for panel, values in _convert_panels(rows, strip.shift):
                product += (strip_rows[:, panel].astype(np.float64) - strip.shift[panel]) @ values.T
            products.append(product)
    joined = np.concatenate(products, axis=1)
    if not np.isfinite(joined).all():
        _check_finite(folder, fingerprint, strip.column, strip.parts, size)
    return joined


def _read_from_strip(folder: Folder, fingerprint: str, strip: Strip) -> Iterator[Matrix]:
    """Read the rows of a strip and all later rows."""
    skip = strip.skip
    for rows in _read_chunks(folder, fingerprint, strip.column, strip.parts, len(strip.shift)):
        if skip < len(rows):
            yield rows[skip:]
        skip = max(0, skip - len(rows))


def _convert_panels(rows: Matrix, shift: Array) -> Iterator[tuple[slice, Array]]:
    """Yield rows (n, D) float32 minus a shift, in float64, a panel of dimensions at a time."""
    for panel in _divide_into_panels(len(shift)):
        values = rows[:, panel].astype(np.float64)
        values -= shift[panel]
        yield panel, values


def _read_chunks(
    folder: Folder, fingerprint: str, column: str, parts: Iterable[int], size: int
) -> Iterator[Matrix]:
    """Read the features of parts in chunks of equal size.

    Each chunk overwrites the previous one.
    """
    chunk_rows = max(1, min(_MOST_ROWS, _CHUNK_BYTES // (4 * size)))
    chunk = np.empty((chunk_rows, size), np.float32)
    filled = 0
    for number in parts:
        for values in part_files.read_feature_batches(folder, number, column, fingerprint):
            start = 0
            while start < len(values):
                taken = values[start : start + chunk_rows - filled]
                chunk[filled : filled + len(taken)] = taken
                start += len(taken)
                filled += len(taken)
                if filled == chunk_rows:
                    yield chunk
                    filled = 0
    if filled:
        yield chunk[:filled]


def _check_finite(
    folder: Folder, fingerprint: str, column: str, parts: Iterable[int], size: int
) -> None:
    for number in parts:
        for rows in _read_chunks(folder, fingerprint, column, [number], size):
            if not np.isfinite(rows).all():
                name = folder.display_path(part_files.part_name(layout.FEATURES, number))
                raise DamagedError(f"{name}: it holds numbers that are not finite", number)
