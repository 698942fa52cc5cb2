# SPDX-License-Identifier: Apache-2.0
"""Principal components for pictures: of all records where `reduce` has written them."""

from dataclasses import dataclass

import numpy as np

from ray_embed.analysis.evaluation.spectrum import products_of_records
from ray_embed.core.arrays import Array, Matrix
from ray_embed.errors import InputError
from ray_embed.projector import pca
from ray_embed.storage.filesystem import Folder


@dataclass(frozen=True)
class Spectrum:
    """Principal components of features.

    `ratios` (c,) float64 are the shares of the variance, the largest first, `coordinates` (n, k)
    float32 those of n records on the first k components. `records` is how many they were computed
    of, None for all of the run. `first_of` is the number of components of which only the first c
    are known, None where all are.
    """

    ratios: Array
    coordinates: Matrix
    records: int | None
    first_of: int | None = None


def spectrum(folder: Folder, column: str, features: Matrix) -> Spectrum:
    """Give a column's components, and where some of its features (n, D) float32 lie on them."""
    try:
        found = pca.load(folder, column)
    except InputError:
        # Not reduced yet.
        return _computed(features)
    first_of = None if found.is_complete else features.shape[1]
    return Spectrum(found.ratios, found.project(features), None, first_of)


def _computed(features: Matrix) -> Spectrum:
    count, size = features.shape
    if count < 2 or not np.ptp(features, axis=0).any():
        kept = min(size, pca.KEPT)
        return Spectrum(np.zeros(size), np.zeros((count, kept), np.float32), count)
    if size > count:
        return _of_wide(features)
    from sklearn import decomposition

    model = decomposition.PCA(svd_solver="full").fit(features.astype(np.float64))
    coordinates = model.transform(features)[:, : pca.KEPT]
    ratios = model.explained_variance_ratio_
    return Spectrum(ratios, coordinates.astype(np.float32), count)


def _of_wide(features: Matrix) -> Spectrum:
    """Give the same by the products of points, where dimensions are a hundred times as many."""
    values, vectors = np.linalg.eigh(products_of_records(features)[1])
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    coordinates = vectors[:, : pca.KEPT] * np.sqrt(values[: pca.KEPT])
    return Spectrum(values / values.sum(), coordinates.astype(np.float32), len(features))
