# SPDX-License-Identifier: Apache-2.0
"""Compute how much a measure differs between two encoders, and how certain that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_embed.analysis.evaluation.intervals import Interval, compute_bootstrap_interval
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.core.arrays import Array


@dataclass(frozen=True)
class Difference:
    """One encoder's measure minus another's.

    `interval` is the 95 % confidence interval, or None if it is unknown. `paired` tells whether the
    difference is a mean over the records that both were evaluated on. `records` is the number of
    those records, or None if it is not.
    """

    value: float
    interval: Interval | None
    paired: bool
    records: int | None


def subtract(measure: Measure, base: Measure, same_records: bool) -> Difference:
    """Compute `measure` minus `base`.

    Args:
        measure: the measure of one encoder.
        base: of the other encoder.
        same_records: whether positions of both stand for the same records.
    """
    if same_records and (pairs := _subtract_per_record(measure, base)) is not None:
        return Difference(float(pairs.mean()), compute_bootstrap_interval(pairs), True, len(pairs))
    interval = _combine_intervals(measure, base)
    return Difference(measure.value - base.value, interval, False, None)


def compare_measures(measure: Measure, base: Measure, same_records: bool) -> int:
    """Return 1 if `measure` is better than `base` beyond the interval, -1 if worse, else 0.

    Args:
        measure: the measure of one encoder, whose `higher_is_better` is not None.
        base: of the other encoder.
        same_records: whether positions of both stand for the same records.
    """
    sign = 1 if measure.higher_is_better else -1
    interval = subtract(measure, base, same_records).interval
    if interval is None or min(interval) <= 0 <= max(interval):
        return 0
    return sign if min(interval) > 0 else -sign


def find_best(measures: Sequence[Measure | None], same_records: bool) -> int | None:
    """Find the best measure, if the interval of its difference from the second best excludes zero.

    Args:
        measures: the measure of each encoder, or None for an encoder without it.
        same_records: whether the same position stands for the same record in all of them.

    Returns:
        the position of that measure, or None if there is no such measure.
    """
    known = [
        (position, measure)
        for position, measure in enumerate(measures)
        if measure and np.isfinite(measure.value)
    ]
    if len(known) < 2 or known[0][1].higher_is_better is None:
        return None
    sign = 1 if known[0][1].higher_is_better else -1
    (position, best), (_, second), *_ = sorted(known, key=lambda item: -sign * item[1].value)
    return position if compare_measures(best, second, same_records) > 0 else None


def _subtract_per_record(measure: Measure, base: Measure) -> Array | None:
    """Return the differences on the records that both were evaluated on, or None without any."""
    if measure.per_record is None or measure.records is None:
        return None
    if base.per_record is None or base.records is None:
        return None
    _, rows, base_rows = np.intersect1d(
        measure.records, base.records, assume_unique=True, return_indices=True
    )
    pairs: Array = measure.per_record[rows] - base.per_record[base_rows]
    return pairs if len(pairs) else None


def _combine_intervals(measure: Measure, base: Measure) -> Interval | None:
    """Return the interval of a difference from two intervals, as if they were independent.

    Zou and Donner (2008), "Construction of confidence limits about effect measures": the squared
    distances to the limits add up.
    """
    if measure.interval is None or base.interval is None:
        return None
    value = measure.value - base.value
    below = np.hypot(measure.value - measure.interval[0], base.interval[1] - base.value)
    above = np.hypot(measure.interval[1] - measure.value, base.value - base.interval[0])
    return float(value - below), float(value + above)
