# SPDX-License-Identifier: Apache-2.0
"""`Run.neighbors`: the nearest records, by the definition and by scikit-learn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.neighbors import NearestNeighbors

import ray_embed as package
from ray_embed.core.arrays import as_column
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.manifest import write_run

# Parts without rows first, last and in between.
SIZES = (0, 7, 1, 0, 12, 5, 0)
ROWS = sum(SIZES)
DIMENSION = 6


def write(root, columns, sizes=SIZES, keys=None, splits=None, labels=None):
    """Write a run folder with `columns` of features (N, D); rejects take some indices."""
    (root / "features").mkdir(parents=True)
    count = sum(sizes)
    table = pa.table(
        {
            "index": pa.array(index_of(np.arange(count)), pa.int64()),
            "key": keys or [f"{row:03d}.png" for row in range(count)],
            "label": pa.array(labels or [row % 3 for row in range(count)]),
            "split": splits or ["valid"] * (count // 2) + ["test"] * (count - count // 2),
            **{name: as_column(values.astype(np.float32)) for name, values in columns.items()},
        }
    )
    start = 0
    for number, size in enumerate(sizes):
        pq.write_table(
            table.slice(start, size),
            root / "features" / f"part-{number:08d}.parquet",
            write_page_checksum=True,
        )
        start += size
    outputs = [
        {"layer": name.removeprefix("feature_"), "column": name, "dimension": values.shape[1]}
        for name, values in columns.items()
    ]
    about = {"fingerprint": "f", "encoder": {"outputs": outputs}}
    write_run(Folder.open(str(root)), about, "0")
    return package.load(str(root))


def index_of(rows):
    return 2 * rows + 5


def cloud(seed=0, count=ROWS):
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def expected(features, queries, metric):
    """Compute all distances (n, N) by the definition, in double precision."""
    rows, points = features.astype(np.float64), np.atleast_2d(queries).astype(np.float64)
    if metric == "l2":
        return np.sqrt(((points[:, None] - rows[None]) ** 2).sum(2))
    lengths = np.linalg.norm(points, axis=1)[:, None] * np.linalg.norm(rows, axis=1)[None]
    return 1 - (points[:, None] * rows[None]).sum(2) / lengths


@pytest.fixture
def run(tmp_path):
    return write(tmp_path / "run", {"feature": cloud()})


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 4, ROWS - 1, ROWS, ROWS + 5])
def test_neighbors_are_those_by_the_definition(run, metric, k):
    queries = cloud(seed=1, count=9)
    found = run.neighbors(queries, k, metric)
    distances = expected(cloud(), queries, metric)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    kept = order.shape[1]
    assert found["query"].to_pylist() == [n for n in range(9) for _ in range(kept)]
    assert found["rank"].to_pylist() == list(range(1, kept + 1)) * 9
    assert found["index"].to_pylist() == index_of(order).ravel().tolist()
    assert found["key"].to_pylist() == [f"{row:03d}.png" for row in order.ravel()]
    assert found["label"].to_pylist() == [row % 3 for row in order.ravel()]
    assert found["split"].to_pylist() == [
        "valid" if row < ROWS // 2 else "test" for row in order.ravel()
    ]
    wanted = np.take_along_axis(distances, order, 1).ravel()
    np.testing.assert_allclose(found["distance"].to_numpy(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("metric", "name"), [("cosine", "cosine"), ("l2", "euclidean")])
def test_neighbors_are_those_of_scikit_learn(run, metric, name):
    queries = cloud(seed=2, count=20)
    searched = NearestNeighbors(metric=name, algorithm="brute").fit(cloud().astype(np.float64))
    distances, rows = searched.kneighbors(queries.astype(np.float64), 5)
    found = run.neighbors(queries, k=5, metric=metric)
    assert found["index"].to_pylist() == index_of(rows).ravel().tolist()
    np.testing.assert_allclose(found["distance"].to_numpy(), distances.ravel(), rtol=1e-5)


def test_columns_and_types(run):
    found = run.neighbors(cloud()[0])
    assert found.schema.remove_metadata() == pa.schema(
        [
            ("query", pa.int64()),
            ("rank", pa.int64()),
            ("index", pa.int64()),
            ("key", pa.string()),
            ("label", pa.int64()),
            ("split", pa.string()),
            ("distance", pa.float32()),
        ]
    )
    assert found.num_rows == 10
    empty = run.neighbors(np.zeros((0, DIMENSION), np.float32))
    assert empty.num_rows == 0
    assert empty.schema.remove_metadata() == found.schema.remove_metadata()


def test_one_vector_is_one_query_and_is_its_own_neighbor(run):
    found = run.neighbors(cloud()[4], k=3, metric="l2")
    assert found["query"].to_pylist() == [0, 0, 0]
    assert found["index"][0].as_py() == index_of(4)
    assert found["distance"][0].as_py() == 0


@pytest.mark.parametrize("row", [0, 6, 7, 8, ROWS - 1])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_key_is_not_its_own_neighbor(run, row, metric):
    found = run.neighbors(f"{row:03d}.png", k=ROWS, metric=metric)
    distances = expected(cloud(), cloud()[row], metric)[0]
    order = [int(other) for other in np.argsort(distances, kind="stable") if other != row]
    assert found["index"].to_pylist() == [index_of(other) for other in order]


def test_equal_distances_come_in_the_order_of_the_records(tmp_path):
    # Blocks of copies over several parts: each part's product may round in its own way.
    features = np.repeat(cloud(seed=3, count=5), 5, axis=0)
    run = write(tmp_path / "run", {"feature": features})
    for metric in ("cosine", "l2"):
        found = run.neighbors(cloud(seed=4, count=8), k=7, metric=metric)
        distances = expected(cloud(seed=3, count=5), cloud(seed=4, count=8), metric)
        blocks = np.argsort(distances, axis=1)
        order = [5 * block[0] + n for block in blocks for n in range(5)]
        rows = np.array(found["index"].to_pylist()).reshape(8, 7)
        assert rows[:, :5].ravel().tolist() == index_of(np.array(order)).tolist()
        assert rows[:, 5:].tolist() == index_of(5 * blocks[:, 1:2] + [0, 1]).tolist()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_copies_of_a_record_far_from_the_origin_are_at_zero(tmp_path, metric):
    features = cloud() + 1000
    features[[3, 9, 20]] = features[3]
    run = write(tmp_path / "run", {"feature": features})
    found = run.neighbors("003.png", k=3, metric=metric)
    assert found["index"].to_pylist()[:2] == [index_of(9), index_of(20)]
    assert found["distance"].to_pylist()[:2] == [0, 0]
    assert found["distance"].to_pylist()[2] > 0


def test_a_zero_vector_is_at_one_from_all_by_the_cosine(tmp_path):
    features = cloud()
    features[2] = 0
    run = write(tmp_path / "run", {"feature": features})
    assert run.neighbors("002.png", k=ROWS)["distance"].to_pylist() == [1] * (ROWS - 1)
    found = run.neighbors(-features[5], k=ROWS)
    assert found["distance"][-1].as_py() == pytest.approx(2)


def test_features_that_are_not_finite_are_the_farthest(tmp_path):
    features = cloud()
    features[0, 0], features[9, 1] = np.nan, np.inf
    run = write(tmp_path / "run", {"feature": features})
    for metric in ("cosine", "l2"):
        with np.errstate(invalid="ignore"):
            found = run.neighbors(features[4], k=ROWS, metric=metric)["index"].to_pylist()
        assert set(found[-2:]) == {index_of(0), index_of(9)}
        assert found[0] == index_of(4)


def test_more_queries_than_fit_at_once(run, monkeypatch):
    from ray_embed.analysis import neighbors

    queries = cloud(seed=5, count=50)
    at_once = run.neighbors(queries, k=4)
    monkeypatch.setattr(neighbors, "_DISTANCES_AT_ONCE", 40)
    assert run.neighbors(queries, k=4) == at_once


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_wide_features_are_taken_a_few_records_at_a_time(run, monkeypatch, metric):
    from ray_embed.analysis import neighbors

    queries = cloud(seed=1, count=5)
    whole = run.neighbors(queries, 7, metric)
    monkeypatch.setattr(neighbors, "_WIDE", DIMENSION - 1)
    monkeypatch.setattr(neighbors, "_BLOCK_NUMBERS", 3 * DIMENSION)
    found = run.neighbors(queries, 7, metric)
    assert found.drop_columns("distance").equals(whole.drop_columns("distance"))
    assert np.allclose(found["distance"], whole["distance"], atol=1e-6)


def test_layers(tmp_path):
    columns = {"feature_early": cloud(), "feature_late": cloud(seed=6)[:, :4]}
    run = write(tmp_path / "run", columns)
    for layer, features in (("early", cloud()), ("late", cloud(seed=6)[:, :4])):
        found = run.neighbors("004.png", k=ROWS, metric="l2", layer=layer)
        order = np.argsort(expected(features, features[4], "l2")[0], kind="stable")
        assert found["index"].to_pylist() == [index_of(int(row)) for row in order if row != 4]
    with pytest.raises(package.InputError, match=r"early.*late"):
        run.neighbors("004.png")


# --- keys ----------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path):
    """A key in two splits, one twice in a split, and one that looks like another's with its split.

    In `valid`: both.png, twice.png twice, test/odd.png; in `test`: both.png, odd.png.
    """
    keys = ["both.png", "twice.png", "twice.png", "test/odd.png", "both.png", "odd.png"]
    splits = ["valid"] * 4 + ["test"] * 2
    return write(
        tmp_path / "shared", {"feature": cloud(count=6)}, sizes=(3, 3), keys=keys, splits=splits
    )


@pytest.mark.parametrize(
    ("key", "row"),
    [("valid/both.png", 0), ("test/both.png", 4), ("test/odd.png", 3), ("odd.png", 5)],
)
def test_the_split_tells_keys_apart_and_a_whole_key_goes_first(shared, key, row):
    found = shared.neighbors(key, k=10)
    assert sorted(found["index"].to_pylist()) == [index_of(n) for n in range(6) if n != row]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("both.png", r"'both.png' is in 2 splits; give 'valid/both.png' or 'test/both.png'"),
        ("twice.png", r"'twice.png' is that of 2 records; give the features of one"),
        ("valid/twice.png", r"'valid/twice.png' is that of 2 records"),
        ("valid/odd.png", r"no embedded record has the key 'valid/odd.png'"),
        ("", r"no embedded record has the key ''"),
    ],
)
def test_keys_that_are_not_of_one_record(shared, key, said):
    with pytest.raises(package.InputError, match=said):
        shared.neighbors(key)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_neighbors_of_one_split(run, split):
    features, of_split = cloud(), range(ROWS // 2) if split == "valid" else range(ROWS // 2, ROWS)
    for query, own in (("000.png", 0), (cloud(seed=1, count=3), None)):
        points = features[:1] if own == 0 else query
        others = np.array([row for row in of_split if row != own])
        nearest = np.argsort(expected(features[others], points, "cosine"), axis=1)[:, :4]
        found = run.neighbors(query, k=4, split=split)
        assert set(found["split"].to_pylist()) == {split}
        assert found["index"].to_pylist() == index_of(others[nearest].ravel()).tolist()


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 0}, r"k is 0"),
        ({"k": -1}, r"k is -1"),
        ({"metric": "dot"}, r"metric is 'dot'; it must be cosine or l2"),
        ({"query": np.zeros(DIMENSION + 1)}, r"has 7 dimensions, and the features of .* have 6"),
        ({"query": np.zeros((2, DIMENSION - 1))}, r"has 5 dimensions"),
        ({"query": np.zeros((1, 2, DIMENSION))}, r"\(D,\) or \(n, D\)"),
        ({"query": 1.0}, r"\(D,\) or \(n, D\)"),
        ({"query": ["000.png", "001.png"]}, r"\(D,\) or \(n, D\)"),
        ({"query": np.full(DIMENSION, np.nan)}, r"not finite"),
        ({"query": "nobody.png"}, r"'nobody.png'"),
        ({"layer": "late"}, r"no layer 'late'"),
        ({"split": "train"}, r"no record has the split 'train'; the splits are valid, test"),
    ],
)
def test_what_does_not_fit(run, arguments, said):
    with pytest.raises(package.InputError, match=said):
        run.neighbors(**{"query": "000.png", **arguments})


def test_a_run_without_parts(tmp_path):
    run = write(tmp_path / "run", {"feature": cloud()[:0]}, sizes=())
    with pytest.raises(package.InputError, match="no shard is finished yet"):
        run.neighbors("000.png")


def test_a_run_with_parts_and_no_records(tmp_path):
    labels = pa.array([], pa.int64())
    run = write(tmp_path / "run", {"feature": cloud()[:0]}, sizes=(0, 0), labels=labels)
    assert run.neighbors(cloud()[0]).num_rows == 0


def test_a_damaged_part_is_named(run):
    part = sorted((Path(run.path) / "features").iterdir())[4]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    with pytest.raises(package.RunError, match=part.name):
        run.neighbors("000.png")


def test_neither_tensorflow_nor_ray_is_imported(run):
    code = (
        f"import sys, ray_embed; print(ray_embed.load({run.path!r}).neighbors('000.png').num_rows)"
        "\nprint(sorted({'tensorflow', 'ray', 'keras', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["10", "[]"], done.stderr
