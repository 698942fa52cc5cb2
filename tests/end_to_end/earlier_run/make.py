# SPDX-License-Identifier: Apache-2.0
"""Make a small run with the version of ray_embed that is installed, and put it into a zip file.

``run.zip`` was made by it with an earlier version. The features are whole numbers or sixteenths, so
that every processor computes the same ones.

Usage: python tests/end_to_end/earlier_run/make.py run.zip
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

# The time of all sources, which the plan holds.
TIME = 1_767_323_045
LAYER = '''# SPDX-License-Identifier: Apache-2.0
"""A layer of a user."""

import keras


@keras.saving.register_keras_serializable("earlier")
class Double(keras.layers.Layer):
    """Twice the input."""

    def call(self, inputs):
        """Compute it."""
        return inputs * 2
'''
OPTIONS = ("--shard-size", "4", "--scale", "none", "--engine", "tensorflow", "--batch-size", "4")


def make_sources(folder: Path) -> None:
    """Write images, arrays, the layer and an encoder."""
    import keras
    import tensorflow as tf

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (13, 16, 16, 3), np.uint8)
    for position, image in enumerate(images[:9]):
        path = folder / "valid" / "ab"[position % 2] / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = tf.io.encode_png(image).numpy() if position != 5 else b"no image"
        path.write_bytes(content)
    np.savez(folder / "test.npz", images=images[9:], labels=np.array(["a", "b", "b", "c"]))
    (folder / "earlier_layers.py").write_text(LAYER)
    sys.path.insert(0, str(folder))
    from earlier_layers import Double

    image = keras.Input((16, 16, 3))
    conv = keras.layers.Conv2D(4, 4, strides=4, name="conv")
    encoder = keras.Model(image, Double(name="double")(conv(image)))
    kernel = random.integers(-2, 3, (4, 4, 3, 4))
    conv.set_weights([kernel.astype(np.float32), np.arange(4, dtype=np.float32)])
    encoder.save(folder / "encoder.keras")
    for path in folder.rglob("*"):
        os.utime(path, (TIME, TIME))


def command(folder: Path) -> list[str]:
    """Return the command that makes the run, or goes on with it."""
    return [
        sys.executable, "-m", "ray_embed", "run", "--out", str(folder / "run"),
        "--source", f"valid={folder / 'valid'}", "--source", f"test={folder / 'test.npz'}",
        "--model", str(folder / "encoder.keras"), "--import", "earlier_layers", *OPTIONS,
    ]  # fmt: skip


def main() -> None:
    """Make the run and the zip file."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_sources(folder)
        subprocess.run(command(folder), cwd=folder, check=True)
        with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(folder))


if __name__ == "__main__":
    main()
