# SPDX-License-Identifier: Apache-2.0
"""What the Ray Data job has to give for some pictures: a plain call of the encoder.

    python tests/benchmarks/plain_call.py FOLDER OUT [--every 64]

Ray Data's `read_images` decodes with Pillow, whose inverse cosine transform of JPEG is another one
than that of `tf.io.decode_image`: pixels differ by a few levels, and features with them. So the job
is not held against the loop, but against `model(img, training=False)` and pooling on the pixels
that Pillow gives. OUT gets keys.json and features.npy, as from section1_loop.py, of every 64th
picture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import keras
import models
import numpy as np
import tensorflow as tf
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=64)
    given = parser.parse_args()
    names = sorted(
        path.relative_to(given.folder).as_posix() for path in given.folder.rglob("*.jpg")
    )
    keys = names[:: given.every]
    model = models.mobilenet()
    images = []
    for key in keys:
        with Image.open(given.folder / key) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        images.append(tf.image.resize(pixels, model.input_shape[1:3]).numpy() / np.float32(255))
    pool = keras.layers.GlobalAveragePooling2D()
    batches = [np.stack(images[at : at + 32]) for at in range(0, len(images), 32)]
    features = [pool(model(batch, training=False)).numpy() for batch in batches]
    given.out.mkdir(parents=True, exist_ok=True)
    np.save(given.out / "features.npy", np.concatenate(features))
    (given.out / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
    print(json.dumps({"images": len(keys)}))


if __name__ == "__main__":
    main()
