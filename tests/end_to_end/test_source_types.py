# SPDX-License-Identifier: Apache-2.0
"""The same images give the same features, in whatever type of source they lie."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support import object_store
from support.containers import write_tar, write_tfrecord
from support.pictures import make_folder
from support.sample_runs import read_results, save_encoder

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


def write_tfrecords(paths: list[Path], folder: Path) -> None:
    for number, part in enumerate((paths[:10], paths[10:])):
        examples = [
            {"image/encoded": path.read_bytes(), "image/class/text": path.parent.name}
            for path in part
        ]
        write_tfrecord(folder / f"part-{number}.tfrecord", examples)


def save_to_disk(paths: list[Path], folder: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    labels = [path.parent.name for path in paths]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    saved = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    saved.save_to_disk(folder, num_shards=2)


WRITERS = {
    "parquet": write_parquet_files,
    "tar": write_tars,
    "tfrecord": write_tfrecords,
    "saved": save_to_disk,
}
PATTERNS = {"parquet": "*.parquet", "tar": "part-{0..1}.tar", "tfrecord": "*.tfrecord"}


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


def name_sources(root: str | Path) -> dict[str, str]:
    """Return the folder and the pattern of each type of source, by split."""
    folders = {type_: f"{root}/{type_}" for type_ in WRITERS}
    return folders | {f"{type_}-files": f"{root}/{type_}/{p}" for type_, p in PATTERNS.items()}


def name_datasets(data: Path) -> dict[str, Any]:
    """Return a stream of files, a dataset of Hugging Face, and folders that its library loads."""

    def read_files() -> Iterator[tuple[bytes, str]]:
        for path in sorted((data / "images").rglob("*.png")):
            yield path.read_bytes(), path.parent.name

    return {
        "stream": read_files,
        "object": datasets.load_from_disk(data / "saved"),
        "hf-images": f"hf:{data}/images",
        "hf-parquet": f"hf:{data}/parquet",
    }


def extract(data: Path, sources: dict[str, Any], out: Path) -> ray_embed.Run:
    config = ray_embed.RunConfig(
        sources=sources, model=str(data / "encoder.keras"), out=str(out), **OPTIONS
    )
    return ray_embed.extract(config)


def make_arguments(data: Path, sources: dict[str, str], out: str, **options: int) -> list[str]:
    """Return the arguments of the command line."""
    words = ["extract", "--model", str(data / "encoder.keras"), "--out", out]
    for split, source in sources.items():
        words += ["--source", f"{split}={source}"]
    for name, value in (OPTIONS | options).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def assert_all_splits_are_the_same(run: ray_embed.Run, splits: Iterable[str]) -> None:
    table = run.to_table()
    expected = table.filter(pc.equal(table["split"], "images"))
    assert expected.num_rows == 20
    for split in splits:
        rows = table.filter(pc.equal(table["split"], split))
        assert rows["label"].equals(expected["label"]), split
        assert rows["feature"].equals(expected["feature"]), split


def test_features_are_those_of_the_folder(data, ray_session, tmp_path):
    sources = {"images": str(data / "images")} | name_sources(data) | name_datasets(data)
    run = extract(data, sources, tmp_path / "run")
    assert_all_splits_are_the_same(run, sources)
    assert run.rejects_by_reason == {"not an image": len(sources)}


def test_run_is_resumed_with_the_same_bytes_and_changes_are_noticed(data, ray_session, tmp_path):
    copied = shutil.copytree(data, tmp_path / "data")
    sources = {type_: str(copied / type_) for type_ in WRITERS}
    extract(data, sources, tmp_path / "run")
    parts = sorted((tmp_path / "run" / "features").iterdir())
    before = [part.read_bytes() for part in parts]
    assert len(parts) == 3 * len(WRITERS)
    for part in parts[1::3]:
        part.unlink()
    extract(data, sources, tmp_path / "run")
    assert [part.read_bytes() for part in parts] == before
    parts[1].unlink()
    for type_ in PATTERNS:
        first, last = sorted((copied / type_).iterdir())
        last.rename(tmp_path / "kept")
        shutil.copy(first, last)
        with pytest.raises(ray_embed.InputError, match=type_):
            extract(data, sources, tmp_path / "run")
        (tmp_path / "kept").rename(last)
    assert not parts[1].exists()


@pytest.mark.slow
def test_killed_run_is_resumed_with_the_same_bytes(data, ray_embed_process, tmp_path):
    sources = {"images": str(data / "images")} | name_sources(data)
    arguments = make_arguments(data, sources, "run", shard_size=2)
    process = subprocess.Popen([sys.executable, "-m", "ray_embed", *arguments], cwd=tmp_path)
    # Ctrl-C of the tests must not leave it behind.
    try:
        while not list((tmp_path / "run" / "features").glob("*.parquet")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    finished = len(list((tmp_path / "run" / "features").glob("*.parquet")))
    assert 0 < finished < 11 * len(sources)
    assert ray_embed_process(*arguments).code == 0
    whole = make_arguments(data, sources, "whole", shard_size=2)
    assert ray_embed_process(*whole).code == 0
    assert read_results(tmp_path / "run") == read_results(tmp_path / "whole")


@pytest.mark.slow
def test_sources_on_an_object_store(data, bucket, ray_embed_process, tmp_path):
    object_store.upload(data, f"{bucket}/data")
    sources = {"images": f"{bucket}/data/images"} | name_sources(f"{bucket}/data")
    result = ray_embed_process(*make_arguments(data, sources, "run"))
    assert result.code == 0, result.err
    assert_all_splits_are_the_same(ray_embed.load(tmp_path / "run"), sources)


def test_preview_shows_records_of_a_container(data, command):
    result = command(
        "preview", "--source", data / "tar", "--model", data / "encoder.keras", "--sheet", "s.png"
    )
    assert result.code == 0, result.err
    assert "RGB files" in result.out + result.err
