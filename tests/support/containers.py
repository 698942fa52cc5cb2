# SPDX-License-Identifier: Apache-2.0
"""Files that hold many images, written by the libraries that people write them with."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from support.pictures import picture

SIZE = (8, 9)


def encode(seed: int, format_: str = "PNG") -> bytes:
    """The bytes of an image file."""
    content = io.BytesIO()
    picture(seed, SIZE).save(content, format_)
    return content.getvalue()


def pixels_of(seeds: Sequence[int]) -> np.ndarray:
    """The pixels of the pictures with these seeds, (n, H, W, 3)."""
    return np.stack([np.asarray(picture(seed, SIZE)) for seed in seeds])


def write_parquet(path: Path, seeds: Sequence[int], rows: int = 7, **columns: Any) -> Path:
    """Write a Parquet file as Hugging Face does: image structs, and other columns."""
    images = [{"bytes": encode(seed), "path": f"{seed}.png"} for seed in seeds]
    table = pa.table({"image": pa.array(images), **columns})
    pq.write_table(table, path, row_group_size=rows)
    return path


def write_tar(path: Path, samples: Sequence[tuple[str, dict[str, bytes]]], mode: str = "w") -> Path:
    """Write a tar of samples: a key, and contents by ending."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for key, contents in samples:
            for ending, content in contents.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def sample(seed: int, label: int | None = None, **fields: Any) -> tuple[str, dict[str, bytes]]:
    """A sample for a tar: an image, and perhaps a label and metadata."""
    contents = {"png": encode(seed)}
    if label is not None:
        contents["cls"] = str(label).encode()
    if fields:
        contents["json"] = json.dumps(fields).encode()
    return f"{seed:05d}", contents


def make_dataset(seeds: Sequence[int], image: str = "image", **columns: Any) -> datasets.Dataset:
    """A dataset of Hugging Face: images, and other columns."""
    features = datasets.Dataset.from_dict(columns).features if columns else {}
    contents = [{"bytes": encode(seed), "path": f"{seed}.png"} for seed in seeds]
    return datasets.Dataset.from_dict(
        {image: contents, **columns},
        features=datasets.Features({image: datasets.Image(), **features}),
    )


def write_tfrecord(path: Path, examples: Sequence[dict[str, Any]], compression: str = "") -> Path:
    """Write a TFRecord file of Examples; a value is a text, number, bytes or a list of them."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for example in examples:
            features = {name: _make_feature(value) for name, value in example.items()}
            message = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(message.SerializeToString())
    return path


def _make_feature(value: Any) -> Any:
    import tensorflow as tf

    values = value if isinstance(value, list) else [value]
    values = [item.encode() if isinstance(item, str) else item for item in values]
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if values and isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def example(seed: int, **features: Any) -> dict[str, Any]:
    """An Example with an image, as the tools of TensorFlow Models name its features."""
    named = {"encoded": encode(seed), "filename": f"{seed}.png", **features}
    return {f"image/{name}": value for name, value in named.items()}


def prepare_data_set(
    folder: Path,
    name: str = "toy",
    variant: str | None = None,
    version: str = "1.0.0",
    shards: int = 1,
    features: dict[str, Any] | None = None,
    file_format: str = "tfrecord",
    shuffle: bool = True,
    **splits: Sequence[dict[str, Any]],
) -> Path:
    """Prepare a data set with TensorFlow Datasets; return its folder."""
    import tensorflow_datasets as tfds

    usual = {
        "image": tfds.features.Image(shape=(*SIZE, 3)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS: ClassVar[list[Any]] = (
            [tfds.core.BuilderConfig(name=variant)] if variant else []
        )

        def _info(self) -> Any:
            named = tfds.features.FeaturesDict(features or usual)
            return tfds.core.DatasetInfo(
                builder=self, features=named, disable_shuffling=not shuffle
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: list(enumerate(records)) for split, records in splits.items()}

        def _generate_examples(self, **_: Any) -> Any:
            raise NotImplementedError

    Toy.name = name
    builder = Toy(data_dir=folder, file_format=file_format)
    count = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=count)
    return Path(builder.data_dir)
