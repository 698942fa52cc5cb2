# SPDX-License-Identifier: Apache-2.0
"""What the spectrum of the features says without labels.

These were made for self-supervised encoders of one kind each; high ones are no verdict.
"""

from dataclasses import dataclass

import numpy as np

from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.neighbors import directions
from ray_embed.core.arrays import Array
from ray_embed.core.threads import limit_blas_to_one_thread

NAMES = (
    *("rankme", "alpha_req", "stable_rank", "participation_ratio"),
    *("mean_cosine", "dead_dimensions"),
)
# As float32 rounds.
_EPSILON = 1e-7
_FIRST, _LAST = 4, 100
# Dimensions in memory at once in double precision.
_TOGETHER = 4096
# Features of more dimensions are wide; of more records than these (N, N) is no smaller.
_WIDE, _MOST_RECORDS = 8192, 4096
# An eigenvalue below this share of the largest is rounding.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Spectrum:
    """Of features (N, D): what the measures below need.

    `singular` (min(N, D),) are the singular values of the features as they are, descending;
    `eigenvalues` (min(N, D),) those of their covariance, descending. Both float64. `cosine` is
    the mean over all pairs of records, `dead` the share of dimensions that are the same for all.
    """

    singular: Array
    eigenvalues: Array
    cosine: float
    dead: float


def spectrum(features: Array) -> Spectrum:
    """Give the spectrum of features (N, D) float32, N > 1."""
    dead = float(np.mean(features.min(axis=0) == features.max(axis=0)))
    products = products_of_records if features.shape[1] > len(features) else _products_of_dimensions
    gram, scatter = products(features)
    singular, eigenvalues = (
        np.linalg.eigvalsh(matrix)[::-1].clip(0) for matrix in (gram, scatter / (len(features) - 1))
    )
    return Spectrum(np.sqrt(singular), eigenvalues, _mean_cosine(features), dead)


def _mean_cosine(features: Array) -> float:
    """Give the mean cosine of two records: the sum of all pairs is that of the unit vectors."""
    count = len(features)
    units = directions(features)
    total = float(np.square(units.sum(axis=0, dtype=np.float64)).sum())
    return (total - count) / (count * (count - 1))


def _products_of_dimensions(features: Array) -> tuple[Array, Array]:
    """Give the products (D, D) of the features as they are, and centred."""
    exact = features.astype(np.float64)
    mean = exact.mean(axis=0)
    exact -= mean
    scatter = exact.T @ exact
    return scatter + len(exact) * np.outer(mean, mean), scatter


def products_of_records(features: Array) -> tuple[Array, Array]:
    """Give the products (N, N) of records (N, D), as they are, and centred.

    They have the eigenvalues of the products of the dimensions, but for zeros.
    """
    gram, scatter = np.zeros((2, len(features), len(features)))
    for start in range(0, features.shape[1], _TOGETHER):
        some = features[:, start : start + _TOGETHER].astype(np.float64)
        gram += some @ some.T
        some -= some.mean(axis=0)
        scatter += some @ some.T
    return gram, scatter


def narrowed(features: Array) -> Array:
    """Return features (N, D), or where these are wide (N, N) with the same distances and angles.

    What is measured by distances copies features and computes in double precision, which of wide
    ones takes several gigabytes.

    Args:
        features: (N, D) float32.

    Returns:
        the same, or (N, N) float64.
    """
    count, dimensions = features.shape
    if dimensions <= _WIDE or not 2 <= count <= _MOST_RECORDS:
        return features
    gram = np.zeros((count, count))
    with limit_blas_to_one_thread():
        for start in range(0, dimensions, _TOGETHER):
            some = features[:, start : start + _TOGETHER].astype(np.float64)
            gram += some @ some.T
        squares, axes = np.linalg.eigh(gram)
    found: Array = axes * np.sqrt(squares.clip(0))
    # Rounding must not give a direction to rows that have none.
    found[np.diag(gram) == 0] = 0
    return found


def measures(found: Spectrum) -> list[Measure]:
    """Give RankMe, α-ReQ, stable rank, participation ratio, mean cosine, share of dead dimensions.

    All but the last two are left out where all features are the same; α-ReQ also where there are
    too few eigenvalues to fit a line to.
    """
    plain = [Measure("mean_cosine", found.cosine), Measure("dead_dimensions", found.dead)]
    if found.dead == 1:
        return plain
    return [
        Measure("rankme", rankme(found.singular)),
        *of_covariance(found.eigenvalues),
        *plain,
    ]


def of_covariance(eigenvalues: Array) -> list[Measure]:
    """Give those measures that need the eigenvalues (k,) of the covariance alone, descending."""
    if not eigenvalues[0] > 0:
        return []
    alpha = alpha_req(eigenvalues)
    return [
        *([] if alpha is None else [Measure("alpha_req", alpha)]),
        Measure("stable_rank", stable_rank(eigenvalues)),
        Measure("participation_ratio", participation_ratio(eigenvalues)),
    ]


def rankme(singular: Array) -> float:
    """Give the exponential of the entropy of the singular values' shares, 1 to min(N, D).

    Garrido et al. 2023, RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank: of the features as they are, not centred.
    """
    shares = singular / singular.sum() + _EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alpha_req(eigenvalues: Array) -> float | None:
    """Give the exponent α of the decay, λ_j ~ j^-α, of the covariance's eigenvalues.

    Agrawal et al. 2022, α-ReQ: Assessing Representation Quality in Self-Supervised Learning by
    measuring eigenspectrum decay. The paper leaves the fit open: this is a line through log λ_j
    over log j, each j weighted by 1/j, from the 4th to the 100th, as Stringer et al. 2019 fit it
    (High-dimensional geometry of population responses in visual cortex, from the 11th on there).

    Returns:
        None where fewer than three of those eigenvalues differ from zero.
    """
    above = eigenvalues[:_LAST][eigenvalues[:_LAST] > _NOTHING * eigenvalues[0]]
    at = np.arange(_FIRST, len(above) + 1)
    if len(at) < 3:
        return None
    # Weights of `polyfit` are of the residuals, not of their squares.
    slope = np.polyfit(np.log(at), np.log(above[_FIRST - 1 :]), 1, w=np.sqrt(1 / at))[0]
    return float(-slope)


def stable_rank(eigenvalues: Array) -> float:
    """Give Σλ / max λ of the covariance: ‖X‖²_F / ‖X‖²_2 of the centred features.

    Rudelson and Vershynin 2007, Sampling from large matrices. Centred, as without that the first
    singular value of features that are nowhere negative is their mean.
    """
    return float(eigenvalues.sum() / eigenvalues[0])


def participation_ratio(eigenvalues: Array) -> float:
    """Give (Σλ)² / Σλ² of the covariance.

    Gao et al. 2017, A theory of multineuronal dimensionality, dynamics and measurement.
    """
    return float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())
