# SPDX-License-Identifier: Apache-2.0
"""Files that hold many images: folders, patterns and braces."""

import pytest
from support.stores import use_as_store

from ray_embed.errors import InputError
from ray_embed.sources.container_files import (
    expand_braces,
    find_files,
    is_pattern,
    match_pattern,
)


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("s-{2..0}", ["s-2", "s-1", "s-0"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{a}", ["{a}"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, expanded):
    assert expand_braces(pattern) == expanded


def test_pattern_is_no_existing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a[1].tar").touch()
    assert not is_pattern("a[1].tar")
    assert not is_pattern("{x}.tar")
    assert is_pattern("*.tar")
    (tmp_path / "{0..3}.tar").touch()
    assert not is_pattern(f"file://{tmp_path}/{{0..3}}.tar")
    assert is_pattern(f"file://{tmp_path}/{{0..4}}.tar")
    assert not is_pattern(f"file://{tmp_path}/a.tar?endpoint_override=*")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_are_found_in_the_order_of_their_names(scheme, tmp_path):
    for name in ("b.tar", "a.tar", "c.txt", ".d.tar"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.tar").touch()
    root = f"{scheme}{tmp_path}"
    assert find_files(root, (".tar",)).names == ("a.tar", "b.tar")
    assert match_pattern(f"{root}/*.tar").names[-2:] == ("a.tar", "b.tar")
    assert match_pattern(f"{root}/{{b,a}}.tar").names == ("b.tar", "a.tar")
    assert match_pattern(f"{root}/*/e.tar").names == ("sub/e.tar",)
    assert find_files(f"{root}/a.tar", (".tar",)).names == ("a.tar",)
    located = match_pattern(f"{root}/*/e.tar").locate()
    assert [(name, size) for name, _, (size, _) in located] == [("sub/e.tar", 0)]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-0.tar", "train-1.tar", "other.tar"), None),
        (("val_0.tar", "validation_1.tar"), None),
        (("test-0.tar", "other.tar", "train-0.tar"), "train, test"),
    ],
)
def test_files_of_several_splits_in_one_source_are_said(names, splits, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    notes = find_files(str(tmp_path), (".tar",)).notes
    assert [splits in note and "'train*'" in note for note in notes] == ([True] if splits else [])


@pytest.mark.parametrize("named", ["none-*.tar", "{0..2}.tar"])
def test_missing_files_are_refused_by_name(named, tmp_path):
    (tmp_path / "0.tar").touch()
    with pytest.raises(InputError, match=r"--source .*: no file"):
        match_pattern(f"{tmp_path}/{named}")


def test_pattern_in_a_store_keeps_the_options_of_the_uri(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name in ("a-0.tar", "a-1.tar", "b-0.tar"):
        (tmp_path / "data" / name).touch()
    root = use_as_store(tmp_path, monkeypatch)
    found = match_pattern(f"{root}/data/{{a,b}}-*.tar?scheme=http")
    assert found.folder == f"{root}/data?scheme=http"
    assert found.names == ("a-0.tar", "a-1.tar", "b-0.tar")
