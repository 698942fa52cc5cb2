# SPDX-License-Identifier: Apache-2.0
"""A number that describes features, with its confidence interval."""

from dataclasses import dataclass

from ray_embed.core.arrays import Array


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that describes features.

    `name` is its key in JSON. `interval` is its 95 % confidence interval, or None if it is unknown.
    If it is a mean over records, `per_record` (n,) float64 holds the value of each record, and
    `records` (n,) holds its position in the subset; otherwise, both are None. `higher_is_better` is
    None if the measure does not tell which features are better.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    per_record: Array | None = None
    records: Array | None = None
    higher_is_better: bool | None = None
