# SPDX-License-Identifier: Apache-2.0
"""The same job as a Ray Data pipeline: read_images, map_batches on an actor, write_parquet.

    python tests/benchmarks/ray_data_job.py FOLDER OUT

OUT gets Parquet files with the columns key (relative path), label and feature. There is no
checkpoint for the projector, no thumbnail, and a file that cannot be decoded ends the job.

It is the fastest of ten variants that were tried with 16,384 pictures on two cores (six were tried
with 4,096), each in one run only, so differences of a few seconds among them mean little. It took
54.8 s; the seconds of others are in brackets:

- The encoder is the compiled one of compiled.py, on all cores, in one actor, which converts it
  while the first pictures are read already. (The driver converting it beforehand: 61.2, or 59.8
  with an actor a core of one thread each; two such actors that convert it themselves: 63.4.)
- Pictures cross as the uint8 they are stored as, and the compiled graph resizes and scales them.
  (`read_images` resizing, which gives other pixels, the driver converting: 65.2 against 61.2.)
- The actor asks for next to no CPU, so that reading has a task for every core. (One CPU, the driver
  converting: 65.0 against 61.2.)
- Blocks are of 512 pictures, calls of 256. (Blocks of 128: 62.8. Calls of 32 instead of 256, with
  4,096 pictures and the driver converting: 34.4 against 32.7.)

All pictures must have the size of the first one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from compiled import open_encoder
from machine import threads
from PIL import Image

ROWS_A_BLOCK = 512
ROWS_A_CALL = 256


class Encoder:
    """An actor's encoder.

    Args:
        model: as `module:callable`.
        side: of the pictures, in pixels.
        folder: the pictures' folder, without which paths are keys.
    """

    def __init__(self, model: str, side: int, folder: str) -> None:
        self._encode = open_encoder(model, side, threads())
        self._folder = folder

    def __call__(self, rows: dict[str, Any]) -> pa.Table:
        features = self._encode(rows["image"])
        keys = [os.path.relpath(path, self._folder) for path in rows["path"]]
        column = pa.FixedSizeListArray.from_arrays(features.reshape(-1), features.shape[1])
        labels = [key.split(os.sep)[0] for key in keys]
        return pa.table({"key": keys, "label": labels, "feature": column})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="models:mobilenet")
    given = parser.parse_args()
    folder = given.folder.resolve()
    pictures = sorted(folder.rglob("*.jpg"))
    with Image.open(pictures[0]) as first:
        side = first.width
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    began = time.perf_counter()
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_images(
        str(folder),
        mode="RGB",
        include_paths=True,
        override_num_blocks=max(2 * threads(), len(pictures) // ROWS_A_BLOCK),
    )
    encoded = rows.map_batches(
        Encoder,
        fn_constructor_args=(given.model, side, str(folder)),
        batch_size=ROWS_A_CALL,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.01,
    )
    encoded.write_parquet(str(given.out.resolve()))
    print(json.dumps({"images": len(pictures), "seconds_job": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
