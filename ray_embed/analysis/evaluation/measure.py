# SPDX-License-Identifier: Apache-2.0
"""A number that judges features, with how sure it is."""

from dataclasses import dataclass

from ray_embed.core.arrays import Array


@dataclass(frozen=True)
class Measure:
    """A number, and what is known of it.

    `name` is its key in JSON. `value` is the number; `interval` its 95 % confidence interval, None
    where none is known. `each` is what it is the mean of: (n,) float64, one for each record that
    was judged, in the order of `judged`, their positions in the subset; both None where it is no
    mean. `higher_is_better` is None where it is no verdict.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    each: Array | None = None
    judged: Array | None = None
    higher_is_better: bool | None = None
