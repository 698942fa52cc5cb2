# SPDX-License-Identifier: Apache-2.0
"""Every form a model and its weights may have, through the command line and the Python API.

Features must equal those of a plain ``model(images, training=False)`` with pooling by NumPy.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.command import Command
from support.encoders import (
    PROJECT,
    call_model,
    compute_features,
    encode,
    gap,
    my_encoders,
    my_layers,
    noise,
    pixels,
    spec,
)
from support.features import assert_features_equal
from support.pictures import make_folder

import ray_embed as package
from ray_embed.encoders.build import build

LIBRARIES = my_encoders.LIBRARIES
Embed = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pictures") / "valid", {"a": 3, "b": 2})


@pytest.fixture(scope="module")
def images(pictures: Path) -> np.ndarray:
    """The pictures as the model sees them by default."""
    return pixels(pictures) / np.float32(255)


@pytest.fixture
def embed(ray_embed: Command, pictures: Path, tmp_path: Path) -> Embed:
    """Run the command on the pictures, beside the user's modules; gives the features."""
    for module in PROJECT.glob("*.py"):
        shutil.copy(module, tmp_path)

    def call(*options: Any, layer: str | None = None) -> np.ndarray:
        result = ray_embed("extract", "--source", pictures, "--out", "r", *options)
        assert result.code == 0, result.err
        features, labels = package.load("r").to_numpy(layer)
        assert list(labels) == ["a", "a", "a", "b", "b"]
        return features

    return call


def engine_of_run() -> str:
    return json.loads(Path("r/run.json").read_text())["encoder"]["engine"]


# --- files ---------------------------------------------------------------------------------------


def test_model_file(embed: Embed, images: np.ndarray):
    model = my_encoders.functional()
    model.save("encoder.keras")
    found = embed("--model", "encoder.keras")
    assert_features_equal(found, gap(call_model(model, images)))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_all_model_files(tmp_path: Path, images: np.ndarray, library: str, kind: str, ending: str):
    model = getattr(my_encoders, kind)(library)
    model.save(tmp_path / f"encoder{ending}")
    expected = call_model(model, images[:4])
    found = compute_features(tmp_path / f"encoder{ending}", images[:4])
    assert_features_equal(found, gap(expected) if expected.ndim > 2 else expected)


def test_compiled_and_trained_model_file(tmp_path: Path, images: np.ndarray):
    model = my_encoders.functional("tf_keras")
    model.compile("adam", "mse")
    model.fit(noise(8), noise(8, (5, 5, 8)), verbose=0)
    model.save(tmp_path / "encoder.h5")
    found = compute_features(tmp_path / "encoder.h5", images[:4])
    assert_features_equal(found, gap(call_model(model, images[:4])))


def test_saved_model_of_keras_2(embed: Embed, images: np.ndarray):
    model = my_encoders.functional("tf_keras")
    model.save("encoder", save_format="tf")
    inner = tf_keras.Model(model.input, model.get_layer("norm").output)
    found = embed("--model", "encoder", "--layer", "norm")
    assert_features_equal(found, gap(call_model(inner, images)))
    assert_features_equal(
        compute_features("encoder", images[:4]), gap(call_model(model, images[:4]))
    )


def test_subclassed_saved_model_of_keras_2(tmp_path: Path, images: np.ndarray):
    model = my_encoders.subclassed("tf_keras")
    model.save(tmp_path / "encoder", save_format="tf")
    found = compute_features(tmp_path / "encoder", images[:4], image_size=(16, 16))
    assert_features_equal(found, gap(call_model(model, images[:4])))


def test_saved_model_exported_by_keras_3(tmp_path: Path, images: np.ndarray):
    model = my_encoders.functional("keras", augment=False)
    model.export(tmp_path / "encoder", verbose=False)
    found = compute_features(tmp_path / "encoder", images[:4])
    assert_features_equal(found, gap(call_model(model, images[:4])))


class Extractor(tf.Module):
    """A SavedModel's content without Keras."""

    def __init__(self):
        self.kernel = tf.Variable(noise(3, (3, 3, 5)) - 0.5)

    @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32, name="picture")])
    def __call__(self, picture):
        maps = tf.nn.relu(tf.nn.conv2d(picture, self.kernel, 1, "VALID"))
        return {"maps": maps, "vector": tf.reduce_max(maps, (1, 2))}


def test_saved_model_with_a_signature(tmp_path: Path, images: np.ndarray):
    module = Extractor()
    signature = module.__call__.get_concrete_function()
    tf.saved_model.save(module, tmp_path / "encoder", signatures=signature)
    expected = module(images[:4])
    maps, vectors = encode(build(spec(tmp_path / "encoder", layers=("maps", "vector"))), images[:4])
    assert_features_equal(maps, gap(expected["maps"].numpy()))
    assert_features_equal(vectors, expected["vector"].numpy())


@pytest.mark.slow
def test_registered_layers(embed: Embed, images: np.ndarray):
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3)])
    model.add(my_layers.Doubled())
    model.add(keras.layers.Activation(my_layers.cubed))
    model.save("encoder.keras")
    found = embed("--model", "encoder.keras", "--import", "my_layers")
    assert_features_equal(found, gap(call_model(model, images)))


@pytest.mark.parametrize("form", ["encoder.keras", "encoder.h5", "encoder"])
def test_registered_layers_of_tf_keras(tmp_path: Path, images: np.ndarray, form: str):
    model = tf_keras.Sequential([tf_keras.layers.InputLayer((16, 16, 3))])
    model.add(tf_keras.layers.Conv2D(4, 3))
    model.add(my_layers.Doubled2())
    model.save(tmp_path / form)
    found = compute_features(tmp_path / form, images[:4], imports=("my_layers",))
    assert_features_equal(found, gap(call_model(model, images[:4])))


# tf_keras itself cannot load a registered function from .h5.
@pytest.mark.parametrize("form", ["encoder.keras", "encoder"])
def test_registered_function_of_tf_keras(tmp_path: Path, images: np.ndarray, form: str):
    model = tf_keras.Sequential([tf_keras.layers.InputLayer((16, 16, 3))])
    model.add(tf_keras.layers.Conv2D(4, 3, activation=my_layers.squared))
    model.save(tmp_path / form)
    found = compute_features(tmp_path / form, images[:4], imports=("my_layers",))
    assert_features_equal(found, gap(call_model(model, images[:4])))


# --- module:callable -----------------------------------------------------------------------------


def test_functional_model_with_arguments_and_weights(embed: Embed, images: np.ndarray):
    theirs = my_encoders.functional(seed=6)
    theirs.save_weights("w.weights.h5")
    found = embed(
        *("--model", "my_encoders:functional", "--weights", "w.weights.h5"),
        *("--model-kwargs", '{"input_shape": [16, 16, 3], "seed": 5}'),
    )
    assert_features_equal(found, gap(call_model(theirs, images)))


@pytest.mark.parametrize("form", ["functional", "sequential"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_other_callables(images: np.ndarray, form: str, library: str):
    model = getattr(my_encoders, form)(library)
    expected = call_model(model, images[:4])
    found = compute_features(f"my_encoders:{form}", images[:4], model_kwargs={"library": library})
    assert_features_equal(found, gap(expected) if expected.ndim > 2 else expected)


# A Keras 3 model, and a tf_keras one, each with the folder written by Keras 2.
@pytest.mark.parametrize("library", LIBRARIES)
def test_submodel_of_an_object(embed: Embed, images: np.ndarray, library: str):
    """The job of the notebook: an object, its encoder half, and a folder of old weights."""
    theirs = my_encoders.AutoEncoder((16, 16, 3), "tf_keras", seed=9)
    theirs.forward_model.save_weights("weights/")
    found = embed(
        *("--model", "my_encoders:AutoEncoder", "--submodel", "forward_model"),
        *("--model-kwargs", json.dumps({"input_img_shape": [16, 16, 3], "library": library})),
        *("--weights", "weights"),
    )
    assert_features_equal(found, gap(call_model(theirs.forward_model, images)))


@pytest.mark.parametrize("ending", ["/", ".weights.h5", "-prefix"])
@pytest.mark.parametrize("saved_from", ["model", "forward_model"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_of_the_outer_or_of_the_submodel(
    tmp_path: Path, images: np.ndarray, library: str, saved_from: str, ending: str
):
    theirs = my_encoders.AutoEncoder((16, 16, 3), "tf_keras", seed=9)
    weights = f"{tmp_path}/w{ending}"
    getattr(theirs, saved_from).save_weights(weights)
    found = compute_features(
        "my_encoders:AutoEncoder",
        images[:4],
        model_kwargs={"input_img_shape": (16, 16, 3), "library": library},
        submodel="forward_model",
        weights=weights,
    )
    assert_features_equal(found, gap(call_model(theirs.forward_model, images[:4])))


def test_outer_model_that_is_a_keras_model_itself(images: np.ndarray):
    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = my_encoders.functional("keras", seed=4)

        def call(self, x):
            return keras.layers.Dense(2)(self.encoder(x))

    found = compute_features(Outer, images[:4], submodel="encoder")
    assert_features_equal(
        found, gap(call_model(my_encoders.functional("keras", seed=4), images[:4]))
    )


def test_subclassed_model_without_a_training_argument(images: np.ndarray):
    for k in (keras, tf_keras):

        class Net(k.Model):
            def __init__(self, k=k):
                super().__init__()
                self.norm = k.layers.BatchNormalization()
                self.dropout = k.layers.Dropout(0.5)

            def call(self, x):
                return self.dropout(self.norm(x))

        model = Net()
        expected = gap(call_model(model, images[:4]))
        found = compute_features(model, images[:4], image_size=(16, 16))
        assert_features_equal(found, expected)


# --- weights -------------------------------------------------------------------------------------


def _saved(form: str, folder: Path) -> tuple[Any, str]:
    """Save weights in one of the forms; gives the model they are of, and the path."""
    match form:
        case "old folder" | "old prefix" | "old moved folder":
            model = my_encoders.functional("tf_keras", seed=6)
            model.save_weights(folder / "w" / ("" if form == "old folder" else "epoch-07"))
            if form == "old moved folder":
                (folder / "w").rename(folder / "moved")
            name = {"old prefix": "w/epoch-07", "old moved folder": "moved"}.get(form, "w")
            return model, f"{folder}/{name}"
        case "old subclassed folder":
            model = my_encoders.subclassed("tf_keras", seed=6)
            model.save_weights(f"{folder}/w/ckpt", save_format="tf")
            return model, f"{folder}/w"
    library, ending = form.split()
    model = my_encoders.functional(library, seed=6)
    path = f"{folder}/w{ending}"
    if ending == ".keras" or (library == "keras" and ending == ".h5"):
        model.save(path)
    else:
        model.save_weights(path)
    return model, path


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "form",
    [
        "old folder",
        "old prefix",
        "old moved folder",
        "old subclassed folder",
        "keras .weights.h5",
        "keras .h5",
        "keras .keras",
        "tf_keras .weights.h5",
        "tf_keras .h5",
        "tf_keras .keras",
    ],
)
def test_all_forms_of_weights(tmp_path: Path, images: np.ndarray, form: str, library: str):
    model, weights = _saved(form, tmp_path)
    kind = "subclassed" if "subclassed" in form else "functional"
    found = compute_features(
        f"my_encoders:{kind}",
        images[:4],
        model_kwargs={"library": library},
        weights=weights,
        image_size=(16, 16),
    )
    assert_features_equal(found, gap(call_model(model, images[:4])))


# --- one encoder for all -------------------------------------------------------------------------


@pytest.mark.slow
def test_random_weights_are_the_same_in_every_actor(ray_embed: Command, tmp_path: Path):
    shutil.copy(PROJECT / "my_encoders.py", tmp_path)
    make_folder(tmp_path / "valid", {"a": 1})
    first = tmp_path / "valid" / "a" / "0000.png"
    for number in range(1, 24):
        shutil.copy(first, first.with_name(f"{number:04d}.png"))
    arguments = (
        *("run", "--source", "valid", "--model", "my_encoders:random_encoder", "--out", "r"),
        *("--shard-size", 4, "--batch-size", 4, "--actors", 2, "--cpus-per-actor", 1),
    )
    assert ray_embed(*arguments).code == 0
    features, _ = package.load("r").to_numpy()
    assert features.shape == (24, 9)
    assert np.all(features == features[0])

    parts = sorted(Path("r/features").iterdir())
    assert len(parts) == 6
    before = {part: part.read_bytes() for part in parts}
    parts[3].unlink()
    result = ray_embed(*arguments)
    assert result.code == 0, result.err
    assert {part: part.read_bytes() for part in sorted(Path("r/features").iterdir())} == before


# --- the Python API ------------------------------------------------------------------------------


@pytest.mark.slow
def test_model_object_in_hand(embed: Embed, pictures: Path, images: np.ndarray):
    model = my_encoders.subclassed("tf_keras", seed=8)
    sources = {"valid": pictures}
    config = package.RunConfig(sources=sources, model=model, image_size=(16, 16), out="r")
    features, labels = package.run(config).to_numpy()
    assert list(labels) == ["a", "a", "a", "b", "b"]
    assert_features_equal(features, gap(call_model(model, images)))


def test_functional_model_object_in_hand(images: np.ndarray):
    model = my_encoders.functional(seed=8)
    assert_features_equal(compute_features(model, images[:4]), gap(call_model(model, images[:4])))


def test_function_in_hand(images: np.ndarray):
    def make(width: int) -> Any:
        keras.utils.set_random_seed(3)
        return keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(width, 3)])

    found = compute_features(make, images[:4], model_kwargs={"width": 6})
    assert_features_equal(found, gap(call_model(make(6), images[:4])))


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gray_model_with_symmetric_scale(embed: Embed, pictures: Path):
    model = my_encoders.functional(input_shape=(12, 20, 1))
    model.save("encoder.keras")
    gray = pixels(pictures, (12, 20), "grayscale")
    found = embed("--model", "encoder.keras", "--scale", "symmetric")
    assert_features_equal(found, gap(call_model(model, gray / np.float32(127.5) - 1)))


@pytest.mark.slow
def test_pixels_as_they_are(embed: Embed, pictures: Path):
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    model = my_encoders.filled(keras.Model(image, keras.layers.Conv2D(4, 3)(x)))
    model.save("encoder.keras")
    found = embed("--model", "encoder.keras", "--scale", "none", "--image-size", "10,14")
    assert_features_equal(found, gap(call_model(model, pixels(pictures, (10, 14)))))


def test_preprocessing_of_the_users():
    images = noise() * 255
    encoder = build(spec("my_encoders:functional", preprocess="my_encoders:reversed_channels"))
    assert encoder.engine in ("openvino", "folded")
    batch = my_encoders.reversed_channels(images)
    assert_features_equal(
        encode(encoder, images)[0], gap(call_model(my_encoders.functional(), batch))
    )


@pytest.mark.slow
def test_preprocessing_that_cannot_be_traced(embed: Embed, pictures: Path):
    found = embed("--model", "my_encoders:functional", "--preprocess", "my_encoders:by_numpy")
    batch = my_encoders.by_numpy(pixels(pictures)).astype(np.float32)
    assert_features_equal(found, gap(call_model(my_encoders.functional(), batch)))
    assert engine_of_run() == "plain"


# --- models that cannot be folded ----------------------------------------------------------------


@pytest.mark.slow
def test_fallback_is_recorded(embed: Embed, images: np.ndarray):
    """Python within the graph is there only in the process that made it."""
    found = embed("--model", "my_encoders:with_py_function", "--image-size", "16,16")
    assert_features_equal(found, gap(call_model(my_encoders.with_py_function(), images)))
    assert engine_of_run() == "function"
