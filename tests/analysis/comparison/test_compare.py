# SPDX-License-Identifier: Apache-2.0
"""`compare`: runs side by side on the records that all of them hold."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.command import Command
from support.synthetic_runs import make_run

import ray_embed as package

RECORDS, CLASSES, DIMENSION = 400, 4, 12
LABELS = [f"class {at % CLASSES}" for at in range(RECORDS)]
SPLITS = ["valid"] * 240 + ["test"] * 160
KEYS = [f"{label}/{at:04d}.png" for at, label in enumerate(LABELS)]

Compared = Callable[..., dict[str, Any]]


def clustered(noise: float, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    """Features around a center for each class; the same records are hard whatever the noise."""
    random = np.random.default_rng(7)
    centers = random.normal(size=(CLASSES, dimension))
    hard = random.normal(size=(RECORDS, dimension)) * random.uniform(0.2, 2, (RECORDS, 1))
    own = np.random.default_rng(seed).normal(size=(RECORDS, dimension))
    features = centers[np.arange(RECORDS) % CLASSES] + noise * hard + 0.05 * own
    return features.astype(np.float32)


@pytest.fixture
def compared(ray_embed: Command) -> Compared:
    """Call `compare … --json`, and return its result."""

    def call(*arguments: Any) -> dict[str, Any]:
        found = ray_embed("compare", *arguments, "--json")
        assert found.code == 0, found.err
        result: dict[str, Any] = json.loads(found.out)
        return result

    return call


def make(
    path: Any,
    features: Any,
    labels: Any = LABELS,
    splits: Any = SPLITS,
    keys: Any = KEYS,
    label_type: pa.DataType | None = None,
) -> str:
    return str(make_run(path, features, labels, splits, label_type, keys=keys))


def only(found: dict[str, Any]) -> dict[str, Any]:
    (one,) = found["likeness"]
    return one


def right_by_nearest(features: np.ndarray) -> np.ndarray:
    """Whether the nearest valid record has the test record's label, by plain distances."""
    known, asked = features[:240], features[240:]
    distances = np.linalg.norm(asked[:, None].astype(float) - known[None], axis=2)
    labels = np.array(LABELS)
    return labels[distances.argmin(axis=1)] == labels[240:]


def test_numbers_and_paired_differences_are_those_of_another_way(
    compared: Compared, tmp_path: Path
):
    features = clustered(1.3), clustered(0.8, seed=1)
    runs = [make(tmp_path / name, one) for name, one in zip("ab", features, strict=True)]
    row = compared(*runs)["measures"]["knn_1_l2"]
    right = [right_by_nearest(one).astype(float) for one in features]
    assert row["values"]["a"]["value"] == pytest.approx(right[0].mean())
    assert row["values"]["b"]["value"] == pytest.approx(right[1].mean())
    apart = right[1] - right[0]
    found = row["differences"]["b"]
    assert found["value"] == pytest.approx(apart.mean())
    assert (found["to"], found["paired"], found["records"]) == ("a", True, 160)
    # The bootstrap by hand, with other draws.
    drawn = np.random.default_rng(5).integers(0, 160, (20_000, 160))
    bounds = np.quantile(apart[drawn].mean(axis=1), [0.025, 0.975])
    assert found["interval"] == pytest.approx(bounds, abs=0.013)


def test_the_better_run_is_marked_and_of_two_similar_ones_none(ray_embed: Command, tmp_path: Path):
    worse = make(tmp_path / "worse", clustered(1.6))
    better = make(tmp_path / "better", clustered(0.6, seed=1))
    same = make(tmp_path / "same", clustered(0.6, seed=2))
    found = json.loads(ray_embed("compare", worse, better, "--json").out)
    for name in ("knn_5_cosine", "knn_5_l2", "linear_probe", "silhouette_l2", "kmeans_nmi"):
        assert found["measures"][name]["best"] == "better", name
        assert found["measures"][name]["differences"]["better"]["interval"][0] > 0
    assert found["measures"]["rankme"]["best"] is None
    found = json.loads(ray_embed("compare", better, same, worse, "--json").out)
    assert found["measures"]["knn_5_cosine"]["best"] is None
    assert found["measures"]["knn_5_cosine"]["differences"]["worse"]["interval"][1] < 0
    table = ray_embed("compare", worse, better).out
    line = next(line for line in table.splitlines() if line.startswith("knn_5_cosine"))
    assert line.split()[3].endswith("*")
    assert "*" not in line.split()[2]
    count = sum(row["higher_is_better"] is True for row in found["measures"].values())
    best, pixels = table.splitlines()[-2:]
    assert best == f"clear best, by {count} measures: better in {count}"
    # Noise predicts no class.
    beating = r"worse in (\d+), better in (\d+)"
    found = re.fullmatch(f"clearly better than raw pixels, by {count} measures: {beating}", pixels)
    assert found
    assert int(found[1]) <= int(found[2]) == count
    best = ray_embed("compare", better, same).out.splitlines()[-2]
    assert best == f"clear best, by {count} measures: none of them in {count}"


def test_raw_pixels_stand_beside_as_evaluate_has_them(
    ray_embed: Command, compared: Compared, tmp_path: Path
):
    runs = [make(tmp_path / "a", clustered(1.2)), make(tmp_path / "b", clustered(0.9))]
    found = compared(*runs)["measures"]
    (entry,) = json.loads(ray_embed("evaluate", runs[1], "--json").out).values()
    expected = entry["measures"]["raw_pixels"]
    assert set(expected) <= set(found)
    for name, one in expected.items():
        assert found[name]["raw_pixels"]["value"] == pytest.approx(one["value"]), name
    for part in (tmp_path / "a" / "thumbnails").iterdir():
        part.unlink()
    without = ray_embed("compare", *runs)
    assert without.code == 0
    assert "raw pixels" not in without.out


def test_pairs_make_the_interval_narrower(compared: Compared, tmp_path: Path):
    first = make(tmp_path / "first", clustered(1.2))
    paired = make(tmp_path / "second", clustered(1.0, seed=1))
    others = [f"other/{key}" for key in KEYS]
    strange = make(tmp_path / "strange", clustered(1.0, seed=1), keys=others)
    with_pairs = compared(first, paired)
    without = compared(first, strange)
    assert with_pairs["same_records"]
    assert with_pairs["notes"] == []
    assert not without["same_records"]
    assert without["likeness"] == []
    assert without["shared_records"] == 0
    assert "the runs share only 0 records" in without["notes"][0]
    for name in ("knn_20_cosine", "linear_probe", "silhouette_cosine"):
        one = with_pairs["measures"][name]["differences"]["second"]
        other = without["measures"][name]["differences"]["strange"]
        assert one["value"] == pytest.approx(other["value"])
        assert not other["paired"]
        assert np.ptp(one["interval"]) < 0.8 * np.ptp(other["interval"]), name


def test_unpaired_intervals_add_squares(compared: Compared, tmp_path: Path):
    runs = [make(tmp_path / "a", clustered(1.2)), make(tmp_path / "b", clustered(0.9))]
    row = compared(*runs)["measures"]["kmeans_nmi"]
    (a, (a_low, a_high)), (b, (b_low, b_high)) = (
        (row["values"][name]["value"], row["values"][name]["interval"]) for name in "ab"
    )
    found = row["differences"]["b"]
    assert not found["paired"]
    assert found["interval"] == pytest.approx(
        [
            b - a - ((b - b_low) ** 2 + (a_high - a) ** 2) ** 0.5,
            b - a + ((b_high - b) ** 2 + (a - a_low) ** 2) ** 0.5,
        ]
    )


def test_records_in_another_order_are_found_by_their_keys(compared: Compared, tmp_path: Path):
    """What is the same up to a rotation, shuffled, has the same neighbors and CKA 1."""
    features = clustered(1.0)
    order = np.random.default_rng(3).permutation(RECORDS)[:300]
    order = order[np.argsort(order >= SPLITS.index("test"), kind="stable")]
    turned = features @ np.linalg.qr(np.random.default_rng(4).normal(size=(DIMENSION,) * 2))[0]
    whole = make(tmp_path / "whole", features)
    shuffled = make(
        tmp_path / "shuffled",
        turned[order].astype(np.float32),
        [LABELS[at] for at in order],
        keys=[KEYS[at] for at in order],
        splits=[SPLITS[at] for at in order],
    )
    for sample in (1000, 120):
        found = compared(whole, shuffled, "--sample", sample)
        assert found["shared_records"] == 300
        assert [run["judged"] for run in found["runs"]] == [min(sample, 300)] * 2
        assert "only the 300 records that all runs hold are used (whole 400)" in found["notes"][0]
        assert only(found)["neighbours"]["common"] == pytest.approx(1, abs=0.002)
        assert only(found)["cka"] == pytest.approx(1, abs=1e-5)
        for name in ("knn_1_l2", "knn_5_cosine"):
            differences = found["measures"][name]["differences"]["shuffled"]
            assert differences["value"] == pytest.approx(0, abs=0.011)


def test_the_same_sample_however_often(compared: Compared, tmp_path: Path):
    runs = [make(tmp_path / "a", clustered(1.2)), make(tmp_path / "b", clustered(0.9))]
    found = compared(*runs, "--sample", 100)
    assert found == compared(*runs, "--sample", 100)
    assert found["runs"][0]["judged"] == 100
    # Of the test records, 40 in 100 as in 400.
    assert found["measures"]["knn_1_l2"]["differences"]["b"]["records"] == 40


def explicit_cka(x: np.ndarray, y: np.ndarray) -> float:
    """The formula with its matrices (n, n)."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ m @ one) / (n - 1) / (n - 2)
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = (values.astype(float) @ values.astype(float).T for values in (x, y))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_similarity_is_that_of_the_explicit_formulas(compared: Compared, tmp_path: Path):
    random = np.random.default_rng(0)
    one = clustered(1.0)
    half = np.hstack([one[:, :6], random.normal(size=(RECORDS, 30))]).astype(np.float32) + 3
    found = only(compared(make(tmp_path / "one", one), make(tmp_path / "half", half)))
    assert found["cka"] == pytest.approx(explicit_cka(one, half), abs=1e-6)

    def nearest(x: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(x.astype(float), axis=1)
        cosine = (x.astype(float) @ x.T) / np.outer(lengths, lengths)
        np.fill_diagonal(cosine, -2)
        return np.argsort(-cosine, axis=1)[:, :10]

    pairs = zip(nearest(one), nearest(half), strict=True)
    shares = [len(set(a) & set(b)) / 10 for a, b in pairs]
    neighbors = found["neighbours"]
    assert neighbors["k"] == 10
    assert neighbors["common"] == pytest.approx(np.mean(shares), abs=1e-3)
    error = 1.96 * np.std(shares) / RECORDS**0.5
    assert neighbors["interval"] == pytest.approx(
        [np.mean(shares) - error, np.mean(shares) + error], abs=0.004
    )


def test_independent_features_are_not_alike_whatever_their_dimension(
    compared: Compared, tmp_path: Path
):
    """A biased CKA of 400 records in 1,000 dimensions is about 0.7."""
    random = np.random.default_rng(0)
    runs = [
        make(tmp_path / name, random.normal(size=(RECORDS, 1000)).astype(np.float32))
        for name in "ab"
    ]
    found = only(compared(*runs))
    assert abs(found["cka"]) < 0.05
    assert found["neighbours"]["common"] < 0.06


def test_layers_are_columns(ray_embed: Command, compared: Compared, tmp_path: Path):
    layers = {"block1": clustered(1.6), "block2": clustered(0.6, seed=1, dimension=20)}
    run = make(tmp_path / "run7", layers)
    found = compared(run)
    assert [one["name"] for one in found["runs"]] == ["run7:block1", "run7:block2"]
    assert [one["dimension"] for one in found["runs"]] == [DIMENSION, 20]
    assert found["measures"]["knn_5_l2"]["best"] == "run7:block2"
    other = make(tmp_path / "run8", clustered(1.6))
    found = compared(other, run)
    assert [one["name"] for one in found["runs"]] == ["run8", "run7:block1", "run7:block2"]
    assert len(found["likeness"]) == 3
    again = make(tmp_path / "again" / "run7", layers)
    found = compared(run, again, "--layer", "block2")
    assert [one["layer"] for one in found["runs"]] == ["block2"] * 2
    assert [one["name"] for one in found["runs"]][1] == "again/run7"
    refused = ray_embed("compare", run, other, "--layer", "block3")
    assert refused.code == 2
    assert "no layer 'block3'; it holds block1, block2" in refused.err
    refused = ray_embed("compare", run, "--layer", "block2")
    assert refused.code == 2
    assert "nothing to compare with" in refused.err


def test_labels_that_differ_are_said(compared: Compared, tmp_path: Path):
    labels = list(LABELS)
    labels[17], labels[300] = "class 0", "class 3"
    one = make(tmp_path / "one", clustered(1.0))
    relabeled = make(tmp_path / "relabeled", clustered(1.0), labels, keys=KEYS, splits=SPLITS)
    (note,) = compared(one, relabeled)["notes"]
    assert "labels differ for 2 of the 400 evaluated records" in note
    assert f"valid {KEYS[17]}: 'class 1' in one, 'class 0' in relabeled" in note


def test_float_labels_and_none(ray_embed: Command, compared: Compared, tmp_path: Path):
    values = clustered(1.0)
    floats = list(values[:, 0].astype(float))
    runs = [
        make(tmp_path / name, features, floats)
        for name, features in (("good", values), ("bad", clustered(1.0)[::-1].copy()))
    ]
    found = compared(*runs)
    assert found["measures"]["knn_r2_5_l2"]["best"] == "good"
    assert "knn_5_l2" not in found["measures"]
    classes = make(tmp_path / "classes", values)
    refused = ray_embed("compare", classes, runs[0])
    assert refused.code == 2
    assert "good has numbers (float) as labels" in refused.err
    none = make(tmp_path / "none", values, [None] * RECORDS, label_type=pa.string())
    found = compared(none, classes)
    assert found["measures"]["rankme"]["differences"]["classes"]["value"] == pytest.approx(0)
    assert ray_embed("compare", none, none).out.splitlines()[-1].startswith("no verdict: without")
    assert list(found["measures"]["knn_5_l2"]["values"]) == ["classes"]
    assert ray_embed("compare", none, classes).code == 0
    assert only(found)["cka"] == pytest.approx(1)


def test_a_key_that_is_there_twice(compared: Compared, tmp_path: Path):
    keys = [KEYS[0], KEYS[0], *KEYS[2:]]
    runs = [make(tmp_path / name, clustered(1.0), keys=keys) for name in "ab"]
    found = compared(*runs)
    assert found["runs"][0]["judged"] == RECORDS - 1
    assert only(found)["neighbours"]["common"] == 1


def test_what_cannot_be_compared_is_refused_with_the_mend(ray_embed: Command, tmp_path: Path):
    run = make(tmp_path / "run", clustered(1.0))
    partly = make(tmp_path / "partly", clustered(1.0))
    (tmp_path / "partly" / "features" / "part-00000002.parquet").unlink()
    broken = clustered(1.0)
    broken[5, 3] = np.nan
    unsound = make(tmp_path / "unsound", broken)
    (tmp_path / "nothing").mkdir()
    cases = [
        ([run], "name another RUN"),
        ([run, tmp_path / "nothing"], "not a run folder"),
        ([run, tmp_path / "gone"], "not a run folder"),
        ([run, partly], "only 6 of 7 shards are done"),
        ([run, unsound], f"of 1 of 400 records are not finite, valid {KEYS[5]!r} for one"),
        ([run, run, "--plot", "curve.jpg"], "must end in .png or .svg"),
        ([run, run, "--plot", "gone/curve.png"], "there is no folder gone"),
        ([run, run, "--sample", "1"], "--sample"),
        ([], "RUN"),
    ]
    for arguments, said in cases:
        refused = ray_embed("compare", *arguments)
        assert refused.code == 2, arguments
        assert said in refused.err, refused.err
        assert "Traceback" not in refused.err


def test_a_table_of_ten_runs_fits_the_terminal(
    ray_embed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"epoch{at:02d}" for at in range(10)]
    runs = [
        make(tmp_path / name, clustered(1.6 - at / 10, seed=at)) for at, name in enumerate(names)
    ]
    found = ray_embed("compare", *runs)
    lines = found.out.splitlines()
    assert max(map(len, lines)) <= 80
    # Each run, and raw pixels, has a value of each measure, and the blocks are in order.
    values = [line for line in lines if line.startswith("knn_5_l2") and "[" not in line]
    assert sum(len(line.split()) - 2 for line in values) == 11
    heads = [line.split() for line in lines if line.startswith(" ") and "epoch" in line]
    assert [name for head in heads for name in head][:10] == names
    assert "difference to epoch00" in found.out
    assert "linear CKA (unbiased)" in lines
    # Long names are said once.
    long = [make(tmp_path / f"{'x' * 40}{at}", clustered(1.0, seed=at)) for at in range(2)]
    lines = ray_embed("compare", *long).out.splitlines()
    assert lines[0].startswith(f"#1  {'x' * 40}0  layer top")
    assert "#2 - #1" in next(line for line in lines if line.startswith(" "))


def test_a_curve_over_the_runs(ray_embed: Command, tmp_path: Path):
    names = ["start", "middle", "end"]
    runs = [
        make(tmp_path / name, clustered(1.6 - at / 2, seed=at)) for at, name in enumerate(names)
    ]
    assert ray_embed("compare", *runs, "--plot", "curve.svg").code == 0
    drawn = (tmp_path / "curve.svg").read_text()
    # Text is drawn as shapes, and said in comments.
    title = "evaluated on the same 400 records; bars: 95 % interval of each value by itself"
    for text in [*names, title, "linear_probe (higher is better)", "rankme (no verdict)"]:
        assert f"<!-- {text} -->" in drawn, text
    assert ray_embed("compare", *runs, "--plot", "again.svg").code == 0
    assert (tmp_path / "again.svg").read_text() == drawn
    assert ray_embed("compare", *runs, "--plot", "curve.PNG").code == 0
    with Image.open(tmp_path / "curve.PNG") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600


def test_in_python(tmp_path: Path):
    runs = [make(tmp_path / "a", clustered(1.6)), make(tmp_path / "b", clustered(0.6))]
    comparison = package.compare(runs, sample=200)
    assert [column.name for column in comparison.columns] == ["a", "b"]
    row = next(row for row in comparison.rows if row.name == "knn_5_cosine")
    assert row.best == 1
    with pytest.raises(package.InputError, match="nothing to compare with"):
        package.compare(runs[:1])


def test_runs_on_an_object_store(compared: Compared, tmp_path: Path, bucket: str):
    here = make(tmp_path / "here", clustered(1.0))
    there = make(f"{bucket}/runs/there", clustered(1.0))
    found = compared(here, there)
    assert [one["name"] for one in found["runs"]] == ["here", "there"]
    assert only(found)["neighbours"]["common"] == 1


@pytest.mark.slow
def test_an_encoder_trained_for_longer_is_the_better_one(
    ray_embed: Command, compared: Compared, monkeypatch: pytest.MonkeyPatch
):
    assert ray_embed("demo", "--out", "runs/full").code == 0
    monkeypatch.setattr("ray_embed.cli.demo._EPOCHS", 1)
    assert ray_embed("demo", "--out", "runs/one-epoch").code == 0
    found = compared("runs/one-epoch", "runs/full")
    assert found["same_records"]
    for name in ("knn_1_cosine", "knn_5_cosine", "linear_probe", "purity_20"):
        assert found["measures"][name]["best"] == "full", name
        assert found["measures"][name]["differences"]["full"]["paired"]
