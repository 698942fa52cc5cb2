# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests of encoders: specifications, expected pixels, and expected poolings."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed.encoders.build import build
from ray_embed.encoders.engines.registry import open_engine
from ray_embed.encoders.spec import Encoder, EncoderSpec

PROJECT = Path(__file__).parent / "project"
if str(PROJECT) not in sys.path:
    sys.path.append(str(PROJECT))

import my_encoders  # noqa: E402
import my_layers  # noqa: E402

__all__ = [
    "BATCH",
    "PROJECT",
    "build_alone",
    "call_model",
    "compute_features",
    "encode",
    "gap",
    "my_encoders",
    "my_layers",
    "noise",
    "pixels",
    "spec",
]

BATCH = 4


def spec(model: Any, **options: Any) -> EncoderSpec:
    """Return the spec of an encoder, with the defaults of the command line but small batches."""
    return EncoderSpec(
        model=str(model) if isinstance(model, Path) else model,
        folder=str(Path.cwd()),
        **{"batch_size": BATCH, **options},
    )


def noise(count: int = BATCH, shape: tuple[int, ...] = (16, 16, 3), seed: int = 3) -> np.ndarray:
    """Make images with values in [0, 1]."""
    return np.random.default_rng(seed).random((count, *shape), np.float32)


def encode(encoder: Encoder, images: np.ndarray) -> list[np.ndarray]:
    """Run the encoder's engine on one full batch."""
    assert len(images) == encoder.spec.batch_size
    return open_engine(encoder, 1)(images)


def build_alone(model: str, **options: Any) -> set[str]:
    """Build an encoder in a process of its own, and return the packages that it has imported."""
    code = (
        "import sys; from ray_embed.encoders import build; from ray_embed.encoders.spec import *; "
        f"made = EncoderSpec(model={model!r}, folder='.', **{options!r}); "
        "build.import_packages(made.model, made.folder); assert not build.needs_tensorflow(made); "
        "build.build(made); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def compute_features(model: Any, images: np.ndarray, **options: Any) -> np.ndarray:
    """Build an encoder of one output here, and run it."""
    (features,) = encode(build(spec(model, **options)), images)
    return features


def pixels(folder: Path, size: tuple[int, int] = (16, 16), color_mode: str = "rgb") -> np.ndarray:
    """Read a folder tree of images as Keras does in training: float32 from 0 to 255."""
    import keras

    images = keras.utils.image_dataset_from_directory(
        folder,
        image_size=size,
        color_mode=color_mode,
        shuffle=False,
        batch_size=1000,
        verbose=False,
    )
    return next(iter(images))[0].numpy()


def call_model(model: Any, images: np.ndarray) -> np.ndarray:
    """Call the model on a batch, without the package."""
    return np.asarray(model(images, training=False))


def gap(maps: np.ndarray) -> np.ndarray:
    """Return the average over all positions, computed in double precision."""
    axes = tuple(range(1, maps.ndim - 1))
    return maps.astype(np.float64).mean(axes).astype(np.float32)
