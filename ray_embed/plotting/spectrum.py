# SPDX-License-Identifier: Apache-2.0
"""Principal components for pictures: of all records where `reduce` has written them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed import pca
from ray_embed.errors import InputError
from ray_embed.filesystem import Folder
from ray_embed.matrix import Matrix

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Spectrum:
    """Principal components of features.

    `ratios` (c,) float64 are the shares of the variance, the largest first, `coordinates` (n, k)
    float32 those of n records on the first k components. `records` is how many they were computed
    of, None for all of the run.
    """

    ratios: Array
    coordinates: Matrix
    records: int | None


def spectrum(folder: Folder, column: str, features: Matrix) -> Spectrum:
    """Give a column's components, and where some of its features (n, D) float32 lie on them."""
    try:
        found = pca.load(folder, column)
    except InputError:
        # Not reduced yet, or too wide.
        return _computed(features)
    return Spectrum(found.ratios, found.project(features), None)


def _computed(features: Matrix) -> Spectrum:
    from sklearn import decomposition

    if len(features) < 2 or not np.ptp(features, axis=0).any():
        size = features.shape[1]
        return Spectrum(np.zeros(size), np.zeros((len(features), size), np.float32), len(features))
    model = decomposition.PCA(svd_solver="full").fit(features.astype(np.float64))
    coordinates = model.transform(features)[:, : pca.KEPT]
    ratios = model.explained_variance_ratio_
    return Spectrum(ratios, coordinates.astype(np.float32), len(features))
