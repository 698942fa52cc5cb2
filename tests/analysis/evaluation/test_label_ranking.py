# SPDX-License-Identifier: Apache-2.0
"""The measures of lists of labels, recomputed by scikit-learn or by hand."""

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import MultiLabelBinarizer
from support.synthetic_runs import make_run, make_subset

from ray_embed.analysis.evaluation import label_ranking
from ray_embed.analysis.evaluation.measures import FeatureEvaluation, evaluate_features
from ray_embed.sources.label_lists import LABEL_LIST

COUNT, REFERENCE, LABELS = 160, 100, 8


def make_records() -> tuple[np.ndarray, list[list[str] | None]]:
    """Features that depend on the labels; each record has 0 to 3 labels."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(LABELS, 12))
    features = random.normal(size=(COUNT, 12))
    lists: list[list[str] | None] = []
    for row in range(COUNT):
        chosen = random.choice(LABELS, random.integers(0, 4), replace=False)
        features[row] += centers[chosen].sum(axis=0)
        # A label that is repeated counts once.
        lists.append([f"c{label}" for label in chosen for _ in range(1 + label % 2)] or None)
    return features.astype(np.float32), lists


def evaluate(features: np.ndarray, lists: list, splits: list[str] | None) -> FeatureEvaluation:
    return evaluate_features(make_subset(features, lists, splits, LABEL_LIST))


@pytest.mark.parametrize("splits", [None, ["valid"] * REFERENCE + ["test"] * (COUNT - REFERENCE)])
def test_measures_are_those_of_scikit_learn(splits, monkeypatch):
    monkeypatch.setattr(label_ranking, "_BLOCK", 7 * LABELS)
    features, lists = make_records()
    found = {one.name: one for one in evaluate(features, lists, splits).measures}
    known = np.array([row for row, labels in enumerate(lists) if labels])
    truth = MultiLabelBinarizer().fit_transform([labels or [] for labels in lists])
    reference = known[known < REFERENCE] if splits else known
    evaluated = known[known >= REFERENCE] if splits else known
    for metric, name in (("cosine", "cosine"), ("l2", "euclidean")):
        for k in (1, 5, 20):
            search = NearestNeighbors(n_neighbors=k, metric=name).fit(features[reference])
            rows = search.kneighbors(features[evaluated] if splits else None)[1]
            votes = truth[reference[rows]]
            score = label_ranking_average_precision_score(truth[evaluated], votes.sum(axis=1))
            precision, common = found[f"knn_lrap_{k}_{metric}"], found[f"knn_common_{k}_{metric}"]
            assert precision.value == pytest.approx(score, abs=1e-12)
            has_common = (votes & truth[evaluated][:, None]).any(axis=2)
            assert common.value == pytest.approx(has_common.mean(), abs=1e-12)
            for measure in (precision, common):
                assert measure.records.tolist() == evaluated.tolist()
                assert measure.interval[0] < measure.value < measure.interval[1]
                assert measure.higher_is_better
    assert found["knn_lrap_20_cosine"].value > 0.6
    assert {name for name in found if "knn_" not in name} == {
        "rankme", "alpha_req", "stable_rank", "participation_ratio", "mean_cosine",
        "dead_dimensions",
    }  # fmt: skip


def test_labels_that_the_reference_lacks_are_left_out():
    features = np.eye(6, dtype=np.float32)
    lists = [["a", "b"], ["a"], ["b"], ["a", "new"], ["new"], ["b"]]
    protocol = evaluate(features, lists, ["valid"] * 3 + ["test"] * 3).protocol
    assert protocol.classes == ("a", "b")
    assert protocol.evaluated.tolist() == [3, 5]
    assert protocol.left_out == 1
    assert protocol.labels.toarray()[3].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ([None] * 4, "there are no labels"),
        ([["a"]] * 4, "all labels are 'a', so there is nothing to predict"),
        ([["a", "b"], ["c"], ["d"], ["e"]], "5 different labels of 4 records are names rather"),
    ],
)
def test_lists_that_predict_nothing(lists, reason):
    assert evaluate(np.eye(4), lists, None).protocol.startswith(reason)


def test_evaluate_and_compare_show_the_measures_of_lists(command, tmp_path):
    features, lists = make_records()
    run = make_run(tmp_path / "one", features, lists, label_type=LABEL_LIST)
    noise = np.random.default_rng(1).normal(size=features.shape)
    other = make_run(tmp_path / "other", noise, lists, label_type=LABEL_LIST)
    shown = command("evaluate", run)
    assert shown.code == 0, shown.err
    assert "note: the labels are lists, so ranking precision (knn_lrap)" in shown.out
    assert "knn_lrap_5_cosine" in shown.out
    assert "linear_probe" not in shown.out
    shown = command("compare", run, other, "--sample", 150)
    assert shown.code == 0, shown.err
    assert "the labels are lists" in shown.out
    assert "clear best, by 12 measures: one in 1" in shown.out
    refused = command("evaluate", run, "--labels", "values")
    assert refused.code == 2
    assert "--labels values: the labels are list<" in refused.err
    classes = make_run(tmp_path / "classes", features)
    refused = command("compare", run, classes)
    assert refused.code == 2
    assert "one has lists as labels, but" in refused.err
    assert "classes has classes as labels" in refused.err
