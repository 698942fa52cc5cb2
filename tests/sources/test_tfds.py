# SPDX-License-Identifier: Apache-2.0
"""Data sets that TensorFlow Datasets has prepared."""

import json
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from support import object_store
from support.containers import SIZE, encode, pixels_of, prepare_data_set, write_tfrecord
from support.opened import list_records, open_source, read_images

from ray_embed.config import DATA_SET_PREFIXES, RunConfig, is_callable_reference, parse_source
from ray_embed.errors import InputError
from ray_embed.sources.open import PREFIXES


def records(*seeds):
    pixels = pixels_of(seeds)
    return [{"image": image, "label": seed % 2} for seed, image in zip(seeds, pixels, strict=True)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with prepared data sets."""
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": records(*range(7)), "validation": records(7, 8, 9)}
    prepare_data_set(folder, "toy", shards=2, **splits)
    prepare_data_set(folder, "toy", version="1.10.0", train=records(1, 3))
    prepare_data_set(folder, "toy", version="1.9.0", train=records(1))
    prepare_data_set(folder, "alone", "small", test=records(0, 1, 2))
    for variant in ("a", "b"):
        prepare_data_set(folder, "several", variant, test=records(0))
    return folder


@pytest.fixture
def copy(data, tmp_path):
    """A data set that may be changed."""
    return shutil.copytree(data / "toy" / "1.0.0", tmp_path / "toy")


@pytest.mark.parametrize(("split", "expected"), [("train", "train"), ("valid", "validation")])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_split_of_a_folder_is_read_as_the_library_reads_it(split, expected, scheme, data):
    folder = data / "toy" / "1.0.0"
    source = open_source(f"{scheme}{folder}", split)
    listed = list_records(source)
    written = list(tfds.as_numpy(tfds.builder_from_directory(folder).as_dataset(split=expected)))
    names = ["cat", "dog"]
    assert listed.rows["label"].to_pylist() == [names[item["label"]] for item in written]
    first = f"toy-{expected}.tfrecord-00000-of-00002#0"
    assert listed.rows["key"][0].as_py() == first
    pixels = read_images(pickle.loads(pickle.dumps(source)), listed, SIZE)
    np.testing.assert_array_equal(pixels, np.stack([item["image"] for item in written]))
    chosen = listed.select(np.array([1, 2], np.int64))
    np.testing.assert_array_equal(read_images(source, chosen, SIZE), pixels[1:3])
    source.reader().verify(listed.rows)
    assert source.info.extras == ()
    assert len(source.info.notes) == (split != expected)


def test_images_of_a_folder_as_the_library_prepares_them(tmp_path):
    for seed in range(4):
        path = tmp_path / "raw" / "train" / ("cat", "dog")[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(seed))
    builder = tfds.ImageFolder(str(tmp_path / "raw"))
    features = builder.info.features
    found = builder.as_dataset(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    written = [
        {
            "image": item["image"],
            "label": int(item["label"]),
            "image/filename": item["image/filename"].decode().rpartition("/")[2],
        }
        for item in tfds.as_numpy(found)
    ]
    folder = tmp_path / "prepared"
    folder.mkdir()
    features.save_config(folder)
    write_tfrecord(folder / "image_folder-train.tfrecord-00000-of-00001", written)
    splits = [{"name": "train", "shardLengths": ["4"]}]
    info = {"name": "image_folder", "fileFormat": "tfrecord", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    listed = list_records(open_source(folder, "train"))
    labels = dict(
        zip(listed.rows["key"].to_pylist(), listed.rows["label"].to_pylist(), strict=True)
    )
    assert labels == {"0.png": "cat", "1.png": "dog", "2.png": "cat", "3.png": "dog"}


def test_features_of_other_names(tmp_path):
    features = {
        "photo": tfds.features.Image(shape=(*SIZE, 3), encoding_format="jpeg"),
        "kind": tfds.features.ClassLabel(names=["a", "b", "c"]),
        "weight": np.float32,
        "title": tfds.features.Text(),
        "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
        "raw": tfds.features.Tensor(shape=(2,), dtype=np.uint8),
    }
    record = {"weight": 0.1, "title": "é", "boxes": [], "raw": np.zeros(2, np.uint8)}
    written = [
        {"photo": pixels_of([seed])[0], "kind": kind, **record}
        for seed, kind in enumerate(("c", "a"))
    ]
    source = open_source(prepare_data_set(tmp_path, features=features, train=written))
    listed = list_records(source)
    assert sorted(listed.rows["label"].to_pylist()) == ["a", "c"]
    assert source.info.extras == ("title", "weight")
    assert listed.rows["title"].to_pylist() == ["é", "é"]
    assert listed.rows["weight"].to_pylist() == ["0.1", "0.1"]
    assert read_images(source, listed, SIZE).shape == (2, *SIZE, 3)


def test_records_without_a_label_are_unlabeled(tmp_path):
    written = [{**records(0)[0], "label": -1}, records(1)[0]]
    source = open_source(prepare_data_set(tmp_path, test=written), "test")
    assert sorted(list_records(source).rows["label"].to_pylist(), key=str) == [None, "dog"]


def test_only_split_is_read_under_any_name_and_that_is_said(data):
    source = open_source(data / "alone" / "small" / "1.0.0", "mine")
    assert len(list_records(source)) == 3
    (note,) = source.info.notes
    assert "read the split 'test'" in note


def test_unknown_split_is_refused_with_those_there_are(data):
    folder = data / "toy" / "1.0.0"
    with pytest.raises(InputError, match=r"no split 'mine'; its splits are train, validation"):
        open_source(folder, "mine")


@pytest.mark.parametrize(
    ("named", "folder", "count"),
    [
        ("tfds:toy", "toy/1.10.0", 2),
        ("tfds:toy:1.9.0", "toy/1.9.0", 1),
        ("tfds:alone", "alone/small/1.0.0", 3),
        ("tfds:alone/small", "alone/small/1.0.0", 3),
        ("tfds:several/b:1.0.0", "several/b/1.0.0", 1),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_data_set_is_found_by_its_name(named, folder, count, scheme, data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", f"{scheme}{data}")
    source = open_source(named, "test")
    assert source.location == f"{scheme}{data}/{folder}"
    assert f"{named}: read from {scheme}{data}/{folder}" in source.info.notes
    listed = list_records(source)
    assert len(listed) == count
    assert read_images(source, listed, SIZE).shape == (count, *SIZE, 3)


def test_data_sets_are_in_the_home_folder_by_default(data, tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tensorflow_datasets").symlink_to(data)
    assert len(list_records(open_source("tfds:toy", "train"))) == 2


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("tfds:mnist", r"not prepared in .*tfds\.builder\('mnist'\)\.download_and_prepare\(\)"),
        ("tfds:toy/x", r"tfds\.builder\('toy/x'\)"),
        ("tfds:toy:9.0.0", r"tfds\.builder\('toy:9\.0\.0'\)"),
        ("tfds:several", r"several configurations are prepared: a, b; .*tfds:several/a"),
        ("tfds:", "not the name of a data set"),
    ],
)
def test_data_set_that_is_not_prepared_is_refused(named, message, data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data))
    with pytest.raises(InputError, match=message):
        open_source(named)


def test_names_of_data_sets_are_neither_callables_nor_paths(tmp_path):
    assert tuple(PREFIXES) == DATA_SET_PREFIXES
    assert not is_callable_reference("tfds:mnist")
    assert parse_source("tfds:mnist") == ("mnist", "tfds:mnist")
    assert parse_source("tfds:a/b:1.0.0") == ("a_b", "tfds:a/b:1.0.0")
    assert parse_source("test=tfds:mnist") == ("test", "tfds:mnist")
    config = RunConfig(sources="tfds:mnist", model="m.keras", source_kwargs={"mnist": {"a": 1}})
    assert config.sources == {"mnist": "tfds:mnist"}
    with pytest.raises(InputError, match="not a callable"):
        open_source("tfds:mnist", "mnist", source_kwargs={"mnist": {"a": 1}})


def test_other_file_format_is_refused(tmp_path):
    folder = prepare_data_set(tmp_path, file_format="array_record", train=records(0))
    with pytest.raises(InputError, match=r"file format array_record.*file_format='tfrecord'"):
        open_source(folder, "train")


def test_float_images_are_refused(tmp_path):
    features = {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32)}
    written = [{"image": np.zeros((4, 4, 1), np.float32)}]
    folder = prepare_data_set(tmp_path, features=features, train=written)
    with pytest.raises(InputError, match="'image' are of float32"):
        open_source(folder, "train")


def test_incomplete_data_set_is_refused(copy):
    path = copy / "toy-train.tfrecord-00001-of-00002"
    source = open_source(copy, "train")
    write_tfrecord(path, [{"image": encode(0), "label": 1}])
    with pytest.raises(InputError, match=r"00001-of-00002: the file has 1 records, .* says [34]"):
        list_records(source)
    path.unlink()
    with pytest.raises(InputError, match=r"1 of 2 files of the split 'train' are missing, such as"):
        open_source(copy, "train")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_description_is_refused(name, content, copy):
    (copy / name).write_text(content)
    with pytest.raises(InputError, match=name):
        open_source(copy, "train")


def test_missing_description_is_refused(copy):
    (copy / "dataset_info.json").unlink()
    with pytest.raises(InputError, match=r"dataset_info\.json: cannot be read.*features\.json"):
        open_source(copy, "train")


@pytest.mark.parametrize("splits", [None, [], [{"name": "train"}], [1]])
def test_description_without_splits_is_refused(splits, copy):
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps({**info, "splits": splits}))
    with pytest.raises(InputError, match=r"dataset_info\.json: not the desc|its splits are none"):
        open_source(copy, "train")


def test_label_without_a_name_is_refused(copy):
    (copy / "label.labels.txt").write_text("cat\n")
    with pytest.raises(InputError, match=r"has the label 1, but there are only 1 class names"):
        list_records(open_source(copy, "train"))


def test_changed_file_is_noticed(copy):
    source = open_source(copy, "train")
    listed = list_records(source)
    write_tfrecord(copy / "toy-train.tfrecord-00000-of-00002", [])
    with pytest.raises(InputError, match="has changed since the run was planned"):
        source.reader().verify(listed.rows)


def test_data_set_on_a_store_is_read(data, bucket, monkeypatch):
    object_store.upload(data / "toy" / "1.0.0", f"{bucket}/data/toy/1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", f"{bucket}/data")
    source = open_source("tfds:toy", "valid")
    listed = list_records(source)
    assert sorted(listed.rows["label"].to_pylist()) == ["cat", "dog", "dog"]
    assert read_images(source, listed, SIZE).shape == (3, *SIZE, 3)
