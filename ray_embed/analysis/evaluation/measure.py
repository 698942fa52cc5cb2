# SPDX-License-Identifier: Apache-2.0
"""A number about features, with its interval."""

from dataclasses import dataclass

from ray_embed.core.arrays import Array


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number about features.

    `name` is its key in JSON. `interval` is its 95 % confidence interval, None where none is known.
    If it is a mean over records, `per_record` (n,) float64 are the values of the records, and
    `records` (n,) their positions in the subset; else both are None. `higher_is_better` is None
    where it is not a verdict.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    per_record: Array | None = None
    records: Array | None = None
    higher_is_better: bool | None = None
