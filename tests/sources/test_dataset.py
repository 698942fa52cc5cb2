# SPDX-License-Identifier: Apache-2.0
"""Datasets and sequences: walked once by one reader, and compared when walked again."""

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from PIL import Image
from support.command import Command
from support.features import assert_features_equal
from support.opened import open_source, walked
from support.pictures import picture

import ray_embed as package
from ray_embed import InputError, Run, RunConfig, RunError, planning
from ray_embed.config import parse_source
from ray_embed.core import user_code
from ray_embed.extraction.dataset_reader import ShardReader
from ray_embed.planning import Plan, SplitPlan
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.dataset_records import RecordReader
from ray_embed.sources.label_lists import LABEL_LIST
from ray_embed.storage.filesystem import Folder

H, W = 4, 3


def images_of(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, H, W, 3)).astype(np.uint8)


class Sequence:
    """Records at hand one at a time, as a PyTorch dataset has them; not iterable."""

    def __init__(self, records: list[Any]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> Any:
        if not 0 <= position < len(self.records):
            raise IndexError(position)
        return self.records[position]


class Batches(keras.utils.PyDataset):
    """Batches of records, the last one smaller."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int) -> None:
        super().__init__()
        self.images, self.labels, self.size = images, labels, size

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __getitem__(self, at: int) -> Any:
        rows = slice(at * self.size, (at + 1) * self.size)
        return self.images[rows], self.labels[rows]


def refused(source: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as raised:
        walked(source, **kwargs)
    assert "valid" in str(raised.value)
    return str(raised.value)


# What a record is


IMAGES = images_of(10)
PATHS = [f"é/{i}.png" for i in range(10)]
TEXTS = ["007", "NA", "", "é", "a\tb", "x", "x", "y", "猫", "z"]
RECORDS = [(image, position, f"p{position}") for position, image in enumerate(IMAGES)]
TENSORS = tf.data.Dataset.from_tensor_slices


@pytest.mark.parametrize("batch", [None, 1, 3, 10, 100])
@pytest.mark.parametrize("with_path", [True, False])
@pytest.mark.parametrize(
    ("labels", "type_", "expected"),
    [
        (np.arange(10), pa.int64(), list(range(10))),
        (np.arange(10, dtype=np.uint8)[:, None], pa.int64(), list(range(10))),
        (np.arange(10, dtype=np.float32) / 2, pa.float64(), [i / 2 for i in range(10)]),
        (np.arange(10) > 4, pa.bool_(), [i > 4 for i in range(10)]),
        (TEXTS, pa.string(), TEXTS),
        (np.array(TEXTS)[:, None], pa.string(), TEXTS),
    ],
)
def test_every_form_of_a_tf_data_dataset(batch, with_path, labels, type_, expected):
    dataset = TENSORS((IMAGES, labels, PATHS) if with_path else (IMAGES, labels))
    if batch:
        dataset = dataset.batch(batch)
    rows, images, reader = walked(dataset)
    assert rows["key"].to_pylist() == (PATHS if with_path else [str(i) for i in range(10)])
    assert rows["label"].to_pylist() == expected
    assert rows["label"].type == type_
    np.testing.assert_array_equal(images, IMAGES)
    info = reader.describe()
    assert (info.label_type, info.image_shape) == (type_, (H, W, 3))
    assert info.image_dtype == "uint8"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
def test_images_of_other_numbers_are_floats_and_left_as_they_are(dtype):
    rows, images, reader = walked(TENSORS((IMAGES.astype(dtype) - 7, TEXTS)).batch(4))
    assert reader.describe().image_dtype == "float"
    assert images[0].dtype == np.float32
    np.testing.assert_array_equal(images, IMAGES.astype(np.float32) - 7)
    assert rows.num_rows == 10


def test_bytes_that_are_not_utf8_become_hex_in_labels_and_paths():
    dataset = TENSORS((IMAGES[:2], [b"caf\xe9", b"ok"], [b"\xff.png", "é".encode()]))
    rows, _, _ = walked(dataset)
    assert rows["label"].to_pylist() == [r"caf\xe9", "ok"]
    assert rows["key"].to_pylist() == [r"\xff.png", "é"]


@pytest.mark.parametrize(
    ("labels", "type_", "expected"),
    [
        ([1, 2, None], pa.int64(), [1, 2, None]),
        (["a", None, "b"], pa.string(), ["a", None, "b"]),
        ([b"a", None, b"\xe9"], pa.string(), ["a", None, r"\xe9"]),
        ([0.5, None, 1.5], pa.float64(), [0.5, None, 1.5]),
        ([True, None, False], pa.bool_(), [True, None, False]),
        ([None, None, None], pa.null(), [None, None, None]),
        ([None, None, 3], pa.int64(), [None, None, 3]),
        ([None, ["a"], []], LABEL_LIST, [None, ["a"], None]),
        ([[1], np.array([2]), np.int8(3)], pa.int64(), [1, 2, 3]),
        ([np.array("a"), np.array(["b"]), "c"], pa.string(), ["a", "b", "c"]),
        ([tf.constant(1), tf.constant([2]), 3], pa.int64(), [1, 2, 3]),
        ([tf.constant("a"), tf.constant(["b"]), "c"], pa.string(), ["a", "b", "c"]),
    ],
)
def test_labels_of_a_sequence_are_scalars_or_missing(labels, type_, expected):
    records = list(zip(IMAGES, labels, strict=False))
    for source in (Sequence(records), records, lambda: Sequence(records)):
        rows, images, _ = walked(source)
        assert rows["label"].to_pylist() == expected
        assert rows["label"].type == type_
        assert rows["key"].to_pylist() == ["0", "1", "2"]
        np.testing.assert_array_equal(images, IMAGES[:3])


def test_a_keras_pydataset_gives_batches():
    rows, images, _ = walked(Batches(IMAGES, np.arange(10), 4), size=3)
    assert rows["label"].to_pylist() == list(range(10))
    assert rows["key"].to_pylist() == [str(i) for i in range(10)]
    np.testing.assert_array_equal(images, IMAGES)


def test_tensors_in_the_records_of_a_sequence_are_taken_too():
    records = [
        (tf.constant(image), tf.constant(i), tf.constant("p"))
        for i, image in zip("ab", IMAGES[:2], strict=True)
    ]
    rows, images, _ = walked(Sequence(records))
    assert rows["label"].to_pylist() == ["a", "b"]
    assert rows["key"].to_pylist() == ["p", "p"]
    np.testing.assert_array_equal(images, IMAGES[:2])


def test_images_of_a_stream_may_differ_in_size():
    records = [(IMAGES[0], 1), (IMAGES[1][:2], 2)]
    _, images, _ = walked(Sequence(records))
    assert [image.shape for image in images] == [(4, 3, 3), (2, 3, 3)]


def test_a_limit_takes_the_first_records_also_of_an_endless_dataset():
    rows, _, _ = walked(TENSORS((IMAGES, PATHS)).batch(4).repeat(), limit=13)
    assert rows["label"].to_pylist() == (PATHS * 2)[:13]


def test_a_callable_gets_its_arguments():
    def make(count: int, shape: tuple[int, ...]) -> Any:
        assert shape == (4, 3)
        return TENSORS((IMAGES[:count], PATHS[:count]))

    rows, _, _ = walked(make, count=3, shape=(4, 3))
    assert rows.num_rows == 3


def test_a_number_in_third_place_is_a_sample_weight_and_left_out():
    weights = np.linspace(0.5, 1.5, 10, dtype=np.float32)
    for third in (weights, weights[:, None], np.arange(10)):
        for dataset in (TENSORS((IMAGES, TEXTS, third)), TENSORS((IMAGES, TEXTS, third)).batch(4)):
            rows, _, reader = walked(dataset)
            assert rows["key"].to_pylist() == [str(i) for i in range(10)]
            assert rows["label"].to_pylist() == TEXTS
            (note,) = reader.describe().notes
            assert "sample weight" in note
            assert "positions" in note
    rows, _, reader = walked([(image, 1, Path("a/b.png")) for image in IMAGES[:2]])
    assert rows["key"].to_pylist() == ["a/b.png", "a/b.png"]
    assert reader.describe().notes == ()


@pytest.mark.parametrize(
    ("thirds", "tokens"),
    [
        (["a", 1.0], ["1.0", "element 1", "path"]),
        ([1.0, "a"], ["'a'", "element 1", "weight"]),
        ([None, 2, "a"], ["'a'", "element 2"]),
        ([1j], ["1j", "element 0"]),
    ],
)
def test_a_third_element_must_stay_what_it_was(thirds, tokens):
    said = refused([(image, 0, third) for image, third in zip(IMAGES, thirds, strict=False)])
    for token in tokens:
        assert token in said


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("content", [IMAGES, (IMAGES,)])
def test_images_alone_have_no_labels(batch, content):
    dataset = TENSORS(content)
    rows, images, reader = walked(dataset.batch(batch) if batch else dataset)
    assert rows["label"].to_pylist() == [None] * 10
    assert rows["key"].to_pylist() == [str(i) for i in range(10)]
    np.testing.assert_array_equal(images, IMAGES)
    (note,) = reader.describe().notes
    assert "no labels" in note


def test_an_array_of_images_is_a_sequence_without_labels():
    rows, images, _ = walked(IMAGES)
    assert rows["label"].to_pylist() == [None] * 10
    np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize("batch", [None, 3, 1])
@pytest.mark.parametrize("labels", [np.arange(7), np.arange(7)[:, None], PATHS[:7]])
def test_images_without_channels_get_one(batch, labels):
    grey = np.random.default_rng(0).integers(0, 256, (7, 28, 9)).astype(np.uint8)
    dataset = TENSORS((grey, labels))
    rows, images, reader = walked(dataset.batch(batch) if batch else dataset)
    assert rows["label"].to_pylist() == np.reshape(labels, -1).tolist()
    np.testing.assert_array_equal(images, grey[..., None])
    assert reader.describe().image_shape == (28, 9, 1)


# Dicts and Pillow images


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("name", ["image", "img"])
def test_a_tf_data_dataset_of_dicts(name, batch):
    dataset = TENSORS({name: IMAGES, "label": np.arange(10), "id": PATHS, "box": np.zeros((10, 4))})
    rows, images, reader = walked(dataset.batch(batch) if batch else dataset)
    assert rows["label"].to_pylist() == list(range(10))
    assert rows["key"].to_pylist() == [str(i) for i in range(10)]
    np.testing.assert_array_equal(images, IMAGES)
    (note,) = reader.describe().notes
    assert f"{name!r} and 'label' are used; " in note
    assert "id" in note
    assert "box" in note
    assert note.endswith("are ignored")


def test_dicts_without_labels_or_with_other_names():
    rows, _, reader = walked([{"image": image} for image in IMAGES])
    assert rows["label"].null_count == 10
    assert reader.describe().notes == ("the records have no labels",)

    records = [{"scan": image, "kind": "x", "label": 1} for image in IMAGES]
    reader = RecordReader(Dataset("valid", records, {}, "scan", "kind"))
    assert reader.read_shard(10).rows["label"].to_pylist() == ["x"] * 10
    assert "label is ignored" in reader.describe().notes[0]
    for columns, token in (
        (("scan", "none"), "--label-column"),
        (("none", None), "--image-column"),
    ):
        with pytest.raises(InputError, match=rf"a dict without 'none'; it has scan.*{token}"):
            RecordReader(Dataset("valid", records, {}, *columns))


def test_the_columns_of_dicts_are_those_of_the_options():
    records = [{"scan": IMAGES[0], "kind": "x"}]
    source = open_source(records, image_column="scan", label_column="kind")
    assert RecordReader(source).read_shard(1).rows["label"].to_pylist() == ["x"]
    assert RecordReader(open_source([{"image": IMAGES[0]}])).read_shard(1).rows.num_rows == 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "PA"])
@pytest.mark.parametrize("form", [lambda image: image, lambda image: {"image": image}])
def test_pillow_images_of_any_mode_join_an_rgb_one(form, mode):
    first = picture(0, (H, W))
    other = first.convert("P" if mode == "PA" else mode).convert(mode)
    _, images, reader = walked([form(image) for image in (first, other)])
    assert [image.shape for image in images] == [(H, W, 3)] * 2
    assert [image.dtype for image in images] == [np.uint8] * 2
    np.testing.assert_array_equal(images[0], np.asarray(first))
    np.testing.assert_array_equal(images[1], np.asarray(other.convert("RGB")))
    assert "RGBA images become RGB" in reader.describe().notes[0]


@pytest.mark.parametrize(
    ("mode", "channels", "dtype"),
    [("L", 1, np.uint8), ("1", 1, np.uint8), ("LA", 1, np.uint8), ("P", 3, np.uint8),
     ("RGBA", 4, np.uint8), ("CMYK", 3, np.uint8), ("I;16", 1, np.float32), ("F", 1, np.float32)],
)  # fmt: skip
def test_the_first_pillow_image_sets_the_channels(mode, channels, dtype):
    image = picture(0, (H, W)).convert("L" if mode == "I;16" else "RGB").convert(mode)
    _, images, _ = walked([(image, "a"), (image, "b")])
    assert [image.shape for image in images] == [(H, W, channels)] * 2
    assert images[0].dtype == dtype


def test_a_truncated_pillow_image_is_refused():
    content = io.BytesIO()
    picture(0, (40, 40)).save(content, "PNG")
    image = Image.open(io.BytesIO(content.getvalue()[:-60]))
    assert "cannot be converted" in refused([image])


# What is none


ONE_HOT = np.eye(10, dtype=np.float32)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ((IMAGES, IMAGES), ["(4, 3, 3)"]),
        ((IMAGES, ONE_HOT), ["(10,)", "one-hot", "tf.argmax", "label_mode='int'"]),
        ((IMAGES, ONE_HOT + 0.5), ["(10,)", "one number or string"]),
        ((np.moveaxis(IMAGES.repeat(3, 1).repeat(3, 2), 3, 1), PATHS), ["NCHW", "tf.transpose"]),
        ((np.zeros((10, 1, 28, 28)), np.arange(10)), ["NCHW", "1, 28, 28)"]),
        ((IMAGES, IMAGES[..., :1]), ["(4, 3, 1)"]),
        ((IMAGES, IMAGES[..., 0]), ["(4, 3)"]),
        ((IMAGES, (np.arange(10), np.arange(10))), ["gt"]),
        ((IMAGES, {"class": np.arange(10)}), ["gt"]),
        ((IMAGES, np.arange(10), IMAGES[..., 0]), ["img_path", "(4, 3)"]),
        ((IMAGES, np.arange(10).astype(np.complex64)), ["complex"]),
        ({"pixels": IMAGES, "label": np.arange(10)}, ["'image'", "pixels, label", "(img, gt)"]),
        ((IMAGES, np.arange(10), PATHS, PATHS), ["(img, gt, img_path)"]),
    ],
)
def test_what_is_no_record_is_refused_with_its_shape(batch, content, tokens):
    dataset = TENSORS(content)
    said = refused(dataset.batch(batch) if batch else dataset)
    for token in tokens:
        assert token in said


@pytest.mark.parametrize(
    ("image", "tokens"),
    [
        (IMAGES[0][0, 0, 0], ["()", "(H, W, C)"]),
        (IMAGES[None], ["(1, 10, 4, 3, 3)", "(H, W, C)"]),
        ("a.png", ["img", "Decode"]),
        (np.array(["a", "b"]), ["img", "Decode"]),
        (None, ["img"]),
    ],
)
def test_what_is_no_image_is_refused(image, tokens):
    said = refused(Sequence([(image, 1)]))
    for token in tokens:
        assert token in said


def test_file_names_in_place_of_images_are_refused():
    assert "Decode" in refused(TENSORS((PATHS, np.arange(10))))
    assert "Decode" in refused(TENSORS((PATHS, np.arange(10))).batch(2))


@pytest.mark.parametrize(
    "source",
    [lambda: None, lambda: 3, lambda: "a.png", lambda: {"image": IMAGES}, object()],
)
def test_what_is_neither_dataset_nor_sequence_is_refused(source):
    said = refused(source)
    assert "tf.data.Dataset" in said
    assert "sequence" in said


@pytest.mark.parametrize(
    "empty", [TENSORS((IMAGES[:0], PATHS[:0])), [], Batches(IMAGES[:0], IMAGES[:0], 2)]
)
def test_an_empty_dataset_is_refused(empty):
    assert "empty" in refused(empty)


def test_a_sequence_that_gives_none_in_the_middle_does_not_end_there():
    assert "element 2" in refused(Sequence([*RECORDS[:2], None, *RECORDS[3:]]))


def test_a_batch_with_too_few_labels_or_paths_is_refused():
    assert "gt" in refused(Sequence([(IMAGES[:3], np.arange(2))]))
    assert "img_path" in refused(Sequence([(IMAGES[:3], np.arange(3), ["a", "b"])]))


def test_labels_that_change_their_type_are_refused_with_the_position():
    records = [(image, label) for image, label in zip(IMAGES, [1, 2, 3, 4, "five"], strict=False)]
    said = refused(Sequence(records), size=2)
    for token in ("record 4", "five", "int64"):
        assert token in said


def test_a_first_label_after_many_records_is_refused_with_the_position():
    records = [(IMAGES[0], None)] * 40 + [(IMAGES[0], 1)]
    assert "record 40 has the label 1" in (said := refused(Sequence(records)))
    assert "put one with a label among the first 32" in said


def test_a_label_that_does_not_fit_into_64_bits_is_refused():
    assert "64 bits" in refused(Sequence([(IMAGES[0], 2**64)]))
    assert "64 bits" in refused(Sequence([(IMAGES[0], 1), (IMAGES[0], 2**64)]))
    assert "64 bits" in refused(TENSORS((IMAGES[:1], np.array([2**64 - 1], np.uint64))))


def test_a_callable_that_is_not_there_is_refused_saying_where_it_was_looked_for(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # Other tests of this process may have added their folders.
    monkeypatch.setattr(user_code, "_added", [])
    said = refused("no_such_module_here:make")
    assert "no_such_module_here" in said
    assert str(tmp_path) in said
    (tmp_path / "module_of_streams.py").write_text("def make_valid(n): return n\nconstant = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = refused("module_of_streams:make")
    assert "make_valid" in said
    assert "callable" in refused("module_of_streams:constant")
    said = refused("module_of_streams:make_valid")
    assert "TypeError" in said
    said = refused("module_of_streams:make_valid", m=3)
    assert "m=3" in said


def failing(at: int) -> Callable[[], Iterator[Any]]:
    def records() -> Iterator[Any]:
        for position in range(10):
            if position == at:
                raise ValueError("the disk is gone")
            yield IMAGES[position], position

    return records


def test_an_error_inside_the_pipeline_names_its_position():
    signature = (tf.TensorSpec((H, W, 3), tf.uint8), tf.TensorSpec((), tf.int64))
    dataset = tf.data.Dataset.from_generator(failing(6), output_signature=signature)
    reader = RecordReader(Dataset("valid", dataset, {}))
    assert reader.read_shard(4) is not None
    with pytest.raises(RunError) as raised:
        reader.read_shard(4)
    for token in ("valid", "6", "the disk is gone"):
        assert token in str(raised.value)


# Walking again


@pytest.mark.parametrize(
    ("now", "token"),
    [
        ([*RECORDS[:5], (*RECORDS[5][:2], "other")], "record 5"),
        ([*RECORDS[:2], (RECORDS[2][0], 7, "p2"), *RECORDS[3:8]], "record 2"),
        ([*RECORDS[:7], (RECORDS[7][0] + 1, *RECORDS[7][1:])], "record 7"),
        ([RECORDS[1], RECORDS[0], *RECORDS[2:8]], "record 0"),
        (RECORDS[:7], "record 7"),
        (RECORDS[:4], "record 4"),
        (RECORDS[:2], "record 2"),
        (RECORDS[:9], "record 7"),
        (RECORDS, "record 7"),
    ],
)
def test_a_dataset_that_does_not_give_the_same_again_is_refused(tmp_path, now, token):
    folder = Folder.open(str(tmp_path / "r"))

    def walk(records: list[Any]) -> list[int]:
        reader = ShardReader(Dataset("valid", Sequence(records), {}), None, None)
        reader.describe()
        folders = [folder.path]
        calls = (reader.read_shard(folders, split, local, True) for local in itertools.count())
        return [shard.records for shard in iter(lambda: next(calls), None)]

    split = SplitPlan(
        ordinal=0,
        name="valid",
        root="Sequence",
        label_type="int64",
        extras=(),
        shard_size=4,
        shards_per_file=1,
    )
    outline = Plan((split,), "int64", ())
    planning.save(folder, outline)
    assert walk(RECORDS[:8]) == [4, 4]
    assert walk(RECORDS[:8]) == [4, 4]
    planning.save(folder, outline.with_records(0, 8))
    assert walk(RECORDS[:8]) == [4, 4]
    with pytest.raises(InputError, match="same records") as raised:
        walk(now)
    for part in ("valid", token, "seed", "--overwrite"):
        assert part in str(raised.value)
    assert walk(RECORDS[:8]) == [4, 4]


# Runs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that passes pixels through."""
    path = tmp_path_factory.mktemp("model") / "m.keras"
    keras.Sequential([keras.Input((H, W, 3)), keras.layers.Rescaling(1.0)]).save(path)
    return path


def parts(run: Path | str) -> dict[str, bytes]:
    """All files of the folders that are the same, byte for byte, however a run went."""
    folders = ("features", "rejects", "thumbnails")
    files = [f for folder in folders for f in sorted((Path(run) / folder).glob("*"))]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_datasets_and_sequences_in_hand(ray_session, model, tmp_path):
    floats = images_of(5, 1).astype(np.float32) - 100
    changing = list(zip(images_of(8, 3), range(8), strict=True))
    sources: dict[str, Any] = {
        "tf_batched": TENSORS((floats, TEXTS[:5])).batch(2),
        "tf_single": TENSORS((IMAGES, np.arange(10), PATHS)),
        "keras": Batches(images_of(7, 2), np.arange(7) / 2, 3),
        "sequence": Sequence(changing),
        "made": lambda: [(image, None) for image in IMAGES[:3]],
    }

    def run(**options: Any) -> Run:
        return package.extract(
            RunConfig(
                sources=sources,
                model=model,
                pool="flatten",
                engine="tensorflow",
                out=str(tmp_path / "r"),
                shard_size=4,
                batch_size=3,
                actors=1,
                cpus_per_actor=1,
                **options,
            )
        )

    run()
    done = package.load(str(tmp_path / "r"))
    table = done.to_table()
    counts = [5, 10, 7, 8, 3]
    assert (done.rows, done.rejects) == (33, 0)
    assert table["index"].to_pylist() == list(range(33))
    named = [name for name, count in zip(sources, counts, strict=True) for _ in range(count)]
    assert table["split"].to_pylist() == named
    assert table["key"].to_pylist() == [
        *map(str, range(5)), *PATHS, *map(str, range(7)), *map(str, range(8)), "0", "1", "2",
    ]  # fmt: skip
    assert table.schema.field("label").type == pa.string()
    assert table["label"].to_pylist() == [
        *TEXTS[:5],
        *map(str, range(10)),
        *(str(i / 2) for i in range(7)),
        *map(str, range(8)),
        *[None] * 3,
    ]
    unit = [IMAGES, images_of(7, 2), images_of(8, 3), IMAGES[:3]]
    expected = np.concatenate([floats, *(images / np.float32(255) for images in unit)])
    assert_features_equal(done.to_numpy()[0], expected.reshape(33, -1))
    # A shard never spans two splits.
    names = [f"part-{n:08d}.parquet" for n in range(2 + 3 + 2 + 2 + 1)]
    assert sorted(file.name for file in Path(done.features_path).iterdir()) == names

    before = parts(tmp_path / "r")
    gone = {1, 4, 9}
    for number in gone:
        (tmp_path / "r" / "features" / f"part-{number:08d}.parquet").unlink()
    (tmp_path / "r" / "thumbnails" / "part-00000004.parquet").unlink()
    stays = {file: file.stat().st_mtime_ns for file in (tmp_path / "r" / "features").iterdir()}
    run()
    assert parts(tmp_path / "r") == before
    assert len(stays) == len(names) - len(gone)
    assert {file: file.stat().st_mtime_ns for file in stays} == stays

    sources["sequence"] = Sequence([*changing[:6], (changing[6][0], 99), changing[7]])
    with pytest.raises(InputError, match="same records") as raised:
        run()
    for token in ("sequence", "record 6", "--overwrite"):
        assert token in str(raised.value)
    assert parts(tmp_path / "r") == before


MODULE = """
import time
from pathlib import Path

import numpy as np
import tensorflow as tf


def make(count, shape, folder):
    assert shape == (4, 3, 3)
    mode = Path(folder, "mode").read_text()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *shape)).astype(np.uint8)

    def load(image, at):
        if mode == "broken" and at == 10:
            raise OSError("the disk is gone")
        if mode == "hanging" and at == 10:
            time.sleep(600)
        return image

    def record(image, at):
        image = tf.py_function(load, (image, at), tf.uint8)
        image.set_shape(shape)
        return image, at % 3, tf.strings.join(["img/", tf.strings.as_string(at)])

    records = tf.data.Dataset.from_tensor_slices((images, np.arange(count)))
    if mode == "shuffled":
        records = records.shuffle(count)
    return records.map(record)
"""


@pytest.mark.slow
def test_a_callable_that_breaks_or_hangs_is_resumed_once_it_is_repaired(
    ray_embed: Command, model, tmp_path
):
    (tmp_path / "my_streams.py").write_text(MODULE)
    arguments = f'{{"valid": {{"count": 18, "shape": [4, 3, 3], "folder": "{tmp_path}"}}}}'

    def run(mode: str, out: str, *more: Any) -> Any:
        (tmp_path / "mode").write_text(mode)
        return ray_embed(
            "run", "--source", "valid=my_streams:make", "--source-kwargs", arguments,
            "--model", model, "--pool", "flatten", "--engine", "tensorflow", "--shard-size", 4,
            "--batch-size", 4, "--cpus-per-actor", 1, "--actors", 1, "--out", out, *more,
        )  # fmt: skip

    result = run("broken", "r")
    assert result.code == 1
    for token in ("my_streams:make", "10", "the disk is gone", "ray-embed run"):
        assert token in result.err
    assert not (tmp_path / "r" / "projector").exists()
    result = run("hanging", "r", "--shard-timeout", 10)
    assert result.code == 1
    for token in ("my_streams:make", "no shard for 10 s", "first 8 records", "ray-embed run"):
        assert token in result.err
    kept = parts("r")
    assert set(kept) <= {
        f"{kind}/part-0000000{n}.parquet" for kind in ("features", "thumbnails") for n in (0, 1)
    }

    result = run("whole", "r")
    assert result.code == 0, result.err
    assert "18 records" in result.out
    found = parts("r")
    assert {name: found[name] for name in kept} == kept
    table = package.load("r").to_table()
    assert table["index"].to_pylist() == list(range(18))
    assert table["key"].to_pylist() == [f"img/{i}" for i in range(18)]
    assert table["label"].to_pylist() == [i % 3 for i in range(18)]
    assert table.schema.field("label").type == pa.int64()
    expected = images_of(18).reshape(18, -1) / np.float32(255)
    assert_features_equal(package.load("r").to_numpy()[0], expected)

    result = run("whole", "undisturbed")
    assert result.code == 0, result.err
    assert parts("undisturbed") == found

    (tmp_path / "r" / "features" / "part-00000003.parquet").unlink()
    result = run("shuffled", "r")
    assert result.code == 2
    for token in ("my_streams:make", "same records", "seed"):
        assert token in result.err
    found.pop("features/part-00000003.parquet")
    assert parts("r") == found


SEQUENCE = """
import numpy as np


class Pairs:
    def __init__(self, n):
        self.n = n
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (n, 4, 3, 3)).astype(np.uint8)

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        return self.images[at], int(self.images[at, 0, 0, 0]), 0.5
"""


def test_a_sequence_named_on_the_command_line(ray_embed: Command, model, tmp_path):
    (tmp_path / "my_sequences.py").write_text(SEQUENCE)
    result = ray_embed(
        "extract", "--source", "my_sequences:Pairs", "--model", model, "--limit", 5,
        "--source-kwargs", '{"Pairs": {"n": 9}}', "--pool", "flatten", "--out", "r",
        "--engine", "tensorflow", "--actors", 1, "--cpus-per-actor", 1,
    )  # fmt: skip
    assert result.code == 0, result.err
    table = package.load("r").to_table()
    assert table["label"].to_pylist() == images_of(9)[:5, 0, 0, 0].tolist()
    assert table["key"].to_pylist() == ["0", "1", "2", "3", "4"]
    assert result.err.count("Pairs: the third element of each record is a number (0.5)") == 1
    assert set(table["split"].to_pylist()) == {parse_source("my_sequences:Pairs")[0]}


def test_labels_that_are_none_are_refused_by_the_command(ray_embed: Command, model, tmp_path):
    (tmp_path / "my_pairs.py").write_text(
        "import numpy as np, tensorflow as tf\n"
        "def pairs():\n"
        "    x = np.zeros((3, 4, 3, 3), np.float32)\n"
        "    return tf.data.Dataset.from_tensor_slices((x, x)).batch(2)\n"
    )
    result = ray_embed("run", "--source", "my_pairs:pairs", "--model", model, "--out", "r")
    assert result.code == 2
    assert "(4, 3, 3)" in result.err
    assert "my_pairs:pairs" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "r").exists()
