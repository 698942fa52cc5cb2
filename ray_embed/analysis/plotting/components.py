# SPDX-License-Identifier: Apache-2.0
"""Principal components for plots, taken from the output of `reduce` if there is one."""

from dataclasses import dataclass

import numpy as np

from ray_embed.analysis.evaluation.spectrum import multiply_records
from ray_embed.core.arrays import Array, Matrix
from ray_embed.errors import InputError
from ray_embed.projector import pca
from ray_embed.storage.filesystem import Folder


@dataclass(frozen=True)
class Components:
    """Principal components of features.

    `ratios` (c,) float64 holds each component's share of the variance, the largest first.
    `coordinates` (n, k) float32 holds the coordinates of n records on the first k components.
    `records` is the number of records that the components were computed from, or None if that is
    all records of the run. `first_of` is the total number of components if only the first c are
    known, and None otherwise.
    """

    ratios: Array
    coordinates: Matrix
    records: int | None
    first_of: int | None = None


def load_or_compute_components(folder: Folder, column: str, features: Matrix) -> Components:
    """Return a column's components, and the coordinates of features (n, D) float32 on them."""
    try:
        components = pca.load(folder, column)
    except InputError:
        # The run has not been reduced yet.
        return _compute_components(features)
    first_of = None if components.is_complete else features.shape[1]
    return Components(components.ratios, components.project(features), None, first_of)


def _compute_components(features: Matrix) -> Components:
    count, size = features.shape
    if count < 2 or not np.ptp(features, axis=0).any():
        kept = min(size, pca.KEPT)
        return Components(np.zeros(size), np.zeros((count, kept), np.float32), count)
    if size > count:
        return _compute_wide_components(features)
    from sklearn import decomposition

    model = decomposition.PCA(svd_solver="full").fit(features.astype(np.float64))
    coordinates = model.transform(features)[:, : pca.KEPT]
    ratios = model.explained_variance_ratio_
    return Components(ratios, coordinates.astype(np.float32), count)


def _compute_wide_components(features: Matrix) -> Components:
    """Compute components from the products of records, when these are fewer than dimensions."""
    values, vectors = np.linalg.eigh(multiply_records(features)[1])
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    coordinates = vectors[:, : pca.KEPT] * np.sqrt(values[: pca.KEPT])
    return Components(values / values.sum(), coordinates.astype(np.float32), len(features))
