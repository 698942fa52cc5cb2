# SPDX-License-Identifier: Apache-2.0
"""Whether classes are clusters, and clusters classes."""

import warnings

import numpy as np

from ray_embed.core.arrays import Array, Matrix
from ray_embed.core.threads import limit_blas_to_one_thread

SILHOUETTES = 2000
_STARTS, _STEPS = 2000, 50
_SEED = 0


def silhouettes(features: Matrix, labels: Array, metric: str) -> tuple[Array, Array]:
    """Give the silhouettes (Rousseeuw 1987) of records, of 2,000 drawn by a fixed seed if more.

    Args:
        features: (n, D) float32.
        labels: (n,) int64, at least two classes.
        metric: "cosine" or "l2".

    Returns:
        the silhouettes (m,) float64, and which records they are of (m,) int64; none where the
        classes are as many as records.
    """
    from sklearn.metrics import silhouette_samples

    rows = _some(len(labels), SILHOUETTES)
    own = labels[rows]
    if not 2 <= len(np.unique(own)) < len(own):
        return np.zeros(0), np.zeros(0, np.int64)
    name = "euclidean" if metric == "l2" else metric
    return silhouette_samples(features[rows], own, metric=name).astype(np.float64), rows


def clusters(features: Matrix, count: int) -> Array:
    """Give the cluster (n,) int64 of each record, by k-means.

    It starts once, by k-means++ with a fixed seed, among 2,000 of the records (or four a cluster)
    if there are more, and ends after 50 steps at the latest.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning

    among = features[_some(len(features), max(_STARTS, 4 * count))]
    # Its products are small: threads would wait for each other.
    with limit_blas_to_one_thread(), warnings.catch_warnings():
        # Fewer different points than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        starts, _ = kmeans_plusplus(among, count, random_state=_SEED)
        means = KMeans(count, init=starts, n_init=1, max_iter=_STEPS)
        found: Array = means.fit_predict(features).astype(np.int64)
    return found


def _some(count: int, limit: int) -> Array:
    """Give `limit` of so many positions, in order, by a fixed seed; all if there are no more."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SEED).choice(count, limit, replace=False))
