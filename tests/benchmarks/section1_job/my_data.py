# SPDX-License-Identifier: Apache-2.0
"""The pictures of the acceptance job, as a tf.data pipeline of single records.

    ray-embed run --source valid=my_project:dataset \
        --source-kwargs '{"valid": {"folder": "DIR/valid"}}' …
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

HEIGHT, WIDTH = 240, 240


def dataset(folder: str) -> tf.data.Dataset:
    """Records `(img, gt, img_path)` of a folder of class folders, in the order of their paths.

    img is float32 in [0, 1] of shape (240, 240, 3), gt an int64 scalar, the number of the class
    among the sorted ones, and img_path a string, the path with the folder as it was given.
    """
    root = Path(folder)
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.jpg"))
    classes = sorted({name.split("/")[0] for name in names})
    paths = [f"{folder.rstrip('/')}/{name}" for name in names]
    labels = [classes.index(name.split("/")[0]) for name in names]

    def load(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        img = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        img = tf.image.resize(img, (HEIGHT, WIDTH), method="bilinear") / 255.0
        return tf.ensure_shape(img, (HEIGHT, WIDTH, 3)), label, path

    records = tf.data.Dataset.from_tensor_slices((paths, tf.constant(labels, tf.int64)))
    return records.map(load, num_parallel_calls=tf.data.AUTOTUNE)
