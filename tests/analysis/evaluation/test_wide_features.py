# SPDX-License-Identifier: Apache-2.0
"""Measures of wide features are the same without their width."""

import numpy as np
import pytest
from support.synthetic_runs import clusters, make_subset

from ray_embed.analysis.comparison import similarity
from ray_embed.analysis.evaluation import linear_probe, near_duplicates, spectrum
from ray_embed.analysis.evaluation.measures import evaluate_features
from ray_embed.analysis.evaluation.neighbors import compute_directions
from ray_embed.analysis.evaluation.protocol import choose_protocol
from ray_embed.core import arrays


def measure(subset):
    return {one.name: one.value for one in evaluate_features(subset).measures}


@pytest.mark.parametrize("splits", [None, ["a"] * 150 + ["b"] * 100])
def test_the_linear_probe_predicts_the_same(monkeypatch, splits):
    features, codes = clusters(5, 250, 400, spread=3.0)
    subset = make_subset(features, [f"c{code}" for code in codes], splits)
    protocol = choose_protocol(subset)
    plain = linear_probe.predict_classes(subset.features, protocol)
    monkeypatch.setattr(linear_probe, "_WIDE", 100)
    monkeypatch.setattr(linear_probe, "_DIMENSIONS_AT_ONCE", 150)
    monkeypatch.setattr("sklearn.model_selection.cross_val_predict", None)
    monkeypatch.setattr("sklearn.pipeline.make_pipeline", lambda *steps: None)
    wide = linear_probe.predict_classes(subset.features, protocol)
    # Both stop after as many steps, between which rounding decides a few records.
    assert (wide == plain).mean() >= 0.97
    assert (wide == protocol.labels[protocol.evaluated]).mean() > 0.3


def test_the_linear_probe_of_equal_features_predicts_the_largest_class(monkeypatch):
    monkeypatch.setattr(linear_probe, "_WIDE", 10)
    subset = make_subset(np.ones((30, 20)), ["a"] * 20 + ["b"] * 10)
    assert not linear_probe.predict_classes(subset.features, choose_protocol(subset)).any()


@pytest.mark.parametrize("splits", [None, ["a"] * 150 + ["b"] * 100])
def test_what_is_measured_by_distances_is_the_same(monkeypatch, splits):
    features, codes = clusters(5, 250, 400, spread=3.0)
    subset = make_subset(features, [f"c{code}" for code in codes], splits)
    plain = measure(subset)
    monkeypatch.setattr(spectrum, "_WIDE", 100)
    wide = measure(subset)
    assert wide == pytest.approx(plain, abs=1e-5)
    assert {"knn_20_cosine", "knn_1_l2", "silhouette_l2", "kmeans_nmi"} <= set(wide)


def test_rows_without_a_direction_have_none_when_narrowed(monkeypatch):
    monkeypatch.setattr(spectrum, "_WIDE", 10)
    values = np.random.default_rng(0).normal(size=(9, 30)).astype(np.float32)
    values[4] = 0
    narrow = spectrum.narrow_features(values)
    assert not narrow[4].any()
    np.testing.assert_allclose(narrow @ narrow.T, values @ values.T, atol=1e-5)


def test_cka_is_the_same_by_kernels(monkeypatch):
    random = np.random.default_rng(0)
    one = random.normal(size=(90, 300)).astype(np.float32)
    features = [one, one[:, :40] ** 2, random.normal(size=(90, 200)).astype(np.float32)]
    plain = similarity.compute_cka(features)
    monkeypatch.setattr(similarity, "_WIDE", 1)
    monkeypatch.setattr(similarity, "_estimate_hsic", None)
    np.testing.assert_allclose(similarity.compute_cka(features), plain, rtol=1e-9, atol=1e-12)
    equal = similarity.compute_cka([one, np.ones((90, 300), np.float32)])
    assert np.isnan(equal[1]).all()


def test_equal_rows_are_found_by_digests(monkeypatch):
    random = np.random.default_rng(0)
    values = random.normal(size=(40, 6)).astype(np.float32)
    values[[7, 30]] = values[3]
    values[3, 0], values[30, 0], values[7, 0] = 0.0, -0.0, 0.0
    splits = np.array(["a"] * 20 + ["b"] * 20, object)
    plain = near_duplicates.find_equal_features(values, splits)
    monkeypatch.setattr(near_duplicates, "_LONG_ROW_BYTES", 8)
    found = near_duplicates.find_equal_features(values, splits)
    assert found.pairs == plain.pairs == ((3, 7, 0.0), (3, 30, 0.0))
    assert found.splits == plain.splits
    assert np.array_equal(found.in_split, plain.in_split)


def test_directions_are_the_same_some_rows_at_a_time(monkeypatch):
    values = np.random.default_rng(0).normal(size=(40, 300)).astype(np.float32)
    whole = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    monkeypatch.setattr(arrays, "_ROWS", 7)
    assert compute_directions(values).tobytes() == whole.tobytes()
    assert compute_directions(values[:0]).shape == (0, 300)
