# SPDX-License-Identifier: Apache-2.0
"""Reading the results: any Parquet reader without ray_embed, and `ray_embed.load`."""

import json
import subprocess
import sys
from types import SimpleNamespace

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from support.sample_runs import (
    AWKWARD,
    config,
    part_files,
    read_parts,
    save_encoder,
    write_flat,
    write_listing,
)

import ray_embed as package


@pytest.fixture(scope="module")
def runs(ray_session, tmp_path_factory):
    """Runs with parts without rows, first, last and in the middle: `null` labels; `awkward` ones.

    The run with `null` labels is of several layers, the `awkward` one has numbers of one.
    """
    root = tmp_path_factory.mktemp("runs")
    model = save_encoder(root / "encoder.keras")
    # Ten and one with an odd name, which sorts last.
    null = write_flat(root / "null", 15, {0, 1, 2, 3, 8, 9, 10, 11})
    awkward = write_listing(root / "awkward", list(AWKWARD), {4, 5, 6, 7, 13, 16, 17})
    package.extract(config({"flat": null}, model, root / "runs" / "null", layers=("early", "late")))
    out = root / "runs" / "awkward"
    package.extract(config({"valid": awkward}, model, out, empty_label="keep"))
    return SimpleNamespace(null=root / "runs" / "null", awkward=root / "runs" / "awkward")


@pytest.fixture(params=["null", "awkward"])
def run(runs, request):
    return getattr(runs, request.param)


def glob(run):
    return f"{run}/features/*.parquet"


def column_of(run):
    return {"null": "feature_late", "awkward": "feature"}[run.name]


def test_runs_are_as_awkward_as_they_should_be(runs):
    null = [pq.read_metadata(part).num_rows for part in part_files(runs.null)]
    awkward = [pq.read_metadata(part).num_rows for part in part_files(runs.awkward)]
    assert null == [0, 4, 0, 4]
    assert awkward == [4, 0, 4, 3, 0]
    table = read_parts(runs.null)
    assert table.schema.field("label").type == pa.string()
    assert table["label"].null_count == 8
    assert table.schema.field("feature_early").type == pa.list_(pa.float32(), 4)
    assert table.schema.field("feature_late").type == pa.list_(pa.float32(), 5)
    kept = [label for at, label in enumerate(AWKWARD) if at not in {4, 5, 6, 7, 13, 16, 17}]
    assert read_parts(runs.awkward)["label"].to_pylist() == kept


def test_columns_are_those_of_the_contract(runs):
    schema = pq.read_schema(part_files(runs.awkward)[0])
    assert schema.remove_metadata() == pa.schema(
        [
            ("index", pa.int64()),
            ("key", pa.string()),
            ("label", pa.string()),
            ("split", pa.string()),
            ("note", pa.string()),
            ("a\tb", pa.string()),
            ("feature", schema.field("feature").type),
        ]
    )
    for part in part_files(runs.awkward):
        ours = pq.read_schema(part).metadata
        number = int(part.stem.removeprefix("part-"))
        planned = 2 if number == 4 else 4
        assert ours[b"ray_embed.shard"] == str(number).encode()
        assert ours[b"ray_embed.planned"] == str(planned).encode()
        rows = pq.read_metadata(part).num_rows
        assert ours[b"ray_embed.rejected"] == str(planned - rows).encode()
        assert (
            ours[b"ray_embed.fingerprint"].decode()
            == json.loads((runs.awkward / "run.json").read_text())["fingerprint"]
        )


def test_nothing_but_parts_is_in_the_folders(run):
    for kind in ("features", "rejects", "thumbnails"):
        assert sorted((run / kind).iterdir()) == part_files(run, kind)


def test_duckdb(run):
    expected = read_parts(run)
    column = column_of(run)
    size = expected.schema.field(column).type.list_size
    rows = duckdb.sql(
        f"select key, label, split, {column}::FLOAT[{size}] from '{glob(run)}' order by index"
    ).fetchall()
    assert [row[0] for row in rows] == expected["key"].to_pylist()
    assert [row[1] for row in rows] == expected["label"].to_pylist()
    assert [row[2] for row in rows] == expected["split"].to_pylist()
    features = np.array([row[3] for row in rows], np.float32)
    assert features.tolist() == expected[column].to_pylist()


def test_duckdb_finds_the_nearest_by_distance(run):
    column = column_of(run)
    table = read_parts(run)
    features = np.array(table[column].to_pylist(), np.float32)
    size = features.shape[1]
    found = duckdb.sql(
        f"""
        with parts as (select index, {column}::FLOAT[{size}] as f
                       from read_parquet('{glob(run)}'))
        select other.index, array_distance(one.f, other.f) as d
        from parts one, parts other
        where one.index = {table["index"][0].as_py()}
        order by d, other.index
        """
    ).fetchall()
    distances = np.linalg.norm(features - features[0], axis=1)
    order = np.argsort(distances, kind="stable")
    assert [index for index, _ in found] == table["index"].take(order).to_pylist()
    np.testing.assert_allclose([d for _, d in found], distances[order], rtol=1e-4, atol=1e-5)


def test_polars_scans(run):
    expected = read_parts(run)
    frame = pl.scan_parquet(glob(run)).collect()
    assert frame["index"].to_list() == expected["index"].to_pylist()
    assert frame["label"].to_list() == expected["label"].to_pylist()
    assert frame["label"].dtype == pl.String
    for name in (name for name in expected.column_names if name.startswith("feature")):
        size = expected.schema.field(name).type.list_size
        assert frame[name].dtype == pl.Array(pl.Float32, size)
        assert frame[name].to_list() == expected[name].to_pylist()
    some = pl.scan_parquet(glob(run)).filter(pl.col("index") >= 8).select("key").collect()
    indices = expected["index"].to_pylist()
    wanted = [key for key, at in zip(expected["key"].to_pylist(), indices, strict=True) if at >= 8]
    assert some["key"].to_list() == wanted


def test_pandas_reads_the_folder(run):
    expected = read_parts(run)
    frame = pd.read_parquet(run / "features")
    assert frame["index"].tolist() == expected["index"].to_pylist()
    labels = [None if pd.isna(label) else label for label in frame["label"]]
    assert labels == expected["label"].to_pylist()
    column = column_of(run)
    assert np.stack(frame[column]).tolist() == expected[column].to_pylist()


def test_pandas_reads_a_part_without_rows(runs):
    frame = pd.read_parquet(part_files(runs.null)[0])
    assert len(frame) == 0
    assert "feature_late" in frame.columns


def test_pyarrow_dataset(run):
    expected = read_parts(run)
    dataset = pyarrow.dataset.dataset(run / "features")
    assert dataset.to_table().replace_schema_metadata() == expected
    assert dataset.count_rows() == expected.num_rows
    found = dataset.to_table(filter=pyarrow.dataset.field("index") == 8, columns=["key"])
    assert found.num_rows == expected["index"].to_pylist().count(8)


def test_rejects_and_thumbnails_are_read_too(run):
    rejects = duckdb.sql(
        f"select index, reason from '{run}/rejects/*.parquet' order by index"
    ).fetchall()
    kept = read_parts(run)["index"].to_pylist()
    assert sorted(kept + [index for index, _ in rejects]) == list(range(len(kept) + len(rejects)))
    assert len({reason for _, reason in rejects}) == 1
    thumbnails = pl.scan_parquet(f"{run}/thumbnails/*.parquet").collect()
    assert thumbnails["index"].to_list() == kept
    assert all(png.startswith(b"\x89PNG") for png in thumbnails["png"])


# --- ray_embed.load ------------------------------------------------------------------------------


def test_load_knows_its_paths_and_counts(run):
    loaded = package.load(str(run))
    assert loaded.features_path == f"{run}/features"
    assert loaded.projector_path == f"{run}/projector"
    assert (loaded.rows, loaded.rejects) == {"null": (8, 8), "awkward": (11, 7)}[run.name]


def test_load_takes_a_path_and_a_trailing_slash(runs):
    for name in (runs.awkward, f"{runs.awkward}/"):
        loaded = package.load(name)
        assert loaded.features_path == f"{runs.awkward}/features"
        assert loaded.rows == 11


def test_to_numpy(runs):
    features, labels = package.load(str(runs.awkward)).to_numpy()
    expected = read_parts(runs.awkward)
    assert features.dtype == np.float32
    assert features.shape == (11, 5)
    assert features.tolist() == expected["feature"].to_pylist()
    assert labels.dtype == object
    assert labels.shape == (11,)
    assert labels.tolist() == expected["label"].to_pylist()


def test_to_numpy_of_layers(runs):
    loaded = package.load(str(runs.null))
    expected = read_parts(runs.null)
    for layer, size in (("early", 4), ("late", 5)):
        features, labels = loaded.to_numpy(layer=layer)
        assert features.shape == (8, size)
        assert features.dtype == np.float32
        assert features.tolist() == expected[f"feature_{layer}"].to_pylist()
        assert labels.tolist() == [None] * 8
    with pytest.raises(package.InputError, match=r"early.*late"):
        loaded.to_numpy()
    with pytest.raises(package.InputError, match=r"no layer 'middle'.*early"):
        loaded.to_numpy(layer="middle")


def test_to_numpy_names_the_only_layer_too(runs):
    loaded = package.load(str(runs.awkward))
    (layer,) = loaded.layers
    assert loaded.to_numpy(layer)[0].tolist() == loaded.to_numpy()[0].tolist()
    with pytest.raises(package.InputError, match="no layer"):
        loaded.to_numpy("early")


def test_to_table(run):
    table = package.load(str(run)).to_table()
    assert table.replace_schema_metadata() == read_parts(run)


def test_to_pandas(run):
    frame = package.load(str(run)).to_pandas()
    expected = read_parts(run)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == expected.column_names
    assert frame["key"].tolist() == expected["key"].to_pylist()
    labels = [None if pd.isna(label) else label for label in frame["label"]]
    assert labels == expected["label"].to_pylist()
    column = column_of(run)
    assert np.stack(frame[column]).tolist() == expected[column].to_pylist()


@pytest.mark.parametrize("batch_size", [1, 3, 1024])
def test_to_tf(runs, batch_size):
    import tensorflow as tf

    dataset = package.load(str(runs.awkward)).to_tf(batch_size=batch_size)
    assert isinstance(dataset, tf.data.Dataset)
    assert dataset.element_spec[0].shape.as_list() == [None, 5]
    batches = [(features.numpy(), labels.numpy()) for features, labels in dataset]
    assert all(1 <= len(features) <= batch_size for features, _ in batches)
    expected = read_parts(runs.awkward)
    assert np.concatenate([f for f, _ in batches]).tolist() == expected["feature"].to_pylist()
    labels = [label.decode() for _, batch in batches for label in batch]
    assert labels == expected["label"].to_pylist()


def test_to_tf_of_a_layer_without_labels(runs):
    dataset = package.load(str(runs.null)).to_tf(layer="early")
    features = np.concatenate([features.numpy() for features, _ in dataset])
    assert features.tolist() == read_parts(runs.null)["feature_early"].to_pylist()
    assert {label for _, labels in dataset for label in labels.numpy()} == {b""}


@pytest.mark.slow
def test_to_ray(runs, monkeypatch):
    run = runs.awkward
    # Ray's workers run elsewhere.
    monkeypatch.chdir(run.parent)
    dataset = package.load(run.name).to_ray()
    rows = sorted(dataset.take_all(), key=lambda row: row["index"])
    expected = read_parts(run)
    assert [row["key"] for row in rows] == expected["key"].to_pylist()
    assert [row["label"] for row in rows] == expected["label"].to_pylist()
    column = column_of(run)
    found = np.stack([np.asarray(row[column], np.float32) for row in rows])
    assert found.tolist() == expected[column].to_pylist()


@pytest.mark.parametrize("what", ["nowhere", "empty", "other", "null/features"])
def test_load_of_what_is_no_run(runs, tmp_path, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    folder = runs.null / "features" if what == "null/features" else tmp_path / what
    with pytest.raises(package.InputError) as caught:
        package.load(str(folder))
    assert str(folder) in str(caught.value)


# --- what is not imported ------------------------------------------------------------------------

COMMAND = "from ray_embed.cli.commands import cli; cli"
CALLS = {
    "import": "import ray_embed",
    "load": "import ray_embed; run = ray_embed.load({run!r}); run.rows, run.rejects",
    "to_numpy": "import ray_embed; ray_embed.load({run!r}).to_numpy()",
    "to_table": "import ray_embed; ray_embed.load({run!r}).to_table()",
    "to_pandas": "import ray_embed; ray_embed.load({run!r}).to_pandas()",
    "status": f"{COMMAND}(['status', {{run!r}}], standalone_mode=False)",
    "verify": f"{COMMAND}(['status', {{run!r}}, '--verify'], standalone_mode=False)",
    "status as JSON": f"{COMMAND}(['status', {{run!r}}, '--json'], standalone_mode=False)",
}


@pytest.mark.parametrize("call", CALLS)
def test_reading_imports_neither_tensorflow_nor_ray(runs, tmp_path, call):
    code = CALLS[call].format(run=str(runs.awkward)) + (
        "\nimport sys"
        "\nheavy = {'tensorflow', 'ray', 'keras', 'tf_keras', 'tensorboard', 'openvino'}"
        "\nprint('imported:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
    assert done.stderr == ""
