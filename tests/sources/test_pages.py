# SPDX-License-Identifier: Apache-2.0
"""Pages of TIFF files, and other formats than those of TensorFlow inside other files."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from support.containers import SIZE, encode, pixels_of, write_parquet, write_tar, write_tfrecord
from support.opened import list_records, open_source, read_images

from ray_embed.errors import InputError


def write_stack(path: Path, seeds: list[int]) -> Path:
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, pixels_of(seeds), photometric="rgb")
    return path


def make_folder_of_stacks(root: Path) -> Path:
    write_stack(root / "a/stack.tif", [1, 2, 3])
    (root / "a/one.png").write_bytes(encode(4))
    write_stack(root / "b/single.TIFF", [5])
    (root / "b/damaged.tif").write_bytes(b"II*\0nothing more")
    return root


def test_each_page_is_a_record(tmp_path):
    source = open_source(make_folder_of_stacks(tmp_path), pages="all")
    records = list_records(source)
    assert records.rows["key"].to_pylist() == [
        "a/one.png", "a/stack.tif#0", "a/stack.tif#1", "a/stack.tif#2", "b/damaged.tif",
        "b/single.TIFF",
    ]  # fmt: skip
    assert records.rows["label"].to_pylist() == ["a"] * 4 + ["b"] * 2
    np.testing.assert_array_equal(read_images(source, records, SIZE), pixels_of([4, 1, 2, 3, 5]))
    some = records.select(np.array([2, 5]))
    np.testing.assert_array_equal(read_images(source, some, SIZE), pixels_of([2, 5]))


def test_the_first_page_is_the_record_by_default(tmp_path):
    source = open_source(make_folder_of_stacks(tmp_path))
    records = list_records(source)
    assert "page" not in records.rows.column_names
    assert len(records) == 4
    np.testing.assert_array_equal(read_images(source, records, SIZE), pixels_of([4, 1, 5]))


def test_the_pages_of_a_changed_file_are_noticed(tmp_path):
    source = open_source(make_folder_of_stacks(tmp_path), pages="all")
    records = list_records(source)
    write_stack(tmp_path / "a/stack.tif", [1, 2])
    with pytest.raises(InputError, match=r"stack\.tif: the file has changed"):
        source.reader().verify(records.rows)


def test_pages_of_other_sources_than_folders_are_refused(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\nstack.tif,a\n")
    write_stack(tmp_path / "stack.tif", [1])
    with pytest.raises(InputError, match="not a folder of images, which --pages all"):
        open_source(tmp_path / "list.csv", pages="all")


def test_pages_need_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("ray_embed.images.formats.tiff.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ray_embed\[formats\]'"):
        open_source(make_folder_of_stacks(tmp_path), pages="all")


@pytest.mark.parametrize("format_", ["TIFF", "JPEG2000"])
def test_formats_inside_other_files_are_recognized_by_content(format_, tmp_path):
    seeds, contents = [1, 2], [encode(seed, format_) for seed in (1, 2)]
    ending = {"TIFF": "tif", "JPEG2000": "jp2"}[format_]
    write_tar(tmp_path / "a.tar", [(f"{n}", {ending: c}) for n, c in enumerate(contents)])
    write_tfrecord(tmp_path / "a.tfrecord", [{"image/encoded": content} for content in contents])
    write_parquet(tmp_path / "a.parquet", seeds, contents=contents)
    sources = [
        open_source(tmp_path / "a.tar"),
        open_source(tmp_path / "a.tfrecord"),
        open_source(tmp_path / "a.parquet", image_column="contents"),
    ]
    for source in sources:
        found = read_images(source, list_records(source), SIZE)
        np.testing.assert_array_equal(found, pixels_of(seeds))
