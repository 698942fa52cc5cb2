# SPDX-License-Identifier: Apache-2.0
"""The same images give the same features, in whatever type of source they lie."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support import object_store
from support.containers import write_tar
from support.pictures import make_folder
from support.sample_runs import save_encoder

import ray_embed

OPTIONS = {"shard_size": 8, "batch_size": 4, "actors": 1, "cpus_per_actor": 1}
COUNTS = {"cat": 12, "dog": 9}


def write_parquet_files(paths: list[Path], folder: Path) -> None:
    """Write two files whose row groups do not fit the shards."""
    for number, part in enumerate((paths[:10], paths[10:])):
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in part]
        table = pa.table({"image": images, "label": [path.parent.name for path in part]})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=3)


def write_tars(paths: list[Path], folder: Path) -> None:
    for number, part in enumerate((paths[:10], paths[10:])):
        samples = [
            (
                f"{path.parent.name}{path.stem}",
                {"png": path.read_bytes(), "cls": path.parent.name.encode()},
            )
            for path in part
        ]
        write_tar(folder / f"part-{number}.tar", samples)


WRITERS = {"parquet": write_parquet_files, "tar": write_tars}
PATTERNS = {"parquet": "*.parquet", "tar": "part-{0..1}.tar"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of images, an encoder, and the same images in each type of source."""
    root = tmp_path_factory.mktemp("types")
    images = make_folder(root / "images", COUNTS)
    # A record that is rejected keeps its place.
    (images / "cat" / "0003.png").write_bytes(b"no picture")
    save_encoder(root / "encoder.keras")
    for type_, write in WRITERS.items():
        (root / type_).mkdir()
        write(sorted(images.rglob("*.png")), root / type_)
    return root


def extract(data: Path, source: str, out: Path) -> ray_embed.Run:
    config = ray_embed.RunConfig(
        sources={"valid": source},
        model=str(data / "encoder.keras"),
        out=str(out),
        **OPTIONS,
    )
    return ray_embed.extract(config)


@pytest.fixture(scope="module")
def expected(data: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The features, labels and positions of the folder's images."""
    run = extract(data, str(data / "images"), tmp_path_factory.mktemp("expected") / "run")
    assert (run.rows, run.rejects) == (20, 1)
    return run.to_table().select(["index", "label", "feature"])


@pytest.mark.parametrize("type_", WRITERS)
def test_features_are_those_of_the_folder(type_, data, expected, tmp_path):
    run = extract(data, str(data / type_), tmp_path / "run")
    assert run.to_table().select(["index", "label", "feature"]).equals(expected)
    assert run.rejects_by_reason == {"not an image": 1}
    again = extract(data, str(data / type_ / PATTERNS[type_]), tmp_path / "again")
    assert again.to_table().equals(run.to_table())


@pytest.mark.parametrize("type_", WRITERS)
def test_run_is_resumed_with_the_same_bytes_and_changes_are_noticed(type_, data, tmp_path):
    source = shutil.copytree(data / type_, tmp_path / "data")
    extract(data, str(source), tmp_path / "run")
    parts = sorted((tmp_path / "run" / "features").iterdir())
    before = [part.read_bytes() for part in parts]
    assert len(parts) == 3
    parts[1].unlink()
    extract(data, str(source), tmp_path / "run")
    assert [part.read_bytes() for part in parts] == before
    parts[1].unlink()
    last = sorted(source.iterdir())[-1]
    shutil.copy(sorted(source.iterdir())[0], last)
    with pytest.raises(ray_embed.InputError, match="valid"):
        extract(data, str(source), tmp_path / "run")
    assert not parts[1].exists()


def test_sources_on_an_object_store(data, expected, bucket, ray_embed_process, tmp_path):
    sources: list[object] = []
    for type_, pattern in PATTERNS.items():
        object_store.upload(data / type_, f"{bucket}/{type_}")
        sources += ["--source", f"{type_}={bucket}/{type_}"]
        sources += ["--source", f"{type_}-files={bucket}/{type_}/{pattern}"]
    options = [word for name, n in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", n)]
    result = ray_embed_process(
        "extract", *sources, "--model", data / "encoder.keras", "--out", "run", *options
    )
    assert result.code == 0, result.err
    table = ray_embed.load(tmp_path / "run").to_table()
    for split in [name for type_ in PATTERNS for name in (type_, f"{type_}-files")]:
        rows = table.filter(pc.equal(table["split"], split))
        assert rows["label"].equals(expected["label"])
        assert rows["feature"].equals(expected["feature"])


@pytest.mark.parametrize("type_", WRITERS)
def test_preview_shows_records_of_a_container(type_, data, command):
    result = command(
        "preview", "--source", data / type_, "--model", data / "encoder.keras", "--sheet", "s.png"
    )
    assert result.code == 0, result.err
    assert "RGB files" in result.out + result.err
