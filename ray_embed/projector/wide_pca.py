# SPDX-License-Identifier: Apache-2.0
"""Principal components of features too wide for a D x D matrix, in memory D x 60 or N x N.

Of few records (N) the products of records, N x N, give exact components. Of more, a block Krylov
method approximates them: each pass over the parts multiplies 60 vectors by the covariance C, and
the components are the best ones (Rayleigh-Ritz) in the space of all products so far (Musco and
Musco 2015, Randomized Block Krylov Methods; Halko, Martinsson and Tropp 2011, Finding Structure
with Randomness). Their variances are never too large, and their residuals |Cv - λv| say how far
off they may be. The whole variance is exact: it is a sum of squares.

As in `moments`, work is cut by the parts alone and added up in order, so the bits are the same
whichever threads or machines do it.
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
from ray_embed.projector.merge_task import Group
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# The products of more records take longer than the passes of the Krylov method.
MOST_RECORDS = 4096
# Ten vectors more than components are kept: the last ones of a block converge slowly.
WIDTH = pca.KEPT + 10
PASSES = 4
_SEED = 0
# A block of parts has so many times the bytes of its products, which are passed on and added up.
_TIMES = 4
# Features (float32) in memory at once: a chunk that is multiplied, and the rows of a strip.
_CHUNK_BYTES, _STRIP_BYTES = 64 << 20, 256 << 20
_MOST_ROWS = 1024
# Dimensions in double precision at once.
_PANEL = 4096
_AT_ONCE_BYTES = 1 << 30


@dataclass(frozen=True)
class Block:
    """Consecutive parts that are multiplied together.

    `shift` (D,) is common to all blocks, and `start` the number of rows before them.
    """

    column: str
    shift: Array
    parts: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Strip:
    """The rows from `skip` to `skip + rows` of some parts; their products with all later rows.

    The parts are all up to the last one, and `shift` (D,) is common to all strips.
    """

    column: str
    shift: Array
    parts: tuple[int, ...]
    skip: int
    rows: int


@dataclass(frozen=True)
class Sums:
    """Of `count` points x less a shift: their sum (D,), the sum of their squares, and products.

    `products` (D, k) are the sums of x times k numbers of each point.
    """

    count: int
    sums: Array
    squares: float
    products: Array


def at_once(dimension: int) -> int:
    """Return how many blocks or strips may be processed at a time, so that they fit in memory."""
    block = 2 * 8 * dimension * WIDTH + 2 * _CHUNK_BYTES
    return max(1, _AT_ONCE_BYTES // max(block, _STRIP_BYTES + 2 * _CHUNK_BYTES))


def components(
    out: str,
    fingerprint: str,
    groups: tuple[Group, ...],
    column: str,
    shift: Array,
    mapped: OrderedMap,
) -> pca.Components:
    """Return the first principal components of all points.

    Args:
        out: the run folder.
        fingerprint: of the run.
        groups: all parts, in order; at least one has rows.
        column: the features.
        shift: (D,), somewhere among the points.
        mapped: runs the blocks.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    features = _Features(out, fingerprint, groups, column, mapped)
    if features.points <= MOST_RECORDS:
        return _of_few(features, shift)
    return _of_many(features, shift)


@dataclass(frozen=True)
class _Features:
    """The points of a feature column, read a pass at a time."""

    out: str
    fingerprint: str
    groups: tuple[Group, ...]
    column: str
    mapped: OrderedMap

    @property
    def points(self) -> int:
        return sum(group.rows for group in self.groups)

    def gram(self, shift: Array) -> Array:
        """Return the products (N, N) of the points less a shift."""
        found = np.zeros((self.points, self.points))
        strips = self._strips(shift)
        start = 0
        for rows in self.mapped(partial(products_of_strip, self.out, self.fingerprint), strips):
            found[start : start + len(rows), start:] = rows
            start += len(rows)
        upper = np.triu(found, 1)
        found = np.triu(found)
        found += upper.T
        return found

    def applied(self, shift: Array, vectors: Array) -> Sums:
        """Return the sums of x (x · v) of each of the `vectors` (D, k)."""
        return self._sums(shift, partial(apply, self.out, self.fingerprint, vectors), vectors)

    def combined(self, shift: Array, weights: Array) -> Sums:
        """Return the sums of the points times their `weights` (N, k)."""
        return self._sums(shift, partial(combine, self.out, self.fingerprint, weights), weights)

    def _sums(self, shift: Array, function: Any, vectors: Array) -> Sums:
        size = len(shift)
        count, squares = 0, 0.0
        sums, products = np.zeros(size), np.zeros((size, vectors.shape[1]), order="F")
        for part in self.mapped(function, self._blocks(shift)):
            count += part.count
            squares += part.squares
            sums += part.sums
            products += part.products
        return Sums(count, sums, squares, products)

    def _blocks(self, shift: Array) -> Iterator[Block]:
        size = len(shift)
        waiting: list[int] = []
        start = rows = 0
        for group in self.groups:
            waiting += group.parts
            rows += group.rows
            if rows * size * 4 >= _TIMES * size * WIDTH * 8 or group is self.groups[-1]:
                yield Block(self.column, shift, tuple(waiting), start)
                waiting, start, rows = [], start + rows, 0

    def _strips(self, shift: Array) -> Iterator[Strip]:
        rows = max(1, _STRIP_BYTES // (4 * len(shift)))
        for start in range(0, self.points, rows):
            left = [group for group in self.groups if group.start + group.rows > start]
            parts = tuple(number for group in left for number in group.parts)
            skip = start - left[0].start
            yield Strip(self.column, shift, parts, skip, min(rows, self.points - start))


def _of_few(features: _Features, shift: Array) -> pca.Components:
    """Return exact components: those of the products of the points (N, N)."""
    from scipy.linalg import eigh, eigvalsh

    size, points = len(shift), features.points
    gram = features.gram(shift)
    with limit_blas_to_one_thread():
        _center(gram)
        largest = points - pca.kept(points, size)
        variances = eigvalsh(gram)[::-1] / max(points - 1, 1)
        weights = eigh(gram, subset_by_index=[largest, points - 1], overwrite_a=True)[1][:, ::-1]
    del gram
    found = features.combined(shift, weights)
    with limit_blas_to_one_thread():
        # They are at right angles but for rounding, and those without variance are of no length.
        vectors = _orthonormal(found.products)
    variances = _cleaned(variances, size)[: max(1, min(points - 1, size))]
    method = pca.Method(pca.GRAM, 2)
    return pca.Components(
        shift + found.sums / points, variances, pca.signed(np.ascontiguousarray(vectors.T)), method
    )


def _center(gram: Array) -> None:
    """Make the products of points those of the centered points."""
    means = gram.mean(axis=0)
    gram -= means
    gram -= means[:, None]
    gram += means.mean()


def _of_many(features: _Features, shift: Array) -> pca.Components:
    """Return approximate components, and how far off they may be."""
    from scipy.linalg import eigh

    size, degrees = len(shift), features.points - 1
    width = min(WIDTH, size)
    start = np.random.default_rng(_SEED).standard_normal((width, size)).T
    with limit_blas_to_one_thread():
        basis = [_orthonormal(start)]
    # More blocks than fit into the space would not be independent.
    passes = min(PASSES, size // width)
    matrix = np.zeros((passes * width, passes * width))
    total = 0.0
    for number in range(passes):
        found = features.applied(shift, basis[-1])
        with limit_blas_to_one_thread():
            offset = found.sums / found.count
            rest = found.products
            rest -= np.outer(offset * found.count, offset @ basis[-1])
            rest /= degrees
            total = (found.squares - found.count * float(offset @ offset)) / degrees
            # From the next pass on they are centered.
            shift = shift + offset
            column = slice(number * width, (number + 1) * width)
            matrix[: column.stop, column] = _remove(rest, basis)
            if number + 1 < passes:
                rest = _orthonormal(rest)
                _remove(rest, basis)
                basis.append(_orthonormal(rest))
    with limit_blas_to_one_thread():
        variances, weights = eigh(matrix, lower=False)
        kept = pca.kept(features.points, size)
        variances, weights = variances[::-1][:kept], weights[:, ::-1][:, :kept]
        # What C makes of the components lies in the basis, but for this.
        residuals = np.linalg.norm(rest @ weights[-width:], axis=0)
        del rest
        vectors = np.zeros((size, kept), order="F")
        for at, block in enumerate(basis):
            vectors += block @ weights[at * width : (at + 1) * width]
    variances = _cleaned(variances, size)
    total = max(total, float(variances.sum()))
    method = pca.Method(pca.KRYLOV, passes, total, tuple(residuals.tolist()))
    return pca.Components(shift, variances, pca.signed(np.ascontiguousarray(vectors.T)), method)


def _cleaned(variances: Array, size: int) -> Array:
    """Set to zero what rounding leaves of no variance."""
    found = variances.copy()
    found[found <= found[0] * size * np.finfo(np.float64).eps] = 0
    return found


def _orthonormal(vectors: Array) -> Array:
    """Make an orthonormal basis (D, k) of the space of vectors, which it overwrites.

    Where they span less, others at right angles are added.
    """
    from scipy.linalg import qr

    found: Array = qr(
        np.asfortranarray(vectors), overwrite_a=True, mode="economic", check_finite=False
    )[0]
    return found


def _remove(vectors: Array, basis: list[Array]) -> Array:
    """Subtract from vectors (D, k) their parts in a basis; return these parts' coordinates."""
    found = np.zeros((sum(block.shape[1] for block in basis), vectors.shape[1]))
    # Once leaves what rounding does.
    for _ in range(2):
        start = 0
        for block in basis:
            coordinates = block.T @ vectors
            for panel in _panels(len(vectors)):
                vectors[panel] -= block[panel] @ coordinates
            found[start : start + len(coordinates)] += coordinates
            start += len(coordinates)
    return found


def _panels(size: int) -> Iterator[slice]:
    for start in range(0, size, _PANEL):
        yield slice(start, min(start + _PANEL, size))


def apply(out: str, fingerprint: str, vectors: Array, block: Block) -> Sums:
    """Sum up x (x · v) of the points of a block, for each of the vectors v (D, k).

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """

    def inner(rows: Matrix, start: int) -> Array:
        found = np.zeros((len(rows), vectors.shape[1]))
        for panel, values in _doubles(rows, block.shift):
            found += values @ vectors[panel]
        return found

    return _summed(out, fingerprint, block, vectors.shape[1], inner)


def combine(out: str, fingerprint: str, weights: Array, block: Block) -> Sums:
    """Sum up the points of a block, times their weights (N, k).

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """

    def inner(rows: Matrix, start: int) -> Array:
        return weights[start : start + len(rows)]

    return _summed(out, fingerprint, block, weights.shape[1], inner)


def _summed(out: str, fingerprint: str, block: Block, width: int, inner: Any) -> Sums:
    folder, size = Folder.open(out), len(block.shift)
    count, squares = 0, 0.0
    sums, products = np.zeros(size), np.zeros((size, width), order="F")
    with limit_blas_to_one_thread():
        for rows in _chunks(folder, fingerprint, block.column, block.parts, size):
            factors = inner(rows, block.start + count)
            for panel, values in _doubles(rows, block.shift):
                sums[panel] += values.sum(axis=0)
                squares += float(np.vdot(values, values))
                products[panel] += values.T @ factors
            count += len(rows)
    if not np.isfinite(squares):
        _check_finite(folder, fingerprint, block.column, block.parts, size)
    return Sums(count, sums, squares, products)


def products_of_strip(out: str, fingerprint: str, strip: Strip) -> Array:
    """Return the products of the rows of a strip with all rows from its first one on.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folder, size = Folder.open(out), len(strip.shift)
    own = np.empty((strip.rows, size), np.float32)
    filled = 0
    for rows in _after(folder, fingerprint, strip):
        some = rows[: strip.rows - filled]
        own[filled : filled + len(some)] = some
        filled += len(some)
        if filled == strip.rows:
            break
    found: list[Array] = []
    with limit_blas_to_one_thread():
        for rows in _after(folder, fingerprint, strip):
            product = np.zeros((strip.rows, len(rows)))
            for panel, values in _doubles(rows, strip.shift):
                product += (own[:, panel].astype(np.float64) - strip.shift[panel]) @ values.T
            found.append(product)
    joined = np.concatenate(found, axis=1)
    if not np.isfinite(joined).all():
        _check_finite(folder, fingerprint, strip.column, strip.parts, size)
    return joined


def _after(folder: Folder, fingerprint: str, strip: Strip) -> Iterator[Matrix]:
    """Read the rows of the parts of a strip, from its first one on."""
    skip = strip.skip
    for rows in _chunks(folder, fingerprint, strip.column, strip.parts, len(strip.shift)):
        if skip < len(rows):
            yield rows[skip:]
        skip = max(0, skip - len(rows))


def _doubles(rows: Matrix, shift: Array) -> Iterator[tuple[slice, Array]]:
    """Yield rows (n, D) float32 less a shift, in float64, some dimensions at a time."""
    for panel in _panels(len(shift)):
        values = rows[:, panel].astype(np.float64)
        values -= shift[panel]
        yield panel, values


def _chunks(
    folder: Folder, fingerprint: str, column: str, parts: Iterable[int], size: int
) -> Iterator[Matrix]:
    """Read the features of parts in chunks of as many rows each; each overwrites the one before."""
    together = max(1, min(_MOST_ROWS, _CHUNK_BYTES // (4 * size)))
    chunk = np.empty((together, size), np.float32)
    filled = 0
    for number in parts:
        for values in part_files.read_feature_batches(folder, number, column, fingerprint):
            start = 0
            while start < len(values):
                some = values[start : start + together - filled]
                chunk[filled : filled + len(some)] = some
                start += len(some)
                filled += len(some)
                if filled == together:
                    yield chunk
                    filled = 0
    if filled:
        yield chunk[:filled]


def _check_finite(
    folder: Folder, fingerprint: str, column: str, parts: Iterable[int], size: int
) -> None:
    for number in parts:
        for rows in _chunks(folder, fingerprint, column, [number], size):
            if not np.isfinite(rows).all():
                name = folder.display_path(part_files.part_name(layout.FEATURES, number))
                raise DamagedError(f"{name}: it holds numbers that are not finite", number)
