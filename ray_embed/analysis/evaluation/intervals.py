# SPDX-License-Identifier: Apache-2.0
"""95 % confidence intervals: what another draw of as many records might have given."""

import warnings
from collections.abc import Callable

import numpy as np

from ray_embed.core.arrays import Array

Interval = tuple[float, float]

LEVEL = 0.95
_SEED = 0
_RESAMPLES, GROUPS = 1000, 20
# Numbers in memory at once.
_BATCH = 4_000_000


def of_mean(each: Array) -> Interval | None:
    """Give the interval of a mean: Wilson's (1927) of a share, else a percentile bootstrap.

    Args:
        each: (n,) float64; of a share 0 or 1 each.

    Returns:
        None where there are fewer than two.
    """
    if len(each) < 2:
        return None
    if np.isin(each, (0, 1)).all():
        from scipy.stats import binomtest

        found = binomtest(int(each.sum()), len(each)).proportion_ci(LEVEL, method="wilson")
        return float(found.low), float(found.high)
    return bootstrap(lambda values, axis: values.mean(axis=axis), each)


def bootstrap(
    statistic: Callable[..., Array], *data: Array, resamples: int = _RESAMPLES
) -> Interval | None:
    """Give the percentile bootstrap interval (Efron 1979), by a fixed seed.

    Args:
        statistic: of samples (..., n), with `axis`.
        data: (n,) each; the records drawn are the same of all.
        resamples: how many samples are drawn.

    Returns:
        None where a sample may have no such statistic, as it repeats one record only.
    """
    from scipy.stats import bootstrap as drawn

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # Of what is None below.
        warnings.simplefilter("ignore")
        found = drawn(
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
    bounds = float(found.low), float(found.high)
    return bounds if np.isfinite(bounds).all() else None


def jackknife(score: Callable[[Array], float], count: int, value: float) -> Interval:
    """Give the interval of what is no mean, by leaving out each of 20 groups of records in turn.

    The delete-a-group jackknife with Student's t (Shao and Tu 1995, The Jackknife and Bootstrap):
    drawing records twice, as a bootstrap does, would make clusters look purer.

    Args:
        score: of the records at some positions (m,) int64.
        count: how many records there are.
        value: the score of all.
    """
    order = np.random.default_rng(_SEED).permutation(count)
    groups = min(GROUPS, count)
    scores = [score(np.sort(order[np.arange(count) % groups != at])) for at in range(groups)]
    return of_groups(np.array(scores), value)


def of_groups(scores: Array, value: float) -> Interval:
    """Give the delete-a-group jackknife's interval by the score without each group."""
    from scipy.stats import t

    groups = len(scores)
    error = np.sqrt((groups - 1) / groups * np.square(scores - scores.mean()).sum())
    reach = float(t.ppf((1 + LEVEL) / 2, groups - 1) * error)
    return value - reach, value + reach
