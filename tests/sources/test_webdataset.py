# SPDX-License-Identifier: Apache-2.0
"""Tar files in the WebDataset format."""

import pickle
from collections import Counter

import numpy as np
import pytest
import webdataset
from support.containers import SIZE, encode, pixels_of, sample, write_tar
from support.opened import list_records, open_source, read_images

from ray_embed.errors import InputError, StorageError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources import webdataset as source_module

PIXELS = PixelSpec(shape=(*SIZE, 3), scale="none")


def test_samples_have_keys_labels_and_metadata(tmp_path):
    samples = [sample(i, i % 3, who=f"w{i}", box=[1, 2], score=0.5) for i in range(5)]
    source = open_source(write_tar(tmp_path / "d.tar", samples))
    rows = list_records(source).rows
    assert rows["key"].to_pylist() == [f"{i:05d}" for i in range(5)]
    assert rows["label"].to_pylist() == [0, 1, 2, 0, 1]
    assert rows["who"].to_pylist() == [f"w{i}" for i in range(5)]
    assert rows["score"].to_pylist() == ["0.5"] * 5
    assert source.info.extras == ("who", "score")
    assert source.info.messages == ()


@pytest.mark.parametrize("chosen", [list(range(12)), [0, 3, 11], [5], []])
def test_images_of_chosen_samples_are_read(chosen, tmp_path):
    for shard in range(3):
        samples = [sample(seed, 0) for seed in range(4 * shard, 4 * shard + 4)]
        write_tar(tmp_path / f"s-{shard:03d}.tar", samples)
    source = open_source(f"{tmp_path}/s-{{000..002}}.tar")
    records = list_records(source).select(np.array(chosen, np.int64))
    images = pickle.loads(pickle.dumps(source.reader())).open(records, PIXELS)
    batches = list(images.batches(4, 1))
    assert [n for batch in batches for n in batch.positions.tolist()] == list(range(len(chosen)))
    for batch in batches:
        seeds = [chosen[n] for n in batch.positions.tolist()]
        np.testing.assert_array_equal(batch.images, pixels_of(seeds))
    source.reader().verify(records.rows)


def test_shards_of_the_webdataset_library_are_read(tmp_path):
    with webdataset.ShardWriter(f"{tmp_path}/s-%06d.tar", maxcount=3, verbose=0) as writer:
        for seed in range(7):
            writer.write({"__key__": f"{seed:04d}", "png": encode(seed), "cls": seed % 2})
    source = open_source(tmp_path)
    records = list_records(source)
    assert records.rows["key"].to_pylist() == [f"{seed:04d}" for seed in range(7)]
    assert records.rows["label"].to_pylist() == [seed % 2 for seed in range(7)]
    np.testing.assert_array_equal(read_images(source, records, SIZE), pixels_of(range(7)))


@pytest.mark.parametrize(
    ("files", "options", "labels"),
    [
        ([{"json": b'{"kind": "x"}'}, {"json": b"{}"}], {"label_column": "kind"}, ["x", None]),
        ([{"txt": b" one\n"}, {"txt": b"\xef\xbb\xbftwo"}], {}, ["one", "two"]),
        ([{"cls": b"1", "json": b'{"label": "x"}'}], {}, [1]),
        ([{"cls": b"1", "json": b'{"kind": "x"}'}], {"label_column": "kind"}, ["x"]),
        ([{"cls": b"1", "txt": b"x"}, {"cls": b"2"}], {"label_column": "txt"}, ["x", None]),
        ([{"cls": b"1"}, {"cls": b"dog"}], {}, ["1", "dog"]),
        ([{"cls": b"-1"}, {"cls": b"2"}], {}, [-1, 2]),
        (
            [{"cls": "²".encode()}, {"cls": b"--1"}, {"cls": b"1" * 5000}],
            {},
            ["²", "--1", "1" * 5000],
        ),
        ([{"json": b'{"label": 1}'}, {"json": b'{"label": 0.5}'}], {}, [1.0, 0.5]),
        ([{"json": b'{"label": true}'}, {}], {}, [True, None]),
    ],
)
def test_labels_come_from_cls_a_json_field_or_txt(files, options, labels, tmp_path):
    samples = [(f"k{i}", {"jpg": b"", **contents}) for i, contents in enumerate(files)]
    source = open_source(write_tar(tmp_path / "d.tar", samples), **options)
    assert list_records(source).rows["label"].to_pylist() == labels


def test_unlabeled_tar_is_said_and_other_files_are_counted(tmp_path):
    samples = [
        ("a", {"png": encode(0), "mask.npy": b"x"}),
        ("b", {"npy": b"x"}),
        ("c", {"png": encode(1)}),
    ]
    source = open_source(write_tar(tmp_path / "d.tar", samples))
    (note,) = source.info.messages
    assert "unlabeled" in note
    assert "--label-column" in note
    skipped: Counter[str] = Counter()
    assert list_records(source, skipped).rows["key"].to_pylist() == ["a", "c"]
    assert skipped == {".mask.npy": 1, ".npy": 1, "samples without an image": 1}


def test_extension_of_the_images_can_be_selected(tmp_path):
    samples = [
        ("a", {"input.PNG": encode(0), "target.png": encode(9), "cls": b"1"}),
        ("b", {"input.png": encode(1), "target.png": encode(9), "cls": b"2"}),
    ]
    path = write_tar(tmp_path / "d.tar", samples)
    with pytest.raises(InputError, match=r"2 × \.target\.png.*--image-column, such as input\.png"):
        open_source(path)
    source = open_source(path, image_column="input.png")
    records = list_records(source)
    assert records.rows["label"].to_pylist() == [1, 2]
    np.testing.assert_array_equal(read_images(source, records, SIZE), pixels_of([0, 1]))


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tar_is_refused_with_the_reason(mode, name, tmp_path):
    write_tar(tmp_path / "d.tar", [sample(0, 1)], mode)
    with pytest.raises(InputError, match=rf"d\.tar: the tar is compressed with {name}.*uncompress"):
        open_source(tmp_path / "d.tar")


@pytest.mark.parametrize(
    ("samples", "tokens"),
    [
        ([("a", {"npy": b"x"}), ("b", {"npy": b"y"})], ["no images", "2 × .npy", ".jpg"]),
        ([("a", {"png": b""}), ("b", {"png": b""}), ("a", {"cls": b"1"})], ["'a'", "twice"]),
        ([("a", {"png": b"", "jpg": b""})], ["'a'", "two images", "--image-column"]),
        ([("a", {"png": b"", "json": b"{"})], ["a.json", "not JSON"]),
        ([("a", {"png": b"", "json": b"[1]"})], ["a.json", "not a JSON object"]),
        ([("a", {"png": b"", "json": b'{"x": "\\ud800"}'})], ["a.json is not JSON", "surrogates"]),
        ([("a", {"png": b"", "json": b"[" * 100_000})], ["a.json is not JSON"]),
        ([("a", {"png": b"", "json": b"\xff"})], ["a.json is not UTF-8"]),
        ([("a", {"png": b"", "cls": b"\xff"})], ["a.cls", "not UTF-8"]),
        ([("a", {"png": b"", "json": b'{"label": [1.5, 2]}'})], ["label"]),
    ],
)
def test_tar_with_wrong_contents_is_refused(samples, tokens, tmp_path):
    write_tar(tmp_path / "d.tar", samples)
    with pytest.raises(InputError) as caught:
        list_records(open_source(tmp_path / "d.tar"))
    assert "d.tar" in str(caught.value)
    for token in tokens:
        assert token in str(caught.value)


def test_later_label_of_another_type_is_refused_by_key(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_SAMPLES_INSPECTED", 2)
    samples = [(f"k{i}", {"png": b"", "cls": str(i).encode()}) for i in range(3)]
    write_tar(tmp_path / "d.tar", [*samples, ("last", {"png": b"", "cls": b"dog"})])
    with pytest.raises(InputError, match=r"d\.tar: last has the label 'dog'.*int64"):
        list_records(open_source(tmp_path / "d.tar"))


def test_label_after_many_unlabeled_samples_is_refused_by_key(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_SAMPLES_INSPECTED", 2)
    samples = [("a", {"png": b""}), ("b", {"png": b""}), ("last", {"png": b"", "cls": b"1"})]
    write_tar(tmp_path / "d.tar", samples)
    with pytest.raises(InputError, match=r"last has the label 1, but .* none; put one .* first 2"):
        list_records(open_source(tmp_path / "d.tar"))


def test_fields_of_later_samples_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_SAMPLES_INSPECTED", 1)
    samples = [sample(0, 1, place="here"), sample(1, 1, place="there", time="now")]
    source = open_source(write_tar(tmp_path / "d.tar", samples))
    skipped: Counter[str] = Counter()
    assert list_records(source, skipped).rows["place"].to_pylist() == ["here", "there"]
    assert skipped == {"json fields that the first 1 samples lack": 1}


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, None])
def test_file_that_is_no_tar_or_cut_off_is_refused(content, tmp_path):
    path = write_tar(tmp_path / "d.tar", [sample(i, 1) for i in range(4)])
    path.write_bytes(path.read_bytes()[:4000] if content is None else content)
    with pytest.raises(InputError, match=r"d\.tar"):
        list_records(open_source(path))


def test_changed_or_cut_off_tar_is_noticed(tmp_path):
    path = write_tar(tmp_path / "d.tar", [sample(i, 1) for i in range(4)])
    source = open_source(path)
    records = list_records(source)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="has changed since the run was planned"):
        source.reader().verify(records.rows)
    with pytest.raises(StorageError, match=r"d\.tar: cannot be read: the file ends before"):
        list(source.reader().open(records, PIXELS).batches(4, 1))
