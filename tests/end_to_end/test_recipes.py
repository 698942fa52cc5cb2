# SPDX-License-Identifier: Apache-2.0
"""Each recipe of the page, run as it stands there over a real run, and its results by NumPy."""

import csv
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pytest
from PIL import Image
from support import object_store
from support.sample_runs import config, part_files, read_parts
from support.versions import PACKAGES

import ray_embed as package

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
KEY, LABEL = "3/0003.png", "3"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def sections():
    """Give the page's blocks of code (language, text) by heading."""
    pieces = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    block = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = {
        name: block.findall(text) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)
    }
    return {name: blocks for name, blocks in found.items() if blocks}


@pytest.fixture(scope="module")
def folder(ray_session, tmp_path_factory):
    """A folder with `runs/run7`, of digits and an encoder of 32 features, and `labels.csv`.

    All files of its first part are unreadable, so that it has no rows.
    """
    import keras
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("recipes")
    digits = load_digits()
    data = {"valid": slice(0, 160), "test": slice(160, 320)}
    for split, rows in data.items():
        for at in range(rows.start, rows.stop):
            place = root / split / str(digits.target[at])
            place.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[at] * 15).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{at:04d}.png")
    (root / "valid" / "0-empty").mkdir()
    for at in range(32):
        (root / "valid" / "0-empty" / f"{at}.png").touch()
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(32, 3, activation="relu")(image)
    keras.Model(image, keras.layers.Conv2D(32, 3)(x)).save(root / "encoder.keras")
    sources = {split: root / split for split in data}
    out = root / "runs" / "run7"
    package.extract(config(sources, root / "encoder.keras", out, shard_size=32, batch_size=16))
    with open(root / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "quality"])
        rows.writerows((key, quality_of(key)) for key in read_parts(out)["key"].to_pylist()[::3])
    return root


def quality_of(key):
    return "007" if "3" in key else "good"


@pytest.fixture
def known(folder):
    """What the recipes must find."""
    table = read_parts(folder / "runs" / "run7")
    features = np.array(table["feature"].to_pylist(), np.float32)
    keys = np.array(table["key"].to_pylist())
    one = features[keys == KEY][0].astype(np.float64)
    cosine = 1 - features @ one / np.linalg.norm(features, axis=1) / np.linalg.norm(one)
    return SimpleNamespace(
        table=table,
        features=features,
        keys=keys,
        labels=np.array(table["label"].to_pylist()),
        splits=np.array(table["split"].to_pylist()),
        cosine=cosine,
        l2=np.linalg.norm(features - one, axis=1),
    )


def assert_nearest(known, distances, keys, labels, found, own=True):
    """Check the nearest by `distances` (N,), the record itself among them or not."""
    order = np.argsort(distances, kind="stable")[0 if own else 1 :][: len(keys)]
    assert len(keys) == (6 if own else 5)
    assert list(keys) == known.keys[order].tolist()
    assert list(labels) == known.labels[order].tolist()
    np.testing.assert_allclose(np.asarray(found, float), distances[order], **TOLERANCE)
    # Or the distances would say nothing about which of them was taken.
    assert np.diff(np.sort(distances)[:7]).min() > 1e-5


def in_python(blocks):
    """Run a section's blocks one after the other, and give their names."""
    names = {"__name__": "recipe"}
    for language, code in blocks:
        assert language == "python"
        exec(compile(code, str(PAGE), "exec"), names)
    return SimpleNamespace(**names)


def check_duckdb(blocks, known):
    assert {language for language, _ in blocks} == {"sql"}
    counts, nearest, accuracy, joined = (duckdb.sql(code).fetchall() for _, code in blocks)
    assert counts == [
        (split, label, int(((known.splits == split) & (known.labels == label)).sum()))
        for split in ("test", "valid")
        for label in "0123456789"
    ]
    assert_nearest(known, known.cosine, *zip(*nearest, strict=True), own=False)
    unit = known.features / np.linalg.norm(known.features, axis=1, keepdims=True)
    test, valid = known.splits == "test", known.splits == "valid"
    found = known.labels[valid][np.argmax(unit[test] @ unit[valid].T, axis=1)]
    right = found == known.labels[test]
    assert [label for label, _ in accuracy] == list("0123456789")
    expected = [right[known.labels[test] == label].mean() for label, _ in accuracy]
    np.testing.assert_allclose([share for _, share in accuracy], expected)
    assert 0.3 < right.mean() < 1
    assert sum(records for _, _, records in joined) == len(known.keys[::3])
    mine = list(zip(map(quality_of, known.keys[::3]), known.labels[::3], strict=True))
    assert joined == [(*pair, mine.count(pair)) for pair in sorted(set(mine))]


def check_polars(blocks, known):
    found = in_python(blocks)
    assert_nearest(known, known.l2, *found.nearest.to_dict(as_series=False).values())
    assert_joined(known, found.joined)
    assert found.features.dtype == np.float32
    rows = [known.keys.tolist().index(key) for key in found.joined["key"]]
    assert found.features.tolist() == known.features[rows].tolist()


def assert_joined(known, joined):
    assert sorted(joined["key"]) == sorted(known.keys[::3])
    assert list(joined["quality"]) == [quality_of(key) for key in joined["key"]]
    assert list(joined["label"]) == [key[0] for key in joined["key"]]


def check_pandas(blocks, known):
    found = in_python(blocks)
    assert found.features.dtype == np.float32
    assert found.features.tolist() == known.features.tolist()
    of_threes = ((known.labels == LABEL) & (known.splits == "test")).sum()
    assert found.counts.loc[LABEL, "test"] == of_threes
    assert_nearest(known, known.cosine, *(found.nearest[name] for name in found.nearest))
    assert_joined(known, found.joined)


def check_pyarrow(blocks, known):
    found = in_python(blocks)
    wanted = (known.labels == LABEL) & (known.splits == "test")
    assert found.threes["key"].to_pylist() == known.keys[wanted].tolist()
    assert found.threes["feature"].to_pylist() == known.features[wanted].tolist()
    np.testing.assert_allclose(found.mean, known.features.astype(np.float64).mean(0))


def check_datasets(blocks, known):
    found = in_python(blocks)
    assert found.features.dtype == np.float32
    assert found.features.tolist() == known.features.tolist()
    assert list(found.test["key"]) == known.keys[known.splits == "test"].tolist()
    near = found.nearest[:]
    distances = np.linalg.norm(near["feature"] - found.query, axis=1)
    assert_nearest(known, known.l2, near["key"], near["label"], distances)


def check_ray_data(blocks, known):
    nearest = in_python(blocks).nearest
    assert_nearest(known, known.l2, *(nearest[name] for name in nearest))


def check_lancedb(blocks, known):
    found = in_python(blocks)
    assert_nearest(known, known.cosine, *(found.nearest[name] for name in found.nearest))
    assert [index.index_type for index in found.table.list_indices()] == ["IvfFlat"]
    assert found.table.count_rows() == len(known.keys)
    assert set(found.threes["label"]) == {LABEL}


def check_ray_embed(blocks, known):
    found = in_python(blocks).nearest
    columns = (found[name].to_pylist() for name in ("key", "label", "distance"))
    assert_nearest(known, known.cosine, *columns, own=False)


def check_object_storage(blocks, known):
    found = in_python(blocks)
    assert found.labels["label"].to_pylist() == known.labels.tolist()
    columns = (found.nearest[name].to_pylist() for name in ("key", "label", "distance"))
    assert_nearest(known, known.cosine, *columns, own=False)


CHECKS = {
    "DuckDB": check_duckdb,
    "Polars": check_polars,
    "pandas": check_pandas,
    "pyarrow": check_pyarrow,
    "Hugging Face datasets": check_datasets,
    "Ray Data": check_ray_data,
    "LanceDB": check_lancedb,
    "ray_embed itself": check_ray_embed,
    "Object storage": check_object_storage,
}


def test_every_block_of_the_page_is_run():
    assert sections().keys() == CHECKS.keys()


def test_the_run_has_a_first_part_without_rows(folder, known):
    import pyarrow.parquet as pq

    rows = [pq.read_metadata(part).num_rows for part in part_files(folder / "runs" / "run7")]
    assert rows == [0, *[32] * 10]
    assert known.features.shape == (320, 32)


@pytest.mark.parametrize(
    "name",
    [
        # It starts a Ray of its own.
        pytest.param(name, marks=[pytest.mark.slow] if name == "Ray Data" else [])
        for name in CHECKS
    ],
)
def test_recipe(folder, known, monkeypatch, request, name):
    monkeypatch.chdir(folder)
    if name == "Object storage":
        request.getfixturevalue("store")
        object_store.make_bucket("runs")
        object_store.upload(folder / "runs" / "run7", "s3://runs/run7")
    else:
        monkeypatch.setattr(socket.socket, "connect", loopback_only(socket.socket.connect))
    CHECKS[name](sections()[name], known)


def loopback_only(connect):
    def checked(self, address):
        assert isinstance(address, str | bytes) or address[0] in ("127.0.0.1", "::1", "localhost")
        return connect(self, address)

    return checked


def test_the_page_states_the_versions_that_are_tested():
    """Those of constraints.txt, so that a change of one is a change of the page."""
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text()
    pinned = dict(re.findall(r"^([^#=\s]+)==(\S+)$", constraints, re.MULTILINE))
    stated = PAGE.read_text().partition("## Versions")[2].split("```\n")[1]
    assert stated.splitlines() == [f"{name} {pinned[name]}" for name in PACKAGES]
