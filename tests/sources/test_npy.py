# SPDX-License-Identifier: Apache-2.0
"""Images in an .npy file, with the labels beside it."""

import pickle
import tracemalloc

import numpy as np
import pytest
from support.opened import list_records, open_source
from support.stores import use_as_store

from ray_embed.errors import InputError, StorageError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources import npy

SHAPE = (8, 9, 3)
PIXELS = PixelSpec(shape=SHAPE, scale="none")
IMAGES = np.random.default_rng(0).integers(0, 256, (20, *SHAPE)).astype(np.uint8)


@pytest.mark.parametrize("is_on_store", [False, True])
def test_chosen_images_are_read_with_the_labels_beside_them(is_on_store, tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", np.arange(20)[:, None])
    root = use_as_store(tmp_path, monkeypatch) if is_on_store else tmp_path.as_uri()
    source = open_source(f"{root}/images.npy")
    records = list_records(source)
    assert records.rows["key"].to_pylist() == [str(i) for i in range(20)]
    assert records.rows["label"].to_pylist() == list(range(20))
    (note,) = source.info.notes
    assert note.endswith("images.npy: labels from labels.npy")
    for chosen in (list(range(20)), [0, 3, 4, 5, 19], [7]):
        reader = pickle.loads(pickle.dumps(source.reader()))
        opened = reader.open(records.select(np.array(chosen)), PIXELS)
        found = np.stack([opened.load(number) for number in range(len(opened))])
        np.testing.assert_array_equal(found, IMAGES[chosen])
    source.reader().verify(records.rows)


@pytest.mark.parametrize(
    ("name", "options", "labels"),
    [
        ("x_train", {}, "y_train"),
        ("train_images", {}, "train_labels"),
        ("images", {"label_column": "kinds"}, "kinds"),
        ("images", {"label_column": "kinds.npy"}, "kinds"),
        ("mine", {"label_column": "kinds"}, "kinds"),
    ],
)
def test_labels_are_found_by_name(name, options, labels, tmp_path):
    np.save(tmp_path / f"{name}.npy", IMAGES[:2])
    np.save(tmp_path / f"{labels}.npy", np.array(["a", "b"]))
    source = open_source(tmp_path / f"{name}.npy", **options)
    assert list_records(source).rows["label"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(("name", "token"), [("images", "labels.npy"), ("mine", "file of labels")])
def test_images_without_labels_are_said(name, token, tmp_path):
    np.save(tmp_path / f"{name}.npy", IMAGES[..., 0])
    np.save(tmp_path / "other.npy", np.arange(20))
    source = open_source(tmp_path / f"{name}.npy")
    assert source.info.image_shape == (8, 9, 1)
    (note,) = source.info.notes
    for word in (token, "unlabeled", "other.npy", "--label-column"):
        assert word in note
    assert list_records(source).rows["label"].null_count == 20


@pytest.mark.parametrize(
    ("images", "labels", "tokens"),
    [
        (IMAGES.astype(np.int32), None, ["int32", "uint8 or float"]),
        (np.moveaxis(IMAGES, 3, 1), None, ["NCHW"]),
        (IMAGES[0, 0], None, ["(9, 3)"]),
        (np.uint8(1), None, ["()"]),
        (IMAGES[:0], None, ["empty"]),
        (np.asfortranarray(IMAGES), None, ["Fortran order"]),
        (np.array([IMAGES[0], None], object), None, ["Python objects", "np.stack"]),
        (IMAGES, np.arange(2), ["labels.npy", "(2,)", "20"]),
        (IMAGES, np.zeros(20, complex), ["labels.npy", "complex"]),
        (IMAGES, np.array([None] * 20), ["labels.npy", "Python objects"]),
    ],
)
def test_wrong_contents_are_refused(images, labels, tokens, tmp_path):
    np.save(tmp_path / "images.npy", images)
    if labels is not None:
        np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / "images.npy")
    for token in [".npy", *tokens]:
        assert token in str(caught.value)


@pytest.mark.parametrize("name", ["images", "labels"])
@pytest.mark.parametrize(
    ("content", "token"),
    [(b"", "not an .npy file"), (b"no array", "not an .npy file"), (None, "cut off")],
)
def test_foreign_empty_or_truncated_file_is_refused(content, token, name, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", np.arange(20))
    path = tmp_path / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    with pytest.raises(InputError, match=rf"{name}\.npy: .*{token}"):
        open_source(tmp_path / "images.npy")


def test_labels_that_were_asked_for_must_be_there(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    with pytest.raises(InputError, match=r"no file kinds\.npy beside it.*contains images\.npy"):
        open_source(tmp_path / "images.npy", label_column="kinds")


def test_changed_or_removed_file_is_refused(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, IMAGES)
    source = open_source(path)
    records = list_records(source)
    np.save(path, IMAGES[:5])
    with pytest.raises(InputError, match="has changed since the run was planned"):
        source.reader().verify(records.rows)
    with pytest.raises(StorageError, match=r"images\.npy: cannot be read: the file ends before"):
        source.reader().open(records, PIXELS)
    path.unlink()
    with pytest.raises(InputError, match="is gone since the run was planned"):
        source.reader().verify(records.rows)
    with pytest.raises(InputError, match="was removed after the run was planned"):
        source.reader().open(records, PIXELS)


def test_a_range_is_read_without_the_rest(tmp_path):
    images = np.zeros((2000, 100, 100), np.uint8)
    images[1500] = 7
    np.save(tmp_path / "images.npy", images)
    del images
    tracemalloc.start()
    source = open_source(tmp_path / "images.npy")
    assert len(source.labels) == 2000
    found = npy.read_rows(str(tmp_path / "images.npy"), "images", 1500, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found[0] == 7).all()
    assert not found[1:].any()
    assert peak < 4 << 20
