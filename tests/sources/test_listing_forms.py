# SPDX-License-Identifier: Apache-2.0
"""Listings as JSON Lines and as Parquet files of paths."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.opened import list_records, open_source
from support.pictures import picture

from ray_embed.errors import InputError

NAMES = ["a.png", "sub/b.png", "c.png"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of the files that the listings name."""
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(number).save(tmp_path / name)
    return tmp_path


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    """Write a listing as pandas does, in the format of the ending."""
    table = pd.DataFrame(columns)
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    return path


def rows_of(path: Path, **options: Any) -> dict[str, list[Any]]:
    return list_records(open_source(path, **options)).rows.to_pydict()


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        list_records(open_source(path, **options))
    assert path.name in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["s.jsonl", "s.parquet"])
def test_rows_have_paths_labels_and_metadata(images, name):
    file = write(
        images / name,
        {"path": NAMES, "label": ["007", None, ""], "age": [1, 2, 3], "box": [[1], [], [2]]},
    )
    source = open_source(file)
    rows = list_records(source).rows
    assert rows["key"].to_pylist() == NAMES
    assert rows["path"].to_pylist() == [name.encode() for name in NAMES]
    assert rows["size"].to_pylist() == [(images / name).stat().st_size for name in NAMES]
    assert rows["label"].to_pylist() == ["007", None, None]
    assert rows["age"].to_pylist() == ["1", "2", "3"]
    assert source.info.extras == ("age",)
    assert source.info.messages == ()
    assert rows_of(file, empty_label="keep")["label"] == ["007", None, ""]


@pytest.mark.parametrize("name", ["s.jsonl", "s.parquet"])
@pytest.mark.parametrize(
    ("labels", "type_"),
    [
        ([3, 1, 2], "int64"),
        ([0.5, 1.0, 2.0], "double"),
        ([True, False, True], "bool"),
        (["3", "1", "x"], "string"),
    ],
)
def test_labels_keep_the_type_of_the_file(images, name, labels, type_):
    file = write(images / name, {"path": NAMES, "label": labels})
    source = open_source(file)
    assert str(source.info.label_type) == type_
    assert list_records(source).rows["label"].to_pylist() == labels


@pytest.mark.parametrize("name", ["s.jsonl", "s.parquet"])
def test_label_type_is_applied_to_texts_and_numbers(images, name):
    file = write(images / name, {"path": NAMES, "text": ["1", "", "3"], "half": [0.5, 1.0, 2.0]})
    assert rows_of(file, label_column="text", label_type="int")["label"] == [1, None, 3]
    assert rows_of(file, label_column="text", label_type="float")["label"] == [1.0, None, 3.0]
    assert "'half' cannot be read as int" in refused(file, label_column="half", label_type="int")


def test_fields_that_are_missing_or_of_several_types(images):
    lines = [
        {"path": "a.png", "label": 1, "note": 5, "flag": True},
        {"path": "sub/b.png", "label": 2.5, "note": "x"},
        {"path": "c.png", "more": 2**70, "note": True},
    ]
    file = images / "s.jsonl"
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    source = open_source(file)
    rows = list_records(source).rows.to_pydict()
    assert rows["label"] == [1.0, 2.5, None]
    assert rows["note"] == ["5", "x", "true"]
    assert rows["flag"] == ["true", None, None]
    assert rows["more"] == [None, None, str(2**70)]
    (note,) = source.info.messages
    assert "fields of several types become text: note" in note


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('{"path": "a.png"}\n{"path": \n', ["line 2 is not JSON", "one object per line"]),
        ('[{"path": "a.png"}]', ["line 1 is not a JSON object", "lines=True"]),
        ('{"path": "a.png", "label": 1}\n{"label": 2}\n', ["row 2 has no path"]),
        ('{"file": "a.png"}\n', ["no column 'path'", "'file'", "--path-column file"]),
        ('{"path": "a.png", "index": 1}\n', ["'index' is reserved"]),
        ('{"path": "a.png", "label": {"a": 1}}\n', ["'label'", "struct"]),
        ('{"path": "a.png", "x": "\\ud800"}\n', ["line 1 is not JSON", "surrogates"]),
        ('{"path": ["a.png"]}\n', ["'path' has list<item: string> and not text"]),
        ("[" * 100_000, ["line 1 is not JSON"]),
        ("\n", ["the file is empty", "one object per line"]),
    ],
)
def test_malformed_json_lines_are_refused(images, text, tokens):
    (images / "s.jsonl").write_text(text)
    said = refused(images / "s.jsonl")
    for token in tokens:
        assert token in said


def test_json_lines_that_are_not_utf8_are_refused(images):
    (images / "s.jsonl").write_text('{"path": "é.png"}\n', encoding="cp1252")
    assert "not UTF-8" in refused(images / "s.jsonl")


def test_parquet_files_of_a_folder_or_pattern_are_one_listing(images):
    (images / "lists").mkdir()
    for number, name in enumerate(NAMES):
        write(images / "lists" / f"{number}.parquet", {"path": [f"../{name}"], "label": [number]})
    for named in (images / "lists", images / "lists" / "*.parquet"):
        rows = rows_of(named)
        assert rows["label"] == [0, 1, 2]
        assert None not in rows["size"]
    write(images / "lists" / "3.parquet", {"path": ["../a.png"], "label": ["x"]})
    with pytest.raises(InputError, match=r"3\.parquet: its columns \(path, label\).*0\.parquet"):
        rows_of(images / "lists")


def test_class_names_and_categories_of_parquet_become_labels(images):
    features = datasets.Features(
        {"path": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    columns = {"path": NAMES, "label": [1, 0, 1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(images / "s.parquet")
    assert rows_of(images / "s.parquet")["label"] == ["dog", "cat", "dog"]
    kinds = pd.Categorical(["x", "y", "x"])
    file = write(images / "c.parquet", {"path": NAMES, "label": kinds, "kind": kinds})
    assert rows_of(file)["label"] == rows_of(file)["kind"] == ["x", "y", "x"]


@pytest.mark.parametrize(
    ("columns", "options", "tokens"),
    [
        ({"file": NAMES, "n": [1, 2, 3]}, {}, ["no column 'path'", "--path-column file"]),
        ({"image": NAMES, "other": NAMES}, {}, ["'image' and 'other'", "--path-column image"]),
        ({"path": NAMES}, {"image_column": "path"}, ["'path' has text"]),
        ({"path": ["http://x/1.png"] * 3}, {}, ["row 1", "http://x/1.png", "download"]),
        ({"path": pa.array([], pa.string())}, {}, ["no rows"]),
    ],
)
def test_parquet_that_lists_no_files_is_refused(images, columns, options, tokens):
    pq.write_table(pa.table(columns), images / "s.parquet")
    said = refused(images / "s.parquet", **options)
    for token in tokens:
        assert token in said


def test_paths_of_parquet_may_be_in_any_text_column(images):
    columns = {"file": pa.array(NAMES, pa.large_string()), "path_length": [5, 9, 5]}
    pq.write_table(pa.table(columns), images / "s.parquet")
    assert rows_of(images / "s.parquet", path_column="file")["key"] == NAMES
