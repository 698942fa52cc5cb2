# SPDX-License-Identifier: Apache-2.0
"""Parquet files with encoded images."""

import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.containers import (
    SIZE,
    encode,
    make_dataset,
    pixels_of,
    sample,
    write_parquet,
    write_tar,
)
from support.opened import list_records, open_source, read_images

from ray_embed.errors import InputError, StorageError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources import parquet
from ray_embed.sources.image_columns import convert_labels
from ray_embed.sources.packed_images import Place

PIXELS = PixelSpec(shape=(*SIZE, 3), scale="none")


def test_rows_have_keys_labels_and_metadata(tmp_path):
    path = write_parquet(
        tmp_path / "d.parquet",
        range(10),
        label=list(range(10)),
        camera=["a", None] * 5,
        angle=[0.5] * 10,
        box=[[1, 2]] * 10,
    )
    source = open_source(path)
    rows = list_records(source).rows
    assert rows["key"].to_pylist() == [f"{i}.png" for i in range(10)]
    assert rows["label"].to_pylist() == list(range(10))
    assert rows["camera"].to_pylist() == ["a", None] * 5
    assert rows["angle"].to_pylist() == ["0.5"] * 10
    assert source.info.extras == ("camera", "angle")
    assert source.info.messages == ()


@pytest.mark.parametrize("chosen", [list(range(20)), [0, 6, 7, 13, 19], [5], []])
def test_images_of_chosen_rows_are_read_across_row_groups(chosen, tmp_path):
    source = open_source(write_parquet(tmp_path / "d.parquet", range(20), rows=7))
    records = list_records(source).select(np.array(chosen, np.int64))
    reader = pickle.loads(pickle.dumps(source.reader()))
    images = reader.open(records, PIXELS)
    assert len(images) == len(chosen)
    batches = list(images.batches(4, 1))
    assert [n for batch in batches for n in batch.positions.tolist()] == list(range(len(chosen)))
    for batch in batches:
        seeds = [chosen[n] for n in batch.positions.tolist()]
        np.testing.assert_array_equal(batch.images, pixels_of(seeds))
    assert images.size == sum(len(encode(seed)) for seed in chosen)
    reader.verify(records.rows)


def test_files_of_a_folder_and_of_a_pattern_are_read_by_name(tmp_path):
    for name, seeds in (("b", [3, 4]), ("a", [0, 1, 2]), ("c", [5])):
        write_parquet(tmp_path / f"{name}.parquet", seeds)
    (tmp_path / "README.md").touch()
    for named in (tmp_path, f"{tmp_path}/*.parquet", f"{tmp_path}/{{b,a,c}}.parquet"):
        source = open_source(str(named))
        records = list_records(source)
        keys = [0, 1, 2, 3, 4, 5] if "{" not in str(named) else [3, 4, 0, 1, 2, 5]
        assert records.rows["key"].to_pylist() == [f"{i}.png" for i in keys]
        np.testing.assert_array_equal(read_images(source, records, SIZE), pixels_of(keys))


def test_binary_columns_have_file_and_row_as_the_key(tmp_path):
    table = pa.table({"picture": [encode(0), encode(1)], "kind": ["x", "y"]})
    pq.write_table(table, tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet", label_column="kind")
    rows = list_records(source).rows
    assert rows["key"].to_pylist() == ["d.parquet#0", "d.parquet#1"]
    assert rows["label"].to_pylist() == ["x", "y"]
    by_kind = open_source(tmp_path / "d.parquet", key_column="kind")
    assert list_records(by_kind).rows["key"].to_pylist() == ["x", "y"]


def test_class_names_of_hugging_face_become_labels(tmp_path):
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    pictures = [Image.fromarray(pixels) for pixels in pixels_of([0, 1, 2])]
    written = datasets.Dataset.from_dict({"img": pictures, "label": [1, 0, 1]}, features=features)
    written.to_parquet(tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet")
    records = list_records(source)
    assert records.rows["label"].to_pylist() == ["dog", "cat", "dog"]
    np.testing.assert_array_equal(read_images(source, records, SIZE), pixels_of([0, 1, 2]))
    unlabeled = pa.array([-1, 0], pa.int64())
    assert convert_labels(unlabeled, ("cat",), pa.string(), "d").to_pylist() == [None, "cat"]


def test_row_without_an_image_is_missing_and_damaged_ones_are_diagnosed(tmp_path):
    images = [{"bytes": content, "path": None} for content in (encode(0), None, b"no image", b"")]
    pq.write_table(pa.table({"image": images}), tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet")
    records = list_records(source)
    opened = source.reader().open(records, PIXELS)
    (batch,) = opened.batches(8, 1)
    assert batch.positions.tolist() == [0]
    assert [opened.diagnose(n) for n in (1, 2, 3)] == ["missing", "not an image", "empty file"]


def test_shards_follow_the_row_groups(tmp_path):
    table = pa.table({"image": [b""] * 3000})
    for rows, expected in ((100, 500), (1000, 1000), (3000, None), (7, 511)):
        pq.write_table(table, tmp_path / "d.parquet", row_group_size=rows)
        assert open_source(tmp_path / "d.parquet").info.shard_size == expected


def test_unlabeled_file_is_said(tmp_path):
    source = open_source(write_parquet(tmp_path / "d.parquet", [0], kind=["x"]))
    (note,) = source.info.messages
    assert "no column 'label'" in note
    assert "--label-column" in note
    assert list_records(source).rows["label"].null_count == 1


@pytest.mark.parametrize(
    ("columns", "tokens"),
    [
        ({"a": [1], "b": ["x"]}, ["no column with encoded images", "a (int64)", "b (string)"]),
        ({"image": ["http://x/1.png"]}, ["'image' has text", "download", "listing"]),
        ({"url": ["http://x/1.png"], "n": [1]}, ["'url' has text"]),
        ({"image": [[1, 2]]}, ["'image' has the type list", "binary"]),
        ({"a": [b"x"], "b": [b"y"]}, ["a, b", "--image-column"]),
        ({"image": [{"bytes": None, "path": "a.png"}]}, ["'image' has no bytes", "listing"]),
        ({"image": [b"x"], "label": [[1.5, 2.0]]}, ["'label'", "list"]),
    ],
)
def test_file_without_usable_columns_is_refused(columns, tokens, tmp_path):
    image = columns.get("image", [None])[0]
    if isinstance(image, dict):
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(columns["image"], struct)}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / "d.parquet")
    assert "d.parquet" in str(caught.value)
    for token in tokens:
        assert token in str(caught.value)


@pytest.mark.parametrize("form", ["parquet", "saved", "tar"])
def test_metadata_with_reserved_names_is_left_out_and_that_is_said(form, tmp_path):
    path = tmp_path / f"d.{form}"
    if form == "tar":
        write_tar(path, [sample(0, fine="a", label="x", index=1, split="y", who="z")])
    else:
        columns = {"fine": ["a"], "label": ["x"], "index": [1], "split": ["y"], "who": ["z"]}
        dataset = make_dataset([0], **columns)
        dataset.to_parquet(path) if form == "parquet" else dataset.save_to_disk(path)
    source = open_source(path, label_column="fine")
    assert source.info.extras == ("who",)
    assert list_records(source).rows["label"].to_pylist() == ["a"]
    (note,) = source.info.messages
    assert "index, split, because these names are reserved" in note


@pytest.mark.parametrize(
    ("column", "values", "options"),
    [
        ("label", pa.array([b"a", b"\xff"]), {}),
        ("label", pa.array([1, 2**63], pa.uint64()), {}),
        ("id", pa.array([b"\xff" * 2] * 2, pa.binary(2)), {"key_column": "id"}),
    ],
)
def test_values_that_cannot_be_read_are_refused_by_their_column(column, values, options, tmp_path):
    path = write_parquet(tmp_path / "d.parquet", range(2), **{column: values})
    with pytest.raises(InputError, match=rf"d\.parquet: the column '{column}' has values.*as text"):
        list_records(open_source(path, **options))


@pytest.mark.parametrize("first", ["image", "path"])
def test_columns_of_one_name_are_refused(first, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(0))
    columns = [[encode(0) if first == "image" else "a.png"], ["x"], ["y"]]
    table = pa.table(columns, names=[first, "label", "label"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet: duplicate column 'label'; rename"):
        open_source(tmp_path / "d.parquet")


def test_files_of_several_splits_are_said(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", [0], label=["x"])
    (note,) = open_source(tmp_path).info.messages
    assert "look like those of several splits, train, test" in note


def test_number_of_no_class_is_refused(tmp_path):
    dataset = make_dataset(range(2), label=[0, 1])
    dataset = dataset.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    path = tmp_path / "d.parquet"
    dataset.to_parquet(path)
    table = pq.read_table(path)
    wrong = table.set_column(1, "label", pa.array([0, 7]))
    pq.write_table(wrong.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(InputError, match=r"d\.parquet: the column 'label' has values.*7"):
        list_records(open_source(path))


def test_column_of_uuids_is_no_metadata(tmp_path):
    ids = pa.array([b"\xff" * 16], pa.binary(16))
    source = open_source(write_parquet(tmp_path / "d.parquet", [0], label=["x"], id=ids))
    assert source.info.extras == ()
    assert len(list_records(source)) == 1


@pytest.mark.parametrize("option", ["image_column", "key_column"])
def test_column_that_is_not_there_is_refused(option, tmp_path):
    path = write_parquet(tmp_path / "d.parquet", [0])
    with pytest.raises(InputError, match=r"no column 'none' for --.*image \(struct"):
        open_source(path, **{option: "none"})


def test_truncated_file_is_refused(tmp_path):
    path = write_parquet(tmp_path / "d.parquet", range(4))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"d\.parquet: cannot be read as Parquet"):
        open_source(path)


def test_later_file_with_other_columns_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0], label=[1])
    write_parquet(tmp_path / "b.parquet", [1], kind=[1])
    source = open_source(tmp_path)
    with pytest.raises(InputError, match=r"b\.parquet: its columns .* differ from"):
        list_records(source)


def test_changed_or_removed_file_is_refused(tmp_path):
    path = write_parquet(tmp_path / "d.parquet", range(4))
    source = open_source(path)
    records = list_records(source)
    write_parquet(path, range(5))
    with pytest.raises(InputError, match="has changed since the run was planned"):
        source.reader().verify(records.rows)
    path.unlink()
    with pytest.raises(InputError, match="since the run was planned"):
        source.reader().verify(records.rows)
    with pytest.raises(InputError, match="removed"):
        list(source.reader().open(records, PIXELS).batches(4, 1))


def test_damage_after_planning_is_a_storage_error(tmp_path):
    path = write_parquet(tmp_path / "d.parquet", range(4))
    source = open_source(path)
    records = list_records(source)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"d\.parquet: cannot be read"):
        list(source.reader().open(records, PIXELS).batches(4, 1))


def test_few_images_are_in_memory_at_a_time(tmp_path):
    path = write_parquet(tmp_path / "d.parquet", range(100), rows=100)
    source = open_source(path)
    ((file, *_),) = [source.files.locate()[0][1:2]]
    read = parquet.read_images(file, [Place(0, None), Place(99, None)], column="image.bytes")
    assert list(read) == [encode(0), encode(99)]


def test_files_with_other_class_names_are_refused_with_both(tmp_path):
    for number, names in enumerate((["cat"], ["dog"])):
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        )
        images = [{"bytes": encode(number), "path": None}]
        data = datasets.Dataset.from_dict({"image": images, "label": [0]}, features=features)
        data.to_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(
        InputError, match=r"1\.parquet: its class names \(dog\) differ .*0\.parquet"
    ):
        list_records(open_source(tmp_path))
