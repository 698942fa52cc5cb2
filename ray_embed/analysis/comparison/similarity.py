# SPDX-License-Identifier: Apache-2.0
"""How alike two encoders see the same records: by neighbourhoods, and by linear CKA."""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np

from ray_embed.analysis.evaluation.neighbors import directions
from ray_embed.analysis.evaluation.spectrum import narrowed, products_of_records
from ray_embed.core.arrays import Array, Matrix

# Columns of the product of two matrices of features that are in memory at a time.
_BLOCK = 512
# Of features with so many times as many dimensions as records the kernels are smaller.
_WIDE = 4


def neighbours(features: Matrix, k: int) -> Array:
    """Give the positions of the k nearest others of each record, by cosine: (n, k) int64.

    Args:
        features: (n, D) float32.
        k: less than n.
    """
    from sklearn.neighbors import NearestNeighbors

    # Of vectors of length one, the Euclidean distance puts the others in the order of the cosine.
    search = NearestNeighbors(n_neighbors=k, algorithm="brute")
    search.fit(directions(narrowed(features)))
    # Asked for no points, it leaves each one out of its own neighbours.
    found: Array = search.kneighbors(return_distance=False)
    return found


def common(one: Array, other: Array) -> Array:
    """Give the share of each record's neighbours that are the other's too: (n,) float64.

    Args:
        one: (n, k), by `neighbours`.
        other: (n, k), of the same records.
    """
    shared: Array = (one[:, :, None] == other[:, None, :]).sum(axis=(1, 2)) / one.shape[1]
    return shared


def cka(features: Sequence[Matrix]) -> Array:
    """Give the linear centred kernel alignment of the same records' features, without its bias.

    That is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X Xᵀ and L = Y Yᵀ, as Nguyen,
    Raghu and Kornblith (2021, "Do Wide and Deep Networks Learn the Same Things?") take it, where
    HSIC is the unbiased estimator (5) of Song et al. (2012, "Feature Selection via Dependence
    Maximization"): 1 for features that were rotated, scaled or shifted, and about 0, or
    a little below, for independent ones however many dimensions they have.

    Args:
        features: m of (n, D) float32, n at least 4, each with a D of its own.

    Returns:
        (m, m) float64, with NaN where features hardly vary.
    """
    hsic = np.empty((len(features), len(features)))
    if max(one.shape[1] for one in features) > _WIDE * len(features[0]):
        kernels = [products_of_records(one)[1] for one in features]
        for at, after in combinations_with_replacement(range(len(kernels)), 2):
            hsic[at, after] = hsic[after, at] = _hsic_of_kernels(kernels[at], kernels[after])
        return _normalized(hsic)
    for at, one in enumerate(features):
        x = _centred(one)
        hsic[at, at] = _hsic(x, x)
        for after, other in enumerate(features[at + 1 :], start=at + 1):
            hsic[at, after] = hsic[after, at] = _hsic(x, _centred(other))
    return _normalized(hsic)


def _normalized(hsic: Array) -> Array:
    own = np.where(np.diag(hsic) > 0, np.diag(hsic), np.nan)
    found: Array = hsic / np.sqrt(np.outer(own, own))
    return found


def _hsic_of_kernels(one: Array, other: Array) -> float:
    """Estimate HSIC from the (n, n) kernels of centered features, which may be wide."""
    of_one, of_other = (kernel - np.diag(np.diag(kernel)) for kernel in (one, other))
    trace = float(np.vdot(of_one, of_other))
    return _estimate(trace, of_one.sum(axis=0), of_other.sum(axis=0), len(one))


def _hsic(x: Array, y: Array) -> float:
    """Estimate HSIC without ever having the (n, n) kernels: in time n D E, and memory D + E a row.

    With K and L zero on their diagonals it is (tr K L + (1ᵀK1)(1ᵀL1) / ((n - 1)(n - 2))
    - 2 (1ᵀK L 1) / (n - 2)) / (n (n - 3)).
    """
    n = len(x)
    of_x, of_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    rows_x, rows_y = x @ x.sum(axis=0) - of_x, y @ y.sum(axis=0) - of_y
    products = (x[:, at : at + _BLOCK].T @ y for at in range(0, x.shape[1], _BLOCK))
    trace = sum(float(np.vdot(product, product)) for product in products) - of_x @ of_y
    return _estimate(float(trace), rows_x, rows_y, n)


def _estimate(trace: float, rows_x: Array, rows_y: Array, n: int) -> float:
    total = rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return float((trace + total - 2 * (rows_x @ rows_y) / (n - 2)) / (n * (n - 3)))


def _centred(features: Matrix) -> Array:
    """Centre, which changes nothing but rounding, and scale so that nothing overflows."""
    values = features.astype(np.float64)
    values -= values.mean(axis=0)
    largest = np.abs(values).max()
    return values / largest if largest > 0 else values
