# SPDX-License-Identifier: Apache-2.0
"""By how much a measure differs between two encoders, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_embed.analysis.evaluation.intervals import Interval, bootstrap
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.core.arrays import Array


@dataclass(frozen=True)
class Difference:
    """One encoder's measure less another's.

    `interval` is the 95 % confidence interval, None where none is known. `paired` says that it is
    of the `records` that both were judged on, one by one; `records` is None where it is not.
    """

    value: float
    interval: Interval | None
    paired: bool
    records: int | None


def difference(measure: Measure, base: Measure, same: bool) -> Difference:
    """Give `measure` less `base`.

    Args:
        measure: of one encoder.
        base: of the other one.
        same: whether positions of both stand for the same records.
    """
    if same and (pairs := _pairs(measure, base)) is not None:
        return Difference(float(pairs.mean()), interval_of_mean(pairs), True, len(pairs))
    return Difference(measure.value - base.value, _unpaired(measure, base), False, None)


def verdict(measure: Measure, base: Measure, same: bool) -> int:
    """Say whether a measure is better (1) or worse (-1) than another, beyond the interval; else 0.

    Args:
        measure: of one encoder; one of which more, or less, is better.
        base: of the other one.
        same: whether positions of both stand for the same records.
    """
    sign = 1 if measure.higher_is_better else -1
    interval = difference(measure, base, same).interval
    if interval is None or min(interval) <= 0 <= max(interval):
        return 0
    return sign if min(interval) > 0 else -sign


def best(measures: Sequence[Measure | None], same: bool) -> int | None:
    """Give which measure is better than the second best, beyond the interval of their difference.

    Args:
        measures: of the encoders; None where one has none.
        same: whether positions of all stand for the same records.
    """
    known = [(at, one) for at, one in enumerate(measures) if one and np.isfinite(one.value)]
    if len(known) < 2 or known[0][1].higher_is_better is None:
        return None
    sign = 1 if known[0][1].higher_is_better else -1
    (at, first), (_, second), *_ = sorted(known, key=lambda one: -sign * one[1].value)
    return at if verdict(first, second, same) > 0 else None


def interval_of_mean(values: Array) -> Interval | None:
    """Give the 95 % interval of the mean of values (n,) by the bootstrap; None where n < 2."""
    if len(values) < 2:
        return None
    return bootstrap(lambda drawn, axis: drawn.mean(axis=axis), values)


def _pairs(measure: Measure, base: Measure) -> Array | None:
    """Give the differences of the records that both were judged on."""
    if measure.each is None or measure.judged is None or base.each is None or base.judged is None:
        return None
    _, own, others = np.intersect1d(
        measure.judged, base.judged, assume_unique=True, return_indices=True
    )
    pairs: Array = measure.each[own] - base.each[others]
    return pairs if len(pairs) else None


def _unpaired(measure: Measure, base: Measure) -> Interval | None:
    """Make the interval of a difference out of two intervals, as if nothing tied them together.

    Zou and Donner (2008), "Construction of confidence limits about effect measures": squares of
    the distances to their own limits add up.
    """
    if measure.interval is None or base.interval is None:
        return None
    value = measure.value - base.value
    below = np.hypot(measure.value - measure.interval[0], base.interval[1] - base.value)
    above = np.hypot(measure.interval[1] - measure.value, base.value - base.interval[0])
    return float(value - below), float(value + above)
