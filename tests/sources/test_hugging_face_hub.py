# SPDX-License-Identifier: Apache-2.0
"""Data sets that Hugging Face datasets loads: local folders for real, and names of the hub."""

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from support.containers import SIZE, encode, make_dataset, pixels_of
from support.opened import list_records, open_source, read_images

from ray_embed.config import RunConfig, load_yaml, parse_source
from ray_embed.errors import InputError
from ray_embed.sources.dataset_records import RecordReader
from ray_embed.sources.open import open_sources

CLASSES = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Parquet files with two splits."""
    folder = tmp_path_factory.mktemp("data") / "animals"
    for split, seeds in (("train", range(5)), ("validation", range(5, 8))):
        rows = make_dataset(seeds, label=[seed % 2 for seed in seeds])
        rows.cast_column("label", CLASSES).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with two splits."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    for seed in range(6):
        path = folder / ("test" if seed > 3 else "train") / ("cat", "dog")[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(seed))
    return folder


def list_splits(*sources: str) -> list[str]:
    config = RunConfig(sources=list(sources), model="m.keras")
    return [source.split for source in open_sources(config)]


def test_a_folder_of_parquet_files_is_read_by_the_actors(parquet):
    source = open_source(f"hf:{parquet}", "train")
    listed = list_records(source)
    assert listed.rows["label"].to_pylist() == ["cat", "dog", "cat", "dog", "cat"]
    assert listed.rows["key"].to_pylist() == [f"{seed}.png" for seed in range(5)]
    np.testing.assert_array_equal(read_images(source, listed, SIZE), pixels_of(range(5)))
    source.reader().verify(listed.rows)
    (note,) = source.info.notes
    assert "which all nodes of a cluster must see" in note


def test_an_alias_of_a_split_is_read_and_that_is_said(parquet):
    source = open_source(f"hf:{parquet}", "valid")
    assert len(list_records(source)) == 3
    assert "read the split 'validation'" in source.info.notes[1]


def test_images_in_other_files_are_read_by_the_library(pictures):
    source = open_source(f"hf:{pictures}", "test")
    assert (source.location, source.info) == (f"hf:{pictures}", None)
    rows = RecordReader(source).read_shard(9).rows
    assert rows["label"].to_pylist() == ["cat", "dog"]
    assert rows["key"].to_pylist() == [
        str(pictures / "test" / name) for name in ("cat/4.png", "dog/5.png")
    ]


def test_splits_of_the_data_set_become_splits_of_the_run(parquet, monkeypatch):
    named = f"hf:{parquet}"
    assert list_splits(named) == ["train", "validation"]
    assert list_splits(f"train={named}", f"valid={named}") == ["train", "valid"]
    with pytest.raises(InputError, match="its split 'train' has the name of another"):
        list_splits(f"train={named}", named)
    with pytest.raises(InputError, match="is not a callable; remove these arguments"):
        open_source(named, "animals", source_kwargs={"animals": {"a": 1}})
    monkeypatch.chdir(parquet)
    assert list_splits("hf:.") == ["train", "validation"]


def test_names_of_splits_and_folders_of_yaml_files(parquet):
    assert parse_source("hf:user/toys:large") == ("toys", "hf:user/toys:large")
    (parquet.parent / "run.yaml").write_text("sources: {train: hf:./animals, test: hf:user/toys}")
    sources = load_yaml(str(parquet.parent / "run.yaml"))["sources"]
    assert sources == {"train": f"hf:{parquet}", "test": "hf:user/toys"}


def test_a_name_is_loaded_from_the_hub_with_its_configuration(parquet, monkeypatch):
    asked = []
    load = datasets.load_dataset_builder

    def load_builder(name: str, variant: str | None) -> Any:
        asked.append((name, variant))
        return load(str(parquet))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    assert list_splits("hf:user/toys") == ["train", "validation"]
    assert len(list_records(open_source("hf:user/toys:large", "train"))) == 5
    assert asked[0] == ("user/toys", None)
    assert asked[-1] == ("user/toys", "large")


@pytest.mark.parametrize(
    ("named", "token"),
    [
        ("hf:", "not the name of a data set"),
        ("hf:user/none", "ValueError: Config name is missing. Pick one of a, b; check the name"),
    ],
)
def test_names_that_cannot_be_loaded_are_refused(named, token, monkeypatch):
    def fail(*_: Any) -> Any:
        raise ValueError("Config name is missing.\nPick one of a, b")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(InputError, match=token):
        open_source(named, "train")


def test_files_with_other_columns_are_refused_with_the_reason(tmp_path):
    for name, column in (("a", "label"), ("b", "other")):
        make_dataset([0], **{column: [1]}).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"CastError: Couldn't cast.*other.*column names"):
        open_source(f"hf:{tmp_path}", "train")


def test_split_that_does_not_exist_is_refused_with_those_there_are(parquet):
    with pytest.raises(InputError, match="no split 'mine'; its splits are train, validation"):
        open_source(f"hf:{parquet}", "mine")


def test_library_that_is_missing_is_named_with_its_extra(parquet, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'ray_embed\[hf\]'"):
        open_source(f"hf:{parquet}", "train")


def test_saved_dataset_is_opened_without_the_prefix(tmp_path):
    make_dataset(range(2)).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="without hf:"):
        open_source(f"hf:{tmp_path / 'saved'}", "train")
