# SPDX-License-Identifier: Apache-2.0
"""`ray-embed evaluate`: what it prints, records, and hands to TensorBoard."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.synthetic_runs import FINGERPRINT, make_run

import ray_embed as package
from ray_embed.analysis.evaluation.to_json import evaluation_to_json
from ray_embed.projector import pca
from ray_embed.storage import manifest
from ray_embed.storage.filesystem import Folder

COUNT, REFERENCE = 300, 180


def clouds(spread: float = 1.0, seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, COUNT)
    centers = random.normal(size=(4, 10))
    features = centers[labels] + spread * random.normal(size=(COUNT, 10))
    splits = ["valid"] * REFERENCE + ["test"] * (COUNT - REFERENCE)
    return features.astype(np.float32), [f"c{label}" for label in labels], splits


def plain_scalars(folder: Path) -> dict[str, float]:
    """Read scalars as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    reader = EventAccumulator(str(folder))
    reader.Reload()
    found = {}
    for tag in reader.Tags()["tensors"]:
        (event,) = reader.Tensors(tag)
        value = tensor_util.make_ndarray(event.tensor_proto)
        found[tag] = value.item() if value.dtype.kind == "f" else value
    return found


def test_table_json_and_python_agree(ray_embed: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *clouds())
    table = ray_embed("evaluate", run)
    assert table.code == 0, table.err
    assert "all 300 records" in table.out
    assert "predicted: test (120) by valid (180)" in table.out
    done = ray_embed("evaluate", run, "--json")
    entries = json.loads(done.out)
    recorded = json.loads((run / "evaluation.json").read_text())
    assert recorded == {"fingerprint": FINGERPRINT, "layers": entries}
    found = package.load(str(run)).evaluate()["top"]
    assert json.loads(json.dumps(evaluation_to_json(found))) == entries["top"]
    encoder = entries["top"]["measures"]["encoder"]
    for name, one in encoder.items():
        assert found.measures[name].value == one["value"]
        (line,) = [line for line in table.out.splitlines() if line.split()[:1] == [name]]
        assert float(line.split()[1]) == pytest.approx(one["value"], abs=0.051)
    assert encoder["knn_5_cosine"]["n"] == 120
    assert encoder["rankme"]["n"] == encoder["kmeans_ari"]["n"] == 300
    assert not (run / ".tmp").exists()


def test_the_baseline_is_that_of_the_thumbnails(ray_embed: Any, tmp_path: Path) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features, labels, splits = clouds()
    random = np.random.default_rng(1)
    base = random.integers(0, 200, (4, 8, 8, 1))
    pictures = [
        (base[int(label[1])] + random.integers(0, 56, (8, 8, 1))).astype(np.uint8)
        for label in labels
    ]
    run = make_run(tmp_path / "run", features, labels, splits, pictures=pictures)
    baseline = evaluation_to_json(package.load(str(run)).evaluate()["top"])["measures"][
        "raw_pixels"
    ]
    flat = np.stack(pictures).reshape(COUNT, -1).astype(float)
    model = KNeighborsClassifier(1).fit(flat[:REFERENCE], labels[:REFERENCE])
    score = model.score(flat[REFERENCE:], labels[REFERENCE:])
    assert baseline["knn_1_l2"]["value"] == pytest.approx(score)
    assert set(baseline) == set(package.load(str(run)).evaluate()["top"].measures)


def test_a_leak_is_found_and_taken_out(ray_embed: Any, tmp_path: Path) -> None:
    features, labels, splits = clouds(spread=3)
    pictures = list(np.random.default_rng(1).integers(0, 256, (COUNT, 24, 24, 3), np.uint8))
    # Some within a split too.
    pictures[3] = pictures[2]
    leaked = range(REFERENCE, REFERENCE + 40)
    for at in leaked:
        twin = at - REFERENCE
        pictures[at] = np.clip(pictures[twin].astype(int) + 1, 0, 255).astype(np.uint8)
        features[at] = features[twin] + 1e-4
        labels[at] = labels[twin]
    run = make_run(tmp_path / "run", features, labels, splits, pictures=pictures)
    done = ray_embed("evaluate", run, "--json")
    entry = json.loads(done.out)["top"]
    near = entry["near_duplicates"]
    assert near["by_split"]["test"] == {"test": 2, "valid": 40}
    assert near["by_split"]["valid"] == {"test": 40, "valid": 2}
    assert near["records"] == 80
    listed = {tuple(one["index"] for one in pair["records"]) for pair in near["pairs"]}
    # Of pictures that are the same the first stands for all.
    assert listed == {(at - REFERENCE, at) for at in leaked} - {(3, 183)} | {(2, 3), (182, 183)}
    with_leak = entry["measures"]["encoder"]["knn_1_l2"]
    without = entry["without_near_duplicates"]["encoder"]["knn_1_l2"]
    assert (with_leak["n"], without["n"]) == (120, 80)
    kept = features[REFERENCE + 40 :]
    nearest = np.linalg.norm(kept[:, None] - features[None, :REFERENCE], axis=2).argmin(axis=1)
    right = np.array(labels[:REFERENCE])[nearest] == labels[REFERENCE + 40 :]
    assert without["value"] == pytest.approx(right.mean())
    assert without["value"] < with_leak["value"]
    assert set(entry["without_near_duplicates"]) == {"encoder", "raw_pixels"}
    shown = ray_embed("evaluate", run).out
    assert "40 of test have one in valid" in shown
    assert "of the 80 without a near-duplicate in the reference" in shown


def test_verdicts_are_the_differences_beyond_their_intervals(
    ray_embed: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", *clouds())
    (entry,) = json.loads(ray_embed("evaluate", run, "--json").out).values()
    verdict = entry["verdicts"]["raw_pixels"]
    # Pictures are noise, features are clouds.
    assert {"knn_5_cosine", "linear_probe", "silhouette_l2", "kmeans_nmi"} <= set(verdict["better"])
    assert verdict["worse"] == []
    said = f"raw pixels: the encoder is better in {len(verdict['better'])} of "
    assert ray_embed("evaluate", run).out.splitlines()[-1].startswith(said)

    # The other way round: each picture is its class, features are noise, pooled.
    labels = clouds()[1]
    noise = np.random.default_rng(5).normal(size=(COUNT, 10)).astype(np.float32)
    pictures = [np.full((8, 8, 1), 60 * int(label[1]), np.uint8) for label in labels]
    run = make_run(tmp_path / "pooled", noise, labels, clouds()[2], pictures=pictures)
    about = json.loads((run / "run.json").read_text())
    about["encoder"]["outputs"][0]["pool"] = "gap"
    manifest.write_run(Folder.open(str(run)), {k: about[k] for k in about if k != "ray_embed"}, "0")
    lines = ray_embed("evaluate", run).out.splitlines()
    assert lines[0].startswith("top (gap): all 300 records")
    assert lines[-2].startswith("raw pixels: the encoder is better in 0 of ")
    assert "--pool flatten" in lines[-1]


def test_equal_features_are_counted(tmp_path: Path) -> None:
    features, labels, splits = clouds()
    features[250:] = features[0]
    run = make_run(tmp_path / "run", features, labels, splits)
    entry = evaluation_to_json(package.load(str(run)).evaluate()["top"])
    assert entry["equal_features"]["records"] == 51
    assert entry["near_duplicates"]["records"] == 0
    assert entry["without_near_duplicates"] == {}


def test_classes_and_what_is_predicted_for_them(tmp_path: Path) -> None:
    features, labels, splits = clouds(spread=1.5)
    run = make_run(tmp_path / "run", features, labels, splits)
    found = package.load(str(run)).evaluate()["top"]
    entry = evaluation_to_json(found)
    names = np.array(labels)
    own, known = names[REFERENCE:], names[:REFERENCE]
    scaled = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = np.argsort(-scaled[REFERENCE:] @ scaled[:REFERENCE].T, axis=1)[:, :20]
    for one in entry["classes"]:
        rows = own == one["label"]
        assert one["n"] == rows.sum()
        assert one["purity"] == pytest.approx((known[near[rows]] == one["label"]).mean())
    purities = [one["purity"] for one in entry["classes"]]
    assert purities == sorted(purities)
    confused = entry["confused"]
    assert confused["neighbours"] == 20
    wrong = 1 - entry["measures"]["encoder"]["knn_20_cosine"]["value"]
    assert sum(one["count"] for one in confused["pairs"]) == round(wrong * len(own))
    assert all(one["label"] != one["taken_for"] for one in confused["pairs"])


def test_layers(ray_embed: Any, tmp_path: Path) -> None:
    features, labels, splits = clouds()
    layers = {"early": features[:, :6].copy(), "late": features}
    run = make_run(tmp_path / "run", layers, labels, splits)
    (run / "projector").mkdir()
    assert ray_embed("evaluate", run, "--layer", "late").code == 0
    scalars = plain_scalars(run / "projector")
    assert "evaluation/knn_5_cosine" in scalars
    done = ray_embed("evaluate", run, "--layer", "early", "--json")
    assert list(json.loads(done.out)) == ["early"]
    recorded = json.loads((run / "evaluation.json").read_text())["layers"]
    assert sorted(recorded) == ["early", "late"]
    scalars = plain_scalars(run / "projector")
    assert "evaluation/knn_5_cosine" not in scalars
    for layer in ("early", "late"):
        value = recorded[layer]["measures"]["encoder"]["knn_5_cosine"]["value"]
        assert scalars[f"evaluation/{layer}/knn_5_cosine"] == pytest.approx(value)
    both = ray_embed("evaluate", run).out
    assert both.count("predicted: ") == 2
    wrong = ray_embed("evaluate", run, "--layer", "none")
    assert wrong.code == 2
    assert "early, late" in wrong.err


def test_tensorboard_reads_scalars_and_text(ray_embed: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *clouds())
    assert ray_embed("reduce", run).code == 0
    before = {path.name for path in (run / "projector").iterdir()}
    out = [ray_embed("evaluate", run).out for _ in range(2)][-1]
    after = {path.name for path in (run / "projector").iterdir()}
    assert after - before == {"events.out.tfevents.1.ray_embed"}

    def check() -> None:
        scalars = plain_scalars(run / "projector")
        recorded = json.loads((run / "evaluation.json").read_text())["layers"]["top"]["measures"]
        for column, group in (("encoder", "evaluation"), ("raw_pixels", "evaluation_raw_pixels")):
            for name, one in recorded[column].items():
                assert scalars[f"{group}/{name}"] == pytest.approx(one["value"], rel=1e-6)
        (text,) = scalars["evaluation/table"].ravel()
        assert out.strip() in text.decode()

    check()
    # It is written again with the projector's other files.
    assert ray_embed("reduce", run).code == 0
    check()


def test_what_was_recorded_of_another_run_is_left_out(ray_embed: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *clouds())
    other = {"fingerprint": "0" * 64, "layers": {"gone": {}}}
    (run / "evaluation.json").write_text(json.dumps(other))
    assert ray_embed("reduce", run).code == 0
    assert not (run / "projector" / "events.out.tfevents.1.ray_embed").exists()
    assert ray_embed("evaluate", run).code == 0
    assert list(json.loads((run / "evaluation.json").read_text())["layers"]) == ["top"]


def test_sample_is_stated(ray_embed: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *clouds())
    done = ray_embed("evaluate", run, "--sample", 100)
    assert "100 of 300 records, drawn by split and label (seed 0)" in done.out
    assert "predicted: test (40) by valid (60)" in done.out
    assert "note: 200 neighbors are left out: there are 60" in done.out
    assert ray_embed("evaluate", run, "--sample", 100).out == done.out
    entry = json.loads((run / "evaluation.json").read_text())["layers"]["top"]
    assert (entry["records"], entry["total"], entry["seed"]) == (100, 300, 0)


def test_spectrum_of_all_where_it_is_known(ray_embed: Any, tmp_path: Path) -> None:
    features, labels, splits = clouds()
    run = make_run(tmp_path / "run", features, labels, splits)
    values, vectors = np.linalg.eigh(np.cov(features.T.astype(np.float64)))
    variances = values[::-1]
    components = pca.Components(features.mean(axis=0, dtype=np.float64), variances, vectors.T[::-1])
    pca.save(Folder.open(str(run)), {"top": components}, FINGERPRINT)
    done = ray_embed("evaluate", run, "--sample", 100, "--json")
    found = json.loads(done.out)["top"]["measures"]["encoder"]
    ratio = found["participation_ratio"]
    expected = np.sum(variances) ** 2 / np.sum(variances**2)
    assert ratio["value"] == pytest.approx(expected, rel=1e-9)
    assert (ratio["n"], found["rankme"]["n"]) == (300, 100)
    assert "participation_ratio of the encoder: over all 300 records" in (
        ray_embed("evaluate", run, "--sample", 100).out
    )


def test_without_labels(ray_embed: Any, tmp_path: Path) -> None:
    features, _, splits = clouds()
    run = make_run(tmp_path / "run", features, [None] * COUNT, splits, pa.string())
    done = ray_embed("evaluate", run)
    assert "note: there are no labels" in done.out
    assert "participation_ratio" in done.out
    assert "near-duplicates in pixels: none of 300" in done.out
    assert "knn" not in done.out


def test_float_labels(ray_embed: Any, tmp_path: Path) -> None:
    features, _, splits = clouds()
    run = make_run(tmp_path / "run", features, features[:, 0].tolist(), splits, pa.float64())
    done = ray_embed("evaluate", run)
    assert "knn_r2_5_l2" in done.out
    assert "purity" not in done.out


def test_without_thumbnails_there_is_no_baseline(ray_embed: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *clouds())
    for part in (run / "thumbnails").iterdir():
        part.unlink()
    done = ray_embed("evaluate", run)
    assert done.code == 0
    assert "raw pixels" not in done.out
    assert "near-duplicates: unknown" in done.out


def test_random_weights_stand_beside(
    ray_embed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels, splits = clouds()
    run = make_run(tmp_path / "run", features, labels, splits)
    noise = np.random.default_rng(5).normal(size=features.shape).astype(np.float32)
    other = make_run(tmp_path / "random", noise, labels, splits)
    pretended = types.ModuleType("ray_embed.baseline")
    pretended.extract_baseline = lambda run: package.load(str(other))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, pretended.__name__, pretended)
    done = ray_embed("evaluate", run, "--random-weights")
    assert "random weights" in done.out
    measures = json.loads((run / "evaluation.json").read_text())["layers"]["top"]["measures"]
    alone = package.load(str(other)).evaluate()["top"].measures
    for name, one in measures["random_weights"].items():
        assert one["value"] == alone[name].value
    assert measures["random_weights"]["knn_5_l2"]["value"] < 0.4


def test_bad_input(ray_embed: Any, tmp_path: Path) -> None:
    assert ray_embed("evaluate", tmp_path / "none").code == 2
    features, labels, splits = clouds()
    features[[4, 9], 2] = np.nan
    unsound = ray_embed("evaluate", make_run(tmp_path / "nan", features, labels, splits))
    assert unsound.code == 2
    said = "the features of 2 of 300 records are not finite, valid '0004.png' for one"
    assert said in unsound.err
    run = make_run(tmp_path / "run", *clouds())
    (run / "features" / "part-00000002.parquet").unlink()
    unfinished = ray_embed("evaluate", run)
    assert unfinished.code == 2
    assert "only 4 of 5 shards are done" in unfinished.err
    assert "Traceback" not in unfinished.err
    assert not (run / "evaluation.json").exists()
