# SPDX-License-Identifier: Apache-2.0
"""Saved views of the projector: each point has its coordinates, and they outlast a new `reduce`."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.projector_page import parse_metadata
from support.synthetic_runs import clusters, make_run

import ray_embed as package
from ray_embed.analysis.plotting import plot as plot_module
from ray_embed.analysis.plotting import projections
from ray_embed.analysis.plotting.plot import plot
from ray_embed.projector import bookmarks
from ray_embed.storage.filesystem import Folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # UMAP takes half a minute to be compiled.
    monkeypatch.setattr(projections, "has_umap", lambda: True)
    monkeypatch.setattr(projections, "run_umap", lambda points, size: points[:, :size] * 2)
    # Pictures take most of the time, and are not what this is about.
    monkeypatch.setattr(plot_module._FigureWriter, "draw", lambda *_: None)


def make(path, *, records=80, dimensions=16, **options):
    features, codes = clusters(3, records, dimensions)
    make_run(path, {"gap": features}, [f"class {code}" for code in codes], **options)
    return features


def config(run):
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    text = (run / "projector" / "projector_config.pbtxt").read_text()
    return text_format.Parse(text, ProjectorConfig())


def read_bookmarks(run):
    return json.loads((run / "projector" / config(run).embeddings[0].bookmarks_path).read_text())


def labels(run):
    return [view["label"] for view in read_bookmarks(run)]


def compute_components(features, count):
    """Return the first principal components of features, up to their signs."""
    centered = features - features.mean(axis=0, dtype=np.float64)
    return np.abs(centered @ np.linalg.svd(centered, full_matrices=False)[2][:count].T)


def coordinates(view, name, axes):
    return np.array([[point[f"{name}-{axis}"] for axis in range(axes)] for point in view])


def test_each_view_has_the_coordinates_of_each_point(tmp_path):
    features = make(tmp_path / "run")
    package.reduce(str(tmp_path / "run"))
    assert labels(tmp_path / "run") == ["PCA"]
    said = []
    plot(str(tmp_path / "run"), None, said.append)
    assert any("saved views for the page: PCA, t-SNE, UMAP" in line for line in said)
    found = read_bookmarks(tmp_path / "run")
    assert [view["label"] for view in found] == ["PCA", "t-SNE", "UMAP"]
    assert [view["selectedProjection"] for view in found] == ["pca", "tsne", "umap"]
    kept = pq.read_table(tmp_path / "run" / "maps" / "feature.parquet")
    exact = compute_components(features, 10)
    for view in found:
        assert view["dataSetDimensions"] == [80, 16]
        assert view["selectedColorOptionName"] == view["selectedLabelOption"] == "label"
        # The page forgets what is not in a view.
        points = view["projections"]
        assert np.abs(coordinates(points, "pca", 10)) == pytest.approx(exact, rel=1e-3, abs=1e-4)
        tsne = np.stack(kept["tsne"].to_pylist()) * 1e6
        assert coordinates(points, "tsne", 3) == pytest.approx(tsne, rel=1e-4)
        umap = np.stack(kept["umap"].to_pylist())
        assert coordinates(points, "umap", 3) == pytest.approx(umap, rel=1e-4)


def test_views_outlast_a_new_reduce_but_not_other_points(tmp_path):
    run = tmp_path / "run"
    make(run)
    plot(str(run), None, print)
    assert not (run / "projector").exists()
    package.reduce(str(run))
    once = read_bookmarks(run)
    assert len(once) == 3
    package.reduce(str(run))
    assert read_bookmarks(run) == once
    assert not [path for path in (run / "projector").iterdir() if path.name.startswith(".")]
    package.reduce(str(run), limit=50)
    assert labels(run) == ["PCA"]
    kept = pq.read_table(run / "maps" / "feature.parquet")
    other = kept.replace_schema_metadata({"ray_embed.fingerprint": "of another run"})
    pq.write_table(other, run / "maps" / "feature.parquet")
    package.reduce(str(run))
    assert labels(run) == ["PCA"]


def test_a_sample_has_views_of_its_own_points(tmp_path):
    run = tmp_path / "run"
    make(run, limit=40)
    package.reduce(str(run))
    plot(str(run), None, print)
    shown = [one.tensor_name for one in config(run).embeddings if one.metadata_path]
    assert [name.split("/")[0] for name in shown] == ["sample", "sample_pca"]
    names, points = parse_metadata((run / "projector" / "sample.tsv").read_bytes())
    index = [int(point[names.index("index")]) for point in points]
    assert pq.read_table(run / "maps" / "feature.parquet")["index"].to_pylist() == index
    assert len(read_bookmarks(run)[0]["projections"]) == 40


def test_many_points_have_the_view_of_the_exact_pca_alone(tmp_path, monkeypatch):
    run = tmp_path / "run"
    features = make(run, records=240)
    monkeypatch.setattr(bookmarks, "MAX_TSNE_POINTS", 200)
    said = []
    plot(str(run), None, said.append)
    assert any("it shows 240 points, more than 200" in line for line in said)
    package.reduce(str(run))
    (view,) = read_bookmarks(run)
    points = np.abs(coordinates(view["projections"], "pca", 10))
    assert points == pytest.approx(compute_components(features, 10), rel=1e-3, abs=1e-4)
    assert set(view["projections"][0]) == {f"pca-{axis}" for axis in range(10)}


def test_the_components_as_a_tensor_have_the_same_views(tmp_path):
    run = tmp_path / "run"
    make(run, records=120, dimensions=64, limit=70)
    package.reduce(str(run))
    paths = {one.tensor_name.split("/")[0]: one.bookmarks_path for one in config(run).embeddings}
    assert paths == {"sample": "bookmarks.json", "sample_pca": "bookmarks.json"}


def test_several_layers_have_a_file_each(tmp_path):
    run = tmp_path / "run"
    features, codes = clusters(3, 60)
    make_run(run, {"early": features[:, :2], "late": features}, list(codes))
    plot(str(run), "early", print)
    plot(str(run), "late", print)
    package.reduce(str(run))
    paths = {one.tensor_name.split("/")[0]: one.bookmarks_path for one in config(run).embeddings}
    assert paths == {
        "embedding_early": "bookmarks_early.json",
        # Of two dimensions there is one with a third.
        "pca_early": "bookmarks_early.json",
        "embedding_late": "bookmarks_late.json",
        "pca_late": "bookmarks_late.json",
    }
    early = json.loads((run / "projector" / "bookmarks_early.json").read_text())
    assert early[0]["pcaComponentDimensions"] == [0, 1]


@pytest.mark.slow
def test_an_object_store_has_views_too(bucket):
    run = f"{bucket}/run"
    features, codes = clusters(3, 60)
    make_run(run, {"gap": features}, list(codes))
    package.reduce(str(run))
    plot(run, None, print)
    folder = Folder.open(f"{run}/projector")
    before = folder.read("bookmarks.json")
    assert b"bookmarks_path" in folder.read("projector_config.pbtxt")
    package.reduce(str(run))
    assert folder.read("bookmarks.json") == before


def test_the_page_colors_by_labels_where_it_can():
    points = {"pca": np.zeros((60, 3), np.float32)}
    for labels, named in (
        ([b"%d" % (at % 50) for at in range(60)], "label"),
        ([b"%d" % at for at in range(60)], "label"),
        ([b"n%d" % at for at in range(60)], "No color map"),
    ):
        (view,) = json.loads(bookmarks.format_views(points, 3, labels))
        assert view["selectedColorOptionName"] == named
