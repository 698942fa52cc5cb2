# SPDX-License-Identifier: Apache-2.0
"""The baseline: the job written as a loop, the way it stands in a notebook, in one process.

    python tests/benchmarks/section1_loop.py FOLDER OUT

FOLDER has one sub-folder of pictures a class. OUT gets what the TensorBoard projector needs
(embedding.ckpt-1.*, metadata.tsv, projector_config.pbtxt) and, for comparing, features.npy and
keys.json (relative paths, sorted; row k of the one is entry k of the other). One line of JSON
on stdout says how long the loop took, starting, building the model and saving are not in it, and
how many images a second it did once warm; see rates.py.

It is written plainly but not carelessly: the pipeline decodes in parallel and ahead of the model.
Its weaknesses are kept as they are, a second run into the same OUT appends the labels again.
"""

from __future__ import annotations

import json
import os
import sys
import time

import keras
import numpy as np
import rates
import tensorflow as tf
from tensorboard.plugins import projector

IMAGE_SIZE = (96, 96)
BATCH = 32
ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")


def load(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    img = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    img = tf.image.resize(img, IMAGE_SIZE, method="bilinear")
    img.set_shape((*IMAGE_SIZE, 3))
    return img / 255.0, label


def main(folder: str, logdir: str) -> None:
    os.makedirs(logdir, exist_ok=True)

    keys = sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(ENDINGS)
    )
    paths = [os.path.join(folder, key) for key in keys]
    labels = [key.split(os.sep)[0] for key in keys]
    dataset = (
        tf.data.Dataset.from_tensor_slices((paths, labels))
        .map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH)
        .prefetch(tf.data.AUTOTUNE)
    )

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        input_shape=(*IMAGE_SIZE, 3), include_top=False, weights=None
    )
    pool = keras.layers.GlobalAveragePooling2D()

    start = time.perf_counter()
    embedding = None
    completions = []
    with open(os.path.join(logdir, "metadata.tsv"), "a+", encoding="utf-8") as metadata:
        for img, gt in dataset:
            fmap = model(img, training=False)
            f = pool(fmap)
            embedding = f if embedding is None else tf.concat([embedding, f], 0)
            for label in gt.numpy():
                metadata.write(f"{label.decode()}\n")
            completions.append((time.perf_counter(), len(img)))
    assert embedding is not None, f"no pictures in {folder}"
    features = embedding.numpy()
    seconds = time.perf_counter() - start

    checkpoint = tf.train.Checkpoint(embedding=tf.Variable(embedding))
    checkpoint.save(os.path.join(logdir, "embedding.ckpt"))
    config = projector.ProjectorConfig()
    entry = config.embeddings.add()
    entry.tensor_name = "embedding/.ATTRIBUTES/VARIABLE_VALUE"
    entry.metadata_path = "metadata.tsv"
    projector.visualize_embeddings(logdir, config)

    np.save(os.path.join(logdir, "features.npy"), features)
    with open(os.path.join(logdir, "keys.json"), "w", encoding="utf-8") as out:
        json.dump(keys, out)
    result = {
        "images": len(keys),
        "seconds_loop": round(seconds, 3),
        "images_per_second": round(len(keys) / seconds, 1),
        "once_warm": rates.once_warm(completions),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python section1_loop.py FOLDER OUT")
    main(sys.argv[1], sys.argv[2])
