# SPDX-License-Identifier: Apache-2.0
"""Measure how similar two encoders are on the same records, by neighborhoods and linear CKA."""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np

from ray_embed.analysis.evaluation.neighbors import compute_directions, search_nearest
from ray_embed.analysis.evaluation.spectrum import multiply_records, narrow_features
from ray_embed.core.arrays import Array, Matrix

# Dimensions multiplied at a time, to limit the memory for the product of two feature matrices.
_BLOCK = 512
# Above this ratio of dimensions to records, features are larger than their kernels.
_WIDE = 4


def find_nearest(features: Matrix, k: int) -> Array:
    """Find the positions of each record's k nearest neighbors by cosine: (n, k) int64.

    Args:
        features: (n, D) float32.
        k: less than n.
    """
    _, nearest = search_nearest(compute_directions(narrow_features(features)), k)
    return nearest


def count_common(nearest: Array, others: Array) -> Array:
    """Count the neighbors of each record that both arrays contain: (n,) int64.

    Args:
        nearest: (n, k), by `find_nearest`.
        others: (n, k), of the same records.
    """
    counts: Array = (nearest[:, :, None] == others[:, None, :]).sum(axis=(1, 2))
    return counts


def compute_cka(features: Sequence[Matrix]) -> Array:
    """Compute the unbiased linear centered kernel alignment of the features of the same records.

    This is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X Xᵀ and L = Y Yᵀ, as in Nguyen,
    Raghu and Kornblith (2021, "Do Wide and Deep Networks Learn the Same Things?"). HSIC is the
    unbiased estimator (5) of Song et al. (2012, "Feature Selection via Dependence Maximization").
    The alignment is 1 between features and a rotated, scaled or shifted copy of them, and about 0,
    or slightly below, between independent features, however many dimensions they have.

    Args:
        features: m arrays (n, D) float32, with n at least 4. D may differ between arrays.

    Returns:
        (m, m) float64, with NaN where features hardly vary.
    """
    hsic = np.empty((len(features), len(features)))
    if max(matrix.shape[1] for matrix in features) > _WIDE * len(features[0]):
        kernels = [multiply_records(matrix)[1] for matrix in features]
        for i, j in combinations_with_replacement(range(len(kernels)), 2):
            hsic[i, j] = hsic[j, i] = _estimate_hsic_of_kernels(kernels[i], kernels[j])
        return _normalize(hsic)
    for i, matrix in enumerate(features):
        x = _center(matrix)
        hsic[i, i] = _estimate_hsic(x, x)
        for j in range(i + 1, len(features)):
            hsic[i, j] = hsic[j, i] = _estimate_hsic(x, _center(features[j]))
    return _normalize(hsic)


def _normalize(hsic: Array) -> Array:
    diagonal = np.where(np.diag(hsic) > 0, np.diag(hsic), np.nan)
    normalized: Array = hsic / np.sqrt(np.outer(diagonal, diagonal))
    return normalized


def _estimate_hsic_of_kernels(kernel: Array, other: Array) -> float:
    """Estimate HSIC from the (n, n) kernels of centered features, which may be wide."""
    k, m = (values - np.diag(np.diag(values)) for values in (kernel, other))
    trace = float(np.vdot(k, m))
    return _combine_sums(trace, k.sum(axis=0), m.sum(axis=0), len(kernel))


def _estimate_hsic(x: Array, y: Array) -> float:
    """Estimate HSIC without the (n, n) kernels, in O(n D E) time and O(n (D + E)) memory.

    With K and L zero on their diagonals, it is (tr K L + (1ᵀK1)(1ᵀL1) / ((n - 1)(n - 2))
    - 2 (1ᵀK L 1) / (n - 2)) / (n (n - 3)).
    """
    diagonal_x, diagonal_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    rows_x, rows_y = x @ x.sum(axis=0) - diagonal_x, y @ y.sum(axis=0) - diagonal_y
    starts = range(0, x.shape[1], _BLOCK)
    products = (x[:, start : start + _BLOCK].T @ y for start in starts)
    trace = sum(float(np.vdot(product, product)) for product in products) - diagonal_x @ diagonal_y
    return _combine_sums(float(trace), rows_x, rows_y, len(x))


def _combine_sums(trace: float, rows_x: Array, rows_y: Array, n: int) -> float:
    total = rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return float((trace + total - 2 * (rows_x @ rows_y) / (n - 2)) / (n * (n - 3)))


def _center(features: Matrix) -> Array:
    """Center features to reduce rounding errors, and scale them so that nothing overflows."""
    values = features.astype(np.float64)
    values -= values.mean(axis=0)
    largest = np.abs(values).max()
    return values / largest if largest > 0 else values
