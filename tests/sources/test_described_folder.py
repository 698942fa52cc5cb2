# SPDX-License-Identifier: Apache-2.0
"""Folders of images with metadata.csv or metadata.jsonl, as Hugging Face's ImageFolder has them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.opened import list_records, open_source
from support.pictures import make_folder, picture
from support.stores import use_as_store

from ray_embed import RunConfig
from ray_embed.errors import InputError
from ray_embed.sources.open import open_sources

ROWS = [
    {"file_name": "cat/0001.png", "label": "b", "age": 3},
    {"file_name": "dog/0000.png", "label": "a", "age": 5},
    {"file_name": "cat/0000.png", "label": "b", "age": 4},
]


def write_metadata(folder: Path, name: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    if name.endswith(".jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (folder / name).write_text("\n".join(lines))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"cat": 2, "dog": 1})


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("is_remote", [False, True])
def test_rows_are_the_records_as_in_datasets(folder, name, is_remote, monkeypatch):
    write_metadata(folder, name)
    root = use_as_store(folder, monkeypatch) if is_remote else str(folder)
    source = open_source(root)
    skipped: Counter[str] = Counter()
    rows = list_records(source, skipped).rows.to_pydict()
    expected = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert rows["label"] == expected["label"]
    assert rows["age"] == [str(age) for age in expected["age"]]
    assert rows["key"] == [row["file_name"] for row in ROWS]
    assert None not in rows["size"]
    assert skipped == {}
    (note,) = source.info.messages
    assert f"{name}: its rows are the records" in note


def test_first_folder_is_the_label_where_no_column_is(folder):
    rows = [{"file_name": row["file_name"], "age": row["age"]} for row in ROWS]
    source = open_source(write_metadata(folder, "metadata.csv", rows))
    assert list_records(source).rows["label"].to_pylist() == ["cat", "dog", "cat"]
    assert "no column 'label', so the labels are the first folders" in source.info.unlabeled
    by_age = open_source(folder, label_column="age")
    assert list_records(by_age).rows["label"].to_pylist() == ["3", "5", "4"]
    with pytest.raises(InputError, match="no column 'kind'"):
        open_source(folder, label_column="kind")


def test_images_without_a_row_are_counted_and_rows_without_an_image_are_missing(folder):
    picture(7).save(folder / "more.png")
    (folder / "dog" / "notes.txt").touch()
    rows = [*ROWS[:2], {"file_name": "cat/none.png", "label": "c", "age": 1}]
    source = open_source(write_metadata(folder, "metadata.jsonl", rows))
    skipped: Counter[str] = Counter()
    records = list_records(source, skipped).rows
    assert [size is None for size in records["size"].to_pylist()] == [False, False, True]
    assert skipped == {"images without a row in metadata.jsonl": 2, ".txt": 1}


def test_other_file_of_that_name_is_not_used_and_that_is_said(folder):
    (folder / "metadata.csv").write_text("id,label\n1,x\n")
    source = open_source(folder)
    assert list_records(source).rows["label"].to_pylist() == ["cat", "cat", "dog"]
    (note,) = source.info.messages
    assert "metadata.csv: not used, because it has no column 'file_name'" in note


def test_each_split_has_its_own_metadata(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        picture(0).save(tmp_path / split / "0.png")
        write_metadata(
            tmp_path / split, "metadata.csv", [{"file_name": "0.png", "label": f"in {split}"}]
        )
    config = RunConfig(sources=str(tmp_path), model="m", splits_from_folders=True)
    labels = {s.split: list_records(s).rows["label"].to_pylist() for s in open_sources(config)}
    assert labels == {"train": ["in train"], "test": ["in test"]}
    (tmp_path / "metadata.csv").write_text("file_name\ntrain/0.png\n")
    with pytest.raises(InputError, match=r"metadata\.csv is not read with --splits-from-folders"):
        open_sources(config)
