# SPDX-License-Identifier: Apache-2.0
"""A comparison as plain data for JSON, with null for what is no number."""

import math
from typing import Any

from ray_embed.analysis.comparison.compare import Comparison, Likeness, Row
from ray_embed.analysis.evaluation.differences import Difference
from ray_embed.analysis.evaluation.intervals import Interval
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.core.uri import redact_uri


def plain(comparison: Comparison) -> dict[str, Any]:
    """Give a comparison as dicts, lists and numbers; runs go by their names."""
    names = [column.name for column in comparison.columns]
    of_columns = zip(
        comparison.columns,
        comparison.counts,
        comparison.judged,
        strict=True,
    )
    return {
        "runs": [
            {
                "name": column.name,
                "path": redact_uri(column.run),
                "layer": column.layer,
                "pool": column.pool,
                "dimension": column.dimension,
                "records": count,
                "judged": judged,
            }
            for column, count, judged in of_columns
        ],
        "shared_records": comparison.shared,
        "same_records": comparison.paired,
        "measures": {row.name: _row(row, names) for row in comparison.rows},
        "likeness": [_likeness(one, names) for one in comparison.likeness],
        "notes": list(comparison.notes),
    }


def _row(row: Row, names: list[str]) -> dict[str, Any]:
    return {
        "higher_is_better": row.higher_is_better,
        "best": None if row.best is None else names[row.best],
        "raw_pixels": None if row.pixels is None else _measure(row.pixels),
        "values": {
            name: _measure(one) for name, one in zip(names, row.measures, strict=True) if one
        },
        "differences": {
            name: {"to": names[0], **_difference(one)}
            for name, one in zip(names, row.differences, strict=True)
            if one
        },
    }


def _measure(measure: Measure) -> dict[str, Any]:
    return {"value": _number(measure.value), "interval": _interval(measure.interval)}


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "value": _number(found.value),
        "interval": _interval(found.interval),
        "paired": found.paired,
        "records": found.records,
    }


def _likeness(one: Likeness, names: list[str]) -> dict[str, Any]:
    return {
        "runs": [names[one.first], names[one.second]],
        "neighbours": {
            "k": one.k,
            "common": _number(one.common),
            "interval": _interval(one.interval),
        },
        "cka": _number(one.cka),
    }


def _interval(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_number(bound) for bound in interval]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
