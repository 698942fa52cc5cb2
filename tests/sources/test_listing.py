# SPDX-License-Identifier: Apache-2.0
"""Listings as people have them: other delimiters, encodings, columns, and paths that do not fit."""

import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_embed import RunConfig, planning
from ray_embed.errors import InputError
from ray_embed.sources.base import Source
from ray_embed.sources.label_schema import LabelCounts, describe_look_alikes
from ray_embed.sources.open import open_sources
from ray_embed.storage.filesystem import Folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def write(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def opened(source: Path, **options: Any) -> Source:
    (found,) = open_sources(RunConfig(sources={"s": source}, model="m", **options))
    assert found.info is not None
    return found


def rows(source: Source) -> list[dict[str, Any]]:
    return [row for batch in source.records(Counter()) for row in batch.to_pylist()]


def labels_of(source: Source) -> list[str | None]:
    return [row["label"] for row in rows(source)]


def refused(source: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        rows(opened(source, **options))
    assert source.name in str(raised.value)
    return str(raised.value)


def planned(sources: dict[str, Path], target: Path, **options: Any) -> planning.Plan:
    config = RunConfig(sources=sources, model="m", **options)
    return planning.make_plan(
        open_sources(config), {}, Folder.open(str(target)), shard_size=2, batch_size=2, limit=None
    )


# Labels


def test_an_empty_label_is_no_label_unless_it_is_kept(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png")
    file = write(tmp_path / "s.csv", 'path,label\na.png,cat\nb.png,\nc.png,""\n')
    assert labels_of(opened(file)) == ["cat", None, None]
    assert labels_of(opened(file, empty_label="keep")) == ["cat", "", ""]
    (note,) = planned({"s": file}, tmp_path / "p").notes
    assert "s: 2 of 3 records have an empty label cell" in note
    (note,) = planned({"s": file}, tmp_path / "q", empty_label="keep").notes
    assert "'' (2)" in note


def test_words_for_no_label_stay_and_are_named_once_with_their_counts(tmp_path):
    words = ["NA", "nan", "null", "None", "cat", "NA", " ", "cat", "Nancy"]
    touch(tmp_path, *(f"{at}.png" for at in range(len(words))))
    lines = "".join(f"{at}.png,{word}\n" for at, word in enumerate(words))
    file = write(tmp_path / "s.csv", f"path,label\n{lines}")
    assert labels_of(opened(file)) == words
    (note,) = planned({"s": file}, tmp_path / "p").notes
    assert note.startswith("s: ")
    assert "' ' (1), 'NA' (2), 'None' (1), 'nan' (1), 'null' (1)" in note


def test_a_listing_without_a_label_column_has_no_labels(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    plain = write(tmp_path / "plain.csv", "path\na.png\nb.png\n")
    other = write(tmp_path / "other.csv", "path,class\na.png,cat\nb.png,dog\n")
    for file in (plain, other):
        assert labels_of(opened(file)) == [None, None]
    outline = planned({"plain": plain, "other": other}, tmp_path / "p")
    assert outline.label_type == "string"
    assert [split.label_type for split in outline.splits] == ["null", "null"]
    assert len(outline.notes) == 2
    for token in ("other: ", "no column 'label'", "unlabeled", "path, class", "--label-column"):
        assert token in outline.notes[1]


def test_a_label_column_that_was_named_must_be_in_a_listing(tmp_path):
    touch(tmp_path, "a.png")
    train = write(tmp_path / "train.csv", "path,class\na.png,cat\n")
    test = write(tmp_path / "test.csv", "path\na.png\n")
    assert "no column 'clas'" in refused(train, label_column="clas")
    found = planned({"train": train, "test": test}, tmp_path / "p", label_column="class")
    assert [split.label_type for split in found.splits] == ["string", "null"]
    assert "--label-column ' Label'" in refused(write(tmp_path / "l.csv", "path, Label\na.png,1\n"))


def test_labels_that_only_look_the_same_are_named(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    for split, names in {"valid": [composed, "cat", "A", "a"], "test": [apart, "Cat", "A"]}.items():
        touch(tmp_path / split, *(f"{name}/0.png" for name in names))
    sources = {split: tmp_path / split for split in ("valid", "test")}
    notes = planned(sources, tmp_path / "p").notes
    assert all(note.startswith("warning: these two labels ") for note in notes)
    same, case = sorted(notes, key=lambda note: "case" in note)
    assert "look the same" in same
    assert r"'caf\xe9' in valid" in same
    assert r"'cafe\u0301' in test" in same
    assert "differ only in case" in case
    assert "'cat' in valid, 'Cat' in test" in case


@pytest.mark.parametrize("other", ["cat ", "\ufeffcat", "cat\u00a0", "c\u200bat"])
def test_labels_that_differ_in_what_nobody_sees_are_named(tmp_path, other):
    touch(tmp_path, "a.png", "b.png")
    file = write(tmp_path / "s.csv", f'path,label\na.png,cat\nb.png,"{other}"\n')
    (note,) = planned({"s": file}, tmp_path / "p").notes
    assert "look the same" in note
    assert f"{other!a} in s" in note


@pytest.mark.parametrize(
    ("one", "other"),
    [("m2", "m\u00b2"), ("a", "\u0430b"), ("cat", "cats"), ("a b", "ab"), ("A", "a")],
)
def test_labels_that_look_different_are_not_named(one, other):
    assert list(describe_look_alikes({"valid": [one, other], "test": [other, one]})) == []


def test_many_pairs_of_labels_are_counted():
    names = [f"c{at}" for at in range(9)]
    notes = list(describe_look_alikes({"s": [*names, *(f"{name} " for name in names)]}))
    assert len(notes) == 4
    assert notes[-1] == "… and 6 more pairs of similar labels"


def test_of_very_many_labels_those_of_no_label_are_still_counted():
    counts = LabelCounts()
    counts.add(pa.array(["NA", None, *map(str, range(20_000))]))
    counts.add(pa.array(["NA", " nan ", "x", None]))
    assert (counts.nulls, dict(counts.counts)) == (2, {"NA": 2, " nan ": 1})


def test_a_run_of_before_hears_how_to_keep_its_empty_labels(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    file = write(tmp_path / "s.csv", "path,label\na.png,cat\nb.png,\n")
    (was,) = planned({"s": file}, tmp_path / "p", empty_label="keep").splits
    (now,) = planned({"s": file}, tmp_path / "q").splits
    assert was.digest != now.digest
    folders = (Folder.open(str(tmp_path / name)) for name in "pq")
    said = planning.describe_difference(*folders, was, now)
    assert "label was '' and is now None; --empty-label keep" in said


# Delimiters, headers, encodings


@pytest.mark.parametrize(
    ("name", "delimiter", "word"),
    [
        ("s.csv", ";", "semicolons"),
        ("s.csv", "\t", "tabs"),
        ("s.csv", "|", "vertical bars"),
        ("s.tsv", ",", "commas"),
        ("s.csv", ",", None),
        ("s.tsv", "\t", None),
    ],
)
def test_another_delimiter_is_found_and_said(tmp_path, name, delimiter, word):
    touch(tmp_path, "a.png", "b, c.png")
    cells = [["label", "path"], ["1,5", "a.png"], ["x", "b, c.png"]]
    quoted = "".join(delimiter.join(f'"{cell}"' for cell in row) + "\n" for row in cells)
    source = opened(write(tmp_path / name, quoted))
    assert [(row["key"], row["label"]) for row in rows(source)] == [
        ("a.png", "1,5"),
        ("b, c.png", "x"),
    ]
    assert [word in note and name in note for note in source.info.notes] == [True] * bool(word)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (
            "id,file,class\n1,a.png,x\n2,b.PNG,y\n",
            ["'path'", "--path-column file", "id, file, class"],
        ),
        ("id;file;class\n1;a.png;x\n2;b.png;y\n", ["--path-column file", "id, file, class"]),
        ("a.png,cat\nb.png,dog\n", ["header is missing", "'a.png'", "path,label"]),
        ("a.png;cat\nb.png;dog\n", ["header is missing", "'a.png'"]),
        ("1,a.png,cat,cat\n2,b.png,dog,dog\n", ["header is missing", "'a.png'"]),
        ("id,class\n1,x\n", ["'path'", "id, class", "--path-column"]),
        ("a b,c\na.png,b.png\n", ["'a b' and 'c' may have the paths", "--path-column 'a b'"]),
    ],
)
def test_a_listing_without_the_path_column_is_told_what_to_do(tmp_path, text, tokens):
    said = refused(write(tmp_path / "s.csv", text))
    for token in tokens:
        assert token in said


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("path,label\na.png,cat\n".encode("utf-16"), ["UTF-16-LE", "iconv -f UTF-16 -t UTF-8"]),
        ("path,label\na.png,cat\n".encode("utf-16-be"), ["UTF-16-BE", "byte 0 is 0"]),
        ("path,label\na.png,cat\n".encode("utf-16-le"), ["UTF-16-LE", "byte 1 is 0"]),
        (
            "path,label\na.png,cat\nb.png,caf\xe9\n".encode("cp1252"),
            ["row 2", "'label'", "'café'", "Windows-1252", "UTF-8", "iconv -f WINDOWS-1252"],
        ),
        ("path,label,note\na.png,cat,\u20ac\n".encode("cp1252"), ["row 1", "'note'", "'€'"]),
        (
            "path,label,caf\xe9\na.png,1,2\n".encode("cp1252"),
            ["byte 14", "0xe9", "'path,label,café'"],
        ),
    ],
)
def test_another_encoding_is_named_with_its_place(tmp_path, content, tokens):
    touch(tmp_path, "a.png", "b.png")
    said = refused(write(tmp_path / "s.csv", content))
    for token in tokens:
        assert token in said


def test_paths_may_be_absolute_or_uris_of_local_files(tmp_path):
    touch(tmp_path, "a.png", "sub dir/b c.png")
    names = [
        f"{tmp_path}/a.png",
        f"file://{tmp_path}/a.png",
        f"file://{tmp_path}/sub%20dir/b%20c.png",
    ]
    lines = "".join(f"{name};x\n" for name in names)
    source = opened(write(tmp_path / "lists" / "s.csv", f"\ufeffpath;label\n{lines}"))
    assert [(row["key"], row["size"]) for row in rows(source)] == [(name, 1) for name in names]


def test_a_web_address_is_no_path(tmp_path):
    said = refused(write(tmp_path / "s.csv", "path,label\nhttps://x.org/a.png,x\n"))
    for token in ("row 1", "https://x.org/a.png", "download"):
        assert token in said


def test_a_character_cut_by_the_end_of_the_sample_is_no_error(tmp_path):
    touch(tmp_path, "a.png")
    lines = "a.png,é\n" * 12_000
    source = opened(write(tmp_path / "s.csv", "\ufeffpath,label\n" + lines))
    assert set(labels_of(source)) == {"é"}


# Paths that do not fit


NAMES = [f"img/c{at % 3}/{at:03d}.png" for at in range(40)]


@pytest.mark.parametrize(
    ("write_as", "fix"),
    [
        (lambda name: name.replace("/", "\\"), "replace \\ with /"),
        (
            lambda name: "D:\\data\\" + name.replace("/", "\\"),
            "replace \\ with / in the paths (sed 's#\\\\#/#g'); remove D:/data/ from",
        ),
        (lambda name: name.removesuffix(".png"), "change the file extension to .png"),
        (lambda name: name.replace(".png", ".JPG"), "change the file extension to .png"),
        (lambda name: name.removeprefix("img/"), "prepend img/ to each path"),
        (lambda name: f"/home/ann/{name}", "remove /home/ann/ from"),
        (lambda name: f"lists/{name}", "remove lists/ from"),
        (lambda name: f" {name} ", "spaces around"),
        (
            lambda name: name.removeprefix("img/").replace("/", "\\")[:-4],
            "change the file extension to .png",
        ),
    ],
)
def test_paths_that_are_written_otherwise_get_the_fix(tmp_path, write_as, fix):
    root = tmp_path / "lists"
    touch(root, *NAMES)
    lines = "".join(f'"{write_as(name)}",x\n' for name in NAMES)
    said = refused(write(root / "s.csv", f"path,label\n{lines}"))
    assert fix in said
    assert f"for example {os.path.join(root, write_as(NAMES[0]))}; found " in said
    assert "40 of the first 40 files are missing" in said


def test_ids_of_files_in_a_folder_below_get_the_fix(tmp_path):
    touch(tmp_path, *(f"images/all/{at:03d}.jpg" for at in range(9)), "images/a.txt")
    lines = "".join(f"{at:03d},x\n" for at in range(9))
    said = refused(write(tmp_path / "s.csv", f"path,label\n{lines}"))
    assert "change the file extension to .jpg; prepend images/all/ to each path" in said
    assert f"for example {tmp_path / '000'}; found " in said


@pytest.mark.parametrize("base", [".", "cwd"])
def test_paths_that_start_at_another_folder_get_the_fix(tmp_path, base):
    touch(tmp_path / base, *NAMES)
    lines = "".join(f"{name},x\n" for name in NAMES)
    said = refused(write(tmp_path / "lists" / "s.csv", f"path,label\n{lines}"))
    assert f"the paths are relative to {(tmp_path / base).resolve()}, not to the folder" in said


@pytest.mark.parametrize(("listed", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_that_are_written_otherwise_get_the_fix(tmp_path, listed, on_disk):
    touch(tmp_path, unicodedata.normalize(on_disk, "caf\u00e9.png"))
    name = unicodedata.normalize(listed, "caf\u00e9.png")
    said = refused(write(tmp_path / "s.csv", f"path,label\n{name},x\n"))
    assert f"unicodedata.normalize('{on_disk}', path)" in said


def test_files_that_are_partly_gone_are_left_to_be_set_aside(tmp_path):
    touch(tmp_path, *NAMES[:4], "other/x.png")
    lines = "".join(f"{name},x\n" for name in NAMES)
    found = rows(opened(write(tmp_path / "s.csv", f"path,label\n{lines}")))
    assert [row["size"] is None for row in found] == [False] * 4 + [True] * 36


def test_a_listing_of_which_no_file_is_there_names_the_first_looked_for(tmp_path):
    file = write(tmp_path / "s.csv", "path,label\nx/a.png,1\nx/b.png,2\n")
    with pytest.raises(InputError) as raised:
        planned({"valid": file}, tmp_path / "p")
    said = str(raised.value)
    for token in ("valid", "none of the 2 files", os.path.join(tmp_path, "x/a.png")):
        assert token in said
