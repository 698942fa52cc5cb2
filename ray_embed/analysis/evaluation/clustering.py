# SPDX-License-Identifier: Apache-2.0
"""Whether classes form clusters, and whether clusters match classes."""

import warnings

import numpy as np

from ray_embed.core.arrays import Array, Matrix
from ray_embed.core.threads import limit_blas_to_one_thread

MAX_SILHOUETTES = 2000
_MAX_CANDIDATES, _MAX_ITERATIONS = 2000, 50
_SEED = 0


def compute_silhouettes(features: Matrix, labels: Array, metric: str) -> tuple[Array, Array]:
    """Compute the silhouettes (Rousseeuw 1987) of at most 2,000 records, drawn with a fixed seed.

    Args:
        features: (n, D) float32.
        labels: (n,) int64, at least two classes.
        metric: "cosine" or "l2".

    Returns:
        the silhouettes (m,) float64, and the positions of their records (m,) int64. Both are empty
        if there are as many classes as records.
    """
    from sklearn.metrics import silhouette_samples

    rows = _draw_rows(len(labels), MAX_SILHOUETTES)
    drawn = labels[rows]
    if not 2 <= len(np.unique(drawn)) < len(drawn):
        return np.zeros(0), np.zeros(0, np.int64)
    name = "euclidean" if metric == "l2" else metric
    return silhouette_samples(features[rows], drawn, metric=name).astype(np.float64), rows


def assign_clusters(features: Matrix, count: int) -> Array:
    """Return the cluster (n,) int64 of each record, by k-means.

    k-means runs once, from centers that k-means++ draws with a fixed seed from at most 2,000 of the
    records (or four per cluster, if that is more). It stops after at most 50 steps.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning

    candidates = features[_draw_rows(len(features), max(_MAX_CANDIDATES, 4 * count))]
    # In matrix products this small, threads would only wait for each other.
    with limit_blas_to_one_thread(), warnings.catch_warnings():
        # KMeans warns if there are fewer distinct points than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        starts, _ = kmeans_plusplus(candidates, count, random_state=_SEED)
        means = KMeans(count, init=starts, n_init=1, max_iter=_MAX_ITERATIONS)
        clusters: Array = means.fit_predict(features).astype(np.int64)
    return clusters


def _draw_rows(count: int, limit: int) -> Array:
    """Draw at most `limit` of `count` positions with a fixed seed, and return them sorted."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SEED).choice(count, limit, replace=False))
