# SPDX-License-Identifier: Apache-2.0
"""Reading a tf.data.Dataset for a run, against `for _ in dataset`.

    python tests/benchmarks/stream_reading.py --records 4096 --side 224 --rounds 5

The dataset gives batches of uint8 images and labels. `memory` slices an array that is there;
`decoded` decodes a JPEG for each image, as real pipelines do. The reader cuts the records into
shards, with keys, labels and checksums, as it does for the actors. Both sides read the same dataset
in this process and take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from rows import Row, last_line, ratio, row, table

SHARD = 512


def make_datasets(records: int, side: int) -> dict[str, Any]:
    """The datasets by name, in batches of 32."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (records, side, side, 3), np.uint8)
    labels = np.arange(records) % 10
    smooth = tf.image.resize(images[0, :4, :4], (side, side), "bicubic")
    content = tf.io.encode_jpeg(tf.saturate_cast(smooth, tf.uint8))

    def decode(label: Any) -> Any:
        return tf.io.decode_jpeg(content, 3), label

    slices = tf.data.Dataset.from_tensor_slices
    decoded = slices(labels).map(decode, tf.data.AUTOTUNE).batch(32)
    return {
        "memory": slices((images, labels)).batch(32).prefetch(2),
        "decoded": decoded.prefetch(2),
    }


def read_plainly(dataset: Any) -> int:
    """Read a dataset in a loop; return the number of records."""
    return sum(len(labels) for _, labels in dataset)


def read_shards(dataset: Any) -> int:
    """Read a dataset as a run does; return the number of records."""
    from ray_embed.sources.dataset import Dataset
    from ray_embed.sources.dataset_records import RecordReader

    reader = RecordReader(Dataset("valid", dataset, {}))
    return sum(shard.rows.num_rows for shard in iter(lambda: reader.read_shard(SHARD), None))


def measure(read: Callable[[Any], int], dataset: Any) -> float:
    """Records per second."""
    began = time.perf_counter()
    return read(dataset) / (time.perf_counter() - began)


def compare(records: int, side: int, rounds: int) -> list[Row]:
    """Read each dataset on both sides, in turns; return the ratio of the rates."""
    rows = []
    for name, dataset in make_datasets(records, side).items():
        rates: dict[Any, list[float]] = {read_plainly: [], read_shards: []}
        for number in range(rounds):
            for read in list(rates)[:: -1 if number % 2 else 1]:
                rates[read].append(measure(read, dataset))
                print(f"{name:8} {read.__name__:12} {rates[read][-1]:10,.0f} images/s")
        fraction = ratio(median(rates[read_shards]), median(rates[read_plainly]))
        target = ">= 0.8" if name == "decoded" else None
        rows.append(row(f"reading a tf.data.Dataset ({name}) against a loop", target, fraction))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=4096)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    rows = compare(**vars(parser.parse_args()))
    print(table(rows))
    print(last_line(rows))


if __name__ == "__main__":
    main()
