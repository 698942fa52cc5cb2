# SPDX-License-Identifier: Apache-2.0
"""One-hot and multi-hot vectors as labels: `--label-type onehot` and `multihot`."""

from typing import Any

import h5py
import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from support.containers import write_parquet
from support.opened import list_records, open_source
from support.pictures import make_folder

from ray_embed.errors import InputError
from ray_embed.sources.dataset_records import RecordReader

IMAGES = np.zeros((3, 4, 5, 3), np.uint8)
ONE_HOT = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
MULTI_HOT = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]])
LISTS = [["1", "2"], None, ["0"]]


def write_arrays(folder: Any, form: str, labels: np.ndarray) -> Any:
    path = folder / f"images.{form}"
    if form == "npz":
        np.savez(path, images=IMAGES, labels=labels)
    elif form == "npy":
        np.save(path, IMAGES)
        np.save(folder / "labels.npy", labels)
    else:
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = IMAGES, labels
    return path


def read_dataset(source: Any, **options: Any) -> pa.Table:
    """The rows of a dataset, in one shard."""
    shard = RecordReader(open_source(source, **options)).read_shard(100)
    assert shard is not None
    return shard.rows


@pytest.mark.parametrize("form", ["npz", "npy", "h5"])
def test_vectors_of_arrays_become_labels(form, tmp_path):
    path = write_arrays(tmp_path, form, ONE_HOT.astype(np.float32))
    labels = list_records(open_source(path, label_type="onehot")).rows["label"]
    assert (labels.type, labels.to_pylist()) == (pa.int64(), [1, 2, 0])

    path = write_arrays(tmp_path, form, MULTI_HOT)
    labels = list_records(open_source(path, label_type="multihot")).rows["label"]
    assert labels.to_pylist() == LISTS

    with pytest.raises(InputError, match=r"row 0 of the labels is \[0 1 1\].*multihot"):
        open_source(path, label_type="onehot")
    with pytest.raises(InputError, match=r"--label-type onehot, or save .*argmax.*multihot"):
        open_source(path)


def test_vectors_of_keras_become_labels(tmp_path):
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    dataset = keras.utils.image_dataset_from_directory(
        tmp_path, label_mode="categorical", shuffle=False, batch_size=3, verbose=False
    )
    names = ["cat", "cat", "dog", "dog"]
    assert read_dataset(dataset, label_type="onehot")["label"].to_pylist() == names
    with pytest.raises(InputError, match=r"--label-type onehot, or .*label_mode='int'"):
        read_dataset(dataset)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("images", [IMAGES, IMAGES.repeat(2, axis=-1)[..., 0]])
def test_vectors_of_a_dataset_become_labels(batch, images):
    def read(vectors: np.ndarray, label_type: str) -> list[Any]:
        dataset = tf.data.Dataset.from_tensor_slices((images, vectors))
        dataset = dataset.batch(batch) if batch else dataset
        return read_dataset(dataset, label_type=label_type)["label"].to_pylist()

    assert read(ONE_HOT, "onehot") == [1, 2, 0]
    assert read(MULTI_HOT, "multihot") == LISTS
    assert read(ONE_HOT, "multihot") == [["1"], ["2"], ["0"]]
    with pytest.raises(InputError, match=r"element 0: row 0 of the labels is \[0 1 1\]"):
        read(MULTI_HOT, "onehot")
    with pytest.raises(InputError, match=r"element 0: row 0 of the labels .* only zeros and ones"):
        read(ONE_HOT * 0.9, "multihot")
    with pytest.raises(InputError, match="--label-type"):
        read(np.arange(3), "onehot")


@pytest.mark.parametrize("batch", [None, 2])
def test_vectors_of_a_sequence_become_labels(batch):
    records = [(image, label.tolist()) for image, label in zip(IMAGES, ONE_HOT, strict=True)]
    if batch:
        records = [(IMAGES[:2], ONE_HOT[:2].tolist()), (IMAGES[2:], ONE_HOT[2:].tolist())]
    assert read_dataset(records, label_type="onehot")["label"].to_pylist() == [1, 2, 0]


def test_arrays_without_vectors_and_other_sources_are_refused(tmp_path):
    path = write_arrays(tmp_path, "npz", np.arange(3))
    with pytest.raises(InputError, match=r"\(3,\).*--label-type onehot takes .*leave the option"):
        open_source(path, label_type="onehot")
    path = write_parquet(tmp_path / "d.parquet", range(3), label=[0, 1, 2])
    with pytest.raises(InputError, match="--label-type onehot is for arrays"):
        open_source(path, label_type="onehot")
