# SPDX-License-Identifier: Apache-2.0
"""Folders written by `save_to_disk` of Hugging Face datasets."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from support.containers import SIZE, encode, make_dataset, pixels_of
from support.opened import list_records, open_source, read_images
from support.stores import use_as_store

from ray_embed.errors import InputError, StorageError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources import saved_dataset as source_module
from ray_embed.sources.files import File

PIXELS = PixelSpec(shape=(*SIZE, 3), scale="none")
DATA = "data-00000-of-00001.arrow"


def save(
    dataset: datasets.Dataset | datasets.DatasetDict, path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Save a dataset with record batches of four rows."""
    monkeypatch.setattr("datasets.config.DEFAULT_MAX_BATCH_SIZE", 4)
    monkeypatch.setattr("datasets.config.ARROW_RECORD_BATCH_SIZE_FOR_IMAGE_DATASETS", 4)
    dataset.save_to_disk(path)
    return path


def rewrite(folder: Path, table: pa.Table, **options) -> Path:
    """Replace the rows of a saved dataset by others that its library does not write."""
    with pa.OSFile(str(folder / DATA), "wb") as sink:
        writer = pa.ipc.new_stream(sink, table.schema, **options)
        writer.write_table(table)
        writer.close()
    return folder


@pytest.mark.parametrize("chosen", [list(range(14)), [0, 3, 4, 9, 13], [5], []])
@pytest.mark.parametrize("is_on_store", [False, True])
def test_rows_are_read_from_files_in_their_order(is_on_store, chosen, tmp_path, monkeypatch):
    dataset = make_dataset(
        range(14), label=list(range(14)), camera=["a", None] * 7, box=[[1, 2]] * 14
    )
    monkeypatch.setattr("datasets.config.ARROW_RECORD_BATCH_SIZE_FOR_IMAGE_DATASETS", 3)
    dataset.save_to_disk(tmp_path / "d", num_shards=2)
    assert len(list((tmp_path / "d").glob("*.arrow"))) == 2
    root = use_as_store(tmp_path, monkeypatch) if is_on_store else tmp_path.as_uri()
    source = open_source(f"{root}/d")
    records = list_records(source)
    assert records.rows["key"].to_pylist() == [f"{i}.png" for i in range(14)]
    assert records.rows["label"].to_pylist() == list(range(14))
    assert records.rows["camera"].to_pylist() == ["a", None] * 7
    assert source.info.extras == ("camera",)
    assert source.info.messages == ()
    some = records.select(np.array(chosen, np.int64))
    images = pickle.loads(pickle.dumps(source.reader())).open(some, PIXELS)
    batches = list(images.batches(4, 1))
    assert [n for batch in batches for n in batch.positions.tolist()] == list(range(len(chosen)))
    for batch in batches:
        seeds = [chosen[n] for n in batch.positions.tolist()]
        np.testing.assert_array_equal(batch.images, pixels_of(seeds))
    assert images.size == sum(len(encode(seed)) for seed in chosen)
    source.reader().verify(records.rows)


def test_files_come_in_the_order_of_the_state(tmp_path):
    make_dataset(range(4)).save_to_disk(tmp_path / "d", num_shards=2)
    state = json.loads((tmp_path / "d/state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "d/state.json").write_text(json.dumps(state))
    source = open_source(tmp_path / "d")
    records = list_records(source)
    assert records.rows["key"].to_pylist() == [f"{i}.png" for i in (2, 3, 0, 1)]
    np.testing.assert_array_equal(read_images(source, records, SIZE), pixels_of([2, 3, 0, 1]))


def test_class_names_and_pictures_in_memory(tmp_path, monkeypatch):
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    pictures = [Image.fromarray(pixels) for pixels in pixels_of(range(6))]
    dataset = datasets.Dataset.from_dict(
        {"img": [*pictures, None], "kind": [0, 1, 0, 1, 0, 1, -1]}, features=features
    )
    source = open_source(save(dataset, tmp_path / "d", monkeypatch), label_column="kind")
    records = list_records(source)
    assert records.rows["label"].to_pylist() == ["cat", "dog"] * 3 + [None]
    assert records.rows["key"].to_pylist() == [f"{DATA}#{i}" for i in range(7)]
    opened = source.reader().open(records, PIXELS)
    (batch,) = opened.batches(8, 1)
    np.testing.assert_array_equal(batch.images, pixels_of(range(6)))
    assert opened.diagnose(6) == "missing"


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary()])
def test_damaged_and_missing_images_in_a_binary_column(type_, tmp_path):
    dataset = datasets.Dataset(pa.table({"image": pa.array([encode(0)], type_)}))
    dataset.save_to_disk(tmp_path / "d")
    contents = [None, encode(1), b"no image", b"", None]
    for table in ([encode(0), *contents], [None, None, b""]):
        rewrite(tmp_path / "d", pa.table({"image": pa.array(table, type_)}))
        source = open_source(tmp_path / "d")
        opened = source.reader().open(list_records(source), PIXELS)
        positions = [n for batch in opened.batches(8, 1) for n in batch.positions.tolist()]
        assert positions == ([0, 2] if len(table) == 6 else [])
        expected = {None: "missing", b"no image": "not an image", b"": "empty file"}
        for number, content in enumerate(table):
            if content in expected:
                assert opened.diagnose(number) == expected[content]


@pytest.mark.parametrize(
    ("split", "names", "expected"),
    [
        ("train", ["train", "test"], "train"),
        ("valid", ["train", "validation"], "validation"),
        ("val", ["train", "validation"], "validation"),
        ("mine", ["train"], "train"),
    ],
)
def test_split_of_a_dict_is_chosen_by_its_name(split, names, expected, tmp_path):
    parts = {name: make_dataset([seed], split=[name]) for seed, name in enumerate(names)}
    parts = {name: part.rename_column("split", "from") for name, part in parts.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    for root in (tmp_path, tmp_path.as_uri()):
        source = open_source(f"{root}/d", split=split)
        assert list_records(source).rows["from"].to_pylist() == [expected]
        notes = [note for note in source.info.notes if "only split" in note]
        assert len(notes) == (split == "mine")
        assert "unlabeled" in source.info.unlabeled


def test_unknown_split_of_a_dict_is_refused_with_the_splits(tmp_path):
    part = make_dataset([0])
    datasets.DatasetDict(train=part, test=part).save_to_disk(tmp_path / "d")
    with pytest.raises(InputError, match=r"d: no split 'mine'.*train, test.*--source train=.*d"):
        open_source(tmp_path / "d", split="mine")
    (tmp_path / "d/dataset_dict.json").write_text("{}")
    with pytest.raises(InputError, match="lists no splits"):
        open_source(tmp_path / "d", split="train")


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ('{"_indices_data_files": [{"filename": "indices.arrow"}]}', ["flatten_indices()"]),
        ('{"_data_files": []}', ["no data files"]),
        ('{"step": 7}', ["does not list data files"]),
        ('{"_data_files": [1]}', ["does not list data files"]),
        ("[]", ["not a JSON object"]),
        ("{", ["not JSON"]),
    ],
)
def test_other_state_is_refused(content, tokens, tmp_path):
    make_dataset([0]).save_to_disk(tmp_path / "d")
    (tmp_path / "d/state.json").write_text(content)
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / "d")
    for token in ["state.json", *tokens]:
        assert token in str(caught.value)


def test_images_in_other_files_are_refused_until_they_are_embedded(tmp_path, monkeypatch):
    paths = []
    for seed in range(3):
        paths.append(str(tmp_path / f"{seed}.png"))
        Path(paths[-1]).write_bytes(encode(seed))
    dataset = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    folder = save(dataset, tmp_path / "d", monkeypatch)
    with ArrowWriter(features=dataset.features, path=str(folder / DATA)) as writer:
        for path in paths:
            writer.write({"image": {"bytes": None, "path": path}})
        writer.finalize()
    with pytest.raises(InputError, match=rf"{DATA}: row 0 has the path .*0\.png.*load_from_disk"):
        list_records(open_source(folder))
    datasets.load_from_disk(str(folder)).save_to_disk(tmp_path / "new")
    source = open_source(tmp_path / "new")
    found = read_images(source, list_records(source), SIZE)
    np.testing.assert_array_equal(found, pixels_of(range(3)))


def test_compressed_or_dictionary_encoded_rows_are_refused(tmp_path):
    make_dataset([0]).save_to_disk(tmp_path / "d")
    table = pa.table({"image": [b"x" * 5000] * 3})
    rewrite(tmp_path / "d", table, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(InputError, match=rf"{DATA}: its record batches are compressed"):
        list_records(open_source(tmp_path / "d"))
    kinds = pa.array(["a", "b", "a"]).dictionary_encode()
    rewrite(tmp_path / "d", table.append_column("kind", kinds))
    with pytest.raises(InputError, match=rf"{DATA}: a column is encoded with a dictionary"):
        list_records(open_source(tmp_path / "d"))


@pytest.mark.parametrize("keep", [0, 100, -20])
@pytest.mark.parametrize("is_on_store", [False, True])
def test_truncated_or_empty_file_is_refused(is_on_store, keep, tmp_path, monkeypatch):
    make_dataset(range(4)).save_to_disk(tmp_path / "d")
    path = tmp_path / "d" / DATA
    path.write_bytes(path.read_bytes()[:keep])
    root = use_as_store(tmp_path, monkeypatch) if is_on_store else tmp_path
    with pytest.raises(InputError, match=rf"{DATA}: cannot be read as an Arrow stream.*complete"):
        list_records(open_source(f"{root}/d"))


def test_foreign_or_missing_file_is_refused(tmp_path):
    make_dataset(range(4)).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / DATA).write_bytes(b"no arrow stream at all" * 10)
    with pytest.raises(InputError, match=rf"{DATA}: cannot be read"):
        open_source(tmp_path / "d")
    (tmp_path / "d" / DATA).unlink()
    with pytest.raises(InputError, match=rf"{DATA}: cannot be read: No such file"):
        open_source(tmp_path / "d")


def test_later_file_with_other_columns_is_refused(tmp_path):
    make_dataset(range(4)).save_to_disk(tmp_path / "d", num_shards=2)
    make_dataset(range(2), kind=[1, 2]).save_to_disk(tmp_path / "e")
    (tmp_path / "e" / DATA).replace(tmp_path / "d/data-00001-of-00002.arrow")
    with pytest.raises(InputError, match=r"data-00001-of-00002\.arrow: its columns .* differ from"):
        list_records(open_source(tmp_path / "d"))


def test_changed_or_removed_file_is_refused(tmp_path):
    make_dataset(range(4)).save_to_disk(tmp_path / "d")
    source = open_source(tmp_path / "d")
    records = list_records(source)
    path = tmp_path / "d" / DATA
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="has changed since the run was planned"):
        source.reader().verify(records.rows)
    with pytest.raises(StorageError, match=rf"{DATA}: cannot be read: the file ends before"):
        list(source.reader().open(records, PIXELS).batches(4, 1))
    path.unlink()
    with pytest.raises(InputError, match="since the run was planned"):
        source.reader().verify(records.rows)


def test_planning_does_not_read_the_images_of_a_local_file(tmp_path):
    make_dataset([0]).save_to_disk(tmp_path / "d")
    rewrite(tmp_path / "d", pa.table({"image": [bytes(1 << 20)] * 64}))
    before = pa.total_allocated_bytes()
    with source_module._open_stream(File(bytes(tmp_path / "d" / DATA))) as stream:
        ((batch, *_),) = stream.read_batches()
        assert batch.num_rows == 64
        assert pa.total_allocated_bytes() - before < 1 << 20
