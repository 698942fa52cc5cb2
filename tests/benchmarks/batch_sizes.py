# SPDX-License-Identifier: Apache-2.0
"""How far a plain Keras call moves with its own batch size: no guarantee can be stricter.

    python tests/benchmarks/batch_sizes.py [--only resnet50,vgg16] [--images 32] [--engines]

The same images go through `model(images, training=False)` in batches of 1, 16 and 32, and every
two results are compared, each taken for the right one in turn. For the map as it is (`flatten`)
and averaged (`gap`) a line gives the largest |f - g|

    relative    over the largest |g| of all, in millionths
    bound       in units of what guarantee 4 allows: above 1 plain Keras does not keep it
    needed      the least c, in millionths, with which 1e-5·|g| + c·max|g| would allow it

and over how many numbers. `--engines` also compares what ray_embed's engine gives, in batches of
16, with the plain call in each size, and in batches of 16 alone. Weights are random, with a fixed
seed, and normalization has the statistics of the images; `autoencoder` is trained on them for a
moment. One line of JSON at the end has all of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from agreement import ABSOLUTE, RELATIVE, violation

SIZES = (1, 16, 32)
Maker = Callable[[np.ndarray], tuple[Any, np.ndarray]]
# In keras.applications, with the side of the images.
FAMILIES = {
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "VGG16": 64,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "DenseNet121": 64,
    "ConvNeXtTiny": 64,
    "NASNetMobile": 64,
    "Xception": 80,
    "InceptionV3": 80,
}


def encoders() -> dict[str, Maker]:
    """Name the encoders; each function makes a model, and the images as it expects them."""
    found = {name.lower(): _family(name, side) for name, side in FAMILIES.items()}
    return {"tiny": _tiny, "tokens": _tokens, "autoencoder": _autoencoder, **found}


def _family(name: str, side: int) -> Maker:
    def make(images: np.ndarray) -> tuple[Any, np.ndarray]:
        import keras

        family = getattr(keras.applications, name)
        model = family(weights=None, include_top=False, input_shape=(side, side, 3))
        given = resized(images, side)
        if any(type(layer).__name__ == "Rescaling" for layer in model._flatten_layers()):
            # It rescales its images itself, from 0 to 255.
            given = given * np.float32(255)
        return settled(model, given), given

    return make


def settled(model: Any, images: np.ndarray) -> Any:
    """Give batch normalization the statistics of the images, as training would.

    With those that it starts with, some families shrink their values to nothing.
    """
    for layer in model._flatten_layers():
        if hasattr(layer, "moving_variance"):
            layer.momentum = 0.0
    model(images, training=True)
    return model


def _tiny(images: np.ndarray) -> tuple[Any, np.ndarray]:
    from models import tiny

    return tiny(), resized(images, 32)


def _autoencoder(images: np.ndarray) -> tuple[Any, np.ndarray]:
    import keras

    layers = keras.layers
    image = keras.Input((64, 64, 3))
    x = image
    for width in (32, 64, 128):
        x = layers.Conv2D(width, 3, strides=2, padding="same", activation="relu")(x)
    code = x
    for width in (64, 32, 3):
        x = layers.Conv2DTranspose(width, 3, strides=2, padding="same", activation="relu")(x)
    whole = keras.Model(image, x)
    whole.compile("adam", "mse")
    pixels = resized(images, 64)
    whole.fit(pixels, pixels, epochs=20, verbose=0)
    return keras.Model(image, code), pixels


def _tokens(images: np.ndarray) -> tuple[Any, np.ndarray]:
    """Make a small vision transformer: (N, 64, 64, 3) to (N, 64, 64)."""
    import keras

    layers = keras.layers
    image = keras.Input((64, 64, 3))
    x = layers.Reshape((64, 64))(layers.Conv2D(64, 8, strides=8)(image))
    for _block in range(4):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 16)(y, y)])
        y = layers.Dense(256, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(64)(y)])
    return keras.Model(image, layers.LayerNormalization()(x)), resized(images, 64)


def smooth_images(count: int) -> np.ndarray:
    """Make smooth pictures, (N, 96, 96, 3) from 0 to 1."""
    import tensorflow as tf

    small = np.random.default_rng(0).random((count, 6, 6, 3), np.float32)
    return np.clip(tf.image.resize(small, (96, 96), "bicubic").numpy(), 0, 1)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Resize to square images."""
    import tensorflow as tf

    return images if side == images.shape[1] else tf.image.resize(images, (side, side)).numpy()


def in_batches(model: Any, images: np.ndarray, size: int) -> np.ndarray:
    """Call a model on batches of at most `size`."""
    parts = (images[at : at + size] for at in range(0, len(images), size))
    return np.concatenate([np.asarray(model(part, training=False)) for part in parts])


def pooled(values: np.ndarray) -> dict[str, np.ndarray]:
    """Average over all positions in float32, as TensorFlow does; and flatten."""
    import tensorflow as tf

    places = list(range(1, values.ndim - 1))
    averages = tf.reduce_mean(values, places).numpy() if places else values
    return {"flatten": values.reshape(len(values), -1), "gap": averages}


def needed(features: np.ndarray, expected: np.ndarray) -> float:
    """Return the least c for which |f - g| <= RELATIVE·|g| + c·max|g|."""
    f, g = features.astype(np.float64), expected.astype(np.float64)
    beyond = np.abs(f - g) - RELATIVE * np.abs(g)
    largest = np.abs(g).max()
    return float(max(beyond.max(), 0.0) / largest) if largest else 0.0


def compare(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Return the largest differences over pairs of features and the expected ones."""
    found = {"relative": 0.0, "bound": 0.0, "needed": 0.0, "numbers": 0.0}
    for f, g in pairs:
        largest = float(np.abs(g).max()) or 1.0
        one = {
            "relative": float(np.abs(f.astype(np.float64) - g).max()) / largest,
            "bound": violation(f, g),
            "needed": needed(f, g),
            "numbers": float(g.size),
        }
        found = {name: max(value, one[name]) for name, value in found.items()}
    return found


def measure(
    model: Any, images: np.ndarray, engines: bool = False, sizes: tuple[int, ...] = SIZES
) -> dict[str, dict[str, float]]:
    """Compare the batch sizes, and the engine with each where asked; by what is compared."""
    plain = {size: pooled(in_batches(model, images, size)) for size in sizes}
    rows = {
        f"Keras {how}": compare(
            (plain[one][how], plain[other][how]) for one, other in itertools.permutations(sizes, 2)
        )
        for how in ("flatten", "gap")
    }
    if engines:
        for how in ("flatten", "gap"):
            name, found = by_engine(model, images, how)
            rows[f"{name} {how}"] = compare((found, plain[size][how]) for size in sizes)
            rows[f"{name} {how}, 16"] = compare(iter([(found, plain[16][how])]))
    return rows


def by_engine(model: Any, images: np.ndarray, how: str) -> tuple[str, np.ndarray]:
    """Run the engine that ray_embed chooses, in batches of 16."""
    from ray_embed.encoder import EncoderSpec
    from ray_embed.encoder.build import build
    from ray_embed.encoder.engines import open_engine

    encoder = build(EncoderSpec(model, ".", pool=how, batch_size=16))
    engine = open_engine(encoder, 1)
    starts = range(0, len(images), 16)
    return encoder.engine, np.concatenate([engine(images[at : at + 16])[0] for at in starts])


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Lay out what was measured, by encoder and what was compared."""
    lines = [f"{'encoder':<18}{'':<20}{'numbers':>9}{'relative':>10}{'bound':>8}{'needed':>8}"]
    for encoder, compared in rows.items():
        for name, found in compared.items():
            lines.append(
                f"{encoder:<18}{name:<20}{found['numbers']:>9,.0f}{found['relative'] * 1e6:>10.2f}"
                f"{found['bound']:>8.2f}{found['needed'] * 1e6:>8.2f}"
            )
    every = [found for compared in rows.values() for found in compared.values()]
    most = max((found["needed"] for found in every), default=0.0)
    broken = sum(found["bound"] > 1 for found in every)
    return "\n".join(
        [
            *lines,
            f"beyond {RELATIVE:g}·|g| + {ABSOLUTE:g}·max|g|: {broken} of {len(every)} lines; "
            f"{RELATIVE:g}·|g| + {most:.2g}·max|g| would hold for all",
        ]
    )


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help=f"of: {', '.join(encoders())}")
    parser.add_argument("--images", type=int, default=max(SIZES))
    parser.add_argument("--engines", action="store_true", help="compare the engine too")
    asked = parser.parse_args()
    import keras

    images = smooth_images(asked.images)
    rows = {}
    for name in asked.only.split(",") if asked.only else encoders():
        keras.utils.set_random_seed(0)
        rows[name] = measure(*encoders()[name](images), asked.engines)
        print(f"{name} is measured", file=sys.stderr, flush=True)
        keras.backend.clear_session()
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
