# SPDX-License-Identifier: Apache-2.0
"""Measures of the spectrum of the features, without labels.

Each measure was proposed for a certain kind of self-supervised encoder. A high value does not mean
that an encoder is better.
"""

from dataclasses import dataclass

import numpy as np

from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.neighbors import compute_directions
from ray_embed.core.arrays import Array
from ray_embed.core.threads import limit_blas_to_one_thread

NAMES = (
    *("rankme", "alpha_req", "stable_rank", "participation_ratio"),
    *("mean_cosine", "dead_dimensions"),
)
# About the rounding error of float32.
_EPSILON = 1e-7
_FIRST, _LAST = 4, 100
# How many dimensions are in memory at once in double precision.
_DIMENSIONS_AT_ONCE = 4096
# Features with more dimensions are wide. With more records, (N, N) would be no smaller.
_WIDE, _MOST_RECORDS = 8192, 4096
# An eigenvalue below this share of the largest is a rounding error.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Spectrum:
    """What the measures below need to know about features (N, D).

    `singular` (min(N, D),) holds the singular values of the features as they are, and `eigenvalues`
    (min(N, D),) the eigenvalues of their covariance, both in descending order. Both are float64.
    `cosine` is the mean cosine over all pairs of records, and `dead` is the share of dimensions
    that have the same value in all records.
    """

    singular: Array
    eigenvalues: Array
    cosine: float
    dead: float


def compute_spectrum(features: Array) -> Spectrum:
    """Compute the spectrum of features (N, D) float32, N > 1."""
    dead = float(np.mean(features.min(axis=0) == features.max(axis=0)))
    is_wide = features.shape[1] > len(features)
    gram, scatter = multiply_records(features) if is_wide else _multiply_dimensions(features)
    singular, eigenvalues = (
        np.linalg.eigvalsh(matrix)[::-1].clip(0) for matrix in (gram, scatter / (len(features) - 1))
    )
    return Spectrum(np.sqrt(singular), eigenvalues, _mean_cosine(features), dead)


def _mean_cosine(features: Array) -> float:
    """Compute the mean cosine of two records from the sum of the unit vectors."""
    count = len(features)
    units = compute_directions(features)
    total = float(np.square(units.sum(axis=0, dtype=np.float64)).sum())
    return (total - count) / (count * (count - 1))


def _multiply_dimensions(features: Array) -> tuple[Array, Array]:
    """Compute the products (D, D) of dimensions, for the features both as they are and centered."""
    exact = features.astype(np.float64)
    mean = exact.mean(axis=0)
    exact -= mean
    scatter = exact.T @ exact
    return scatter + len(exact) * np.outer(mean, mean), scatter


def multiply_records(features: Array) -> tuple[Array, Array]:
    """Compute the products (N, N) of records (N, D), both as they are and centered.

    These have the same nonzero eigenvalues as the products of dimensions.
    """
    gram, scatter = np.zeros((2, len(features), len(features)))
    for start in range(0, features.shape[1], _DIMENSIONS_AT_ONCE):
        block = features[:, start : start + _DIMENSIONS_AT_ONCE].astype(np.float64)
        gram += block @ block.T
        block -= block.mean(axis=0)
        scatter += block @ block.T
    return gram, scatter


def narrow_features(features: Array) -> Array:
    """Replace wide features (N, D) with (N, N) float64 that have the same distances and angles.

    Distance measures copy the features in double precision, which would take several gigabytes for
    wide features. Other features are returned as they are.

    Args:
        features: (N, D) float32.
    """
    count, dimensions = features.shape
    if dimensions <= _WIDE or not 2 <= count <= _MOST_RECORDS:
        return features
    gram = np.zeros((count, count))
    with limit_blas_to_one_thread():
        for start in range(0, dimensions, _DIMENSIONS_AT_ONCE):
            block = features[:, start : start + _DIMENSIONS_AT_ONCE].astype(np.float64)
            gram += block @ block.T
        squares, axes = np.linalg.eigh(gram)
    narrowed: Array = axes * np.sqrt(squares.clip(0))
    # Rounding must not give a direction to rows of zeros.
    narrowed[np.diag(gram) == 0] = 0
    return narrowed


def measure_spectrum(spectrum: Spectrum) -> list[Measure]:
    """Return RankMe, α-ReQ, stable rank, participation ratio, mean cosine and dead dimensions.

    If all features are the same, only the last two are returned. α-ReQ is also left out if there
    are too few eigenvalues to fit a line.
    """
    measures = [
        Measure(name="mean_cosine", value=spectrum.cosine),
        Measure(name="dead_dimensions", value=spectrum.dead),
    ]
    if spectrum.dead == 1:
        return measures
    return [
        Measure(name="rankme", value=compute_rankme(spectrum.singular)),
        *measure_covariance(spectrum.eigenvalues),
        *measures,
    ]


def measure_covariance(eigenvalues: Array) -> list[Measure]:
    """Return the measures that need only the eigenvalues (k,) of the covariance, descending."""
    if not eigenvalues[0] > 0:
        return []
    alpha = fit_alpha_req(eigenvalues)
    return [
        *([] if alpha is None else [Measure(name="alpha_req", value=alpha)]),
        Measure(name="stable_rank", value=compute_stable_rank(eigenvalues)),
        Measure(name="participation_ratio", value=compute_participation_ratio(eigenvalues)),
    ]


def compute_rankme(singular: Array) -> float:
    """Return the exponential of the entropy of the singular values' shares, from 1 to min(N, D).

    Garrido et al. 2023, RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank. RankMe uses the features as they are, without centering.
    """
    shares = singular / singular.sum() + _EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def fit_alpha_req(eigenvalues: Array) -> float | None:
    """Return the exponent α of the decay, λ_j ~ j^-α, of the covariance's eigenvalues.

    Agrawal et al. 2022, α-ReQ: Assessing Representation Quality in Self-Supervised Learning by
    measuring eigenspectrum decay. The paper does not define the fit. This one is a line through
    log λ_j over log j from the 4th to the 100th, each j weighted by 1/j, as in Stringer et al. 2019
    (High-dimensional geometry of population responses in visual cortex), who start at the 11th.

    Returns:
        the exponent, or None if fewer than three of those eigenvalues differ from zero.
    """
    above = eigenvalues[:_LAST][eigenvalues[:_LAST] > _ROUNDING * eigenvalues[0]]
    ranks = np.arange(_FIRST, len(above) + 1)
    if len(ranks) < 3:
        return None
    # `polyfit` multiplies residuals by the weights, not their squares.
    slope = np.polyfit(np.log(ranks), np.log(above[_FIRST - 1 :]), 1, w=np.sqrt(1 / ranks))[0]
    return float(-slope)


def compute_stable_rank(eigenvalues: Array) -> float:
    """Return Σλ / max λ of the covariance: ‖X‖²_F / ‖X‖²_2 of the centered features.

    Rudelson and Vershynin 2007, Sampling from large matrices. Without centering, the first singular
    value of features that are never negative would be their mean.
    """
    return float(eigenvalues.sum() / eigenvalues[0])


def compute_participation_ratio(eigenvalues: Array) -> float:
    """Return (Σλ)² / Σλ² of the covariance.

    Gao et al. 2017, A theory of multineuronal dimensionality, dynamics and measurement.
    """
    return float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())
