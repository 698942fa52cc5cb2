# SPDX-License-Identifier: Apache-2.0
"""95 % confidence intervals: what another sample of the same size might have shown."""

import warnings
from collections.abc import Callable

import numpy as np

from ray_embed.core.arrays import Array

Interval = tuple[float, float]

LEVEL = 0.95
_SEED = 0
_RESAMPLES, GROUPS = 1000, 20
# How many numbers are in memory at once.
_BATCH = 4_000_000


def compute_mean_interval(values: Array) -> Interval | None:
    """Return the interval of a mean: Wilson's (1927) if it is a share, else the bootstrap's.

    Args:
        values: (n,) float64. If the mean is a share, each value is 0 or 1.

    Returns:
        the interval, or None if there are fewer than two values.
    """
    if len(values) < 2:
        return None
    if np.isin(values, (0, 1)).all():
        from scipy.stats import binomtest

        test = binomtest(int(values.sum()), len(values))
        bounds = test.proportion_ci(LEVEL, method="wilson")
        return float(bounds.low), float(bounds.high)
    return compute_bootstrap_interval(values)


def compute_bootstrap_interval(values: Array) -> Interval | None:
    """Return the bootstrap interval of the mean of `values` (n,), or None if n < 2."""
    if len(values) < 2:
        return None
    return bootstrap(lambda drawn, axis: drawn.mean(axis=axis), values)


def bootstrap(
    statistic: Callable[..., Array], *data: Array, resamples: int = _RESAMPLES
) -> Interval | None:
    """Return the percentile bootstrap interval (Efron 1979), drawn with a fixed seed.

    Args:
        statistic: computes the statistic of samples (..., n) along `axis`.
        data: arrays of shape (n,). Each resample draws the same records from all of them.
        resamples: how many samples are drawn.

    Returns:
        the interval, or None if the statistic is undefined for a resample, such as one record
        repeated.
    """
    from scipy import stats

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # Where it warns, None is returned below.
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            data,
            statistic,
            n_resamples=resamples,
            batch=max(1, _BATCH // len(data[0])),
            paired=True,
            vectorized=True,
            confidence_level=LEVEL,
            method="percentile",
            rng=_SEED,
        ).confidence_interval
    bounds = float(result.low), float(result.high)
    return bounds if np.isfinite(bounds).all() else None


def compute_jackknife_interval(
    score: Callable[[Array], float], count: int, value: float
) -> Interval:
    """Return the interval of a score that is not a mean, by leaving out each of 20 groups in turn.

    This is the delete-a-group jackknife with Student's t (Shao and Tu 1995, The Jackknife and
    Bootstrap). A bootstrap draws some records twice, which would make clusters look purer than they
    are.

    Args:
        score: computes the score of the records at some positions (m,) int64.
        count: how many records there are.
        value: the score of all.
    """
    from scipy import stats

    order = np.random.default_rng(_SEED).permutation(count)
    groups = min(GROUPS, count)
    group_of = np.arange(count) % groups
    scores = np.array([score(np.sort(order[group_of != group])) for group in range(groups)])
    error = np.sqrt((groups - 1) / groups * np.square(scores - scores.mean()).sum())
    reach = float(stats.t.ppf((1 + LEVEL) / 2, groups - 1) * error)
    return value - reach, value + reach
