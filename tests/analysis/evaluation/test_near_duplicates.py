# SPDX-License-Identifier: Apache-2.0
"""Small pictures and their near-duplicates, by comparing each with each."""

import numpy as np
import pytest

from ray_embed.analysis.evaluation import near_duplicates
from ray_embed.analysis.evaluation.near_duplicates import (
    THRESHOLD,
    find_equal_features,
    find_near_duplicates,
)
from ray_embed.analysis.evaluation.pixel_baseline import average_pixels, shrink


def objects(values: list[str]) -> np.ndarray:
    return np.array(values, object)


def test_averaging_is_that_of_blocks() -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (3, 32, 64, 3), np.uint8)
    blocks = pictures.reshape(3, 16, 2, 16, 4, 3).mean(axis=(2, 4))
    assert average_pixels(pictures, 16) == pytest.approx(blocks, abs=1e-3)
    # Five pixels become two: each the mean of two and a half.
    line = np.array([10, 20, 30, 40, 50], np.uint8)
    square = np.tile(line, (5, 1))[None, :, :, None]
    assert average_pixels(square, 2)[0, :, :, 0] == pytest.approx(np.array([[18, 42], [18, 42]]))


def test_small_thumbnails_stay_as_they_are() -> None:
    random = np.random.default_rng(0)
    digits = [random.integers(0, 256, (8, 8, 1), np.uint8) for _ in range(3)]
    assert np.array_equal(shrink(digits), np.stack(digits))
    mixed = shrink([*digits, random.integers(0, 256, (40, 64, 3), np.uint8)])
    assert mixed.shape == (4, 16, 16, 3)
    assert np.array_equal(mixed[0, ::2, ::2, 0], digits[0][:, :, 0])
    assert np.array_equal(mixed[0, :, :, 0], mixed[0, :, :, 2])


def test_near_duplicates_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    # Families around few pictures, so that many differences are about as large as the threshold.
    base = random.uniform(20, 230, (12, 16, 16, 3))
    family = random.integers(0, 12, 150)
    strength = random.uniform(0, 3.5, (150, 1, 1, 1))
    pictures = (base[family] + strength * random.normal(size=(150, 16, 16, 3))).astype(np.float32)
    pictures[[5, 77]] = pictures[9]
    splits = objects(["train"] * 60 + ["valid"] * 50 + ["test"] * 40)
    flat = pictures.reshape(150, -1).astype(np.float64)
    differences = np.sqrt(np.square(flat[:, None] - flat[None]).mean(axis=2))
    near = differences < THRESHOLD
    np.fill_diagonal(near, False)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 32)
    found = find_near_duplicates(pictures, splits)
    for at, split in enumerate(found.splits):
        assert np.array_equal(found.in_split[:, at], near[:, splits == split].any(axis=1))
    assert 20 < found.in_split.any(axis=1).sum() < 140
    pairs = {(a, b) for a, b in np.argwhere(near).tolist() if a < b}
    listed = {(a, b): value for a, b, value in found.pairs}
    assert listed.keys() <= pairs
    assert len(listed) == min(100, len(pairs))
    for (a, b), value in listed.items():
        assert value == pytest.approx(differences[a, b], abs=1e-3)
    expected = near[np.ix_(splits == "test", splits == "valid")].any(axis=1).sum()
    assert found.count(splits)["test"]["valid"] == expected
    assert np.array_equal(found.select(objects(["train", "valid"])), near[:, :110].any(axis=1))


def test_all_the_same_pictures_take_no_memory() -> None:
    pictures = np.full((20_000, 4, 4, 1), 7, np.float32)
    found = find_near_duplicates(pictures, objects(["a"] * 20_000))
    assert found.count(objects(["a"] * 20_000)) == {"a": {"a": 20_000}}
    assert len(found.pairs) == 100


def test_equal_features() -> None:
    features = np.arange(20, dtype=np.float32).reshape(10, 2)
    features[7] = features[2]
    features[8] = [0.0, 1.0]
    features[0] = [-0.0, 1.0]
    splits = objects(["a"] * 5 + ["b"] * 5)
    found = find_equal_features(features, splits)
    assert found.count(splits) == {"a": {"b": 2}, "b": {"a": 2}}
    assert sorted(pair[:2] for pair in found.pairs) == [(0, 8), (2, 7)]
