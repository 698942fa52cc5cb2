# SPDX-License-Identifier: Apache-2.0
"""Iterables, encoded images, directories of Keras, and objects of Hugging Face."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
import webdataset
from support.containers import SIZE, encode, make_dataset, pixels_of, sample, write_tar
from support.opened import walked
from support.pictures import make_folder, picture

from ray_embed.errors import InputError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources.base import PlannedRecords
from ray_embed.sources.dataset import Dataset

IMAGES = pixels_of(range(6))
PIXELS = PixelSpec(shape=(*SIZE, 3), scale="none", max_pixels=1000)


def decode(contents: list[Any]) -> np.ndarray:
    """The pixels of encoded images, as the encoder gets them."""
    images = open_images(contents)
    return np.concatenate([batch.images for batch in images.batches(4, 1)])


def open_images(contents: list[Any]) -> Any:
    records = PlannedRecords(rows=None, positions=np.arange(len(contents)), images=contents)
    return Dataset("valid", None, {}).reader().open(records, PIXELS)


def refused(source: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as raised:
        walked(source, **kwargs)
    assert "valid" in str(raised.value)
    return str(raised.value)


# Iterables


def generate(count: int = 6) -> Any:
    for number in range(count):
        yield IMAGES[number], number % 2, f"p{number}"


class Loader:
    """Batches with a length but no positions, as the DataLoader of PyTorch gives them."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        for start in range(0, 6, 2):
            rows = slice(start, start + 2)
            # Strings of a batch are a tuple.
            yield [IMAGES[rows], ("a", "b"), (f"p{start}", f"p{start + 1}")]


@pytest.mark.parametrize(
    ("source", "labels"),
    [(generate, [0, 1] * 3), (Loader(), ["a", "b"] * 3), (Loader, ["a", "b"] * 3)],
)
def test_iterables_and_generator_functions_are_read_in_order(source, labels):
    rows, images, reader = walked(source)
    assert rows["key"].to_pylist() == [f"p{number}" for number in range(6)]
    assert rows["label"].to_pylist() == labels
    np.testing.assert_array_equal(images, IMAGES)
    assert reader.describe().image_shape == (*SIZE, 3)


def test_arguments_reach_a_generator_function():
    assert walked(generate, count=3)[0].num_rows == 3


@pytest.mark.parametrize("source", [generate(), iter([IMAGES[0]])])
def test_what_can_be_read_only_once_is_refused_in_hand(source):
    said = refused(source)
    assert "only once" in said
    assert "function" in said


def test_no_element_is_read_before_it_is_needed():
    read = Counter()

    def count() -> Any:
        for image in IMAGES:
            read["elements"] += 1
            yield image

    assert walked(count, limit=4)[0].num_rows == 4
    assert read["elements"] == 4


def test_an_iterable_dataset_with_a_getitem_that_fails_is_iterated():
    class IterableDataset:
        def __getitem__(self, position: int) -> Any:
            raise NotImplementedError

    class Mine(IterableDataset):
        def __len__(self) -> int:
            return 6

        def __iter__(self) -> Any:
            return generate()

    assert walked(Mine())[0].num_rows == 6


@pytest.mark.parametrize("decoded", [None, "pil", "rgb8"])
def test_a_pipeline_of_webdataset(decoded, tmp_path):
    tar = write_tar(tmp_path / "a.tar", [sample(seed, seed % 2) for seed in range(6)])
    pipeline = webdataset.WebDataset(str(tar), shardshuffle=False)
    pipeline = pipeline.decode(decoded) if decoded else pipeline
    rows, images, reader = walked(pipeline)
    assert rows["key"].to_pylist() == [f"{seed:05d}" for seed in range(6)]
    assert [int(label) for label in rows["label"].to_pylist()] == [0, 1] * 3
    np.testing.assert_array_equal(images if decoded else decode(images), IMAGES)
    assert "'png' and 'cls' and '__key__' are used" in reader.describe().notes[0]
    as_tuples = pipeline.to_tuple("png", "cls", "__key__")
    assert walked(as_tuples)[0].equals(rows)


# Encoded images


CONTENTS = [encode(seed) for seed in range(6)]


@pytest.mark.parametrize(
    "source",
    [
        [(content, 1) for content in CONTENTS],
        [{"image": content, "label": 1} for content in CONTENTS],
        [{"image": CONTENTS[:3], "label": [1, 1, 1]}, {"image": CONTENTS[3:], "label": [1, 1, 1]}],
        [(tf.constant(content), 1) for content in CONTENTS],
        tf.data.Dataset.from_tensor_slices((CONTENTS, [1] * 6)),
        tf.data.Dataset.from_tensor_slices((CONTENTS, [1] * 6)).batch(4),
    ],
)
def test_contents_of_files_are_decoded_like_files(source):
    rows, images, reader = walked(source)
    assert images == CONTENTS
    assert rows["label"].to_pylist() == [1] * 6
    assert reader.describe().image_shape is None
    np.testing.assert_array_equal(decode(images), IMAGES)
    np.testing.assert_array_equal(open_images(images).load(2), IMAGES[2])


def test_contents_that_cannot_be_decoded_are_rejected_with_the_reason():
    large = io.BytesIO()
    picture(0, (40, 40)).save(large, "PNG")
    bad = [b"nothing", b"", CONTENTS[1][:40], large.getvalue(), {"bytes": None, "path": None}, None]
    rows, images, _ = walked([(content, 0) for content in (CONTENTS[0], *bad, CONTENTS[2])])
    opened = open_images(images)
    (batch,) = opened.batches(16, 1)
    assert batch.positions.tolist() == [0, 7]
    assert [opened.diagnose(number) for number in range(1, 7)] == [
        "not an image", "empty file", "corrupt image", "too many pixels", "missing", "missing",
    ]  # fmt: skip
    assert rows["crc"].null_count == 2
    assert len(open_images([])) == 0


def test_contents_and_arrays_are_not_mixed():
    said = refused([(CONTENTS[0], 0), (IMAGES[0], 0)])
    assert "uint8 in element 1, but were encoded files before" in said
    assert "float32 in element 1" in refused([IMAGES[0], IMAGES[1] / 255])


# Tensors


class Tensor:
    """What is used of a tensor of PyTorch."""

    def __init__(self, array: np.ndarray, error: Exception | None = None) -> None:
        self.array, self.error, self.shape = array, error, array.shape

    def permute(self, *order: int) -> "Tensor":
        return Tensor(self.array.transpose(order))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.error:
            raise self.error
        return self.array


def test_tensors_with_channels_first_are_refused_with_the_fix():
    tensors = [Tensor(image.transpose(2, 0, 1)) for image in IMAGES]
    said = refused(tensors)
    assert "img.permute(1, 2, 0)" in said
    _, images, _ = walked([tensor.permute(1, 2, 0) for tensor in tensors])
    np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize("error", [TypeError("use Tensor.cpu()"), RuntimeError("requires grad")])
def test_tensors_that_numpy_cannot_take_are_refused_with_their_reason(error):
    assert str(error) in refused([Tensor(IMAGES[0], error)])


# Directories of Keras


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, [None] * 4),
        ("int", ["cat", "cat", "dog", "dog"]),
        ("binary", ["cat", "cat", "dog", "dog"]),
    ],
)
def test_directory_of_keras_gives_paths_and_class_names(tmp_path, mode, expected, batch):
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    dataset = open_directory(tmp_path, label_mode=mode, shuffle=False, batch_size=batch)
    rows, _, reader = walked(dataset)
    assert rows["label"].to_pylist() == expected
    names = ["cat/0000.png", "cat/0001.png", "dog/0000.png", "dog/0001.png"]
    assert rows["key"].to_pylist() == [str(tmp_path / name) for name in names]
    notes = " ".join(reader.describe().notes)
    assert ("cat, dog" in notes) == (mode is not None)


def test_one_hot_labels_of_a_directory_are_refused(tmp_path):
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    said = refused(open_directory(tmp_path, label_mode="categorical"))
    for token in ("(2,)", "one-hot", "tf.argmax(gt, -1)", "label_mode='int'"):
        assert token in said


def test_shuffled_directory_keeps_its_class_names_but_no_paths(tmp_path):
    make_folder(tmp_path, {"cat": 5, "dog": 5})
    dataset = open_directory(tmp_path, seed=1, batch_size=3)
    rows, images, reader = walked(dataset)
    assert rows["key"].to_pylist() == [str(number) for number in range(10)]
    assert "shuffled" in reader.describe().notes[1]
    by_file = {
        np.asarray(tf.io.decode_image(path.read_bytes())).tobytes(): path.parent.name
        for path in tmp_path.rglob("*.png")
    }
    truth = [by_file[image.astype(np.uint8).tobytes()] for image in images]
    assert rows["label"].to_pylist() == truth


@pytest.mark.parametrize("change", ["skip", "repeat", "filter"])
def test_paths_are_not_used_for_a_changed_dataset(change, tmp_path):
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    dataset = open_directory(tmp_path, shuffle=False, batch_size=None)
    argument = (lambda image, label: label > 0) if change == "filter" else 2
    changed = getattr(dataset, change)(argument)
    changed.file_paths = dataset.file_paths
    rows, _, _ = walked(changed)
    assert rows["key"][0].as_py() == "0"


def test_numbers_as_class_names_may_be_explicit_labels(tmp_path):
    make_folder(tmp_path, {"a": 2, "b": 2})
    dataset = open_directory(tmp_path, labels=[0, 2, 2, 5], shuffle=False)
    assert dataset.class_names == ["0", "2", "5"]
    rows, _, reader = walked(dataset)
    assert rows["label"].to_pylist() == [0, 2, 2, 5]
    assert "used as they are" in reader.describe().notes[0]


def open_directory(folder: Path, **options: Any) -> Any:
    return keras.utils.image_dataset_from_directory(
        folder, image_size=(20, 24), verbose=False, **options
    )


# Hugging Face


def with_classes(seeds: Any, labels: Any) -> datasets.Dataset:
    dataset = make_dataset(seeds, label=labels)
    return dataset.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))


ANIMALS = with_classes(range(4), [1, 0, -1, 0])


@pytest.mark.parametrize(
    "source",
    [
        ANIMALS,
        lambda: ANIMALS,
        ANIMALS.with_format("numpy"),
        ANIMALS.to_iterable_dataset(),
        ANIMALS.rename_column("image", "photo"),
        datasets.DatasetDict({"train": ANIMALS.select([0]), "validation": ANIMALS}),
        {"any": ANIMALS.to_iterable_dataset()},
    ],
)
def test_objects_of_hugging_face_give_stored_images_and_class_names(source):
    rows, images, reader = walked(source)
    assert rows["label"].to_pylist() == ["dog", "cat", None, "cat"]
    assert rows["key"].to_pylist() == [f"{seed}.png" for seed in range(4)]
    np.testing.assert_array_equal(decode(images), pixels_of(range(4)))
    assert "names of the classes in 'label'" in reader.describe().notes[0]


def test_lists_of_classes_of_hugging_face_give_lists_of_names():
    dataset = make_dataset(range(3), label=[[1], [0, 1], []])
    classes = datasets.List(datasets.ClassLabel(names=["cat", "dog"]))
    rows, _, _ = walked(dataset.cast_column("label", classes))
    assert rows["label"].to_pylist() == [["dog"], ["cat", "dog"], None]


def test_rows_of_hugging_face_are_those_of_the_object_and_not_of_its_files(tmp_path):
    ANIMALS.save_to_disk(tmp_path)
    dataset = datasets.load_from_disk(tmp_path).select([3, 1])
    rows, images, _ = walked(dataset)
    assert rows["label"].to_pylist() == ["cat", "cat"]
    np.testing.assert_array_equal(decode(images), pixels_of([3, 1]))


def test_images_of_hugging_face_in_other_files_are_read(tmp_path):
    folder = make_folder(tmp_path, {"cat": 1, "dog": 2}, ".bmp")
    dataset = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    rows, images, _ = walked(dataset)
    assert rows["label"].to_pylist() == ["cat", "dog", "dog"]
    assert [Path(key).read_bytes() for key in rows["key"].to_pylist()] == images
    (folder / "cat" / "0000.bmp").unlink()
    assert walked(dataset)[1][0] is None


def test_a_transform_of_hugging_face_stays_in_place():
    dataset = ANIMALS.with_transform(
        lambda rows: {
            "image": [np.asarray(image) for image in rows["image"]],
            "label": ["x"] * len(rows["image"]),
        }
    )
    rows, images, _ = walked(dataset)
    assert rows["label"].to_pylist() == ["x"] * 4
    np.testing.assert_array_equal(images, pixels_of(range(4)))


def test_splits_of_hugging_face_become_splits_of_the_run():
    from ray_embed import RunConfig

    splits = datasets.DatasetDict({"train": ANIMALS, "test": ANIMALS})
    assert list(RunConfig(sources=splits, model="m.keras").sources) == ["train", "test"]
    assert "train, test, and none is 'valid'" in refused(lambda: splits)
