# SPDX-License-Identifier: Apache-2.0
"""What decoding alone and the encoder alone can do on all cores, without ray_embed.

    python tests/benchmarks/bounds.py FOLDER [--model models:mobilenet] [--batch 32]
        [--images 4096] [--seconds 5] [--only decode,thumbnails,forward]

Each is measured after a warm-up, one after the other, in img/s; one line of JSON has them:

    decode      tf.data reads, decodes, resizes to the encoder's size and scales the first `images`
                pictures of FOLDER, in batches; broken pictures are left out, and count
    thumbnails  the same with a PNG of at most 64 px of each picture
    forward     the compiled encoder on batches in memory, for `seconds`: all cores on a batch of
                32, then a batch of 16 a core, and the better of the two
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import threads
from sides import MODELS

WARM_UP = 64  # images
TOGETHER, APART = 32, 16  # images a batch
THUMBNAIL = 64  # pixels


def decoding(paths: list[str], side: int, batch: int, thumbnails: bool) -> float:
    """Images a second of reading and preparing files, on all cores."""
    pipeline(paths[:WARM_UP], side, batch, thumbnails)
    began = time.perf_counter()
    pipeline(paths, side, batch, thumbnails)
    return len(paths) / (time.perf_counter() - began)


def pipeline(paths: list[str], side: int, batch: int, thumbnails: bool) -> None:
    """Prepare all files once."""
    import tensorflow as tf

    def load(path: Any) -> Any:
        stored = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        stored.set_shape((None, None, 3))
        image = tf.image.resize(stored, (side, side)) / 255.0
        return (image, thumbnail(stored)) if thumbnails else image

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads()
    records = tf.data.Dataset.from_tensor_slices(paths).map(load, threads(), deterministic=True)
    for _ in records.ignore_errors().batch(batch).prefetch(4).with_options(options):
        pass


def thumbnail(image: Any) -> Any:
    """A PNG of at most THUMBNAIL pixels a side, by area, quickly compressed."""
    import tensorflow as tf

    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    factor = tf.minimum(1.0, THUMBNAIL / tf.reduce_max(sides))
    size = tf.maximum(1, tf.cast(tf.round(sides * factor), tf.int32))
    small = tf.image.resize(image[None], size, "area")[0]
    return tf.io.encode_png(tf.saturate_cast(tf.round(small), tf.uint8), compression=1)


def forward(model: str, seconds: float) -> float:
    """Images a second of the compiled encoder, on all cores: the best of two ways to use them."""
    return max(
        encoding(model, batch, seconds, side_by_side)
        for batch, side_by_side in ((TOGETHER, False), (APART, True))
    )


def encoding(model: str, batch: int, seconds: float, side_by_side: bool) -> float:
    """Images a second on all cores, a batch at a time or a batch a core."""
    import compiled

    side = MODELS[model]
    encode = compiled.compile_model(compiled.convert(model, batch), threads(), side_by_side)
    callers = threads() if side_by_side else 1

    def call(until: float) -> tuple[int, float]:
        images = np.random.default_rng(0).random((batch, side, side, 3), np.float32)
        done = 0
        while done < WARM_UP or time.perf_counter() < until:
            encode(images)
            done += batch
        return done, time.perf_counter()

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, [0.0] * callers))
        began = time.perf_counter()
        calls = list(pool.map(call, [began + seconds] * callers))
    return sum(done / (ended - began) for done, ended in calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=sorted(MODELS), default="models:mobilenet")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", default="decode,thumbnails,forward")
    given = parser.parse_args()
    asked = given.only.split(",")
    paths = sorted(str(path) for path in given.folder.rglob("*.jpg"))[: given.images]
    side = MODELS[given.model]
    found = {}
    if "decode" in asked:
        found["decode"] = decoding(paths, side, given.batch, thumbnails=False)
    if "thumbnails" in asked:
        found["thumbnails"] = decoding(paths, side, given.batch, thumbnails=True)
    if "forward" in asked:
        found["forward"] = forward(given.model, given.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
