# SPDX-License-Identifier: Apache-2.0
"""The first pass over the parts for the PCA: compute their moments, in blocks of parts.

Blocks do not depend on each other, so any process may compute any of them. Their boundaries, and
the order in which their moments are added, depend only on the parts, so the result is the same bit
for bit.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ray_embed.core.arrays import Array, Matrix, as_matrix
from ray_embed.core.threads import OrderedMap, limit_blas_to_one_thread
from ray_embed.errors import DamagedError
from ray_embed.projector import pca, wide_pca
from ray_embed.projector.merge_task import PartGroup
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# A block has this many times as many bytes of features as of moments, so that sending and adding
# the moments takes little time compared with computing them.
_FEATURE_BYTES_PER_RESULT_BYTE = 4
# A block in progress needs memory for its moments, a product, and moments that wait to be added.
_AT_ONCE_BYTES, _BYTES_PER_ENTRY = 1 << 30, 3 * 8


@dataclass(frozen=True)
class Block:
    """Consecutive parts whose moments are computed together; all have the same `shift` (D,)."""

    column: str
    shift: Array
    parts: tuple[int, ...]


def count_parallel_blocks(dimensions: Collection[int]) -> int:
    """Return how many blocks may be processed at a time, so that they fit in memory."""
    most = max((size for size in dimensions if size <= pca.MAX_EXACT_DIMENSIONS), default=1)
    limits = [
        wide_pca.count_parallel_blocks(size)
        for size in dimensions
        if size > pca.MAX_EXACT_DIMENSIONS
    ]
    return min([max(1, _AT_ONCE_BYTES // (_BYTES_PER_ENTRY * most * most)), *limits])


def compute_components(
    out: str,
    fingerprint: str,
    groups: tuple[PartGroup, ...],
    dimensions: dict[str, int],
    mapped: OrderedMap,
) -> dict[str, pca.Components]:
    """Compute the principal components of all points, by feature column.

    Args:
        out: the run folder.
        fingerprint: the fingerprint of the run.
        groups: all parts, in order. At least one has rows.
        dimensions: the number of dimensions of each feature column. For columns with too many for a
            D x D matrix, only the first components are computed; see `wide_pca`.
        mapped: the ordered map that processes the blocks.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folder = Folder.open(out)
    by_column = {}
    for column, size in dimensions.items():
        shift = _get_shift(folder, fingerprint, groups, column)
        if size > pca.MAX_EXACT_DIMENSIONS:
            by_column[column] = wide_pca.compute_components(
                out, fingerprint, groups, column, shift, mapped
            )
        else:
            blocks = (Block(column, shift, parts) for parts in _divide_into_blocks(groups, size))
            moments = mapped(partial(compute_block_moments, out, fingerprint), blocks)
            with limit_blas_to_one_thread():
                by_column[column] = pca.compute_components(pca.add_moments(moments, size), shift)
    return by_column


def compute_block_moments(out: str, fingerprint: str, block: Block) -> pca.Moments:
    """Compute the moments of a block.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folder = Folder.open(out)
    read = partial(_read_features, folder, fingerprint, block.column)
    with limit_blas_to_one_thread():
        moments = pca.compute_moments(part_files.map_parts(folder, read, block.parts), block.shift)
    if not np.isfinite(moments.sums).all():
        for number in block.parts:
            _check_finite(folder, number, read(number))
    return moments


def _check_finite(folder: Folder, number: int, values: Matrix) -> None:
    # Extraction rejects such records, so another program must have written these.
    if not np.isfinite(values).all():
        name = folder.display_path(part_files.part_name(layout.FEATURES, number))
        raise DamagedError(f"{name}: it holds numbers that are not finite", number)


def _read_features(folder: Folder, fingerprint: str, column: str, number: int) -> Matrix:
    part = part_files.read_part(folder, layout.FEATURES, number, [column], fingerprint)
    return as_matrix(part[column])


def _get_shift(
    folder: Folder, fingerprint: str, groups: tuple[PartGroup, ...], column: str
) -> Array:
    """Return the mean of the first part that has rows, which is exact if all numbers are equal."""
    parts = (number for group in groups if group.rows for number in group.parts)
    values = (_read_features(folder, fingerprint, column, number) for number in parts)
    first = next(part for part in values if len(part))
    return np.asarray(first.mean(axis=0, dtype=np.float64))


def _divide_into_blocks(groups: tuple[PartGroup, ...], size: int) -> Iterator[tuple[int, ...]]:
    waiting: list[int] = []
    weight = 0
    for group in groups:
        waiting += group.parts
        weight += group.rows * size * 4
        if weight >= _FEATURE_BYTES_PER_RESULT_BYTE * size * size * 8 or group is groups[-1]:
            yield tuple(waiting)
            waiting, weight = [], 0
