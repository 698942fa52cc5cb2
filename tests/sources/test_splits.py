# SPDX-License-Identifier: Apache-2.0
"""Splits that a column of a listing or the subfolders of a folder make."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.opened import list_records
from support.pictures import make_folder, picture

from ray_embed import RunConfig
from ray_embed.config import load_yaml, make_config
from ray_embed.errors import InputError
from ray_embed.sources.base import Source
from ray_embed.sources.open import open_sources

SPLITS = ["test", "train", "test", "extra", "val", "train"]
LABELS = ["a", "b", "b", "a", "a", "b"]


def write_listing(folder: Path, name: str = "list.csv", splits: list[Any] = SPLITS) -> Path:
    columns: dict[str, Any] = {"path": [f"{i}.png" for i in range(len(splits))]}
    for path in columns["path"]:
        picture(int(path[0])).save(folder / path)
    columns |= {"split": splits, "label": LABELS[: len(splits)]}
    table, file = pd.DataFrame(columns), folder / name
    if name.endswith(".csv"):
        table.to_csv(file, index=False)
    elif name.endswith(".jsonl"):
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_parquet(file)
    return file


def opened(source: Path | str, **options: Any) -> list[Source]:
    return open_sources(RunConfig(sources=str(source), model="m", **options))


def refused(source: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        opened(source, **options)
    return str(raised.value)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.parquet"])
def test_values_of_a_column_are_splits(tmp_path, name):
    sources = opened(write_listing(tmp_path, name), splits_from_column="split")
    assert [source.split for source in sources] == ["train", "val", "test", "extra"]
    rows = [list_records(source).rows for source in sources]
    assert [table["key"].to_pylist() for table in rows] == [
        ["1.png", "5.png"],
        ["4.png"],
        ["0.png", "2.png"],
        ["3.png"],
    ]
    assert [table["label"].to_pylist() for table in rows] == [["b", "b"], ["a"], ["a", "b"], ["a"]]
    assert all(source.info.extras == () for source in sources)
    notes = [note for source in sources for note in source.info.messages]
    assert len(notes) == 1
    assert "train (2), val (1), test (2), extra (1), from the column 'split'" in notes[0]


def test_rows_keep_their_numbers_in_errors(tmp_path):
    rows = [
        {"path": f"{i % 6}.png", "split": ("train", "test")[i % 2], "label": str(i)}
        for i in range(5000)
    ]
    rows[-1]["label"] = "x"
    file = write_listing(tmp_path, "list.jsonl")
    file.write_text("\n".join(map(json.dumps, rows)))
    train, test = opened(file, splits_from_column="split", label_type="int")
    assert list_records(train).rows["label"].to_pylist() == list(range(0, 5000, 2))
    with pytest.raises(InputError, match="row 5000 has the label 'x'"):
        list_records(test)


@pytest.mark.parametrize(
    ("options", "splits", "tokens"),
    [
        ({"splits_from_column": "set"}, SPLITS, ["no column 'set'", "path, split, label"]),
        ({"splits_from_column": "split"}, ["train", ""], ["row 2 has ''", "'split'"]),
        ({"splits_from_column": "split"}, ["a b"], ["row 1 has 'a b'", "letters"]),
        ({}, SPLITS, ["'split' is reserved", "--splits-from-column split"]),
    ],
)
def test_column_that_cannot_name_splits_is_refused(tmp_path, options, splits, tokens):
    said = refused(write_listing(tmp_path, splits=splits), **options)
    for token in ("list.csv", *tokens):
        assert token in said


def test_column_of_very_many_values_is_refused(tmp_path):
    rows = "".join(f"x.png,{number}\n" for number in range(200))
    (tmp_path / "list.csv").write_text(f"path,id\n{rows}")
    assert "more than 100 different values" in refused(
        tmp_path / "list.csv", splits_from_column="id"
    )


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_subfolders_are_splits(tmp_path, scheme):
    for name in ("test", "train", "other"):
        make_folder(tmp_path / name, {"cat": 2, "dog": 1})
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").touch()
    sources = opened(f"{scheme}{tmp_path}", splits_from_folders=True)
    assert [source.split for source in sources] == ["train", "test", "other"]
    for source in sources:
        rows = list_records(source).rows
        assert rows["key"].to_pylist() == ["cat/0000.png", "cat/0001.png", "dog/0000.png"]
        assert rows["label"].to_pylist() == ["cat", "cat", "dog"]


def test_subfolders_that_look_like_splits_are_said(tmp_path):
    make_folder(tmp_path, {"train": 1, "valid": 1, "other": 1})
    (source,) = opened(tmp_path)
    (note,) = source.info.messages
    assert "train, valid look like splits" in note
    assert "--splits-from-folders" in note
    make_folder(tmp_path / "vehicles", {"train": 1, "car": 1})
    (source,) = opened(tmp_path / "vehicles")
    assert source.info.messages == ()


def test_source_without_subfolders_to_split_is_refused(tmp_path):
    picture(0).save(tmp_path / "0.png")
    assert "no subfolders" in refused(tmp_path, splits_from_folders=True)
    assert "not a folder" in refused(tmp_path / "0.png", splits_from_folders=True)
    assert "not a listing" in refused(tmp_path, splits_from_column="split")
    make_folder(tmp_path, {"train": 1})
    assert "0.png is in no split" in refused(tmp_path, splits_from_folders=True)
    make_folder(tmp_path, {"a b": 1})
    assert "'a b' cannot name a split" in refused(tmp_path, splits_from_folders=True)


@pytest.mark.parametrize(
    ("options", "token"),
    [
        ({"sources": ["a", "b"], "splits_from_folders": True}, "several"),
        ({"sources": ["x=a"], "splits_from_folders": True}, "without the name 'x'"),
        ({"sources": ["x=a.csv"], "splits_from_column": "set"}, "without the name 'x'"),
        ({"sources": "a", "splits_from_column": "s", "splits_from_folders": True}, "not both"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, token):
    with pytest.raises(InputError, match=token):
        make_config({"model": "m", **options})


def test_split_options_are_taken_from_yaml(tmp_path):
    (tmp_path / "my.data").mkdir()
    file = tmp_path / "job.yaml"
    file.write_text("sources: my.data\nmodel: m.keras\nsplits_from_folders: true\n")
    config = make_config(load_yaml(str(file)))
    assert config.sources == {"my_data": str(tmp_path / "my.data")}
    assert config.splits_from_folders
