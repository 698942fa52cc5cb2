# SPDX-License-Identifier: Apache-2.0
"""A dataset some of whose files take their time, as on a slow disk or a busy network.

    ray-embed run --source valid=slow_files:dataset \
        --source-kwargs '{"valid": {"folder": "DIR", "seconds": 0.02}}' …
    python tests/benchmarks/slow_files.py FOLDER --seconds 0.02

Files in a folder cannot be made slow without a file system of one's own, so this stands for them: a
`module:callable` whose every 20th record sleeps while it is read, on the threads of the pipeline.
Run alone it walks the dataset and prints the images a second as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

EVERY = 20
SIDE = 96


def dataset(folder: str, seconds: float) -> Any:
    """A tf.data.Dataset of (img (96, 96, 3) float32 in [0, 1], class name, path)."""
    import tensorflow as tf

    paths = sorted(str(path) for path in Path(folder).rglob("*.jpg"))
    labels = [path.split("/")[-2] for path in paths]
    slow = [seconds if at % EVERY == 0 else 0.0 for at in range(len(paths))]

    def sleep(pause: Any) -> Any:
        return tf.numpy_function(_sleep, [pause], tf.float32)

    def load(path: Any, label: Any, pause: Any) -> tuple[Any, ...]:
        # No Python for the others: they are as fast as in the plain dataset.
        slept = tf.cond(pause > 0, lambda: sleep(pause), lambda: 0.0)
        with tf.control_dependencies([slept]):
            img = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        img = tf.image.resize(img, (SIDE, SIDE)) / 255.0
        return tf.ensure_shape(img, (SIDE, SIDE, 3)), label, path

    records = tf.data.Dataset.from_tensor_slices((paths, labels, tf.constant(slow, tf.float32)))
    return records.map(load, num_parallel_calls=tf.data.AUTOTUNE)


def _sleep(seconds: float) -> float:
    time.sleep(float(seconds))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    records = dataset(given.folder, given.seconds)
    began = time.perf_counter()
    count = sum(1 for _ in records)
    print(json.dumps({"decode": count / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
