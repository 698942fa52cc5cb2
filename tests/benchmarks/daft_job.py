# SPDX-License-Identifier: Apache-2.0
"""The same job as a Daft pipeline: download, decode, a class UDF with the encoder, write_parquet.

    python tests/benchmarks/daft_job.py FOLDER OUT

OUT gets Parquet files with the columns key (relative path), label and feature. There is no
checkpoint for the projector, no thumbnail, and a file that cannot be decoded ends the job. The
encoder is the compiled one of compiled.py, which resizes and scales the pictures. All pictures must
have the size of the first one.

Daft is not among the packages that the tests need: `pip install daft` first.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import daft
import numpy as np
from compiled import open_encoder
from daft import DataType, col
from daft.functions import decode_image, download
from machine import threads
from PIL import Image

DIMENSION = 1280


@daft.cls(max_concurrency=1)
class Encoder:
    """The encoder; `side` is that of the pictures, in pixels."""

    def __init__(self, model: str, side: int) -> None:
        self._encode = open_encoder(model, side, threads())

    @daft.method.batch(return_dtype=DataType.embedding(DataType.float32(), DIMENSION))
    def __call__(self, images: Any) -> Any:
        pictures = np.stack([np.asarray(image) for image in images.to_pylist()])
        return list(self._encode(pictures))


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
    began = time.perf_counter()
    encoder = Encoder(given.model, side)
    paths = [str(picture) for picture in pictures]
    keys = [os.path.relpath(path, folder) for path in paths]
    labels = [key.split(os.sep)[0] for key in keys]
    rows = daft.from_pydict({"path": paths, "key": keys, "label": labels})
    rows = rows.with_column("image", decode_image(download(col("path")), mode="RGB"))
    rows = rows.with_column("feature", encoder(col("image"))).select("key", "label", "feature")
    rows.write_parquet(str(given.out.resolve()))
    print(json.dumps({"images": len(pictures), "seconds_job": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
