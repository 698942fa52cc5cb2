# SPDX-License-Identifier: Apache-2.0
"""The same images give the same features, in whatever type of source they lie."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
import pytest
from support import object_store
from support.encoders import PROJECT
from support.sample_runs import read_results, save_encoder
from support.source_types import (
    DECODED,
    DECODED_DATASETS,
    change,
    name_datasets,
    name_files,
    write_sources,
)

import ray_embed

OPTIONS = {"shard_size": 8, "batch_size": 4, "actors": 1, "cpus_per_actor": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of images, an encoder, and the same images in each type of source."""
    root = write_sources(tmp_path_factory.mktemp("types"))
    save_encoder(root / "encoder.keras")
    return root


@pytest.fixture
def project(tmp_path: Path) -> None:
    """Put the functions of the datasets into the folder that commands are started in."""
    shutil.copy(PROJECT / "my_sources.py", tmp_path)


def name_objects(data: Path) -> dict[str, Any]:
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


def make_arguments(
    data: Path, files: dict[str, str], out: str, datasets_of: Path | None = None, **options: int
) -> list[str]:
    """Return the arguments of the command line, with the datasets of a folder of images."""
    words = ["extract", "--model", str(data / "encoder.keras"), "--out", out]
    sources = dict(files)
    if datasets_of is not None:
        named, arguments = name_datasets(datasets_of)
        sources |= named
        words += ["--source-kwargs", json.dumps(arguments)]
    for split, source in sources.items():
        words += ["--source", f"{split}={source}"]
    for name, value in (OPTIONS | options).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def kill_after_first_part(arguments: list[str], folder: Path) -> int:
    """Start a command, kill it with SIGKILL when it has written a part; return how many it has."""
    process = subprocess.Popen([sys.executable, "-m", "ray_embed", *arguments], cwd=folder)
    features = folder / "run" / "features"
    # Ctrl-C of the tests must not leave it behind.
    try:
        while not list(features.glob("*.parquet")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return len(list(features.glob("*.parquet")))


def assert_all_splits_are_the_same(run: ray_embed.Run, splits: Iterable[str]) -> None:
    table = run.to_table()
    expected = table.filter(pc.equal(table["split"], "images"))
    assert expected.num_rows == 20
    for split in splits:
        rows = table.filter(pc.equal(table["split"], split))
        assert rows["label"].equals(expected["label"]), split
        assert rows["feature"].equals(expected["feature"]), split


def test_features_are_those_of_the_folder(data, ray_session, tmp_path):
    sources = {"images": str(data / "images")} | name_files(data) | name_objects(data)
    run = extract(data, sources, tmp_path / "run")
    assert_all_splits_are_the_same(run, sources)
    assert run.rejects_by_reason == {"not an image": len(sources) - len(DECODED)}


def test_run_is_resumed_with_the_same_bytes_and_changes_are_noticed(data, ray_session, tmp_path):
    copied = shutil.copytree(data, tmp_path / "data")
    sources = name_files(copied)
    extract(data, sources, tmp_path / "run")
    parts = sorted((tmp_path / "run" / "features").iterdir())
    before = [part.read_bytes() for part in parts]
    assert len(parts) == 3 * len(sources)
    for part in parts[1::3]:
        part.unlink()
    extract(data, sources, tmp_path / "run")
    assert [part.read_bytes() for part in parts] == before
    for part in parts:
        part.unlink()
    for type_ in sources:
        kept = shutil.copytree(copied / type_, tmp_path / "kept" / type_)
        change(copied / type_)
        with pytest.raises(ray_embed.InputError, match=type_):
            extract(data, sources, tmp_path / "run")
        shutil.rmtree(copied / type_)
        shutil.copytree(kept, copied / type_)
    assert not any(part.exists() for part in parts)


@pytest.mark.slow
def test_killed_run_is_resumed_with_the_same_bytes(data, project, ray_embed_process, tmp_path):
    images = shutil.copytree(data / "images", tmp_path / "images")
    sources = {"images": str(images)} | name_files(data)
    arguments = make_arguments(data, sources, "run", images, shard_size=2)
    whole = make_arguments(data, sources, "whole", images, shard_size=2)
    splits = arguments.count("--source")
    assert 0 < kill_after_first_part(arguments, tmp_path) < 10 * splits
    result = ray_embed_process(*arguments)
    assert result.code == 0, result.err
    assert ray_embed_process(*whole).code == 0
    assert read_results(tmp_path / "run") == read_results(tmp_path / "whole")
    run = ray_embed.load(tmp_path / "run")
    assert_all_splits_are_the_same(run, sources.keys() | name_datasets(images)[0].keys())
    assert run.rejects_by_reason == {"not an image": splits - len(DECODED) - len(DECODED_DATASETS)}


@pytest.mark.slow
@pytest.mark.parametrize("type_", name_datasets(Path())[0])
def test_changed_dataset_is_noticed(data, project, ray_embed_process, tmp_path, type_):
    images = shutil.copytree(data / "images", tmp_path / "images")
    source, arguments = (named[type_] for named in name_datasets(images))
    words = make_arguments(data, {type_: source}, "run")
    words += ["--source-kwargs", json.dumps({type_: arguments})]
    assert ray_embed_process(*words).code == 0
    next((tmp_path / "run" / "features").iterdir()).unlink()
    shutil.copy(images / "dog" / "0000.png", images / "cat" / "0000.png")
    result = ray_embed_process(*words)
    assert result.code == 2, result.err
    assert type_ in result.err


@pytest.mark.slow
def test_sources_on_an_object_store(data, bucket, ray_embed_process, tmp_path):
    object_store.upload(data, f"{bucket}/data")
    sources = {"images": f"{bucket}/data/images"} | name_files(f"{bucket}/data")
    arguments = make_arguments(data, sources, "run", shard_size=2)
    assert 0 < kill_after_first_part(arguments, tmp_path) < 10 * len(sources)
    result = ray_embed_process(*arguments)
    assert result.code == 0, result.err
    assert_all_splits_are_the_same(ray_embed.load(tmp_path / "run"), sources)


@pytest.mark.slow
def test_changes_on_an_object_store_are_noticed(data, bucket, ray_embed_process, tmp_path):
    object_store.upload(data, f"{bucket}/data")
    copied = shutil.copytree(data, tmp_path / "data")
    # Patterns and the other listings are read by the same code.
    others = ("parquet-files", "tar-files", "tfrecord-files", "csv", "parquet-list", "described")
    for type_ in name_files("").keys() - set(others):
        # Each in a run of its own: a store gives a file that is put back another time.
        source = name_files(f"{bucket}/data")[type_]
        arguments = make_arguments(data, {type_: source}, type_)
        assert ray_embed_process(*arguments).code == 0
        next((tmp_path / type_ / "features").iterdir()).unlink()
        change(copied / type_)
        object_store.upload(copied / type_, f"{bucket}/data/{type_}")
        result = ray_embed_process(*arguments)
        assert result.code == 2, result.err
        assert "has changed" in result.err or "different run" in result.err


def test_preview_shows_records_of_a_container(data, command):
    result = command(
        "preview", "--source", data / "tar", "--model", data / "encoder.keras", "--sheet", "s.png"
    )
    assert result.code == 0, result.err
    assert "RGB files" in result.out + result.err
