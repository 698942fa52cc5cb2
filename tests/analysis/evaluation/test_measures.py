# SPDX-License-Identifier: Apache-2.0
"""Every measure by labels, recomputed by scikit-learn directly or by hand."""

import warnings
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from support.synthetic_runs import make_subset

from ray_embed.analysis.evaluation import knn
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.measures import evaluate_features
from ray_embed.errors import InputError
from ray_embed.runs.sampling import Subset, check_finite

CLASSES, COUNT, REFERENCE = 6, 500, 300


def clouds(count: int = COUNT, seed: int = 0, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Make features of overlapping classes, and the class of each."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    centers = random.normal(size=(CLASSES, 12))
    return (centers[labels] + spread * random.normal(size=(count, 12))).astype(np.float32), labels


def measure(subset: Subset) -> tuple[Measure, ...]:
    return evaluate_features(subset).measures


@pytest.fixture(scope="module")
def two() -> Subset:
    """Two splits."""
    features, labels = clouds()
    splits = ["valid"] * REFERENCE + ["test"] * (COUNT - REFERENCE)
    return make_subset(features, [f"c{one}" for one in labels], splits)


@pytest.fixture(scope="module")
def found(two: Subset) -> dict[str, Measure]:
    return {one.name: one for one in measure(two)}


def distances(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "l2":
        return np.sqrt(np.square(a[:, None] - b[None]).sum(axis=2))
    products = (a[:, None] * b[None]).sum(axis=2)
    return 1 - products / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def voted(row: np.ndarray, labels: np.ndarray, k: int) -> object:
    """Predict a label as documented: most votes, then the lowest sum of distances."""
    order = np.argsort(row)[:k]
    votes = Counter(labels[order])
    sums = {label: row[order][labels[order] == label].sum() for label in votes}
    return min(votes, key=lambda label: (-votes[label], sums[label]))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_majority_of_neighbors(two: Subset, found: dict[str, Measure], metric: str, k: int) -> None:
    known, own = two.labels[:REFERENCE], two.labels[REFERENCE:]
    far = distances(two.features[REFERENCE:], two.features[:REFERENCE], metric)
    right = [voted(row, known, k) == label for row, label in zip(far, own, strict=True)]
    one = found[f"knn_{k}_{metric}"]
    assert one.value == pytest.approx(np.mean(right), abs=1e-12)
    assert one.per_record.tolist() == [float(value) for value in right]
    assert one.records.tolist() == list(range(REFERENCE, COUNT))
    assert 0.3 < one.value < 0.95


@pytest.mark.parametrize("k", [20, 200])
def test_weighted_neighbors(two: Subset, found: dict[str, Measure], k: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    def weigh(far: np.ndarray) -> np.ndarray:
        return np.exp((1 - far) / 0.07)

    model = KNeighborsClassifier(k, metric="cosine", weights=weigh, algorithm="brute")
    model.fit(two.features[:REFERENCE], two.labels[:REFERENCE])
    score = model.score(two.features[REFERENCE:], two.labels[REFERENCE:])
    assert found[f"knn_weighted_{k}"].value == pytest.approx(score, abs=1e-12)


def test_purity(two: Subset, found: dict[str, Measure]) -> None:
    far = distances(two.features[REFERENCE:], two.features[:REFERENCE], "cosine")
    near = np.argsort(far, axis=1)[:, :20]
    same = two.labels[near] == two.labels[REFERENCE:, None]
    assert found["purity_20"].per_record == pytest.approx(same.mean(axis=1))


def test_linear_probe(two: Subset, found: dict[str, Measure]) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(two.features[:REFERENCE])
    model = LogisticRegression(max_iter=1000)
    model.fit(scaler.transform(two.features[:REFERENCE]), two.labels[:REFERENCE])
    score = model.score(scaler.transform(two.features[REFERENCE:]), two.labels[REFERENCE:])
    assert found["linear_probe"].value == pytest.approx(score, abs=0.006)


def test_silhouettes_and_clusters(two: Subset, found: dict[str, Measure]) -> None:
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    for metric, name in (("cosine", "cosine"), ("l2", "euclidean")):
        score = silhouette_score(two.features, two.labels, metric=name)
        assert found[f"silhouette_{metric}"].value == pytest.approx(score, abs=1e-5)
    grouped = KMeans(CLASSES, n_init=1, random_state=0).fit_predict(two.features)
    nmi, ari = found["kmeans_nmi"], found["kmeans_ari"]
    assert nmi.value == pytest.approx(normalized_mutual_info_score(two.labels, grouped))
    assert ari.value == pytest.approx(adjusted_rand_score(two.labels, grouped))
    for one in (nmi, ari):
        assert one.interval[0] < one.value < one.interval[1]


def test_silhouettes_of_many_are_those_of_some() -> None:
    from sklearn.metrics import silhouette_score

    features, labels = clouds(2500)
    one = {m.name: m for m in measure(make_subset(features, labels.tolist()))}["silhouette_l2"]
    assert len(one.per_record) == len(np.unique(one.records)) == 2000
    score = silhouette_score(features[one.records], labels[one.records])
    assert one.value == pytest.approx(score, abs=1e-5)
    assert one.interval[0] < silhouette_score(features, labels) < one.interval[1]


def test_one_split_is_evaluated_by_leaving_one_out() -> None:
    features, labels = clouds(250)
    # One that has a twin, which sits before it: no record is its own neighbor.
    features[200] = features[3]
    labels[200], labels[3] = 0, 1
    subset = make_subset(features, labels.tolist())
    found = {one.name: one for one in measure(subset)}
    for metric in ("cosine", "l2"):
        far = distances(features, features, metric)
        np.fill_diagonal(far, np.inf)
        for k in (1, 5, 20):
            right = [voted(row, labels, k) == own for row, own in zip(far, labels, strict=True)]
            assert found[f"knn_{k}_{metric}"].per_record.tolist() == [float(one) for one in right]
    assert evaluate_features(subset).protocol.description == "each of 250 by all others"


def test_probe_of_one_split_is_cross_validated() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    features, labels = clouds(200)
    predicted = np.empty_like(labels)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for known, own in folds.split(features, labels):
        scaler = StandardScaler().fit(features[known])
        model = LogisticRegression(max_iter=1000)
        model.fit(scaler.transform(features[known]), labels[known])
        predicted[own] = model.predict(scaler.transform(features[own]))
    found = {one.name: one for one in measure(make_subset(features, labels.tolist()))}
    assert found["linear_probe"].value == pytest.approx(np.mean(predicted == labels), abs=0.006)


def test_ties_go_to_the_nearer_class() -> None:
    labels = np.array([[0, 1, 1, 0], [2, 1, 1, 2], [2, 2, 1, 1]])
    far = np.array([[1.0, 2, 3, 9], [1.0, 2, 3, 3.5], [1, 2, 1, 2]])
    assert knn.predict_by_majority(labels, far, 3).tolist() == [1, 2, 1]


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    labels, far = random.integers(0, 9, (100, 7)), random.random((100, 7))
    whole = knn.predict_by_majority(labels, far, 9), knn.predict_by_weight(labels, far, 9)
    monkeypatch.setattr(knn, "_BLOCK", 30)
    assert (knn.predict_by_majority(labels, far, 9) == whole[0]).all()
    assert (knn.predict_by_weight(labels, far, 9) == whole[1]).all()


def test_rows_of_zeros_have_a_direction_of_their_own() -> None:
    features = np.zeros((8, 2), np.float32)
    features[4:] = [[1, 0], [1, 0.1], [0, 1], [0.1, 1]]
    labels = ["dead"] * 4 + ["a", "a", "b", "b"]
    found = {one.name: one for one in measure(make_subset(features, labels))}
    assert found["knn_1_cosine"].value == 1


def test_values_are_evaluated_by_r2() -> None:
    from sklearn.metrics import r2_score
    from sklearn.neighbors import KNeighborsRegressor

    random = np.random.default_rng(0)
    features = random.normal(size=(300, 4)).astype(np.float32)
    values = features[:, 0] + 0.3 * random.normal(size=300)
    splits = ["valid"] * 200 + ["test"] * 100
    subset = make_subset(features, values.tolist(), splits, pa.float64())
    found = {one.name: one for one in measure(subset)}
    for metric, name in (("cosine", "cosine"), ("l2", "euclidean")):
        for k in (5, 20):
            model = KNeighborsRegressor(k, metric=name, algorithm="brute")
            model.fit(features[:200], values[:200])
            score = r2_score(values[200:], model.predict(features[200:]))
            one = found[f"knn_r2_{k}_{metric}"]
            assert one.value == pytest.approx(score, abs=1e-6)
            assert one.per_record.mean() == pytest.approx(score, abs=1e-6)
            assert one.interval[0] < score < one.interval[1]
    assert found["knn_r2_5_l2"].value > 0.3
    assert not [name for name in found if "probe" in name or "purity" in name]


@pytest.mark.parametrize(
    ("labels", "kind", "why"),
    [
        ([None] * 40, pa.string(), "there are no labels"),
        ([f"name {at}" for at in range(40)], pa.string(), "40 different labels of 40 records"),
        (["only"] * 40, pa.string(), "all labels are 'only'"),
        ([2.5] * 40, pa.float64(), "the same value"),
        ([float("nan")] * 40, pa.float64(), "there are no labels"),
    ],
)
def test_without_labels_to_predict(labels: list[object], kind: pa.DataType, why: str) -> None:
    evaluation = evaluate_features(make_subset(clouds(40)[0], labels, label_type=kind))
    assert why in evaluation.protocol
    names = {one.name for one in evaluation.measures}
    assert {"rankme", "participation_ratio"} <= names
    assert all(one.higher_is_better is None for one in evaluation.measures)


def test_records_without_a_label_predict_nothing() -> None:
    features, labels = clouds(200)
    some = [None if at % 3 == 0 else f"c{label}" for at, label in enumerate(labels)]
    known = [at for at in range(200) if at % 3]
    found = {one.name: one for one in measure(make_subset(features, some))}
    alone = measure(make_subset(features[known], [some[at] for at in known]))
    for one in alone:
        if one.per_record is not None:
            assert found[one.name].value == pytest.approx(one.value)
            assert found[one.name].records.tolist() == [known[at] for at in one.records]


def test_classes_of_one_member_cannot_be_predicted() -> None:
    features, labels = clouds(100)
    names = [f"c{label}" for label in labels]
    names[7] = "single"
    evaluation = evaluate_features(make_subset(features, names))
    assert evaluation.protocol.left_out == 1
    assert 7 not in evaluation.protocol.evaluated
    assert 7 in evaluation.protocol.reference
    splits = ["valid"] * 50 + ["test"] * 50
    names[60] = "only in test"
    apart = evaluate_features(make_subset(features, names, splits))
    assert apart.protocol.left_out == 1
    assert apart.protocol.description == "test (50) by valid (50)"
    assert 60 not in apart.protocol.evaluated


def test_a_reference_of_one_class_is_not_used() -> None:
    features, labels = clouds(60)
    names = ["good"] * 30 + [f"c{label}" for label in labels[30:]]
    evaluation = evaluate_features(make_subset(features, names, ["train"] * 30 + ["test"] * 30))
    assert "the first split holds only 'good'" in evaluation.protocol.description
    assert len(evaluation.protocol.reference) == 60


def test_few_records_have_few_neighbors() -> None:
    features, labels = clouds(24)
    found = {one.name for one in measure(make_subset(features, (labels % 2).tolist()))}
    assert {"knn_20_cosine", "knn_weighted_20"} <= found
    assert "knn_weighted_200" not in found
    splits = ["valid"] * 6 + ["test"] * 18
    found = {one.name for one in measure(make_subset(features, (labels % 2).tolist(), splits))}
    assert "knn_5_l2" in found
    assert not {"knn_20_l2", "knn_weighted_20", "purity_20"} & found


def test_a_reference_with_a_record_a_class_warns_of_nothing() -> None:
    features, _ = clouds(120)
    labels = [str(at % 30) for at in range(120)]
    subset = make_subset(features, labels, ["valid"] * 30 + ["test"] * 90)
    with warnings.catch_warnings(action="error"):
        assert "linear_probe" in {one.name for one in measure(subset)}


@pytest.mark.parametrize("unit", [1e306, 1e-306])
def test_values_are_evaluated_in_any_unit(unit: float) -> None:
    features, _ = clouds(90)
    values = features[:, 0] + np.arange(90) / 90
    splits = ["valid"] * 60 + ["test"] * 30

    def found(values: np.ndarray) -> dict[str, float]:
        subset = make_subset(features, values.tolist(), splits, pa.float64())
        return {one.name: one.value for one in measure(subset)}

    plain = found(values.astype(np.float64))
    with warnings.catch_warnings(action="error"):
        assert found(values * unit) == pytest.approx(plain)


@pytest.mark.parametrize(("largest", "size"), [(1e20, "large"), (1e-20, "small")])
def test_features_whose_squares_are_lost_are_refused(largest: float, size: str) -> None:
    features, labels = clouds(40)
    subset = make_subset(features / np.abs(features).max() * largest, labels.tolist())
    with pytest.raises(InputError, match=f"the run: the features are too {size}"):
        check_finite(subset, "the run")
    check_finite(make_subset(np.zeros((4, 2)), list("abab")), "the run")
