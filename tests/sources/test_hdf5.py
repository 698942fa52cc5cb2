# SPDX-License-Identifier: Apache-2.0
"""HDF5 files with images and labels."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from support.opened import list_records, open_source
from support.stores import use_as_store

from ray_embed.errors import InputError, StorageError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources.base import Source

SHAPE = (8, 9, 3)
PIXELS = PixelSpec(shape=SHAPE, scale="none")
IMAGES = np.random.default_rng(0).integers(0, 256, (20, *SHAPE)).astype(np.uint8)


def write(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def read_chosen(source: Source, chosen: list[int]) -> np.ndarray:
    records = list_records(source).select(np.array(chosen, np.int64))
    images = pickle.loads(pickle.dumps(source.reader())).open(records, PIXELS)
    return np.stack([images.load(number) for number in range(len(images))])


@pytest.mark.parametrize("is_on_store", [False, True])
@pytest.mark.parametrize("options", [{}, {"chunks": (3, *SHAPE), "compression": "gzip"}])
def test_chosen_images_are_read(options, is_on_store, tmp_path, monkeypatch):
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("images", data=IMAGES, **options)
        file["labels"] = np.arange(20)
    root = use_as_store(tmp_path, monkeypatch) if is_on_store else tmp_path.as_uri()
    source = open_source(f"{root}/d.h5")
    records = list_records(source)
    assert records.rows["key"].to_pylist() == [str(i) for i in range(20)]
    assert records.rows["label"].to_pylist() == list(range(20))
    assert source.info.image_shape == SHAPE
    assert source.info.notes == ()
    for chosen in (list(range(20)), [0, 3, 4, 5, 19], [7]):
        np.testing.assert_array_equal(read_chosen(source, chosen), IMAGES[chosen])
    assert len(source.reader().open(records.select(np.zeros(0, np.int64)), PIXELS)) == 0
    source.reader().verify(records.rows)


@pytest.mark.parametrize(
    ("labels", "type_", "expected"),
    [
        (np.array([[1], [2]], np.uint8), pa.int64(), [1, 2]),
        (np.array([0.5, 1], ">f4"), pa.float64(), [0.5, 1.0]),
        (np.array([True, False]), pa.bool_(), [True, False]),
        (["a", "é"], pa.string(), ["a", "é"]),
        (np.array([b"a", b"caf\xe9"]), pa.string(), ["a", r"caf\xe9"]),
    ],
)
def test_labels_keep_their_type(labels, type_, expected, tmp_path):
    source = open_source(write(tmp_path / "d.hdf5", images=IMAGES[:2], labels=labels))
    assert source.info.label_type == type_
    assert list_records(source).rows["label"].to_pylist() == expected


def test_gray_floats_become_float32_with_a_channel(tmp_path):
    images = (IMAGES[..., 0] / 255).astype(">f8")
    source = open_source(write(tmp_path / "d.h5", images=images))
    assert source.info.image_shape == (8, 9, 1)
    assert source.info.image_dtype == "float"
    pixels = PixelSpec(shape=(8, 9, 1), scale="none")
    opened = source.reader().open(list_records(source), pixels)
    assert opened.load(3).dtype == np.float32
    np.testing.assert_array_equal(opened.load(3), images[3, ..., None].astype(np.float32))


def test_groups_are_splits_or_part_of_the_name(tmp_path):
    arrays = {
        "train/images": IMAGES[:3],
        "train/labels": [1, 2, 3],
        "test/images": IMAGES[3:5],
        "test/labels": [4, 5],
        "raw/pictures": IMAGES[5:6],
    }
    path = write(tmp_path / "d.h5", **arrays)
    train = open_source(path, split="train")
    assert list_records(train).rows["label"].to_pylist() == [1, 2, 3]
    assert "images from train/images, labels from train/labels" in train.info.notes[0]
    np.testing.assert_array_equal(read_chosen(open_source(path, "test"), [0, 1]), IMAGES[3:5])
    named = open_source(path, image_column="raw/pictures")
    np.testing.assert_array_equal(read_chosen(named, [0]), IMAGES[5:6])
    assert "train/labels" in named.info.notes[-1]
    assert "--label-column" in named.info.notes[-1]
    with pytest.raises(InputError, match=r"d\.h5: no array 'a/b' for --image-column.*train/images"):
        open_source(path, image_column="a/b")


@pytest.mark.parametrize(
    ("arrays", "tokens"),
    [
        ({"a/b": [1]}, ["no array 'images'", "a/b", "--image-column"]),
        ({}, ["no arrays"]),
        ({"images": IMAGES.astype(np.int32)}, ["int32", "uint8 or float", "astype"]),
        ({"images": np.moveaxis(IMAGES, 3, 1)}, ["NCHW"]),
        ({"images": IMAGES[0, 0]}, ["(9, 3)"]),
        ({"images": IMAGES[:0]}, ["empty"]),
        ({"images": h5py.Empty("f4")}, ["()"]),
        ({"images": IMAGES, "labels": [1, 2]}, ["(2,)", "20"]),
        ({"images": IMAGES[:2], "labels": np.eye(2)}, ["np.argmax"]),
        (
            {"images": IMAGES[:2], "labels": np.zeros(2, "i4,i4")},
            ["labels cannot be of type", "astype(str)"],
        ),
    ],
)
def test_wrong_contents_are_refused(arrays, tokens, tmp_path):
    with pytest.raises(InputError) as caught:
        open_source(write(tmp_path / "d.h5", **arrays))
    for token in ["d.h5", *tokens]:
        assert token in str(caught.value)


@pytest.mark.parametrize("is_on_store", [False, True])
@pytest.mark.parametrize("content", [b"", b"no HDF5 at all" * 100, None])
def test_foreign_empty_or_truncated_file_is_refused(content, is_on_store, tmp_path, monkeypatch):
    path = write(tmp_path / "d.h5", images=IMAGES)
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    root = use_as_store(tmp_path, monkeypatch) if is_on_store else tmp_path
    with pytest.raises(InputError, match=r"d\.h5: cannot be read as HDF5"):
        open_source(f"{root}/d.h5")


def test_changed_or_removed_file_is_refused(tmp_path):
    path = write(tmp_path / "d.h5", images=IMAGES)
    source = open_source(path)
    records = list_records(source)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="has changed since the run was planned"):
        source.reader().verify(records.rows)
    with pytest.raises(StorageError, match=r"d\.h5: cannot be read"):
        source.reader().open(records, PIXELS)
    path.unlink()
    with pytest.raises(InputError, match="is gone since the run was planned"):
        source.reader().verify(records.rows)
    with pytest.raises(InputError, match="was removed after the run was planned"):
        source.reader().open(records, PIXELS)


def test_other_images_of_the_same_size_have_another_checksum(tmp_path):
    first = open_source(write(tmp_path / "a.h5", images=IMAGES)).info.checksum
    assert open_source(write(tmp_path / "b.h5", images=IMAGES)).info.checksum == first
    other = open_source(write(tmp_path / "c.h5", images=IMAGES[::-1])).info.checksum
    assert other != first
