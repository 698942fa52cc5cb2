# SPDX-License-Identifier: Apache-2.0
"""All numbers that judge the features of a subset."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.analysis.evaluation import clustering, intervals, knn, linear_probe, spectrum
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.neighbors import METRICS, Neighbours, nearest
from ray_embed.analysis.evaluation.protocol import Trial, trial
from ray_embed.core.arrays import Array, Matrix
from ray_embed.runs.sampling import Subset

VOTERS, WEIGHTED, REGRESSED = (1, 5, 20), (20, 200), (5, 20)
PURITY = 20


@dataclass(frozen=True)
class Judgement:
    """What a subset's features are worth.

    `trial` is who was judged by whom, or a sentence on why nobody was. `told` (n,) int64 are the
    classes of the judged records by the majority of their `voters` nearest neighbours (cosine);
    None where labels are no classes.
    """

    measures: tuple[Measure, ...]
    trial: Trial | str
    told: Array | None = None
    voters: int = 0


def measures(subset: Subset) -> list[Measure]:
    """Give all numbers that judge the features of a subset, with or without labels.

    Raises:
        ValueError: features are not finite.
    """
    return list(judge(subset).measures)


def judge(subset: Subset) -> Judgement:
    """Give all numbers that judge the features of a subset, and what is known of them.

    Raises:
        ValueError: features are not finite.
    """
    found = trial(subset)
    without = spectrum.measures(spectrum.spectrum(subset.features)) if len(subset) > 1 else []
    if isinstance(found, str):
        return Judgement(tuple(without), found)
    count = max(*WEIGHTED, *VOTERS) if found.classes else max(REGRESSED)
    features = spectrum.narrowed(subset.features).astype(np.float32, copy=False)
    near = {metric: nearest(features, found, metric, count) for metric in METRICS}
    if not found.classes:
        return Judgement((*_regressions(found, near), *without), found)
    voters = max(k for k in VOTERS if k <= found.most)
    told = _told(found, near["cosine"], voters)
    by_label = [
        *_neighbours(found, near),
        _share("linear_probe", found, linear_probe.told(subset.features, found)),
        *_clusters(features, found),
    ]
    return Judgement((*by_label, *without), found, told, voters)


def _neighbours(found: Trial, near: dict[str, Neighbours]) -> Iterator[Measure]:
    for metric in METRICS:
        for k in VOTERS:
            if k <= found.most:
                yield _share(f"knn_{k}_{metric}", found, _told(found, near[metric], k))
    cosine = near["cosine"]
    labels = found.labels[cosine.positions]
    for k in WEIGHTED:
        if k <= found.most:
            told = knn.told_by_weight(labels[:, :k], cosine.distances[:, :k], len(found.classes))
            yield _share(f"knn_weighted_{k}", found, told)
    if found.most >= PURITY:
        same = labels[:, :PURITY] == found.labels[found.judged][:, None]
        yield _mean(f"purity_{PURITY}", same.mean(axis=1), found.judged)


def _told(found: Trial, near: Neighbours, k: int) -> Array:
    labels = found.labels[near.positions[:, :k]]
    return knn.told(labels, near.distances[:, :k], len(found.classes))


def _regressions(found: Trial, near: dict[str, Neighbours]) -> Iterator[Measure]:
    for metric in METRICS:
        for k in REGRESSED:
            if k <= found.most:
                told = found.labels[near[metric].positions[:, :k]].mean(axis=1)
                yield _r2(f"knn_r2_{k}_{metric}", found, told)


def _r2(name: str, found: Trial, told: Array) -> Measure:
    """Give R², the mean of 1 - (error² over the variance) of each record."""
    values = found.labels[found.judged]
    each = 1 - np.square(values - told) / values.var()

    def r2(truth: Array, guess: Array, axis: int) -> Array:
        scores: Array = 1 - np.square(truth - guess).mean(axis=axis) / truth.var(axis=axis)
        return scores

    interval = intervals.bootstrap(r2, values, told)
    return Measure(name, float(each.mean()), interval, each, found.judged, True)


def _clusters(features: Matrix, found: Trial) -> Iterator[Measure]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = np.flatnonzero(found.labels >= 0)
    features, labels = features[known], found.labels[known]
    for metric in METRICS:
        each, rows = clustering.silhouettes(features, labels, metric)
        if len(each):
            yield _mean(f"silhouette_{metric}", each, known[rows])
    grouped = clustering.clusters(features, len(found.classes))
    for name, score in (("nmi", normalized_mutual_info_score), ("ari", adjusted_rand_score)):

        def of_some(rows: Array, score: Any = score) -> float:
            return float(score(labels[rows], grouped[rows]))

        value = float(score(labels, grouped))
        interval = intervals.jackknife(of_some, len(labels), value)
        yield Measure(f"kmeans_{name}", value, interval, None, None, True)


def _share(name: str, found: Trial, told: Array) -> Measure:
    return _mean(name, told == found.labels[found.judged], found.judged)


def _mean(name: str, each: Array, judged: Array) -> Measure:
    each = each.astype(np.float64)
    return Measure(name, float(each.mean()), intervals.of_mean(each), each, judged, True)
