# SPDX-License-Identifier: Apache-2.0
"""The same images in each form of source, written by the libraries that people write them with.

    python tests/benchmarks/source_files.py IMAGES WORK

IMAGES is a folder of corpus.py. WORK gets one folder a form, which is not written again.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

PER_FILE = 2048


def write_parquet(paths: Sequence[Path], folder: Path) -> None:
    """Write Parquet files as Hugging Face datasets writes them."""
    whole = _make_dataset(paths)
    shards = len(_cut(paths))
    for number in range(shards):
        part = whole.shard(shards, number, contiguous=True)
        part.to_parquet(folder / f"train-{number:05d}.parquet")


def write_saved(paths: Sequence[Path], folder: Path) -> None:
    """Save a dataset of Hugging Face."""
    _make_dataset(paths).save_to_disk(folder, num_shards=len(_cut(paths)))


def write_tar(paths: Sequence[Path], folder: Path) -> None:
    """Write shards of WebDataset."""
    import webdataset

    pattern = str(folder / "shard-%05d.tar")
    with webdataset.ShardWriter(pattern, maxcount=PER_FILE, verbose=0) as writer:
        for path in paths:
            sample = {"__key__": path.stem, "jpg": path.read_bytes(), "cls": path.parent.name}
            writer.write(sample)


def write_tfrecord(paths: Sequence[Path], folder: Path) -> None:
    """Write TFRecord files of Examples."""
    import tensorflow as tf

    for number, part in enumerate(_cut(paths)):
        with tf.io.TFRecordWriter(str(folder / f"train-{number:05d}.tfrecord")) as writer:
            for path in part:
                values = {
                    "image/encoded": path.read_bytes(),
                    "image/class/text": path.parent.name.encode(),
                    "image/filename": path.name.encode(),
                }
                features = {
                    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                    for name, value in values.items()
                }
                message = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(message.SerializeToString())


def write_tfds(paths: Sequence[Path], folder: Path) -> None:
    """Prepare a data set of TensorFlow Datasets, and move it to the folder."""
    import tensorflow_datasets as tfds

    class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The images with their labels."""

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS: ClassVar[list[Any]] = []

        def _info(self) -> Any:
            names = sorted({path.parent.name for path in paths})
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=names),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for number, path in enumerate(paths):
                yield number, {"image": str(path), "label": path.parent.name}

    builder = Photos(data_dir=folder / "tfds")
    shards = tfds.download.DownloadConfig(num_shards=len(_cut(paths)))
    builder.download_and_prepare(download_config=shards)
    for file in Path(builder.data_dir).iterdir():
        file.rename(folder / file.name)
    shutil.rmtree(folder / "tfds")


def write_hdf5(paths: Sequence[Path], folder: Path) -> None:
    """Write the pixels as an array: nothing is left to decode."""
    import h5py
    import numpy as np
    from PIL import Image

    with h5py.File(folder / "data.h5", "w") as file:
        labels = [path.parent.name for path in paths]
        file.create_dataset("labels", data=labels, dtype=h5py.string_dtype())
        for row, path in enumerate(paths):
            pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
            if row == 0:
                file.create_dataset("images", (len(paths), *pixels.shape), np.uint8)
            file["images"][row] = pixels


# How a form is written, and its source in that folder.
FORMS: dict[str, tuple[Callable[[Sequence[Path], Path], None], str]] = {
    "parquet": (write_parquet, "*.parquet"),
    "saved": (write_saved, ""),
    "tar": (write_tar, "*.tar"),
    "tfrecord": (write_tfrecord, "*.tfrecord"),
    "tfds": (write_tfds, ""),
    "hdf5": (write_hdf5, "data.h5"),
}


def make_form(name: str, images: Path, work: Path) -> str:
    """Write one form of a folder of images, unless it is there, and return its source."""
    write, source = FORMS[name]
    folder = work / f"{images.name}-{name}"
    if not folder.is_dir():
        unfinished = work / f"{folder.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(sorted(images.rglob("*.jpg")), unfinished)
        unfinished.rename(folder)
    return str(folder / source)


def _cut(paths: Sequence[Path]) -> list[Sequence[Path]]:
    return [paths[start : start + PER_FILE] for start in range(0, len(paths), PER_FILE)]


def _make_dataset(paths: Sequence[Path]) -> Any:
    import datasets

    names = sorted({path.parent.name for path in paths})
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
            "label": [path.parent.name for path in paths],
        },
        features=datasets.Features(features),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    for name in FORMS:
        print(make_form(name, given.images.resolve(), given.work.resolve()), flush=True)


if __name__ == "__main__":
    main()
