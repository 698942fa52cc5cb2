# SPDX-License-Identifier: Apache-2.0
"""The exact PCA of a run is that of scikit-learn, in files that any tool can read."""

import shutil
import subprocess
import sys
from functools import partial

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import PCA
from support.merge_actors import start_merge_actor
from support.sample_runs import contents, copy, part_files, read_parts
from support.synthetic_runs import make_run

import ray_embed as package
from ray_embed.analysis.plotting.components import load_or_compute_components
from ray_embed.core.threads import limit_blas_to_one_thread
from ray_embed.errors import InputError, RunError
from ray_embed.projector import covariance, pca, reduce, wide_pca
from ray_embed.runs import sampling
from ray_embed.storage.filesystem import Folder


def points(count, size, offset=0.0, seed=0):
    """Make points whose components are well apart, each about half as wide as the one before."""
    random = np.random.default_rng(seed)
    wide = 2.0 ** -np.arange(size).clip(0, 20)
    turned = np.linalg.qr(random.normal(size=(size, size)))[0]
    spread = random.normal(size=(count, size)) * wide
    return (spread @ turned * 100 + offset).astype(np.float32)


def assert_as_sklearn(run, values, layer=None, kept=50):
    """Compare with scikit-learn's own PCA of all points, in float64."""
    found = PCA(svd_solver="full").fit(values.astype(np.float64))
    expected = found.transform(values.astype(np.float64))[:, :kept]
    coordinates = package.load(str(run)).to_pca(layer)
    assert coordinates.dtype == np.float32
    assert coordinates.shape == expected.shape
    signs = np.sign((coordinates.astype(np.float64) * expected).sum(axis=0))
    largest = np.abs(expected).max()
    np.testing.assert_allclose(coordinates * signs, expected, atol=1e-4 * largest, rtol=0)
    assert np.abs(coordinates).max() > 0
    ratios = package.load(str(run)).explained_variance(layer)
    assert ratios.shape == (values.shape[1],)
    count = len(found.explained_variance_ratio_)
    np.testing.assert_allclose(ratios[:count], found.explained_variance_ratio_, atol=1e-6)
    assert not ratios[count:].any()
    assert ratios.sum() == pytest.approx(1)


def tensors(run):
    """Return the two-dimensional tensors of the checkpoint, and those of the configuration."""
    import tensorflow as tf
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    reader = tf.train.load_checkpoint(str(run / "projector"))
    shapes = reader.get_variable_to_shape_map()
    named = {
        name.removesuffix(end): reader.get_tensor(name)
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    settings = ProjectorConfig()
    text_format.Parse((run / "projector" / "projector_config.pbtxt").read_text(), settings)
    return named, [one.tensor_name.removesuffix(end) for one in settings.embeddings], settings


def written(run):
    """Read the files that `reduce` writes."""
    return {
        name: content
        for name, content in contents(run).items()
        if name.split("/")[0] in ("pca", "pca.parquet", "projector")
    }


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_it_is_what_scikit_learn_gives(tmp_path, offset):
    values = points(5000, 96, offset)
    run = make_run(tmp_path / "run", {"top": values}, shard=512)
    package.reduce(str(run))
    assert_as_sklearn(run, values)


def test_rejected_records_are_left_out(tmp_path):
    values = points(300, 9)
    gone = [*range(64, 128), 200, 201]
    run = make_run(tmp_path / "run", {"top": values}, rejected=gone)
    package.reduce(str(run))
    assert_as_sklearn(run, np.delete(values, gone, axis=0), kept=9)
    assert [pq.read_metadata(part).num_rows for part in part_files(run, "pca")] == [
        *(64, 0, 64, 62, 44),
    ]


def test_each_layer_has_its_own(tmp_path):
    layers = {"early": points(200, 60, seed=1), "late": points(200, 5, 7.0, seed=2)}
    run = make_run(tmp_path / "run", layers)
    package.reduce(str(run))
    assert_as_sklearn(run, layers["early"], "early")
    assert_as_sklearn(run, layers["late"], "late", kept=5)
    part = pq.read_schema(part_files(run, "pca")[0])
    assert part.names == ["index", "pca_early", "pca_late"]
    table = pq.read_table(run / "pca.parquet")
    assert table["layer"].to_pylist() == ["early"] * 61 + ["late"] * 6
    with pytest.raises(InputError, match="several layers"):
        package.load(str(run)).to_pca()


def odd(name):
    random = np.random.default_rng(0)
    some = random.normal(size=(40, 6)).astype(np.float32) + 1000
    return {
        "constant dimensions": np.hstack([some, np.full((40, 3), 0.1, np.float32)]),
        "duplicates": np.repeat(some[:7], 5, axis=0),
        "fewer points than dimensions": random.normal(size=(9, 70)).astype(np.float32),
        "two points": random.normal(size=(2, 60)).astype(np.float32) + 3,
        "one dimension": some[:, :1],
        "one dimension twice": some[:, [0, 0]],
    }[name]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("constant dimensions", 9),
        ("duplicates", 6),
        ("fewer points than dimensions", 8),
        ("two points", 1),
        ("one dimension", 1),
        ("one dimension twice", 2),
    ],
)
def test_odd_points(tmp_path, name, kept):
    values = odd(name)
    run = make_run(tmp_path / "run", {"top": values}, shard=8)
    package.reduce(str(run))
    assert_as_sklearn(run, values, kept=kept)


@pytest.mark.parametrize("shape", [(1, 60), (1, 1), (30, 60), (30, 1)])
def test_points_that_are_all_the_same_have_no_variance(tmp_path, shape):
    values = np.tile(np.float32(0.1) + np.arange(shape[1], dtype=np.float32) / 7, (shape[0], 1))
    run = package.load(str(make_run(tmp_path / "run", {"top": values}, shard=7)))
    package.reduce(run.path)
    assert not run.explained_variance().any()
    assert run.explained_variance().shape == (shape[1],)
    coordinates = run.to_pca()
    assert coordinates.shape == (shape[0], max(1, min(shape[0] - 1, shape[1])))
    assert not coordinates.any()


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_tiny_and_huge_numbers(tmp_path, factor):
    values = points(100, 8) * np.float32(factor)
    run = make_run(tmp_path / "run", {"top": values})
    package.reduce(str(run))
    assert_as_sklearn(run, values, kept=8)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named_and_nothing_is_written(tmp_path, ray_embed, number):
    values = points(300, 8)
    values[200, 3] = number
    run = make_run(tmp_path / "run", {"top": values})
    result = ray_embed("reduce", run)
    assert result.code == 2
    assert "features/part-00000003.parquet: it holds numbers that are not finite" in result.err
    assert "Traceback" not in result.err
    assert not written(run)


# --- the files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("pca")
    values = points(500, 60, 50.0)
    path = make_run(root / "run", {"top": values}, rejected=[3, *range(64, 128)])
    package.reduce(str(path))
    return path


def test_parts_are_read_by_others_and_joined_by_index(run):
    features, coordinates = read_parts(run), read_parts(run, "pca")
    assert coordinates["index"].equals(features["index"])
    assert coordinates.schema.field("pca").type == pa.list_(pa.float32(), 50)
    assert coordinates.schema.field("index").type == pa.int64()
    expected = package.load(str(run)).to_pca()
    frame = pd.read_parquet(run / "pca")
    assert np.stack(frame["pca"]).tobytes() == expected.tobytes()
    joined = duckdb.sql(
        f"select label, count(*), avg(pca[1]) from '{run}/features/*.parquet' "
        f"join '{run}/pca/*.parquet' using (index) group by label order by label"
    ).fetchall()
    labels = np.array(features["label"].to_pylist())
    for label, count, mean in joined:
        assert count == (labels == label).sum()
        assert mean == pytest.approx(expected[labels == label, 0].mean(dtype=float), rel=1e-4)
    assert len(joined) == 7


def test_footers_and_schemas_are_those_of_the_features(run):
    first = pq.read_schema(part_files(run, "pca")[0]).remove_metadata()
    assert len(part_files(run, "pca")) == len(part_files(run)) == 8
    for made, part in zip(part_files(run, "pca"), part_files(run), strict=True):
        assert made.name == part.name
        assert pq.read_schema(made).metadata == pq.read_schema(part).metadata
        assert pq.read_schema(made).remove_metadata() == first
        assert pq.read_metadata(made).num_rows == pq.read_metadata(part).num_rows


def test_components_are_in_a_file_of_their_own(run):
    table = pq.read_table(run / "pca.parquet")
    assert table.column_names == ["layer", "component", "variance", "ratio", "vector"]
    assert table["component"].to_pylist() == list(range(61))
    assert set(table["layer"].to_pylist()) == {"top"}
    rows = table.to_pylist()
    assert rows[0]["variance"] is None
    assert [row["vector"] is None for row in rows] == [False] * 51 + [True] * 10
    values = np.stack(read_parts(run)["feature"].to_numpy())
    np.testing.assert_allclose(rows[0]["vector"], values.mean(axis=0, dtype=float), rtol=1e-12)
    # Anybody can project with it.
    vectors = np.array([row["vector"] for row in rows[1:51]])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(50), atol=1e-9)
    assert (vectors[np.arange(50), np.abs(vectors).argmax(axis=1)] > 0).all()
    np.testing.assert_allclose(
        (values - rows[0]["vector"]) @ vectors.T, package.load(str(run)).to_pca(), atol=1e-4
    )
    found = pca.load(Folder.open(str(run)), "feature")
    assert found.vectors.tobytes() == vectors.tobytes()
    assert found.ratios.tolist() == [row["ratio"] for row in rows[1:]]
    assert found.variances.tolist() == [row["variance"] for row in rows[1:]]
    expected = PCA(svd_solver="full").fit(values.astype(np.float64)).explained_variance_
    np.testing.assert_allclose(found.variances, expected, rtol=1e-4, atol=1e-6 * expected[0])


def test_reading_needs_neither_tensorflow_nor_ray(run):
    code = (
        "import sys, ray_embed; run = ray_embed.load(sys.argv[1]); run.to_pca();"
        "run.explained_variance(); print(sorted({'ray', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    assert package.load(str(run)).pca_path == f"{run}/pca"


def test_what_is_missing_is_said(run, tmp_path):
    other = copy(run, tmp_path / "run")
    part_files(other, "pca")[2].unlink()
    with pytest.raises(InputError, match="ray-embed reduce"):
        package.load(str(other)).to_pca()
    content = bytearray((other / "pca.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (other / "pca.parquet").write_bytes(content)
    with pytest.raises(RunError, match=r"pca\.parquet: damaged"):
        package.load(str(other)).explained_variance()
    (other / "pca.parquet").unlink()
    with pytest.raises(InputError, match="ray-embed reduce"):
        package.load(str(other)).explained_variance()
    package.reduce(str(other))
    assert written(other) == written(run)


# --- the same bytes ------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    """Make each part a block and a piece."""
    monkeypatch.setattr(reduce, "_GROUP_BYTES", 1)
    monkeypatch.setattr(covariance, "_FEATURE_BYTES_PER_RESULT_BYTE", 0)


def test_any_number_of_threads_gives_the_same_bytes(tmp_path, small_blocks):
    path = make_run(tmp_path / "run", {"top": points(3000, 130, 9.0)}, shard=100)
    found = []
    for threads in (1, 2, 3):
        shutil.rmtree(path / "pca", ignore_errors=True)
        package.reduce(str(path), None, threads)
        found.append(written(path))
    assert found[0] == found[1] == found[2]
    assert len([name for name in found[0] if name.startswith("pca/")]) == 30


def test_any_order_of_completion_gives_the_same_bytes(tmp_path, small_blocks):
    path = make_run(tmp_path / "run", {"top": points(1000, 60, 9.0)}, shard=50)
    package.reduce(str(path))
    expected = written(path)
    shutil.rmtree(path / "pca")
    seen = []

    def shuffled(function, items):
        """Do all items in another order, and give what came of them in theirs."""
        items = list(items)
        order = np.random.default_rng(0).permutation(len(items))
        made = {}
        for at in order:
            seen.append(at)
            made[at] = function(items[at])
        return (made[at] for at in range(len(items)))

    reduce.merge(str(path), remote_map=shuffled)
    assert seen != sorted(seen)
    assert len(seen) == 40
    assert written(path) == expected


def test_blocks_follow_from_points_and_dimensions(tmp_path, monkeypatch):
    # 60 rows of 60 dimensions are as many bytes of features as half of their products.
    monkeypatch.setattr(reduce, "_GROUP_BYTES", 1)
    path = make_run(tmp_path / "run", {"top": points(1000, 60)}, shard=60)
    blocks = []

    def noting(function, items):
        for item in items:
            if isinstance(item, covariance.Block):
                blocks.append(item.parts)
            yield function(item)

    reduce.merge(str(path), remote_map=noting)
    assert blocks == [tuple(range(8)), tuple(range(8, 16)), (16,)]


def test_products_are_computed_by_one_thread_and_the_setting_is_left_as_it_was():
    from threadpoolctl import threadpool_info

    def threads():
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    before = threads()
    with limit_blas_to_one_thread():
        with limit_blas_to_one_thread():
            assert set(threads()) == {1}
        assert set(threads()) == {1}
    assert threads() == before
    assert len(before) >= 1


def test_an_interrupted_reduction_is_repeated(run, tmp_path, monkeypatch, small_blocks):
    whole = make_run(tmp_path / "whole", {"top": points(500, 60, 50.0)})
    package.reduce(str(whole))
    path = make_run(tmp_path / "run", {"top": points(500, 60, 50.0)})

    def stopping(function, items):
        for item in items:
            if not isinstance(item, covariance.Block) and 4 in item.group.parts:
                raise KeyboardInterrupt
            yield function(item)

    with pytest.raises(KeyboardInterrupt):
        reduce.merge(str(path), remote_map=stopping)
    assert 0 < len(part_files(path, "pca")) < 8
    with pytest.raises(InputError, match="ray-embed reduce"):
        package.load(str(path)).to_pca()
    package.reduce(str(path))
    assert written(path) == written(whole)
    assert not [name for name in contents(path) if name.startswith(".tmp")]


def test_parts_of_shards_that_are_no_more_are_deleted(run, tmp_path):
    path = copy(run, tmp_path / "run")
    shutil.copy(part_files(path, "pca")[0], path / "pca" / "part-00000099.parquet")
    package.reduce(str(path))
    assert written(path) == written(run)


# --- the projector -------------------------------------------------------------------------------


def sphered(coordinates):
    """Cut to 49, with rows of length one."""
    rows = coordinates[:, :49].astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_page_gets_49_coordinates_after_the_features(run):
    named, listed, settings = tensors(run)
    assert listed == ["embedding", "pca"]
    assert set(named) == {"embedding", "pca"}
    assert np.allclose(named["pca"], sphered(package.load(str(run)).to_pca()), atol=1e-6)
    first, second = settings.embeddings
    assert first.metadata_path == second.metadata_path == "metadata.tsv"
    assert first.sprite == second.sprite
    assert second.sprite.image_path == "sprite.png"


def test_of_a_sample_the_page_gets_their_coordinates(run, tmp_path):
    path = copy(run, tmp_path / "run")
    package.reduce(str(path), 100)
    named, listed, settings = tensors(path)
    assert listed == ["sample", "sample_pca"]
    assert set(named) == {"embedding", "sample", "sample_pca"}
    assert {one.metadata_path for one in settings.embeddings} == {"sample.tsv"}
    lines = (path / "projector" / "sample.tsv").read_text().splitlines()[1:]
    drawn = [int(line.split("\t")[3]) for line in lines]
    index = read_parts(path)["index"].to_pylist()
    rows = [index.index(at) for at in drawn]
    expected = sphered(package.load(str(path)).to_pca()[rows])
    assert np.allclose(named["sample_pca"], expected, atol=1e-6)
    assert len(rows) == 100
    # The coordinates are of all points all the same, and a changed mind leaves nothing behind.
    assert contents(path / "pca") == contents(run / "pca")
    package.reduce(str(path))
    assert written(path) == written(run)


@pytest.mark.parametrize(
    ("shape", "expected"),
    # Of two the page would show nothing, so there is a third.
    [
        ((80, 3), 3),
        ((80, 49), 49),
        ((80, 50), 49),
        ((20, 60), 19),
        ((3, 60), 3),
        ((2, 60), None),
        ((80, 2), 3),
        ((80, 1), None),
    ],
)
def test_fewer_dimensions_the_page_takes_as_they_are(tmp_path, shape, expected):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = make_run(tmp_path / "run", {"top": values})
    package.reduce(str(path))
    named, listed, _ = tensors(path)
    wanted = {"embedding": shape} | ({} if expected is None else {"pca": (shape[0], expected)})
    assert {name: value.shape for name, value in named.items()} == wanted
    assert set(listed) == set(wanted)
    if shape == (80, 2):
        assert np.array_equal(named["pca"][:, :2], package.load(str(path)).to_pca())
        assert not named["pca"][:, 2].any()
    elif expected and shape[0] > 3:
        lengths = np.linalg.norm(named["pca"], axis=1)
        assert lengths == pytest.approx(np.ones(len(lengths)), abs=1e-6)


def test_a_layer_that_is_called_as_coordinates_are(tmp_path):
    layers = {"pca_x": points(60, 70, seed=1), "x": points(60, 80, seed=2)}
    path = make_run(tmp_path / "run", layers)
    package.reduce(str(path), 40)
    named, _, _ = tensors(path)
    assert {name: value.shape for name, value in named.items()} == {
        "embedding_pca_x": (60, 70),
        "embedding_x": (60, 80),
        "sample_pca_x": (40, 70),
        "sample_x": (40, 80),
        "sample_pca_pca_x": (40, 49),
    }
    assert_as_sklearn(path, layers["x"], "x")


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (4096, "pca: exact PCA of 400 dimensions, from the products of the records"),
        (100, "pca: approximate PCA of 400 dimensions (block Krylov, 4 passes); the variance of"),
    ],
)
def test_wide_features_have_components_everywhere(tmp_path, monkeypatch, most, said):
    monkeypatch.setattr(pca, "MAX_EXACT_DIMENSIONS", 399)
    monkeypatch.setattr(wide_pca, "MOST_RECORDS", most)
    values = np.random.default_rng(0).normal(size=(300, 400)) * np.arange(1, 401) ** -1.0 + 2
    path = make_run(tmp_path / "run", {"top": values.astype(np.float32)}, rejected=[3, 4])
    folder = Folder.open(str(path))
    package.reduce(str(path), 100)
    (line,) = list(reduce.describe_limits(str(path), 298, 1000))
    assert line.startswith(said)
    if most == 100:
        assert line.endswith(f"of the 50 components is within {said_error(path)} % of an exact one")
    named, listed, settings = tensors(path)
    assert listed == ["sample", "sample_pca"]
    assert named["sample_pca"].shape == (100, 49)
    assert [one.bookmarks_path for one in settings.embeddings] == ["bookmarks.json"] * 2
    coordinates = package.load(str(path)).to_pca()
    assert coordinates.shape == (298, 50)
    ratios = package.load(str(path)).explained_variance()
    np.testing.assert_allclose(
        coordinates.var(axis=0, ddof=1) / values[5:].var(axis=0, ddof=1).sum(),
        ratios[:50],
        rtol=0.05,
    )
    # A plot reads the same coordinates, where the features would not fit into memory.
    index, read = sampling.draw_components(folder, "feature", 100)
    lines = (path / "projector" / "sample.tsv").read_text().splitlines()[1:]
    assert index.tolist() == [int(line.split("\t")[3]) for line in lines]
    where = np.searchsorted(read_parts(path)["index"].to_numpy(), index)
    assert np.array_equal(read, coordinates[where])
    drawn = load_or_compute_components(folder, "feature", values[index].astype(np.float32))
    assert drawn.first_of == (None if most == 4096 else 400)
    np.testing.assert_allclose(drawn.coordinates, read, atol=1e-4)


def said_error(path):
    found = pca.load(Folder.open(str(path)), "feature")
    return f"{100 * max(found.method.residuals / found.variances):.2g}"


def test_other_processes_give_the_same_bytes(run, tmp_path, small_blocks, ray_session):
    from ray_embed.runtime import remote_map

    here, there = copy(run, tmp_path / "here"), copy(run, tmp_path / "there")
    package.reduce(str(here))
    shutil.rmtree(there / "pca")
    reduce.merge(
        str(there),
        remote_map=partial(remote_map.map_in_actors, [start_merge_actor(), start_merge_actor()]),
    )
    assert written(there) == written(here)
