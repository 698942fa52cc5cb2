# SPDX-License-Identifier: Apache-2.0
"""Measures without labels, and intervals, recomputed from their definitions."""

import numpy as np
import pytest
from support.synthetic_runs import make_subset

from ray_embed.analysis.evaluation import intervals
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.measures import evaluate_features


def measure(features: np.ndarray) -> dict[str, Measure]:
    subset = make_subset(features, [None] * len(features))
    return {one.name: one for one in evaluate_features(subset).measures}


def decaying(rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(0)
    scales = np.arange(1, columns + 1) ** -0.6
    rotation = np.linalg.qr(random.normal(size=(columns, columns)))[0]
    return (random.normal(size=(rows, columns)) * scales @ rotation + 0.5).astype(np.float32)


@pytest.mark.parametrize("shape", [(400, 30), (20, 50)])
def test_by_singular_values(shape: tuple[int, int]) -> None:
    features = decaying(*shape)
    exact = features.astype(np.float64)
    singular = np.linalg.svd(exact, compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    measured = measure(features)
    rankme = np.exp(-np.sum(shares * np.log(shares)))
    assert measured["rankme"].value == pytest.approx(rankme, rel=1e-5)
    centered = np.linalg.svd(exact - exact.mean(axis=0), compute_uv=False)
    frobenius = np.linalg.norm(exact - exact.mean(axis=0)) ** 2
    assert measured["stable_rank"].value == pytest.approx(frobenius / centered[0] ** 2)
    ratio = np.sum(centered**2) ** 2 / np.sum(centered**4)
    assert measured["participation_ratio"].value == pytest.approx(ratio)


def test_of_a_layer_that_is_as_it_comes() -> None:
    """Products of 230,400 dimensions would take 400 GB."""
    features = np.random.default_rng(0).random((12, 230_400), np.float32)
    assert measure(features)["stable_rank"].value == pytest.approx(11, abs=0.2)


def test_alpha_is_the_slope_of_a_weighted_line() -> None:
    features = decaying(3000, 120)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64)))[::-1]
    ranks = np.arange(4, 101)
    design = np.stack([-np.log(ranks), np.ones(97)], axis=1)
    weights = np.diag(1 / ranks)
    normal = design.T @ weights @ design
    alpha = np.linalg.solve(normal, design.T @ weights @ np.log(eigenvalues[3:100]))[0]
    one = measure(features)["alpha_req"]
    assert one.value == pytest.approx(alpha, rel=1e-6)
    assert one.value == pytest.approx(1.2, abs=0.1)


def test_few_dimensions_have_no_alpha() -> None:
    assert "alpha_req" not in measure(decaying(100, 5))
    assert "alpha_req" in measure(decaying(100, 6))


def test_dead_dimensions() -> None:
    features = decaying(100, 10)
    features[:, [2, 5, 6]] = [0, 7.5, -1e4]
    # Hardly anything beside the others is not dead.
    features[:, 0] *= 1e4
    features[:, 1] *= 1e-6
    assert measure(features)["dead_dimensions"].value == pytest.approx(0.3)
    assert {one.name: one.value for one in measure(np.ones((9, 4), np.float32)).values()} == {
        "mean_cosine": pytest.approx(1),
        "dead_dimensions": 1,
    }


def test_mean_cosine_is_that_of_all_pairs() -> None:
    features = decaying(60, 10)
    features[7] = 0
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    cosines = (units @ units.T)[np.triu_indices(60, 1)]
    assert measure(features)["mean_cosine"].value == pytest.approx(cosines.mean(), abs=1e-6)


def test_interval_of_a_share_is_wilson() -> None:
    each = np.array([1.0] * 83 + [0.0] * 17)
    z, n, p = 1.959964, 100, 0.83
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert intervals.compute_mean_interval(each) == pytest.approx(
        (middle - half, middle + half), abs=1e-6
    )
    assert intervals.compute_mean_interval(each[:1]) is None


def test_interval_of_a_mean_is_that_of_resampling() -> None:
    each = np.random.default_rng(1).gamma(2, size=300)
    random = np.random.default_rng(2)
    means = [each[random.integers(0, 300, 300)].mean() for _ in range(4000)]
    low, high = np.quantile(means, (0.025, 0.975))
    assert intervals.compute_mean_interval(each) == pytest.approx((low, high), abs=0.02)
    assert intervals.compute_mean_interval(each) == intervals.compute_mean_interval(each)


def test_jackknife_of_a_mean_is_its_t_interval() -> None:
    from scipy.stats import t

    each = np.random.default_rng(0).normal(size=20)

    def mean(rows: np.ndarray) -> float:
        return float(each[rows].mean())

    error = each.std(ddof=1) / np.sqrt(20)
    expected = t.interval(0.95, 19, each.mean(), error)
    assert intervals.compute_jackknife_interval(mean, 20, mean(np.arange(20))) == pytest.approx(
        expected
    )
