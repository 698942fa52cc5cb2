# SPDX-License-Identifier: Apache-2.0
"""All measures of the features of a subset."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.analysis.evaluation import (
    clustering,
    intervals,
    knn,
    label_ranking,
    linear_probe,
    spectrum,
)
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.neighbors import METRICS, Neighbors, find_neighbors
from ray_embed.analysis.evaluation.protocol import Protocol, choose_protocol
from ray_embed.core.arrays import Array, Matrix
from ray_embed.runs.sampling import Subset

MAJORITY_KS, WEIGHTED, REGRESSION_KS = (1, 5, 20), (20, 200), (5, 20)
PURITY = 20
# How many neighbors the measures use, by the kind of labels.
NEIGHBOR_COUNTS = {
    "classes": tuple(sorted({*MAJORITY_KS, *WEIGHTED})),
    "values": REGRESSION_KS,
    "lists": MAJORITY_KS,
}


@dataclass(frozen=True)
class FeatureEvaluation:
    """The measures of a subset's features.

    If no label can be predicted, `protocol` is a sentence that says why. `predicted` (n,) int64
    holds the class of each evaluated record, as predicted by the majority of its `voters` nearest
    neighbors (cosine). It is None if the labels are not classes.
    """

    measures: tuple[Measure, ...]
    protocol: Protocol | str
    predicted: Array | None = None
    voters: int = 0


def evaluate_features(subset: Subset) -> FeatureEvaluation:
    """Compute all measures of the features of a subset, with or without labels.

    Raises:
        ValueError: features are not finite.
    """
    protocol = choose_protocol(subset)
    unlabeled: list[Measure] = []
    if len(subset) > 1:
        unlabeled = spectrum.measure_spectrum(spectrum.compute_spectrum(subset.features))
    if isinstance(protocol, str):
        return FeatureEvaluation(tuple(unlabeled), protocol)
    count = max(NEIGHBOR_COUNTS[protocol.kind])
    features = spectrum.narrow_features(subset.features).astype(np.float32, copy=False)
    near = {metric: find_neighbors(features, protocol, metric, count) for metric in METRICS}
    if protocol.kind == "values":
        return FeatureEvaluation((*_measure_regressions(protocol, near), *unlabeled), protocol)
    if protocol.kind == "lists":
        return FeatureEvaluation((*_measure_lists(protocol, near), *unlabeled), protocol)
    voters = max(k for k in MAJORITY_KS if k <= protocol.max_neighbors)
    by_label = [
        *_measure_neighbors(protocol, near),
        _measure_accuracy(
            "linear_probe", protocol, linear_probe.predict_classes(subset.features, protocol)
        ),
        *_measure_clusters(features, protocol),
    ]
    predicted = _predict_by_majority(protocol, near["cosine"], voters)
    return FeatureEvaluation((*by_label, *unlabeled), protocol, predicted, voters)


def _measure_neighbors(protocol: Protocol, near: dict[str, Neighbors]) -> Iterator[Measure]:
    most = protocol.max_neighbors
    for metric in METRICS:
        for k in MAJORITY_KS:
            if k <= most:
                predicted = _predict_by_majority(protocol, near[metric], k)
                yield _measure_accuracy(f"knn_{k}_{metric}", protocol, predicted)
    cosine = near["cosine"]
    labels = protocol.labels[cosine.positions]
    for k in WEIGHTED:
        if k <= most:
            predicted = knn.predict_by_weight(
                labels[:, :k], cosine.distances[:, :k], len(protocol.classes)
            )
            yield _measure_accuracy(f"knn_weighted_{k}", protocol, predicted)
    if most >= PURITY:
        same = labels[:, :PURITY] == protocol.labels[protocol.evaluated][:, None]
        yield _measure_mean(f"purity_{PURITY}", same.mean(axis=1), protocol.evaluated)


def _predict_by_majority(protocol: Protocol, near: Neighbors, k: int) -> Array:
    labels = protocol.labels[near.positions[:, :k]]
    return knn.predict_by_majority(labels, near.distances[:, :k], len(protocol.classes))


def _measure_regressions(protocol: Protocol, near: dict[str, Neighbors]) -> Iterator[Measure]:
    for metric in METRICS:
        for k in REGRESSION_KS:
            if k <= protocol.max_neighbors:
                predicted = protocol.labels[near[metric].positions[:, :k]].mean(axis=1)
                yield _measure_r2(f"knn_r2_{k}_{metric}", protocol, predicted)


def _measure_lists(protocol: Protocol, near: dict[str, Neighbors]) -> Iterator[Measure]:
    for name, compute in (
        ("lrap", label_ranking.compute_ranking_precision),
        ("common", label_ranking.compute_common_share),
    ):
        for metric in METRICS:
            for k in MAJORITY_KS:
                if k <= protocol.max_neighbors:
                    neighbors = near[metric].positions[:, :k]
                    values = compute(protocol.labels, protocol.evaluated, neighbors)
                    yield _measure_mean(f"knn_{name}_{k}_{metric}", values, protocol.evaluated)


def _measure_r2(name: str, protocol: Protocol, predicted: Array) -> Measure:
    """Measure R² as the mean of 1 - error² / variance over the records."""
    values = protocol.labels[protocol.evaluated]
    per_record = 1 - np.square(values - predicted) / values.var()

    def compute_r2(values: Array, predicted: Array, axis: int) -> Array:
        errors = np.square(values - predicted).mean(axis=axis)
        scores: Array = 1 - errors / values.var(axis=axis)
        return scores

    return Measure(
        name=name,
        value=float(per_record.mean()),
        interval=intervals.bootstrap(compute_r2, values, predicted),
        per_record=per_record,
        records=protocol.evaluated,
        higher_is_better=True,
    )


def _measure_clusters(features: Matrix, protocol: Protocol) -> Iterator[Measure]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = np.flatnonzero(protocol.labels >= 0)
    features, labels = features[known], protocol.labels[known]
    for metric in METRICS:
        silhouettes, rows = clustering.compute_silhouettes(features, labels, metric)
        if len(silhouettes):
            yield _measure_mean(f"silhouette_{metric}", silhouettes, known[rows])
    clusters = clustering.assign_clusters(features, len(protocol.classes))
    for name, score in (("nmi", normalized_mutual_info_score), ("ari", adjusted_rand_score)):

        def score_rows(rows: Array, score: Any = score) -> float:
            return float(score(labels[rows], clusters[rows]))

        value = float(score(labels, clusters))
        interval = intervals.compute_jackknife_interval(score_rows, len(labels), value)
        yield Measure(name=f"kmeans_{name}", value=value, interval=interval, higher_is_better=True)


def _measure_accuracy(name: str, protocol: Protocol, predicted: Array) -> Measure:
    is_right = predicted == protocol.labels[protocol.evaluated]
    return _measure_mean(name, is_right, protocol.evaluated)


def _measure_mean(name: str, per_record: Array, records: Array) -> Measure:
    per_record = per_record.astype(np.float64)
    return Measure(
        name=name,
        value=float(per_record.mean()),
        interval=intervals.compute_mean_interval(per_record),
        per_record=per_record,
        records=records,
        higher_is_better=True,
    )
