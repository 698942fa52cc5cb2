# SPDX-License-Identifier: Apache-2.0
"""The same job by other libraries, from a Parquet, tar or TFRecord source, into Parquet.

    python tests/benchmarks/source_rivals.py SIDE SOURCE OUT [--model models:mobilenet]

SIDE is one of

- `ray-data-parquet`, `ray-data-tar`, `ray-data-tfrecord`: Ray Data reads the files, decodes in its
  tasks, and encodes in one actor, as in ray_data_job.py;
- `datasets-eager`, `datasets-compiled`: `Dataset.map` of Hugging Face reads and decodes Parquet and
  calls the Keras model, or the compiled encoder of compiled.py.

OUT gets Parquet files of features: no projector, no thumbnails, no rejects.
"""

from __future__ import annotations

import argparse
import glob
import io
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from compiled import BATCH, encode_padded, open_encoder
from machine import threads
from PIL import Image

ROWS_A_CALL = 256


def decode(content: bytes) -> np.ndarray:
    """Decode an image file with Pillow."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def decode_rows(rows: dict[str, Any], column: str) -> dict[str, Any]:
    """Decode a batch of Ray Data."""
    contents = (item["bytes"] if isinstance(item, dict) else item for item in rows[column])
    return {"image": np.stack([decode(content) for content in contents])}


class Encoder:
    """An actor's encoder for pictures of `side` pixels."""

    def __init__(self, model: str, side: int) -> None:
        self._encode = open_encoder(model, side, threads())

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        return {"feature": self._encode(rows["image"])}


def run_ray_data(source: str, out: Path, model: str, form: str, side: int) -> None:
    """Do the job in Ray Data."""
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    files = sorted(glob.glob(source))
    if form == "parquet":
        rows, column = ray.data.read_parquet(files, columns=["image"]), "image"
    elif form == "tar":
        rows = ray.data.read_webdataset(files, decoder=None)
        column = "jpg"
    else:
        rows, column = ray.data.read_tfrecords(files), "image/encoded"
    images = rows.map_batches(partial(decode_rows, column=column), batch_size=ROWS_A_CALL)
    encoded = images.map_batches(
        Encoder,
        fn_constructor_args=(model, side),
        batch_size=ROWS_A_CALL,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.01,
    )
    encoded.write_parquet(str(out))


def run_datasets(source: str, out: Path, model: str, kind: str, side: int) -> None:
    """Do the job in Hugging Face datasets, in one process."""
    import datasets

    # Without it, a second run would read what the first one kept.
    datasets.disable_caching()
    files = sorted(glob.glob(source))
    cache = str(out.with_name(f"{out.name}-cache"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    encode = _make_eager(model) if kind == "eager" else open_encoder(model, side, threads())

    def encode_rows(batch: dict[str, Any]) -> dict[str, Any]:
        images = np.stack([np.asarray(image.convert("RGB")) for image in batch["image"]])
        return {"feature": encode(images)}

    done = rows.map(encode_rows, batched=True, batch_size=BATCH, remove_columns=["image"])
    out.mkdir(parents=True)
    done.to_parquet(out / "features.parquet")


def _make_eager(model: str) -> Callable[[np.ndarray], np.ndarray]:
    import importlib

    import keras
    import tensorflow as tf

    module, _, name = model.partition(":")
    encoder = getattr(importlib.import_module(module), name)()
    pool = keras.layers.GlobalAveragePooling2D()

    def encode(images: np.ndarray) -> np.ndarray:
        resized = tf.image.resize(images, encoder.input_shape[1:3]) / 255.0
        features: np.ndarray = pool(encoder(resized, training=False)).numpy()
        return features

    return lambda images: encode_padded(encode, images)


SIDES: dict[str, Callable[..., None]] = {
    "ray-data-parquet": partial(run_ray_data, form="parquet"),
    "ray-data-tar": partial(run_ray_data, form="tar"),
    "ray-data-tfrecord": partial(run_ray_data, form="tfrecord"),
    "datasets-eager": partial(run_datasets, kind="eager"),
    "datasets-compiled": partial(run_datasets, kind="compiled"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="models:mobilenet")
    parser.add_argument("--side", type=int, default=224, dest="pixels", help="of the pictures")
    given = parser.parse_args()
    began = time.perf_counter()
    SIDES[given.side](given.source, given.out.resolve(), given.model, side=given.pixels)
    print(json.dumps({"seconds_job": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
