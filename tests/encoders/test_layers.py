# SPDX-License-Identifier: Apache-2.0
"""Layers, poolings and engines: encoders built and run in this process, compared with NumPy."""

import shutil
from dataclasses import replace
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
    noise,
    pixels,
    spec,
)
from support.features import assert_features_equal
from support.pictures import make_folder

import ray_embed as package
from ray_embed.encoders.build import build
from ray_embed.encoders.engines.openvino import is_openvino_installed
from ray_embed.encoders.engines.registry import open_engine
from ray_embed.encoders.layer_shapes import list_layer_shapes
from ray_embed.errors import InputError

LIBRARIES = my_encoders.LIBRARIES
ENGINES = ["tensorflow", pytest.param("openvino", marks=pytest.mark.skipif(
    not is_openvino_installed(), reason="OpenVINO is not installed"
))]  # fmt: skip


def named(k: Any, **options: Any) -> Any:
    """A functional model with a nested one, itself with a nested Sequential, and tokens."""
    image = k.Input((16, 16, 3))
    inner_image = k.Input((14, 14, 4))
    x = k.layers.Conv2D(6, 3, name="conv")(inner_image)
    x = k.layers.BatchNormalization(name="norm")(x)
    deep = k.Sequential(
        [k.layers.Conv2D(5, 3, strides=2, name="conv"), k.layers.Activation("tanh", name="tanh")],
        name="deep",
    )
    inner = k.Model(inner_image, deep(x), name="inner")
    x = inner(k.layers.Conv2D(4, 3, name="stem")(image))
    x = k.layers.Reshape((25, 5), name="tokens")(x)
    x = k.layers.LayerNormalization(name="layer_norm")(x)
    x = k.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = k.layers.Flatten(name="flat")(x)
    return my_encoders.filled(k.Model(image, k.layers.Dense(7, name="head")(x), **options))


def step_by_step(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer gives, by calling the layers one after another by hand."""
    values: dict[str, Any] = {}
    values["stem"] = model.get_layer("stem")(images)
    inner = model.get_layer("inner")
    values["inner/conv"] = inner.get_layer("conv")(values["stem"])
    values["inner/norm"] = inner.get_layer("norm")(values["inner/conv"], training=False)
    deep = inner.get_layer("deep")
    values["inner/deep/conv"] = deep.get_layer("conv")(values["inner/norm"])
    values["inner/deep/tanh"] = deep.get_layer("tanh")(values["inner/deep/conv"])
    values["inner/deep"] = values["inner"] = values["inner/deep/tanh"]
    values["tokens"] = model.get_layer("tokens")(values["inner"])
    values["layer_norm"] = model.get_layer("layer_norm")(values["tokens"])
    tokens = values["layer_norm"]
    values["attention"] = model.get_layer("attention")(tokens, tokens)
    values["flat"] = model.get_layer("flat")(values["attention"])
    values["head"] = model.get_layer("head")(values["flat"])
    return {name: np.asarray(value) for name, value in values.items()}


def pooled(value: np.ndarray) -> np.ndarray:
    """Pool as by default."""
    return value if value.ndim == 2 else gap(value)


# --- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_layer_at_once(library: str):
    model = named(LIBRARIES[library])
    images = noise()
    expected = step_by_step(model, images)
    encoder = build(spec(model, layers=tuple(expected)))
    assert [output.layer for output in encoder.outputs] == list(expected)
    assert encoder.outputs[1].column == "feature_inner.conv"
    for (name, value), found in zip(expected.items(), encode(encoder, images), strict=True):
        assert found.shape == pooled(value).shape, name
        assert_features_equal(found, pooled(value))


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_layer_needs_nothing_behind_it(library: str):
    model = named(LIBRARIES[library])
    images = noise()
    encoder = build(spec(model, layers=("stem",)))
    (output,) = encoder.outputs
    assert (output.layer, output.column, output.pool) == ("stem", "feature", "gap")
    whole = build(spec(model))
    assert encoder.graph is not None
    assert whole.graph is not None
    assert len(encoder.graph) < len(whole.graph) / 2
    assert_features_equal(encode(encoder, images)[0], gap(step_by_step(model, images)["stem"]))


@pytest.mark.parametrize("library", LIBRARIES)
def test_layers_are_listed_with_their_shapes(library: str):
    shapes = list_layer_shapes(spec(named(LIBRARIES[library])))
    images = noise(2)
    for name, value in step_by_step(named(LIBRARIES[library]), images).items():
        assert shapes[name] == (None, *value.shape[1:])


@pytest.mark.parametrize("library", LIBRARIES)
def test_layers_of_a_subclassed_model(library: str):
    model = my_encoders.subclassed(library)
    images = noise()
    stem = np.asarray(model.stem(images))
    first = np.asarray(model.blocks[0](stem))
    found = build(spec(model, layers=("block0", "stem"), image_size=(16, 16)))
    assert_features_equal(encode(found, images)[0], gap(first))
    assert_features_equal(encode(found, images)[1], gap(stem))
    assert list(list_layer_shapes(spec(model, image_size=(16, 16)))) == [
        *("stem", "block0", "block1", "norm"),
        model.dropout.name,
    ]


def test_nested_models_within_a_subclassed_one():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = my_encoders.sequential()
            self.head = keras.layers.Dense(3, name="head")

        def call(self, images):
            return self.head(self.encoder(images))

    model, images = Net(), noise()
    first = np.asarray(model.encoder.get_layer("first")(images))
    name = f"{model.encoder.name}/first"
    found = compute_features(model, images, layers=(name,), image_size=(16, 16))
    assert_features_equal(found, gap(first))


def test_fully_convolutional_model_at_another_size():
    image = keras.Input((None, None, 3))
    model = my_encoders.filled(keras.Model(image, keras.layers.Conv2D(4, 3)(image)))
    images = noise(shape=(9, 13, 3))
    found = compute_features(model, images, image_size=(9, 13))
    assert_features_equal(found, gap(call_model(model, images)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_of_several_outputs(library: str):
    k = LIBRARIES[library]
    image = k.Input((16, 16, 3))
    maps = k.layers.Conv2D(4, 3, name="maps")(image)
    code = k.layers.Dense(6, name="code")(k.layers.Flatten()(maps))
    model = my_encoders.filled(k.Model(image, [maps, code]))
    images = noise()
    expected = np.asarray(model(images, training=False)[1])
    assert_features_equal(compute_features(model, images, layers=("code",)), expected)


def test_outputs_with_names_of_their_own():
    image = keras.Input((16, 16, 3))
    maps = keras.layers.Conv2D(4, 3)(image)
    outputs = {"low": maps, "high": keras.layers.Conv2D(5, 3)(maps)}
    model = my_encoders.filled(keras.Model(image, outputs))
    images = noise()
    found = compute_features(model, images, layers=("low",))
    assert_features_equal(found, gap(np.asarray(model(images, training=False)["low"])))


def test_output_of_a_layer_called_twice():
    """Only the layer by name is ambiguous, the model's output is not."""
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    image = keras.Input((16, 16, 3))
    model = my_encoders.filled(keras.Model(image, shared(shared(image))))
    images = noise()
    assert_features_equal(compute_features(model, images), gap(call_model(model, images)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_mean_of_a_variational_encoder(library: str):
    k = LIBRARIES[library]

    class Sampling(k.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.generator = keras.random.SeedGenerator(1) if library == "keras" else None

        def call(self, inputs):
            mean, _ = inputs
            if self.generator:
                drawn = keras.random.normal(keras.ops.shape(mean), seed=self.generator)
            else:
                drawn = tf.random.normal(tf.shape(mean))
            return mean + drawn

    image = k.Input((16, 16, 3))
    x = k.layers.Flatten()(k.layers.Conv2D(4, 3, strides=3, activation="relu")(image))
    mean = k.layers.Dense(5, name="z_mean")(x)
    log_variance = k.layers.Dense(5, name="z_log_var")(x)
    sample = Sampling(name="z")([mean, log_variance])
    model = my_encoders.filled(k.Model(image, [mean, log_variance, sample]))
    images = noise()
    expected = np.asarray(model(images, training=False)[0])
    encoder = build(spec(model, layers=("z_mean",)))
    assert encoder.engine in ("openvino", "folded")
    assert_features_equal(encode(encoder, images)[0], expected)


# --- inference mode ------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_augmenting_and_regularizing_layers_do_nothing(library: str):
    k = LIBRARIES[library]
    image = k.Input((16, 16, 3))
    x = image
    for layer in (
        k.layers.RandomFlip(),
        k.layers.RandomRotation(0.3),
        k.layers.RandomZoom(0.3),
        k.layers.RandomTranslation(0.3, 0.3),
        k.layers.RandomContrast(0.5),
        k.layers.RandomBrightness(0.5),
        k.layers.GaussianNoise(0.5),
    ):
        x = layer(x)
    x = k.layers.Conv2D(4, 3, name="conv")(x)
    x = k.layers.SpatialDropout2D(0.5)(k.layers.Dropout(0.5)(x))
    model = my_encoders.filled(k.Model(image, k.layers.GaussianDropout(0.5)(x)))
    images = noise()
    expected = gap(np.asarray(model.get_layer("conv")(images)))
    assert_features_equal(compute_features(model, images), expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_batch_normalization_uses_what_it_learned(library: str):
    k = LIBRARIES[library]
    image = k.Input((16, 16, 3))
    model = k.Model(image, k.layers.BatchNormalization()(image))
    gamma, beta = np.array([1, 2, 3], np.float32), np.array([0, -1, 1], np.float32)
    mean, variance = np.array([0.2, 0.4, 0.6], np.float32), np.array([0.5, 1, 4], np.float32)
    model.set_weights([gamma, beta, mean, variance])
    images = noise()
    expected = (images - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    assert_features_equal(compute_features(model, images), gap(expected))


def test_callers_training_flag_reaches_a_subclassed_model():
    class Net(keras.Model):
        def call(self, images, training=None):
            return images * (2.0 if training is False else 5.0)

    images = noise()
    found = compute_features(Net(), images, image_size=(16, 16))
    assert_features_equal(found, gap(images * 2))


# --- poolings ------------------------------------------------------------------------------------

MAPS = {
    "gap": lambda v: v.mean((1, 2)),
    "gmp": lambda v: v.max((1, 2)),
    "gem": lambda v: (np.maximum(v, 1e-6) ** 3).mean((1, 2)) ** (1 / 3),
    "flatten": lambda v: v.reshape(len(v), -1),
}
TOKENS = {
    "gap": lambda v: v.mean(1),
    "gmp": lambda v: v.max(1),
    "gem": lambda v: (np.maximum(v, 1e-6) ** 3).mean(1) ** (1 / 3),
    "cls": lambda v: v[:, 0],
    "flatten": lambda v: v.reshape(len(v), -1),
}
VECTORS = {"none": lambda v: v, "flatten": lambda v: v}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("rank", "pool"),
    [*((4, pool) for pool in MAPS), *((3, pool) for pool in TOKENS), *((2, p) for p in VECTORS)],
)
def test_pooling(rank: int, pool: str, engine: str):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(5, 3, strides=3)(image)
    x = {4: lambda x: x, 3: keras.layers.Reshape((25, 5)), 2: keras.layers.Flatten()}[rank](x)
    model = my_encoders.filled(keras.Model(image, x))
    images = noise()
    value = call_model(model, images).astype(np.float64)
    assert value.min() < 0 < value.max()
    expected = {4: MAPS, 3: TOKENS, 2: VECTORS}[rank][pool](value).astype(np.float32)
    encoder = build(spec(model, pool=pool, engine=engine))
    assert encoder.outputs[0].dimension == expected.shape[1]
    assert_features_equal(encode(encoder, images)[0], expected)


def test_flatten_is_in_c_order():
    model = keras.Sequential([keras.Input((3, 4, 2)), keras.layers.Activation("linear")])
    images = np.arange(4 * 24, dtype=np.float32).reshape(4, 3, 4, 2)
    found = compute_features(model, images, pool="flatten")
    assert np.array_equal(found, np.arange(4 * 24).reshape(4, 24))


def test_default_pooling_goes_by_rank():
    encoder = build(spec(named(keras), layers=("stem", "tokens", "head")))
    assert [output.pool for output in encoder.outputs] == ["gap", "gap", "none"]


# --- engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_engines_agree(library: str):
    model = named(LIBRARIES[library])
    images = noise()
    expected = call_model(model, images)
    tensorflow = build(spec(model, engine="tensorflow"))
    assert tensorflow.engine == "folded"
    assert_features_equal(encode(tensorflow, images)[0], expected)
    if is_openvino_installed():
        openvino = build(spec(model, engine="openvino"))
        assert openvino.engine == "openvino"
        assert_features_equal(encode(openvino, images)[0], expected)
    assert build(spec(model)).engine == ("openvino" if is_openvino_installed() else "folded")


@pytest.mark.parametrize("engine", ["xla", "folded", "function", "plain"])
def test_each_way_to_run_an_encoder(engine: str):
    images = noise()
    encoder = build(spec("my_encoders:functional", engine="tensorflow"))
    expected = gap(call_model(my_encoders.functional(), images))
    assert_features_equal(open_engine(replace(encoder, engine=engine), 1)(images)[0], expected)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batch_sizes(batch_size: int):
    images = noise(batch_size)
    model = my_encoders.functional()
    found = compute_features(model, images, batch_size=batch_size)
    assert_features_equal(found, gap(call_model(model, images)))


@pytest.mark.parametrize(
    ("name", "engine"), [("with_numpy", "plain"), ("with_py_function", "function")]
)
def test_models_that_cannot_be_folded(name: str, engine: str):
    images = noise()
    encoder = build(spec(f"my_encoders:{name}", image_size=(16, 16)))
    assert encoder.engine == engine
    assert encoder.graph is None
    assert any("folded" in warning for warning in encoder.warnings)
    assert_features_equal(
        encode(encoder, images)[0], gap(call_model(getattr(my_encoders, name)(), images))
    )


def test_random_weights_go_with_an_encoder_that_cannot_be_folded():
    images = noise()
    encoder = build(spec("my_encoders:SortedChannels", image_size=(16, 16)))
    assert encoder.engine == "plain"
    first, second = (open_engine(encoder, 1)(images)[0] for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16"])
def test_half_precision_output_is_given_as_float32(dtype: str):
    image = keras.Input((16, 16, 3))
    conv = keras.layers.Conv2D(4, 3, dtype=dtype)
    model = keras.Model(image, keras.layers.ReLU(dtype="float16")(conv(image)))
    found = compute_features(model, noise(), engine="tensorflow")
    assert found.dtype == np.float32
    expected = gap(call_model(model, noise()).astype(np.float32))
    assert np.allclose(found, expected, rtol=2e-3, atol=1e-4)


# --- through the command line --------------------------------------------------------------------


def test_several_layers_of_a_nested_model(ray_embed: Command, tmp_path: Path):
    folder = make_folder(tmp_path / "valid", {"a": 2, "b": 3})
    model = named(keras)
    model.save("named.keras")
    result = ray_embed(
        *("run", "--source", "valid", "--model", "named.keras", "--out", "r", "--pool", "flatten"),
        *("--layer", "inner/deep/conv", "--layer", "head"),
    )
    assert result.code == 0, result.err
    expected = step_by_step(model, pixels(folder) / np.float32(255))
    run = package.load("r")
    assert_features_equal(
        run.to_numpy("inner/deep/conv")[0], expected["inner/deep/conv"].reshape(5, -1)
    )
    assert_features_equal(run.to_numpy("head")[0], expected["head"])
    assert {"feature_inner.deep.conv", "feature_head"} <= set(run.to_table().column_names)


def test_layers_command(ray_embed_process: Command, tmp_path: Path):
    shutil.copy(PROJECT / "my_encoders.py", tmp_path)
    result = ray_embed_process("layers", "--model", "my_encoders:subclassed", "--image-size", "16")
    assert result.code == 0, result.err
    # Nothing of TensorFlow's or Keras'.
    assert result.err == ""
    lines = [line.split("\t") for line in result.out.splitlines()]
    assert lines[:4] == [
        ["stem", "(N, 7, 7, 6)"],
        ["block0", "(N, 5, 5, 6)"],
        ["block1", "(N, 3, 3, 6)"],
        ["norm", "(N, 3, 3, 6)"],
    ]


def test_layers_command_with_bad_input(ray_embed_process: Command, tmp_path: Path):
    shutil.copy(PROJECT / "my_encoders.py", tmp_path)
    result = ray_embed_process("layers", "--model", "my_encoders:subclassed")
    assert result.code == 2
    assert result.err.startswith("ray-embed: --model my_encoders:subclassed: ")
    assert "--image-size" in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_a_layer_that_gives_no_features_is_not_listed():
    image = keras.Input((16, 16, 3))
    indices = keras.layers.Lambda(lambda x: tf.argmax(x, -1), name="indices")(image)
    x = keras.layers.Embedding(3, 2, name="embedding")(keras.layers.Reshape((256,))(indices))
    model = keras.Model(image, x)
    shapes = list_layer_shapes(spec(model))
    assert "embedding" in shapes
    assert "indices" not in shapes
    with pytest.raises(InputError, match="indices"):
        build(spec(model, layers=("indices",)))


def test_tf_keras_functional_model_with_tensorflow_operations():
    image = tf_keras.Input((16, 16, 3))
    x = tf.nn.relu(tf_keras.layers.Conv2D(4, 3)(image) * 2 - 0.1)
    model = my_encoders.filled(tf_keras.Model(image, tf.concat([x, x], -1)))
    images = noise()
    assert_features_equal(compute_features(model, images), gap(call_model(model, images)))
