# SPDX-License-Identifier: Apache-2.0
"""Convert a comparison to plain data for JSON, with null for numbers that are not finite."""

import math
from typing import Any

from ray_embed.analysis.comparison.compare import Comparison, Row, Similarity
from ray_embed.analysis.evaluation.differences import Difference
from ray_embed.analysis.evaluation.intervals import Interval
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.core.uri import redact_uri


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as dicts, lists and numbers, which refer to runs by name."""
    names = [column.name for column in comparison.columns]
    columns = zip(comparison.columns, comparison.counts, comparison.evaluated, strict=True)
    return {
        "runs": [
            {
                "name": column.name,
                "path": redact_uri(column.run),
                "layer": column.layer,
                "pool": column.pool,
                "dimension": column.dimension,
                "records": count,
                "judged": evaluated,
            }
            for column, count, evaluated in columns
        ],
        "shared_records": comparison.shared,
        "same_records": comparison.paired,
        "measures": {row.name: _row_to_json(row, names) for row in comparison.rows},
        "likeness": [_similarity_to_json(pair, names) for pair in comparison.similarities],
        "notes": list(comparison.notes),
    }


def _row_to_json(row: Row, names: list[str]) -> dict[str, Any]:
    measures = zip(names, row.measures, strict=True)
    differences = zip(names, row.differences, strict=True)
    return {
        "higher_is_better": row.higher_is_better,
        "best": None if row.best is None else names[row.best],
        "raw_pixels": None if row.pixels is None else _measure_to_json(row.pixels),
        "values": {name: _measure_to_json(measure) for name, measure in measures if measure},
        "differences": {
            name: {"to": names[0], **_difference_to_json(difference)}
            for name, difference in differences
            if difference
        },
    }


def _measure_to_json(measure: Measure) -> dict[str, Any]:
    return {"value": _to_finite(measure.value), "interval": _interval_to_json(measure.interval)}


def _difference_to_json(difference: Difference) -> dict[str, Any]:
    return {
        "value": _to_finite(difference.value),
        "interval": _interval_to_json(difference.interval),
        "paired": difference.paired,
        "records": difference.records,
    }


def _similarity_to_json(pair: Similarity, names: list[str]) -> dict[str, Any]:
    return {
        "runs": [names[pair.first], names[pair.second]],
        "neighbours": {
            "k": pair.k,
            "common": _to_finite(pair.common),
            "interval": _interval_to_json(pair.interval),
        },
        "cka": _to_finite(pair.cka),
    }


def _interval_to_json(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_to_finite(bound) for bound in interval]


def _to_finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
