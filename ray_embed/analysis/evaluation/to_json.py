# SPDX-License-Identifier: Apache-2.0
"""Convert an evaluation to plain data, as stored in `evaluation.json`."""

from collections import Counter
from typing import Any

import numpy as np

from ray_embed.analysis.evaluation.differences import compare_measures
from ray_embed.analysis.evaluation.evaluate import ENCODER, Evaluation
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.measures import NEIGHBOR_COUNTS, PURITY, FeatureEvaluation
from ray_embed.analysis.evaluation.near_duplicates import Duplicates
from ray_embed.analysis.evaluation.protocol import LISTS_NOTE, Protocol
from ray_embed.runs.sampling import Subset

SEED = 0
CONFUSED = 20


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain data, without per-record values."""
    subset = evaluation.subset
    encoder = evaluation.columns[ENCODER]
    protocol = encoder.protocol if isinstance(encoder.protocol, Protocol) else None
    entry: dict[str, Any] = {
        "records": len(subset),
        "total": subset.total,
        "seed": SEED,
        "pool": evaluation.pool,
        "judged": protocol.description if protocol else None,
        "labels": protocol.kind if protocol else None,
        "notes": [*evaluation.notes, *_list_notes(evaluation)],
        "measures": {
            column: _measures_to_json(evaluation, column, evaluated.measures)
            for column, evaluated in evaluation.columns.items()
        },
        "near_duplicates": _duplicates_to_json(evaluation.near_duplicates, subset),
        "equal_features": _duplicates_to_json(evaluation.equal_features, subset),
        "without_near_duplicates": {
            column: _measures_to_json(evaluation, column, measures)
            for column, measures in evaluation.without_near_duplicates.items()
        },
    }
    if protocol:
        baselines = [column for column in evaluation.columns if column != ENCODER]
        entry["verdicts"] = {name: _compare_to_baseline(evaluation, name) for name in baselines}
    if protocol and protocol.kind == "classes":
        entry["classes"] = _list_classes(encoder, protocol)
        entry["confused"] = {
            "neighbours": encoder.voters,
            "pairs": _list_confused(encoder, protocol),
        }
    return entry


def _measures_to_json(
    evaluation: Evaluation, column: str, measures: tuple[Measure, ...]
) -> dict[str, Any]:
    return {
        measure.name: {
            "value": measure.value,
            "interval": None if measure.interval is None else list(measure.interval),
            "n": _count_records(evaluation, column, measure),
            "higher_is_better": measure.higher_is_better,
        }
        for measure in measures
    }


def _count_records(evaluation: Evaluation, column: str, measure: Measure) -> int:
    """Count the records that a measure covers."""
    if column == ENCODER and measure.name in evaluation.of_all_records:
        return evaluation.subset.total
    if measure.per_record is not None:
        return len(measure.per_record)
    protocol = evaluation.columns[ENCODER].protocol
    if measure.name.startswith("kmeans") and isinstance(protocol, Protocol):
        return int((protocol.labels >= 0).sum())
    return len(evaluation.subset)


def _compare_to_baseline(evaluation: Evaluation, baseline: str) -> dict[str, list[str]]:
    """Name the measures in which the encoder is clearly better, clearly worse, or neither."""
    measures = {measure.name: measure for measure in evaluation.columns[baseline].measures}
    names: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for measure in evaluation.columns[ENCODER].measures:
        if measure.higher_is_better is not None and measure.name in measures:
            sign = compare_measures(measure, measures[measure.name], same_records=True)
            names[{1: "better", -1: "worse", 0: "unclear"}[sign]].append(measure.name)
    return names


def _list_notes(evaluation: Evaluation) -> list[str]:
    """List what is left out, or why there are no measures by label."""
    notes = []
    protocol = evaluation.columns[ENCODER].protocol
    if isinstance(protocol, str):
        notes.append(protocol)
    else:
        if protocol.kind == "lists":
            notes.append(LISTS_NOTE)
        if protocol.left_out:
            notes.append(
                f"{protocol.left_out} records of classes that the reference lacks are not evaluated"
            )
        wanted = NEIGHBOR_COUNTS[protocol.kind]
        too_many = [str(k) for k in wanted if k > protocol.max_neighbors]
        if too_many:
            notes.append(
                f"{' and '.join(too_many)} neighbors are left out: there are "
                f"{protocol.max_neighbors}"
            )
    if evaluation.unmatched:
        notes.append(
            f"{evaluation.unmatched} records are left out, which the run with random weights has "
            "rejected"
        )
    return notes


def _list_classes(encoder: FeatureEvaluation, protocol: Protocol) -> list[dict[str, Any]]:
    """List the neighbor purity of each class, the worst first."""
    measures = {measure.name: measure for measure in encoder.measures}
    purity = measures.get(f"purity_{PURITY}")
    if purity is None or purity.per_record is None:
        return []
    labels = protocol.labels[protocol.evaluated]
    counts = np.bincount(labels, minlength=len(protocol.classes))
    sums = np.bincount(labels, purity.per_record, minlength=len(protocol.classes))
    classes = [
        {"label": label, "n": int(count), "purity": float(total / count)}
        for label, count, total in zip(protocol.classes, counts, sums, strict=True)
        if count
    ]
    return sorted(classes, key=lambda item: item["purity"])


def _list_confused(encoder: FeatureEvaluation, protocol: Protocol) -> list[dict[str, Any]]:
    """List the pairs of classes in which the first is most often mistaken for the second."""
    labels, predicted = protocol.labels[protocol.evaluated], encoder.predicted
    if predicted is None:
        return []
    wrong = labels != predicted
    pairs = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    sizes = np.bincount(labels, minlength=len(protocol.classes)).tolist()
    return [
        {
            "label": protocol.classes[label],
            "taken_for": protocol.classes[other],
            "count": count,
            "of": sizes[label],
        }
        for (label, other), count in pairs.most_common(CONFUSED)
    ]


def _duplicates_to_json(duplicates: Duplicates | None, subset: Subset) -> dict[str, Any] | None:
    if duplicates is None:
        return None

    def name_record(row: int) -> dict[str, Any]:
        index, key, split = subset.index[row], subset.keys[row], subset.splits[row]
        return {"index": int(index), "key": key, "split": split}

    return {
        "records": int(duplicates.in_split.any(axis=1).sum()),
        "by_split": duplicates.count(subset.splits),
        "pairs": [
            {"records": [name_record(first), name_record(second)], "difference": difference}
            for first, second, difference in duplicates.pairs
        ],
    }
