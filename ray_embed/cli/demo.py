# SPDX-License-Identifier: Apache-2.0
"""A small end-to-end example: train an auto-encoder on handwritten digits and evaluate its
features.

The data are scikit-learn's 1,797 digits of 8×8 pixels. A convolutional auto-encoder learns, without
labels, to remove noise and small shifts. The digits are then embedded with its encoder, and the
features are evaluated.
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ray_embed.core.arrays import Array

_TRAIN_SIZE, _VALID_SIZE = 1000, 400
_AUGMENTED_COPIES, _NOISE_STD, _EPOCHS, _BATCH_SIZE = 8, 0.15, 15, 64
_CODE_SIZE = 32


def demo(out: str, say: Callable[[str], None]) -> None:
    """Train the auto-encoder, embed digits with its encoder, then evaluate and plot the features.

    Args:
        out: the run folder. The images and the model are written next to it, to ``<out>-data``.
        say: function that prints a line for the user.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    data = Path(f"{out.rstrip('/')}-data")
    data.mkdir(parents=True, exist_ok=True)
    images, labels = _load_digits()
    slices = {
        "train": slice(0, _TRAIN_SIZE),
        "valid": slice(_TRAIN_SIZE, _TRAIN_SIZE + _VALID_SIZE),
        "test": slice(_TRAIN_SIZE + _VALID_SIZE, None),
    }
    for split in ("valid", "test"):
        rows = slices[split]
        np.savez(data / f"{split}.npz", images=images[rows], labels=labels[rows])
    model = data / "encoder.keras"
    say(f"training an auto-encoder on {_TRAIN_SIZE} digits for {_EPOCHS} epochs")
    _train_encoder(images[slices["train"]], model)

    from ray_embed.config import make_config
    from ray_embed.pipeline import execute
    from ray_embed.runtime.warm_ray import Session

    sources = {split: str(data / f"{split}.npz") for split in ("valid", "test")}
    options = " ".join(f"--source {split}={path}" for split, path in sources.items())
    say(f"$ ray-embed run {options} --model {model} --out {out} --overwrite")
    config = make_config({"sources": sources, "model": str(model), "out": out, "overwrite": True})
    with Session():
        outcome = execute(config, build_projector=True)
    say(outcome.summary())

    from ray_embed.analysis.evaluation.record import record
    from ray_embed.analysis.evaluation.report import format_evaluation
    from ray_embed.analysis.evaluation.to_json import evaluation_to_json
    from ray_embed.runs.reader import open_run

    say(f"\n$ ray-embed evaluate {out}")
    evaluations = outcome.run.evaluate()
    entries = {layer: evaluation_to_json(item) for layer, item in evaluations.items()}
    record(open_run(out), entries)
    for layer, entry in entries.items():
        say("\n".join(format_evaluation(layer, entry)))

    if importlib.util.find_spec("matplotlib") is not None:
        from ray_embed.analysis.plotting.plot import plot

        say(f"\n$ ray-embed plot {out}")
        plot(out, None, say)
    say(f"\nopen the projector with: ray-embed view {out}")


def _load_digits() -> tuple[Array, Array]:
    """Return all digits, (N, 8, 8) uint8, shuffled with a fixed seed, and labels, (N,) int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    # The data set has 17 gray levels.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return images[order], digits.target[order].astype(np.int64)


def _train_encoder(images: Array, path: Path) -> None:
    from ray_embed.encoders.tensorflow_setup import hide_startup_messages

    with hide_startup_messages():
        import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    picture = keras.Input((8, 8, 1))
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(picture)
    x = layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    code = layers.Dense(_CODE_SIZE, name="code")(layers.Flatten()(x))
    x = layers.Dense(4 * 4 * 64, activation="relu")(code)
    x = layers.Reshape((4, 4, 64))(x)
    x = layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu")(x)
    output = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)
    auto_encoder = keras.Model(picture, output)
    auto_encoder.compile("adam", "mse")
    clean = (images / 255.0).astype(np.float32)[..., None]
    inputs = np.concatenate([_augment(clean, seed) for seed in range(_AUGMENTED_COPIES)])
    targets = np.concatenate([clean] * _AUGMENTED_COPIES)
    auto_encoder.fit(inputs, targets, batch_size=_BATCH_SIZE, epochs=_EPOCHS, verbose=2)
    keras.Model(picture, code, name="encoder").save(path)


def _augment(images: Array, seed: int) -> Array:
    """Shift each (8, 8, 1) float32 image by up to one pixel, and add noise."""
    random = np.random.default_rng(seed)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = random.integers(0, 3, (len(images), 2))
    pairs = zip(padded, shifts, strict=True)
    moved = np.stack([image[a : a + 8, b : b + 8] for image, (a, b) in pairs])
    return (moved + random.normal(0, _NOISE_STD, moved.shape)).astype(np.float32)
