# SPDX-License-Identifier: Apache-2.0
"""TFRecord files of Examples with encoded images."""

import io
import os
import pickle
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from support import object_store
from support.containers import SIZE, encode, example, pixels_of, write_tfrecord
from support.opened import list_records, open_source, read_images

from ray_embed.config import parse_source
from ray_embed.errors import InputError, StorageError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources import tfrecord as source_module
from ray_embed.sources import tfrecord_format
from ray_embed.sources.files import File, locate_file

PIXELS = PixelSpec(shape=(*SIZE, 3), scale="none")


def test_records_have_keys_labels_and_metadata(tmp_path):
    def describe(seed):
        box = {"object/bbox/xmin": [0.1, 0.2]}
        label = {"class/label": seed, "class/text": f"class {seed}"}
        return example(seed, height=8, score=0.1, format="PNG", mask=encode(0), **label, **box)

    source = open_source(write_tfrecord(tmp_path / "d.tfrecord", map(describe, range(5))))
    rows = list_records(source).rows
    assert rows["key"].to_pylist() == [f"{i}.png" for i in range(5)]
    assert rows["label"].to_pylist() == [f"class {i}" for i in range(5)]
    extras = ("image/class/label", "image/format", "image/height", "image/score")
    assert source.info.extras == extras
    assert [rows[name].to_pylist()[1] for name in extras] == ["1", "PNG", "8", "0.1"]
    (note,) = source.info.messages
    assert "the labels are the feature 'image/class/text'" in note


@pytest.mark.parametrize("chosen", [list(range(20)), [0, 6, 7, 13, 19], [5], []])
def test_images_of_chosen_records_are_read(chosen, tmp_path):
    for shard in range(4):
        seeds = range(5 * shard, 5 * shard + 5)
        write_tfrecord(tmp_path / f"d.tfrecord-{shard:05d}-of-00004", map(example, seeds))
    source = open_source(tmp_path)
    records = list_records(source).select(np.array(chosen, np.int64))
    reader = pickle.loads(pickle.dumps(source.reader()))
    images = reader.open(records, PIXELS)
    batches = list(images.batches(4, 1))
    assert [n for batch in batches for n in batch.positions.tolist()] == list(range(len(chosen)))
    for batch in batches:
        seeds = [chosen[n] for n in batch.positions.tolist()]
        np.testing.assert_array_equal(batch.images, pixels_of(seeds))
    assert images.size == sum(len(encode(seed)) for seed in chosen)
    reader.verify(records.rows)


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (["a.tfrecord", "b.tfrecord"], ""),
        (["a.tfrecords", "b.TFRecords"], "*"),
        (["a.tfrec", "b.tfrec"], "{a,b}.tfrec"),
        (["d.tfrecord-00000-of-00002", "d.tfrecord-00001-of-00002"], "d.tfrecord*"),
        (["d.tfrecord-00000-of-00002", "d.tfrecord-00001-of-00002"], "d.tfrecord-?????-of-00002"),
        (["d-00000-of-00002", "d-00001-of-00002"], "d-{00000..00001}-of-00002"),
        (["d-00000-of-00002", "d-00001-of-00002"], ""),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_are_found_by_their_names(names, given, scheme, tmp_path):
    for seed, name in enumerate(names):
        write_tfrecord(tmp_path / name, [example(seed)])
    if not given:
        (tmp_path / "notes.txt").touch()
    source = open_source(f"{scheme}{tmp_path}/{given}".rstrip("/"))
    records = list_records(source)
    assert records.rows["key"].to_pylist() == ["0.png", "1.png"]
    np.testing.assert_array_equal(read_images(source, records, SIZE), pixels_of([0, 1]))


@pytest.mark.parametrize(
    "named",
    [
        "d.tfrecord",
        "s3://b/d.tfrecord-00000-of-00010",
        "a/d-00000-of-00010",
        "d.tfrecord*",
        "d.tfrecords-{00..10}-of-10",
        "d-*-of-10",
        "d.TFRec",
    ],
)
def test_split_is_named_after_its_files(named):
    assert parse_source(named) == ("d", named)


def test_image_of_tfds_and_records_without_a_name(tmp_path):
    records = [{"image": encode(i), "label": i, "image/filename": ""} for i in range(3)]
    source = open_source(write_tfrecord(tmp_path / "d.tfrecord", records))
    listed = list_records(source)
    assert listed.rows["key"].to_pylist() == [f"d.tfrecord#{i}" for i in range(3)]
    assert listed.rows["label"].to_pylist() == [0, 1, 2]
    assert source.info.messages == ()
    np.testing.assert_array_equal(read_images(source, listed, SIZE), pixels_of(range(3)))


def test_features_are_chosen_with_options(tmp_path):
    records = [{"pic": encode(i), "kind": f"k{i}", "id": i, "label": 7} for i in range(2)]
    path = write_tfrecord(tmp_path / "d.tfrecord", records)
    source = open_source(path, image_column="pic", label_column="kind", key_column="id")
    listed = list_records(source)
    assert listed.rows["key"].to_pylist() == ["0", "1"]
    assert listed.rows["label"].to_pylist() == ["k0", "k1"]
    np.testing.assert_array_equal(read_images(source, listed, SIZE), pixels_of(range(2)))
    # The name of a column of the run.
    assert any("left out the features label" in note for note in source.info.notes)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, -1], [1, -1]),
        ([1, 0.5], [1.0, 0.5]),
        ([1, "a"], ["1", "a"]),
        (["é", []], ["é", None]),
        ([[], []], [None, None]),
    ],
)
def test_labels_share_one_type(labels, expected, tmp_path):
    records = [{"image": encode(0), "label": label} for label in labels]
    source = open_source(write_tfrecord(tmp_path / "d.tfrecord", records))
    assert list_records(source).rows["label"].to_pylist() == expected


def test_unlabeled_file_is_said(tmp_path):
    source = open_source(write_tfrecord(tmp_path / "d.tfrecord", [example(0, kind="x")]))
    (note,) = source.info.messages
    assert "unlabeled" in note
    assert "image/kind (bytes)" in note
    assert list_records(source).rows["label"].null_count == 1


def test_label_that_was_asked_for_must_be_there(tmp_path):
    path = write_tfrecord(tmp_path / "d.tfrecord", [example(0, **{"class/label": 1})])
    with pytest.raises(InputError, match=r"no feature 'label', so .* image/class/label"):
        open_source(path, label_column="label")


def test_record_without_an_image_is_missing_and_damaged_ones_are_diagnosed(tmp_path):
    images = [encode(0), [], b"no image", b""]
    records = [{"image": image, "label": 1} for image in images] + [{"label": 2}]
    source = open_source(write_tfrecord(tmp_path / "d.tfrecord", records))
    opened = source.reader().open(list_records(source), PIXELS)
    (batch,) = opened.batches(8, 1)
    assert batch.positions.tolist() == [0]
    reasons = [opened.diagnose(number) for number in (1, 2, 3, 4)]
    assert reasons == ["missing", "not an image", "empty file", "missing"]


@pytest.mark.parametrize(
    ("features", "tokens"),
    [
        ({"pixels": [1] * 9, "kind": "x"}, ["no feature", "kind (bytes), pixels (9 × int64)"]),
        ({"image": [1] * 2000, "label": 1}, ["'image' has numbers", "int64, long"]),
        ({"image": [b"a", b"b"]}, ["'image' has 2 values", "one record for each"]),
        ({"image": b"x", "label": [1, 2]}, ["record 0", "'label' has 2 × int64"]),
        ({"image": b"x", "label": "x" * 5000}, ["'label' has bytes, long"]),
        ({}, ["the features are none"]),
    ],
)
def test_file_of_other_features_is_refused(features, tokens, tmp_path):
    write_tfrecord(tmp_path / "d.tfrecord", [features])
    with pytest.raises(InputError) as caught:
        list_records(open_source(tmp_path / "d.tfrecord"))
    assert "d.tfrecord" in str(caught.value)
    for token in tokens:
        assert token in str(caught.value)


@pytest.mark.parametrize("option", ["image_column", "key_column"])
def test_feature_that_is_not_there_is_refused(option, tmp_path):
    path = write_tfrecord(tmp_path / "d.tfrecord", [example(0)])
    with pytest.raises(InputError, match=r"no feature 'none' .*image/filename \(bytes\)"):
        open_source(path, **{option: "none"})


def write_raw(path, *records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


@pytest.mark.parametrize(
    "record",
    [
        b"just text",
        os.urandom(5000),
        tf.io.serialize_tensor(tf.zeros((8, 9, 3), tf.uint8)).numpy(),
        tf.train.SequenceExample(
            feature_lists=tf.train.FeatureLists(feature_list={"a": tf.train.FeatureList()})
        ).SerializeToString(),
        tf.train.Features(feature={"a": tf.train.Feature()}).SerializeToString(),
        b"\n\x82\x80",
        b"\n",
    ],
)
def test_records_that_are_no_examples_are_refused(record, tmp_path):
    path = write_raw(tmp_path / "d.tfrecord", record)
    with pytest.raises(InputError, match=r"d\.tfrecord: record 0 .*tf\.train\.Example"):
        open_source(path)


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
@pytest.mark.parametrize("name", ["d.tfrecord", "d.tfrecord.gz"])
def test_compressed_file_is_refused_with_the_reason(compression, name, tmp_path):
    path = write_tfrecord(tmp_path / name, [example(0)], compression)
    with pytest.raises(InputError, match=f"compressed with {compression}.*uncompress"):
        open_source(path)


@pytest.mark.parametrize("kept", [5, 100, -1, -4, -30])
def test_truncated_file_is_refused(kept, tmp_path):
    path = write_tfrecord(tmp_path / "d.tfrecord", map(example, range(4)))
    path.write_bytes(path.read_bytes()[:kept])
    number = 0 if kept > 0 else 3
    with pytest.raises(InputError, match=rf"d\.tfrecord: the file ends within record {number}"):
        list_records(open_source(path))


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "d.tfrecord"
    path.write_bytes(encode(0))
    with pytest.raises(InputError, match=r"d\.tfrecord: not a TFRecord file"):
        open_source(path)
    write_tfrecord(path, [example(0)])
    size = path.stat().st_size
    write_tfrecord(path, [example(0), example(1)])
    content = bytearray(path.read_bytes())
    content[size + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"record 1 \(byte {size}\) has a wrong checksum"):
        list_records(open_source(path))


def test_empty_files_are_counted_and_nothing_but_them_is_refused(tmp_path):
    write_tfrecord(tmp_path / "a.tfrecord", [])
    write_tfrecord(tmp_path / "b.tfrecord", [example(0)])
    skipped: Counter[str] = Counter()
    records = list_records(open_source(tmp_path), skipped)
    assert records.rows["key"].to_pylist() == ["0.png"]
    assert skipped == {"empty files": 1}
    with pytest.raises(InputError, match=r"a\.tfrecord: no records"):
        open_source(tmp_path / "a.tfrecord")


def test_later_records_of_another_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_RECORDS_INSPECTED", 1)
    first = {"image": encode(0), "label": 1, "note": "short"}
    path = write_tfrecord(tmp_path / "d.tfrecord", [first, {**first, "note": "x" * 5000}])
    skipped: Counter[str] = Counter()
    assert list_records(open_source(path), skipped).rows["note"].to_pylist() == ["short", None]
    assert skipped == {"values of 'note' that are not single and short": 1}
    write_tfrecord(path, [first, {**first, "label": "dog"}])
    with pytest.raises(InputError, match=r"record 1 has the label 'dog'.*int64"):
        list_records(open_source(path))


def test_changed_or_removed_file_is_refused(tmp_path):
    path = write_tfrecord(tmp_path / "d.tfrecord", map(example, range(4)))
    source = open_source(path)
    records = list_records(source)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="has changed since the run was planned"):
        source.reader().verify(records.rows)
    with pytest.raises(StorageError, match=r"d\.tfrecord: cannot be read: the file ends before"):
        list(source.reader().open(records, PIXELS).batches(4, 1))
    path.unlink()
    with pytest.raises(InputError, match="removed"):
        list(source.reader().open(records, PIXELS).batches(4, 1))


def test_damaged_image_is_a_storage_error_with_file_and_record(tmp_path):
    path = write_tfrecord(tmp_path / "d.tfrecord", map(example, range(2)))
    source = open_source(path)
    records = list_records(source)
    content = bytearray(path.read_bytes())
    position = records.rows["position"][1].as_py()
    content[position + 60] ^= 1
    path.write_bytes(content)
    message = rf"d\.tfrecord: cannot be read: the record at byte {position - 12} .*checksum"
    with pytest.raises(StorageError, match=message):
        list(source.reader().open(records, PIXELS).batches(4, 1))


def test_planning_does_not_read_the_images(tmp_path, monkeypatch):
    class Counting(io.FileIO):
        count = 0

        def read(self, size=-1):
            content = super().read(size)
            Counting.count += len(content)
            return content

    records = [{"image": os.urandom(1 << 20), "label": i} for i in range(8)]
    path = write_tfrecord(tmp_path / "d.tfrecord", records)
    source = open_source(path)
    monkeypatch.setattr(tfrecord_format, "open_file", lambda file: Counting(file.path))
    assert list_records(source).rows["label"].to_pylist() == list(range(8))
    assert Counting.count < 600_000


def test_store_is_read_in_large_blocks(tmp_path, monkeypatch):
    class Counting(io.FileIO):
        reads = 0

        def read(self, size=-1):
            Counting.reads += 1
            return super().read(size)

    path = write_tfrecord(tmp_path / "d.tfrecord", map(example, range(50)))
    monkeypatch.setattr(tfrecord_format, "open_file", lambda file: Counting(path))
    monkeypatch.setattr(tfrecord_format, "_STORE_BLOCK", 4000)
    file = File(os.fsencode(path), filesystem=object())  # type: ignore[arg-type]
    places = [place for place, _ in tfrecord_format.find_records(file, path.stat().st_size)]
    assert Counting.reads <= path.stat().st_size / 3500 + 1
    data = list(tfrecord_format.read_records(locate_file(str(path)), places))
    assert data == [record.numpy() for record in tf.data.TFRecordDataset(str(path))]


def test_files_on_a_store_are_planned_and_read_even_if_requests_fail(tmp_path, bucket, store):
    for shard in range(2):
        seeds = range(5 * shard, 5 * shard + 5)
        write_tfrecord(tmp_path / f"d.tfrecord-{shard:05d}-of-00002", map(example, seeds))
    object_store.upload(tmp_path, f"{bucket}/data")
    for given in ("", "/d.tfrecord*"):
        store.share = 0.2
        source = open_source(f"{bucket}/data{given}")
        listed = list_records(source)
        assert listed.rows["key"].to_pylist() == [f"{seed}.png" for seed in range(10)]
        np.testing.assert_array_equal(read_images(source, listed, SIZE), pixels_of(range(10)))
        source.reader().verify(listed.rows)
    store.share = 0
    (tmp_path / "d.tfrecord-00000-of-00002").unlink()
    write_tfrecord(tmp_path / "d.tfrecord-00001-of-00002", [example(0)])
    object_store.upload(tmp_path, f"{bucket}/data")
    with pytest.raises(InputError, match=r"s3://.*00001-of-00002: the file has changed"):
        source.reader().verify(listed.rows)
    with pytest.raises(StorageError, match=r"s3://.*00001-of-00002: cannot be read: .*ends before"):
        read_images(source, listed, SIZE)
