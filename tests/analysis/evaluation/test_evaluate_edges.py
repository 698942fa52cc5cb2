# SPDX-License-Identifier: Apache-2.0
"""`evaluate`, `compare` and `plot` of runs that have little, or much, of something."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.synthetic_runs import clusters, make_run

import ray_embed as package
from ray_embed.analysis.evaluation.near_duplicates import LISTED, find_near_duplicates
from ray_embed.analysis.evaluation.record import record
from ray_embed.analysis.evaluation.to_json import evaluation_to_json
from ray_embed.analysis.plotting import projections
from ray_embed.runs import sampling
from ray_embed.runs.reader import open_run
from ray_embed.storage.filesystem import Folder

COUNT = 100


def points(count: int = COUNT, size: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def evaluate(ray_embed: Any, run: Path, *arguments: Any) -> dict[str, Any]:
    found = ray_embed("evaluate", run, "--json", *arguments)
    assert found.code == 0, found.err
    assert "NaN" not in found.out
    assert "Infinity" not in found.out
    assert "Warning" not in found.err
    (entry,) = json.loads(found.out).values()
    table = ray_embed("evaluate", run, *arguments)
    assert table.code == 0, table.err
    return entry


def test_the_only_one_of_a_class(ray_embed: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "two", points(), ["a"] * (COUNT - 1) + ["b"])
    measures = evaluate(ray_embed, run)["measures"]["encoder"]
    assert measures["linear_probe"]["value"] == 1
    assert measures["linear_probe"]["n"] == COUNT - 1
    labels = ["a"] * 60 + ["b"] * 39 + ["c"]
    run = make_run(tmp_path / "three", points(), labels)
    measures = evaluate(ray_embed, run)["measures"]["encoder"]
    assert measures["linear_probe"]["n"] == COUNT - 1
    assert ray_embed("compare", run, tmp_path / "two").code == 0


def test_all_records_were_rejected(ray_embed: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", points(), rejected=range(COUNT))
    for command in ("evaluate", "compare"):
        found = ray_embed(command, run, *([run] if command == "compare" else []))
        assert found.code == 2
        assert "rejects" in found.err
        assert "Traceback" not in found.err
    assert "all records were rejected" in ray_embed("plot", run).out


def test_one_record(ray_embed: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", points(1))
    assert evaluate(ray_embed, run)["measures"]["encoder"] == {}
    found = ray_embed("compare", run, run, "--plot", "curve.svg")
    assert found.code == 2
    assert "no measure" in found.err


def test_more_splits_than_records_to_draw(ray_embed: Any, tmp_path: Path) -> None:
    sizes = (5, 1, 2, 50, 5, 5, 2)
    splits = [f"split{at}" for at, size in enumerate(sizes) for _ in range(size)]
    run = make_run(tmp_path / "run", points(sum(sizes)), splits=splits)
    for limit in (2, 4, 7, 9):
        assert evaluate(ray_embed, run, "--sample", limit)["records"] == limit
    assert package.reduce(str(run), 3) == sum(sizes)
    lines = (tmp_path / "run" / "projector" / "sample.tsv").read_text().splitlines()
    assert len(lines) == 1 + 3


def test_few_float_labels_have_no_interval_rather_than_infinity(
    ray_embed: Any, tmp_path: Path
) -> None:
    labels = [float(at) for at in range(10)] + [1.0, 2.0, 2.0]
    splits = ["valid"] * 10 + ["test"] * 3
    run = make_run(tmp_path / "run", points(13), labels, splits, pa.float64())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure = evaluate(ray_embed, run)["measures"]["encoder"]["knn_r2_5_l2"]
    assert measure["interval"] is None


def test_one_float_label_predicts_nothing(ray_embed: Any, tmp_path: Path) -> None:
    labels = [1.0, *[None] * 9, *map(float, range(10))]
    splits = ["valid"] * 10 + ["test"] * 10
    run = make_run(tmp_path / "run", points(20), labels, splits, pa.float64())
    (note,) = evaluate(ray_embed, run)["notes"]
    assert "only one label" in note


@pytest.mark.slow
def test_wide_features_fit_into_memory(
    ray_embed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = points(30, 1000)
    run = make_run(tmp_path / "run", wide, [f"c{at % 3}" for at in range(30)])
    assert evaluate(ray_embed, run)["records"] == 30
    assert ray_embed("plot", run).code == 0
    # As if there were room for twenty.
    monkeypatch.setattr(sampling, "_MAX_FEATURE_BYTES", 20 * 4 * 1000)
    entry = evaluate(ray_embed, run)
    assert (entry["records"], entry["total"]) == (20, 30)
    found = json.loads(ray_embed("compare", run, run, "--json").out)
    assert [one["judged"] for one in found["runs"]] == [10, 10]


def test_components_of_wide_features_are_those_of_all_dimensions(tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    from ray_embed.analysis.plotting.components import load_or_compute_components

    wide = points(30, 9000) * np.geomspace(1, 1e-3, 9000).astype(np.float32)
    run = make_run(tmp_path / "run", wide)
    found = load_or_compute_components(Folder.open(str(run)), "feature", wide)
    expected = PCA().fit(wide.astype(np.float64))
    assert found.ratios == pytest.approx(expected.explained_variance_ratio_, abs=1e-6)
    coordinates = expected.transform(wide.astype(np.float64))[:, :10]
    assert np.abs(found.coordinates[:, :10]) == pytest.approx(np.abs(coordinates), abs=1e-3)


def test_the_baseline_is_evaluated_on_the_records_that_both_hold(
    ray_embed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [f"c{at % 3}" for at in range(COUNT)]
    splits = ["valid"] * 60 + ["test"] * 40
    pictures = list(np.random.default_rng(1).integers(0, 256, (COUNT, 16, 16, 1), np.uint8))
    for at in (70, 71):
        pictures[at] = pictures[at - 60]
    options = {"pictures": pictures}
    run = make_run(tmp_path / "run", points(), labels, splits, rejected=[2, 99], **options)
    baseline = make_run(
        tmp_path / "baseline", points(seed=3), labels, splits, rejected=[0, 65], **options
    )
    monkeypatch.setattr(
        "ray_embed.baseline.extract_baseline", lambda run: package.load(str(baseline))
    )
    entry = evaluate(ray_embed, run, "--random-weights")
    assert entry["records"] == COUNT - 4
    assert (
        "2 records are left out, which the run with random weights has rejected" in entry["notes"]
    )
    assert {one["knn_5_l2"]["n"] for one in entry["measures"].values()} == {38}
    without = entry["without_near_duplicates"]
    assert {one["knn_5_l2"]["n"] for one in without.values()} == {36}


def test_many_look_alikes_are_counted_without_listing_them_all() -> None:
    random = np.random.default_rng(0)
    pictures = 128 + random.uniform(0, 1, (1500, 16, 16, 1)).astype(np.float32)
    found = find_near_duplicates(pictures, np.array(["all"] * 1500, object))
    assert found.in_split.all()
    assert len(found.pairs) == LISTED
    flat = pictures.reshape(1500, -1).astype(np.float64)
    squares = np.square(flat).sum(axis=1)
    apart = (squares[:, None] + squares - 2 * flat @ flat.T)[np.triu_indices(1500, 1)]
    nearest = np.sort(np.sqrt(apart.clip(0) / 256))[:LISTED]
    assert [pair[2] for pair in found.pairs] == pytest.approx(nearest, abs=1e-3)


def test_what_was_found_of_another_run_is_not_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", points(), limit=50)
    old = open_run(str(run))
    entries = {"top": evaluation_to_json(package.load(str(run)).evaluate()["top"])}
    make_run(tmp_path / "run", points(seed=5), fingerprint="a" * 64)
    with pytest.raises(package.InputError, match="another run was written there meanwhile"):
        record(old, entries)
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_plots_without_thumbnails(
    ray_embed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # UMAP takes half a minute to be compiled.
    monkeypatch.setattr(projections, "has_umap", lambda: False)
    features, codes = clusters(2, 60)
    run = make_run(tmp_path / "run", features, [f"c{code}" for code in codes])
    for part in (tmp_path / "run" / "thumbnails").iterdir():
        part.unlink()
    found = ray_embed("plot", run)
    assert found.code == 0, found.err
    assert "no contact sheet, as thumbnails are missing" in found.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--port", "-1"], "--port"), (["--host", "nosuch.invalid"], "--host nosuch.invalid")],
)
def test_where_view_cannot_listen(
    ray_embed: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    run = make_run(tmp_path / "run", points())
    package.reduce(str(run))
    found = ray_embed("view", run, *arguments)
    assert found.code == 2
    assert said in found.err
    assert "Traceback" not in found.err
