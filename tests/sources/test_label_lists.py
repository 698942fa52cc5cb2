# SPDX-License-Identifier: Apache-2.0
"""Lists of labels, in every source that can have them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from support.containers import (
    SIZE,
    example,
    make_dataset,
    pixels_of,
    prepare_data_set,
    sample,
    write_parquet,
    write_tar,
    write_tfrecord,
)
from support.opened import list_records, open_source
from support.pictures import make_folder

from ray_embed import planning
from ray_embed.errors import InputError
from ray_embed.sources.dataset_records import RecordReader
from ray_embed.sources.label_lists import LABEL_LIST, make_lists
from ray_embed.storage.filesystem import Folder

TEXTS = [["cat", "dog"], [], ["cat"], ["dog", "é", "dog"]]
WANTED = [["cat", "dog"], None, ["cat"], ["dog", "é", "dog"]]
NUMBERS = [[0, 1], [], [0], [1, 7]]
NAMES = ["cat", "dog"]
VECTORS = [[0, 1, 0], [1, 1, 0], [0, 0, 1]]


def read_labels(source: Any, column: str = "label", **options: Any) -> list[Any]:
    """The labels of a source, which are lists."""
    labels = list_records(open_source(source, label_column=column, **options)).rows["label"]
    assert labels.type == LABEL_LIST
    return labels.to_pylist()


def read_dataset(source: Any) -> pa.ChunkedArray:
    shard = RecordReader(open_source(source)).read_shard(100)
    assert shard is not None
    return shard.rows["label"]


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (pa.array(TEXTS), WANTED),
        (pa.array(TEXTS, pa.large_list(pa.large_string())), WANTED),
        (pa.array(NUMBERS), [["0", "1"], None, ["0"], ["1", "7"]]),
        (pa.array([["a", None, ""], None, [None], [""]]), [["a"], None, None, None]),
        (pa.array([[5, 6], [7, 8], None, [9, 5]], pa.list_(pa.int8(), 2)),
         [["5", "6"], ["7", "8"], None, ["9", "5"]]),
    ],
)  # fmt: skip
def test_lists_of_a_parquet_column(labels, wanted, tmp_path):
    path = write_parquet(tmp_path / "d.parquet", range(4), rows=3, tags=labels)
    assert read_labels(path, "tags") == wanted


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_lists_of_a_listing(form, tmp_path):
    make_folder(tmp_path, {"a": 4})
    paths = [f"a/{row:04}.png" for row in range(4)]
    path = tmp_path / f"list.{form}"
    if form == "jsonl":
        rows = zip(paths, TEXTS, strict=True)
        path.write_text("".join(json.dumps({"path": p, "label": t}) + "\n" for p, t in rows))
    else:
        pq.write_table(pa.table({"path": paths, "label": TEXTS}), path)
    assert read_labels(path) == WANTED
    with pytest.raises(InputError, match="'label' has lists of labels, and not int; omit"):
        open_source(path, label_type="int")


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([["one", 2], "one", 3, []], [["one", "2"], ["one"], ["3"], None]),
        ([[1], ["one"], None, [None]], [["1"], ["one"], None, None]),
        ([[2**70], [5]], [[str(2**70)], ["5"]]),
        ([[5, True], [5]], [["5", "true"], ["5"]]),
    ],
)
def test_lists_and_labels_of_several_types_in_a_listing(labels, wanted, tmp_path):
    make_folder(tmp_path, {"a": 4})
    rows = [{"path": f"a/{row:04}.png", "label": label} for row, label in enumerate(labels)]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_labels(path) == wanted


@pytest.mark.parametrize("form", ["saved", "parquet", "older parquet"])
def test_lists_of_hugging_face_have_the_names_of_classes(form, tmp_path):
    dataset = make_dataset(range(3), labels=[[0, 1], [-1], [1]])
    kind = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    dataset = dataset.cast_column("labels", kind)
    path = tmp_path / "d.parquet"
    if form == "saved":
        dataset.save_to_disk(path)
    else:
        dataset.to_parquet(path)
    if form == "older parquet":
        table = pq.read_table(path)
        features = {"labels": [{"names": NAMES, "_type": "ClassLabel"}]}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(metadata), path)
    assert read_labels(path, "labels") == [NAMES, None, ["dog"]]


def test_lists_in_json_of_a_tar(tmp_path):
    tags = [*TEXTS, "one", None]
    samples = [sample(seed, tags=tag) for seed, tag in enumerate(tags)]
    tar = write_tar(tmp_path / "d.tar", samples)
    assert read_labels(tar, "tags") == [*WANTED, ["one"], None]


def test_a_list_after_single_labels_of_a_tar_is_refused(tmp_path):
    samples = [sample(seed, tags="a") for seed in range(100)] + [sample(100, tags=["a", "b"])]
    source = open_source(write_tar(tmp_path / "d.tar", samples), label_column="tags")
    with pytest.raises(InputError, match=r"00100 has the label \['a', 'b'\].*first labels"):
        list_records(source)


@pytest.mark.parametrize(
    ("lists", "wanted"), [(TEXTS, WANTED), (NUMBERS, [["0", "1"], None, ["0"], ["1", "7"]])]
)
def test_several_values_of_a_named_feature_of_a_tfrecord(lists, wanted, tmp_path):
    examples = [{**example(seed), "label": label} for seed, label in enumerate(lists)]
    path = write_tfrecord(tmp_path / "d.tfrecord", examples)
    assert read_labels(path) == wanted
    with pytest.raises(InputError, match=r"record 0: .*--label-column label takes several values"):
        list_records(open_source(path))


def test_lists_of_floats_are_refused(tmp_path):
    path = write_parquet(tmp_path / "d.parquet", range(2), label=[[0.5, 1.0]] * 2)
    with pytest.raises(InputError, match=r"list<.*double>.*list of ints or strings"):
        open_source(path)
    examples = [{**example(seed), "label": [0.5, 1.0]} for seed in range(2)]
    path = write_tfrecord(tmp_path / "d.tfrecord", examples)
    with pytest.raises(InputError, match="2 × float; a label must be a single"):
        read_labels(path)


def test_lists_of_tensorflow_datasets_have_the_names_of_classes(tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(*SIZE, 3)),
        "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=NAMES)),
    }
    images = pixels_of(range(3))
    records = [{"image": image, "tags": tags} for image, tags in zip(images, NUMBERS, strict=False)]
    folder = prepare_data_set(tmp_path, features=features, train=records)
    assert read_labels(folder, "tags", split="train") == [NAMES, None, ["cat"]]


@pytest.mark.parametrize("form", ["parquet", "tar", "tfrecord", "sequence"])
def test_vectors_in_lists_are_refused(form, tmp_path):
    path = tmp_path / f"d.{form}"
    with pytest.raises(InputError, match=r"look like one-hot .*\[0, 1, 0\].*np.flatnonzero"):
        if form == "sequence":
            read_dataset(list(zip(pixels_of(range(3)), VECTORS, strict=True)))
        elif form == "parquet":
            read_labels(write_parquet(path, range(3), tags=VECTORS), "tags")
        elif form == "tar":
            samples = [sample(seed, tags=vector) for seed, vector in enumerate(VECTORS)]
            read_labels(write_tar(path, samples), "tags")
        else:
            examples = [{**example(seed), "tags": tags} for seed, tags in enumerate(VECTORS)]
            read_labels(write_tfrecord(path, examples), "tags")


def make_ragged(lists: list[list[str]]) -> Any:
    """A `tf.data.Dataset` of images and tensors of texts, whose lengths differ."""
    ragged = tf.ragged.constant(lists, tf.string)
    return tf.data.Dataset.from_tensor_slices((pixels_of(range(len(lists))), ragged))


@pytest.mark.parametrize("lists", [TEXTS, TEXTS[2:], [["a"], ["b", "c"], ["d"], ["e", "f"]]])
@pytest.mark.parametrize("batch", [None, 3])
def test_lists_of_texts_of_a_dataset(lists, batch):
    wanted = [label or None for label in lists]
    dataset = make_ragged(lists)
    labels = read_dataset(dataset.ragged_batch(batch) if batch else dataset)
    assert (labels.type, labels.to_pylist()) == (LABEL_LIST, wanted)
    records = list(zip(pixels_of(range(len(lists))), lists, strict=True))
    assert read_dataset(records).to_pylist() == wanted


def test_lists_of_one_label_of_a_dataset_are_single_labels():
    assert read_dataset(make_ragged([["a"], ["b"]])).to_pylist() == ["a", "b"]


def test_class_numbers_of_a_hugging_face_dataset():
    dataset = make_dataset(range(4), label=NUMBERS)
    assert read_dataset(dataset).to_pylist() == [["0", "1"], None, ["0"], ["1", "7"]]


def make_plan(folder: Path, **sources: Any) -> planning.Plan:
    opened = [open_source(source, split) for split, source in sources.items()]
    target = Folder.open(str(folder))
    return planning.make_plan(opened, {}, target, shard_size=2, batch_size=2, limit=None)


def test_a_plan_of_lists_and_single_labels_has_lists(tmp_path):
    lists = write_parquet(tmp_path / "a.parquet", range(4), label=TEXTS)
    single = write_parquet(tmp_path / "b.parquet", range(2), label=[3, 4])
    plan = make_plan(tmp_path / "plan", train=lists, test=single)
    assert plan.schema().field("label").type == LABEL_LIST
    assert plan.notes == (
        "train: 1 of 4 records have an empty list of labels and are unlabeled",
        "the labels of train are lists, so a record can have several",
        "the single labels of test become lists of one label",
    )
    planning.save(Folder.open(str(tmp_path / "plan")), plan)
    assert planning.load(Folder.open(str(tmp_path / "plan"))) == plan


def test_the_digest_depends_on_the_bounds_of_lists(tmp_path):
    digests = Counter[str | None]()
    for number, lists in enumerate(([["a", "b"]], [["a"]], [["b", "a"]], [['a", "b']])):
        path = write_parquet(tmp_path / f"{number}.parquet", [0], label=lists)
        digests[make_plan(tmp_path / "plan", s=path).splits[0].digest] += 1
    assert set(digests.values()) == {1}


def test_planned_lists_of_a_dataset_are_compared(tmp_path):
    folder = Folder.open(str(tmp_path))
    split = make_plan(
        tmp_path / "other", s=write_parquet(tmp_path / "d.parquet", [0], label=[["a"]])
    ).splits[0]
    rows = pa.table({"key": ["0", "1", "2"], "label": make_lists([["a", "b"], [], ["c"]])})
    changed = rows.set_column(1, "label", make_lists([["a", "b"], [], ["c", "d"]]))
    assert planning.write_shard(folder, split, 0, rows) is None
    assert planning.write_shard(folder, split, 0, rows) is None
    assert planning.write_shard(folder, split, 0, changed) == 2


def test_lists_that_all_have_both_of_two_classes_are_no_vectors(tmp_path):
    path = write_parquet(tmp_path / "d.parquet", range(2), label=[[0, 1], [0, 1]])
    assert read_labels(path) == [["0", "1"]] * 2
