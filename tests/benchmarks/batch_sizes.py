# SPDX-License-Identifier: Apache-2.0
"""How far a plain Keras call moves with its own batch size: no guarantee can be stricter.

    python tests/benchmarks/batch_sizes.py [--only resnet50,vgg16] [--images 32] [--train EPOCHS]
        [--engines]

The same images go through `model(images, training=False)` in batches of 1, 16 and 32, and every
two results are compared, each taken for the right one in turn. For the map as it is (`flatten`)
and averaged (`gap`) a line gives the largest |f - g|

    relative    over the largest |g| of all, in millionths
    bound       in units of what guarantee 4 allows: above 1 plain Keras does not keep it
    needed      the least c, in millionths, with which 1e-5·|g| + c·max|g| would allow it

and over how many numbers. `--engines` also compares, in batches of 16, what ray_embed's engines
give with the plain call in each size, whether or not a run would choose them; and both with the
same model in float64.

Images are smooth noise and weights random, with a fixed seed; normalization has the statistics of
the images, as after training. `autoencoder` is trained on them for a moment. Deep networks of
random weights amplify rounding more than trained ones: with `--train` they first learn
scikit-learn's digits. One line of JSON at the end has all of it.
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
POOLINGS = ("flatten", "gap")
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


def encoders(epochs: int = 0) -> dict[str, Maker]:
    """Name the encoders; each function makes a model, and the images as it expects them."""
    found = {name.lower(): _family(name, side, epochs) for name, side in FAMILIES.items()}
    return {"tiny": _tiny, "tokens": _tokens, "autoencoder": _autoencoder, **found}


def _family(name: str, side: int, epochs: int) -> Maker:
    def make(images: np.ndarray) -> tuple[Any, np.ndarray]:
        import keras

        family = getattr(keras.applications, name)
        model = family(weights=None, include_top=False, input_shape=(side, side, 3))
        # Those that rescale their images themselves take them from 0 to 255.
        rescales = any(type(layer).__name__ == "Rescaling" for layer in model._flatten_layers())
        levels = np.float32(255 if rescales else 1)
        if epochs:
            pictures, labels = digits(side)
            train(model, pictures[: -len(images)] * levels, labels[: -len(images)], epochs)
            return model, pictures[-len(images) :] * levels
        given = resized(images, side) * levels
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


def digits(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits as square color images from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images / 16).astype(np.float32)[..., None].repeat(3, -1)
    return resized(images, side), found.target


def train(model: Any, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    """Train an encoder to tell labels apart."""
    import keras

    for layer in model._flatten_layers():
        if hasattr(layer, "moving_variance"):
            # So that a few steps are enough for the statistics.
            layer.momentum = 0.9
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, activation="softmax")]
    whole = keras.Sequential([model, *head])
    whole.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    whole.fit(images, labels, batch_size=32, epochs=epochs, verbose=0)


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
    """Compare the batch sizes, and the engines with each where asked; by what is compared."""
    plain = {size: pooled(in_batches(model, images, size)) for size in sizes}
    found = {
        f"Keras {how}": compare(
            (plain[one][how], plain[other][how]) for one, other in itertools.permutations(sizes, 2)
        )
        for how in POOLINGS
    }
    if engines:
        exact = in_float64(model, images)
        for how in POOLINGS:
            rows = {f"Keras {how}": plain[sizes[-1]][how]}
            for name, value in by_engines(model, images, how).items():
                rows[f"{name} {how}"] = value
                found[f"{name} {how}"] = compare((value, plain[size][how]) for size in sizes)
            for name, value in rows.items():
                found[f"{name}, float64"] = compare(iter([(value, exact[how])]))
    return found


def in_float64(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Call the same model in float64."""
    import keras

    def make_again(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    double = keras.models.clone_model(model, clone_function=make_again)
    double.set_weights(model.get_weights())
    return pooled(np.asarray(double(images.astype(np.float64), training=False)))


def by_engines(model: Any, images: np.ndarray, how: str) -> dict[str, np.ndarray]:
    """Run the engines for CPUs that compute with a folded graph, in batches of 16."""
    from ray_embed.encoders.engines.openvino import is_openvino_installed
    from ray_embed.encoders.engines.registry import open_engine
    from ray_embed.encoders.features import encoding_function
    from ray_embed.encoders.graph import fold
    from ray_embed.encoders.model_loading import load_model
    from ray_embed.encoders.spec import Encoder, EncoderSpec, Output

    spec = EncoderSpec(model=model, folder=".", pool=how)
    shape = images.shape[1:]
    outputs = (Output(layer="output", column="feature", pool=how, dimension=0),)
    folded = fold(
        encoding_function(load_model(spec), spec, outputs),
        (spec.batch_size, *shape),
        dtype="float32",
    )
    found = {}
    for engine in ("folded", "openvino") if is_openvino_installed() else ("folded",):
        encoder = Encoder(
            spec=spec,
            image_shape=shape,
            outputs=outputs,
            engine=engine,
            architecture="",
            weights_digest="",
            graph=folded.graph,
            input_name=folded.input_name,
            output_names=folded.output_names,
            weights=(),
        )
        run = open_engine(encoder, 1)
        batches = (images[at : at + 16] for at in range(0, len(images), 16))
        found[engine] = np.concatenate([run(batch)[0] for batch in batches])
    return found


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Lay out what was measured, by encoder and what was compared."""
    lines = [f"{'encoder':<18}{'':<26}{'numbers':>9}{'relative':>10}{'bound':>8}{'needed':>8}"]
    for encoder, compared in rows.items():
        for name, found in compared.items():
            lines.append(
                f"{encoder:<18}{name:<26}{found['numbers']:>9,.0f}{found['relative'] * 1e6:>10.2f}"
                f"{found['bound']:>8.2f}{found['needed'] * 1e6:>8.2f}"
            )
    plain = {f"Keras {how}" for how in POOLINGS}
    every = [found for row in rows.values() for name, found in row.items() if name in plain]
    most = max((found["needed"] for found in every), default=0.0)
    broken = sum(found["bound"] > 1 for found in every)
    return "\n".join(
        [
            *lines,
            f"beyond {RELATIVE:g}·|g| + {ABSOLUTE:g}·max|g|: {broken} of {len(every)} lines of "
            f"plain Keras; {RELATIVE:g}·|g| + {most:.2g}·max|g| would hold for all",
        ]
    )


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help=f"of: {', '.join(encoders())}")
    parser.add_argument("--images", type=int, default=max(SIZES))
    parser.add_argument("--train", type=int, default=0, help="epochs of training on digits")
    parser.add_argument("--engines", action="store_true", help="compare the engines too")
    asked = parser.parse_args()
    import keras

    images = smooth_images(asked.images)
    rows = {}
    for name in asked.only.split(",") if asked.only else encoders():
        keras.utils.set_random_seed(0)
        rows[name] = measure(*encoders(asked.train)[name](images), asked.engines)
        print(f"{name} is measured", file=sys.stderr, flush=True)
        keras.backend.clear_session()
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
