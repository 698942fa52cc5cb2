# SPDX-License-Identifier: Apache-2.0
"""The first pass over the parts: their moments, a block of parts at a time, for the PCA.

Blocks do not depend on each other, so that any process may do any of them; boundaries, and the
order in which their moments are added, follow from the parts alone, so that the bits do.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ray_embed.core.arrays import Array, Matrix, as_matrix
from ray_embed.core.threads import OrderedMap, limit_blas_to_one_thread
from ray_embed.errors import DamagedError
from ray_embed.projector import pca, wide_pca
from ray_embed.projector.merge_task import Group
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# The moments of a block are passed on and added up, which is to cost little beside making them: it
# has so many times as many bytes of features.
_TIMES = 4
# Blocks that are under way have their moments, a product, and moments that wait to be added.
_AT_ONCE_BYTES, _EACH = 1 << 30, 3 * 8


@dataclass(frozen=True)
class Block:
    """Consecutive parts whose moments are summed up together; `shift` (D,) float64 is common."""

    column: str
    shift: Array
    parts: tuple[int, ...]


def at_once(dimensions: Collection[int]) -> int:
    """Give how many blocks may be under way at a time, so that they fit in memory."""
    most = max((size for size in dimensions if size <= pca.MOST_DIMENSIONS), default=1)
    limits = [wide_pca.at_once(size) for size in dimensions if size > pca.MOST_DIMENSIONS]
    return min([max(1, _AT_ONCE_BYTES // (_EACH * most * most)), *limits])


def components(
    out: str,
    fingerprint: str,
    groups: tuple[Group, ...],
    dimensions: dict[str, int],
    mapped: OrderedMap,
) -> dict[str, pca.Components]:
    """Give the principal components of all points, by feature column.

    Args:
        out: the run folder.
        fingerprint: of the run.
        groups: all parts, in order; at least one has rows.
        dimensions: of each feature column. Those with too many for a D x D matrix get the first
            components; see `wide_pca`.
        mapped: does the blocks.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folder = Folder.open(out)
    found = {}
    for column, size in dimensions.items():
        shift = _shift(folder, fingerprint, groups, column)
        if size > pca.MOST_DIMENSIONS:
            found[column] = wide_pca.components(out, fingerprint, groups, column, shift, mapped)
        else:
            blocks = (Block(column, shift, parts) for parts in _blocks(groups, size))
            made = mapped(partial(moments_of, out, fingerprint), blocks)
            with limit_blas_to_one_thread():
                found[column] = pca.components(pca.joined(made, size), shift)
    return found


def moments_of(out: str, fingerprint: str, block: Block) -> pca.Moments:
    """Sum up the moments of a block.

    Raises:
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folder = Folder.open(out)
    read = partial(_read, folder, fingerprint, block.column)
    with limit_blas_to_one_thread():
        found = pca.moments(part_files.map_parts(folder, read, block.parts), block.shift)
    if not np.isfinite(found.sums).all():
        for number in block.parts:
            _check_finite(folder, number, read(number))
    return found


def _check_finite(folder: Folder, number: int, values: Matrix) -> None:
    # Extracting sets such records aside, so nobody else than another program has written these.
    if not np.isfinite(values).all():
        name = folder.display_path(part_files.part_name(layout.FEATURES, number))
        raise DamagedError(f"{name}: it holds numbers that are not finite", number)


def _read(folder: Folder, fingerprint: str, column: str, number: int) -> Matrix:
    part = part_files.read_part(folder, layout.FEATURES, number, [column], fingerprint)
    return as_matrix(part[column])


def _shift(folder: Folder, fingerprint: str, groups: tuple[Group, ...], column: str) -> Array:
    """Give the mean of the first part that has rows; of equal numbers it is that number."""
    parts = (number for group in groups if group.rows for number in group.parts)
    values = (_read(folder, fingerprint, column, number) for number in parts)
    first = next(part for part in values if len(part))
    return np.asarray(first.mean(axis=0, dtype=np.float64))


def _blocks(groups: tuple[Group, ...], size: int) -> Iterator[tuple[int, ...]]:
    waiting: list[int] = []
    weight = 0
    for group in groups:
        waiting += group.parts
        weight += group.rows * size * 4
        if weight >= _TIMES * size * size * 8 or group is groups[-1]:
            yield tuple(waiting)
            waiting, weight = [], 0
