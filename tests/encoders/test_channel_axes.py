# SPDX-License-Identifier: Apache-2.0
"""Which axis of a layer's output is the batch, and which the channels, compared with NumPy."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.command import Command
from support.encoders import PROJECT, call_model, encode, my_encoders, noise, pixels, spec
from support.features import assert_features_equal
from support.pictures import make_folder

import ray_embed as package
from ray_embed.encoders.batch_axis import find_batch_fault
from ray_embed.encoders.build import build
from ray_embed.encoders.engines.openvino import is_openvino_installed
from ray_embed.encoders.layer_shapes import list_layer_shapes
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError

LIBRARIES = my_encoders.LIBRARIES
FIRST = {"data_format": "channels_first"}


def pooled(value: np.ndarray, how: str = "gap", axis: int = 1) -> np.ndarray:
    """Pool with NumPy, in double precision, over all axes but the batch and the channels."""
    value = np.moveaxis(value.astype(np.float64), axis, -1)
    places = tuple(range(1, value.ndim - 1))
    match how:
        case "gap":
            result = value.mean(places)
        case "gmp":
            result = value.max(places)
        case "gem":
            result = (np.maximum(value, 1e-6) ** 3).mean(places) ** (1 / 3)
        case "cls":
            result = value[:, 0]
        case _:
            result = value.reshape(len(value), -1)
    return result.astype(np.float32)


def features(encoder: Encoder, images: np.ndarray) -> dict[str, np.ndarray]:
    """Run an encoder, and give its features by layer."""
    names = [output.layer for output in encoder.outputs]
    return dict(zip(names, encode(encoder, images), strict=True))


# --- channels first ------------------------------------------------------------------------------


def channels_first(k: Any) -> Any:
    """A model that computes with channels first inside, of layers with and without a format."""
    layers = k.layers
    image = k.Input((18, 20, 3))
    x = layers.Permute((3, 1, 2), name="first")(image)
    x = layers.Conv2D(8, 3, name="conv", padding="same", **FIRST)(x)
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    x = skip = layers.Activation("tanh", name="tanh")(x)
    x = layers.DepthwiseConv2D(3, name="depth", padding="same", **FIRST)(x)
    x = layers.Add(name="add")([x, skip])
    x = layers.Concatenate(axis=1, name="concat")([x, skip])
    x = layers.MaxPooling2D(2, name="max_pool", **FIRST)(x)
    x = layers.ZeroPadding2D(1, name="pad", **FIRST)(x)
    x = layers.SeparableConv2D(6, 3, name="separable", **FIRST)(x)
    x = layers.SpatialDropout2D(0.5, name="dropout")(x)
    x = layers.UpSampling2D(2, name="up", **FIRST)(x)
    x = layers.Conv2DTranspose(5, 3, name="transposed", **FIRST)(x)
    x = layers.AveragePooling2D(3, name="average", **FIRST)(x)
    x = layers.Cropping2D(1, name="crop", **FIRST)(x)
    last = layers.Permute((2, 3, 1), name="last")(x)
    tokens = layers.Permute((2, 1), name="tokens")(layers.Reshape((5, -1), name="rows")(x))
    return my_encoders.filled(k.Model(image, [last, tokens]))


FIRST_LAYERS = (
    *("first", "conv", "norm", "tanh", "depth", "add", "concat", "max_pool", "pad", "separable"),
    *("dropout", "up", "transposed", "average", "crop", "rows"),
)
LAST_LAYERS = ("tokens", "last")


@pytest.mark.parametrize("library", LIBRARIES)
def test_layers_with_channels_first_are_pooled_over_the_other_axes(library: str):
    model = channels_first(LIBRARIES[library])
    images = noise(shape=(18, 20, 3))
    layers = (*FIRST_LAYERS, *LAST_LAYERS)
    encoder = build(spec(model, layers=layers))
    found = features(encoder, images)
    k = LIBRARIES[library]
    values = k.Model(model.input, [model.get_layer(name).output for name in layers])(
        images, training=False
    )
    for name, value in zip(layers, values, strict=True):
        axis = 1 if name in FIRST_LAYERS else -1
        assert found[name].shape[1] == value.shape[axis], name
        assert_features_equal(found[name], pooled(np.asarray(value), axis=axis))
    noted = [note.split(",")[0].removeprefix("layer ") for note in encoder.notes]
    assert noted == list(FIRST_LAYERS)
    assert "its channels are axis 1" in encoder.notes[0]


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
@pytest.mark.parametrize("how", ["gap", "gmp", "gem", "flatten", "cls"])
def test_every_pooling_with_channels_first(how: str, engine: str):
    if engine == "openvino" and not is_openvino_installed():
        pytest.skip("OpenVINO is not installed")
    image = keras.Input((3, 16, 18))
    x = keras.layers.Conv2D(8, 3, **FIRST)(image)
    if how == "cls":
        x = keras.layers.Reshape((8, -1))(x)
    model = my_encoders.filled(keras.Model(image, x))
    images = noise(shape=(16, 18, 3))
    encoder = build(spec(model, pool=how, engine=engine))
    assert encoder.engine == ("openvino" if engine == "openvino" else "folded")
    value = call_model(model, images.transpose(0, 3, 1, 2))
    assert_features_equal(encode(encoder, images)[0], pooled(value, how))


def test_flatten_gives_the_order_of_keras_own_layer():
    image = keras.Input((3, 16, 16))
    model = keras.Model(image, keras.layers.Conv2D(8, 3, **FIRST)(image))
    images = noise()
    value = call_model(model, images.transpose(0, 3, 1, 2))
    (found,) = encode(build(spec(model, pool="flatten")), images)
    assert_features_equal(found, np.asarray(keras.layers.Flatten(**FIRST)(value)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_model_whose_input_has_channels_first(library: str):
    k = LIBRARIES[library]
    image = k.Input((3, 16, 18))
    x = k.layers.Conv2D(8, 3, **FIRST)(k.layers.Rescaling(2.0)(image))
    model = my_encoders.filled(k.Model(image, x))
    images = noise(shape=(16, 18, 3))
    encoder = build(spec(model))
    assert encoder.image_shape == (16, 18, 3)
    value = call_model(model, images.transpose(0, 3, 1, 2))
    assert_features_equal(encode(encoder, images)[0], pooled(value))
    assert "(N, 3, 16, 18)" in encoder.notes[0]
    assert "transposed" in encoder.notes[0]


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((3, 16, 16), {}, (16, 16, 3)),  # transposed inside: only the shape tells
        ((1, None, None), FIRST, (16, 16, 1)),
        ((8, 16, 16), FIRST, (16, 16, 8)),  # only the layer tells
        ((3, 4, 3), FIRST, (4, 3, 3)),
        ((16, 16, 3), {}, (16, 16, 3)),
        ((3, 16, 4), {}, (3, 16, 4)),
        ((3, 4, 2), {}, (3, 4, 2)),
    ],
)
def test_layout_of_the_input(shape: tuple, layout: dict, expected: tuple):
    image = keras.Input(shape)
    x = image
    if not layout and shape[0] == 3 and shape[2] == 16:
        x = keras.layers.Permute((2, 3, 1))(x)
    model = keras.Model(image, keras.layers.Conv2D(4, 1, **layout)(x))
    images = noise(shape=expected)
    size = {"image_size": (16, 16)} if None in shape else {}
    encoder = build(spec(model, **size))
    assert encoder.image_shape == expected
    first = shape[0] == expected[2] and shape != expected
    value = call_model(model, images.transpose(0, 3, 1, 2) if first else images)
    assert_features_equal(encode(encoder, images)[0], pooled(value, axis=1 if layout else -1))


def subclassed(k: Any, transposes: bool) -> type:
    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.conv = k.layers.Conv2D(6, 3, name="conv", **FIRST)
            self.norm = k.layers.BatchNormalization(axis=1, name="norm")

        def call(self, images, training=None):
            x = tf.transpose(images, (0, 3, 1, 2)) if transposes else images
            return tf.nn.relu(self.norm(self.conv(x), training=training)) + 1.0

    return Net


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("transposes", [True, False])
@pytest.mark.parametrize("built", [True, False])
def test_subclassed_model_with_channels_first(library: str, transposes: bool, built: bool):
    def make() -> Any:
        LIBRARIES[library].utils.set_random_seed(3)
        return subclassed(LIBRARIES[library], transposes)()

    images = noise(shape=(16, 18, 3))
    given = images if transposes else images.transpose(0, 3, 1, 2)
    model = make()
    value = call_model(model, given)
    assert value.shape[1] == 6
    encoder = build(spec((lambda: model) if built else make, image_size=(16, 18)))
    (found,) = encode(encoder, images)
    assert_features_equal(found, pooled(value))
    assert any("transposed" in note for note in encoder.notes) is not transposes


def test_unbuilt_model_in_hand_with_channels_first_is_told_to_be_called_first():
    model = subclassed(keras, False)()
    with pytest.raises(InputError, match=r"call it once"):
        build(spec(model, image_size=(16, 18)))


def test_nested_model_with_channels_first():
    image = keras.Input((16, 18, 3))
    inner_image = keras.Input((3, 16, 18))
    inner = keras.Model(inner_image, keras.layers.Conv2D(8, 3, name="conv", **FIRST)(inner_image))
    x = keras.layers.Activation("tanh", name="tanh")(
        keras.Sequential([inner])(keras.layers.Permute((3, 1, 2))(image))
    )
    model = my_encoders.filled(keras.Model(image, x))
    images = noise(shape=(16, 18, 3))
    assert_features_equal(encode(build(spec(model)), images)[0], pooled(call_model(model, images)))


@pytest.mark.parametrize("nchw", [True, False])
def test_signature_with_channels_first(tmp_path: Path, nchw: bool):
    image = keras.Input((3, 16, 18) if nchw else (16, 18, 3))
    x = image if nchw else keras.layers.Permute((3, 1, 2))(image)
    x = keras.layers.Conv2D(8, 3, activation="relu", **FIRST)(x)
    model = my_encoders.filled(keras.Model(image, x))
    model.export(tmp_path / "exported", verbose=False)
    images = noise(shape=(16, 18, 3))
    encoder = build(spec(tmp_path / "exported"))
    assert encoder.image_shape == (16, 18, 3)
    value = call_model(model, images.transpose(0, 3, 1, 2) if nchw else images)
    assert_features_equal(encode(encoder, images)[0], pooled(value))
    assert sum("channels first" in note for note in encoder.notes) == nchw
    assert "its channels are axis 1" in encoder.notes[-1]


def test_what_cannot_be_known_is_assumed_and_said():
    class Shuffled(keras.layers.Layer):
        def call(self, x):
            return tf.constant(x.numpy()) if hasattr(x, "numpy") else tf.identity(x)

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(6, 3, **FIRST)
            self.other = Shuffled(name="other")

        def call(self, images):
            return self.other(self.conv(tf.transpose(images, (0, 3, 1, 2))))

    model, images = Net(), noise(shape=(16, 18, 3))
    value = call_model(model, images)
    encoder = build(spec(model, image_size=(16, 18)))
    assert_features_equal(encode(encoder, images)[0], pooled(value))
    assert "cannot be known" in encoder.notes[0]


@pytest.mark.parametrize("library", LIBRARIES)
def test_tokens_that_are_mixed_by_transposing_them_stay_tokens(library: str):
    k = LIBRARIES[library]
    image = k.Input((16, 16, 3))
    x = tokens = k.layers.Reshape((16, 5), name="tokens")(k.layers.Conv2D(5, 4, 4)(image))
    y = k.layers.Permute((2, 1), name="turned")(k.layers.LayerNormalization()(x))
    y = k.layers.Dense(16, name="between")(k.layers.Dense(20, activation="gelu")(y))
    x = k.layers.Add(name="mixed")([tokens, k.layers.Permute((2, 1), name="back")(y)])
    x = k.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = k.layers.Conv1D(7, 3, name="convolved")(x)
    model = my_encoders.filled(k.Model(image, k.layers.ZeroPadding1D(1, name="padded")(x)))
    images = noise()
    layers = ("tokens", "mixed", "attention", "convolved", "padded")
    encoder = build(spec(model, layers=layers))
    values = k.Model(model.input, [model.get_layer(name).output for name in layers])(images)
    for found, value in zip(encode(encoder, images), values, strict=True):
        assert_features_equal(found, pooled(np.asarray(value), axis=-1))
    assert encoder.notes == ()
    turned = build(spec(model, layers=("turned",)))
    assert turned.outputs[0].dimension == 5


def test_channels_last_models_say_nothing():
    for name in ("functional", "sequential"):
        assert build(spec(f"my_encoders:{name}")).notes == ()


def test_failing_model_with_channels_first_suggests_the_other_layout():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(4, 3, **FIRST)

        def call(self, images):
            raise ValueError("The Conv2D op currently only supports the NHWC tensor format")

    with pytest.raises(InputError, match=r"oneDNN.*channels_last"):
        build(spec(Net(), image_size=(16, 16)))


# --- the batch -----------------------------------------------------------------------------------


def windows(x: Any, size: int) -> Any:
    """Cut maps into windows: (N, H, W, C) to (N × windows, size × size, C)."""
    _, height, width, channels = x.shape
    x = tf.reshape(x, (-1, height // size, size, width // size, size, channels))
    return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, size * size, channels))


def layers_of(k: Any) -> dict[str, Any]:
    """Layers of a user's that move the batch away, by name."""

    class Partition(k.layers.Layer):
        def call(self, x):
            return windows(x, 7)

    class Merge(k.layers.Layer):
        def call(self, x):
            x = tf.reshape(x, (-1, 2, 2, 7, 7, 4))
            return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 14, 14, 4))

    class Positions(k.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(1, 196, 4), name="table")

        def call(self, x):
            return self.table * 1.0

    class Sequence(k.layers.Layer):
        def call(self, x):
            return tf.transpose(tf.reshape(x, (-1, 196, 4)), (1, 0, 2))

    class Back(k.layers.Layer):
        def call(self, x):
            return tf.transpose(x, (1, 0, 2))

    return {
        "partition": Partition(name="partition"),
        "merge": Merge(name="merge"),
        "positions": Positions(name="positions"),
        "sequence": Sequence(name="sequence"),
        "back": Back(name="back"),
        "table": k.layers.Embedding(196, 4, name="table"),
        "stem": k.layers.Conv2D(4, 3, name="stem"),
        "tokens": k.layers.Reshape((196, 4), name="tokens"),
        "last": k.layers.Dense(5, name="last"),
    }


def through(parts: dict[str, Any], images: Any) -> Any:
    x = parts["merge"](parts["partition"](parts["stem"](images)))
    x = parts["tokens"](parts["back"](parts["sequence"](x)))
    return parts["last"](x + parts["positions"](x))


def moving(library: str, functional: bool) -> Any:
    k = LIBRARIES[library]
    parts = layers_of(k)
    if functional:
        image = k.Input((16, 16, 3))
        return k.Model(image, through(parts, image))

    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.parts = list(parts.values())

        def call(self, images):
            parts["table"](tf.range(196))
            return through(parts, images)

    return Net()


CASES = {
    "partition": r"axis 0 is the batch times 4.*\(12, 49, 4\) for 3 images",
    "positions": r"axis 0 is always 1 long.*\(1, 196, 4\)",
    "sequence": r"its batch is axis 1, not axis 0.*\(196, 3, 4\) for 3 images",
}


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("library", LIBRARIES)
def test_layers_whose_first_axis_is_not_the_batch(library: str, functional: bool):
    model = moving(library, functional)
    size = {} if functional else {"image_size": (16, 16)}
    listed = [name for name in list_layer_shapes(spec(model, **size)) if "add" not in name]
    assert listed == ["stem", "merge", "back", "tokens", "last"]
    cases = CASES if functional else {**CASES, "table": r"axis 0 is always 196 long.*\(196, 4\)"}
    for name, message in cases.items():
        with pytest.raises(InputError, match=f"--layer {name}: .*{message}.*last, .*tokens"):
            build(spec(model, layers=(name,), **size))
    images = noise()
    encoder = build(spec(model, layers=tuple(listed), **size))
    for found in encode(encoder, images):
        assert len(found) == len(images)
        assert not np.allclose(found[0], found[1])


@pytest.mark.parametrize("batch_size", [1, 2, 196, 49])
def test_the_batch_is_told_apart_at_any_batch_size(batch_size: int):
    model = moving("keras", True)
    for name, pool in itertools.product(CASES, ["gap", "cls"]):
        with pytest.raises(InputError, match=f"--layer {name}"):
            build(spec(model, layers=(name,), pool=pool, batch_size=batch_size))


def test_an_output_without_a_batch_is_refused():
    image = keras.Input((16, 16, 3))
    parts = layers_of(keras)
    model = keras.Model(image, parts["sequence"](parts["stem"](image)))
    with pytest.raises(InputError, match=r"its output: its batch is axis 1.*--layer: stem"):
        build(spec(model))


def test_rows_that_mix_the_images_are_refused():
    class Mixed(keras.layers.Layer):
        def call(self, x):
            x = tf.transpose(tf.reshape(x, (-1, 196, 4)), (1, 0, 2))
            return tf.reshape(x, (-1, 196, 4))

    image = keras.Input((16, 16, 3))
    model = keras.Model(image, Mixed()(keras.layers.Conv2D(4, 3)(image)))
    with pytest.raises(InputError, match="other images of its batch"):
        build(spec(model, pool="flatten"))


def test_a_model_of_a_fixed_batch_size_still_works():
    image = keras.Input(batch_shape=(4, 16, 16, 3))
    x = keras.layers.Lambda(lambda x: tf.reshape(x, (4, 16, 16, 3)))(image)
    model = my_encoders.filled(keras.Model(image, keras.layers.Conv2D(5, 3, name="conv")(x)))
    images = noise()
    found = encode(build(spec(model)), images)[0]
    assert_features_equal(found, pooled(call_model(model, images), axis=-1))
    assert "conv" in list_layer_shapes(spec(model))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([(8, 5), (2, 5)], None),
        ([(8, 49, 5), (2, 49, 5)], None),
        ([(8, 7, 5), (2, 7, 9)], "axis 2 changes"),
        ([(8, 1, 5), (2, 5)], "rank changes"),
        ([(1, 5), (1, 5)], "axis 0 is always 1 long"),
        ([(32, 5), (8, 5)], "batch times 4"),
        ([(3, 8, 5), (3, 2, 5)], "batch is axis 1"),
        ([(9, 5), (3, 5)], "axis 0 is not the batch"),
        ([(16, 5)], "axis 0 is not the batch"),
        ([(8, 5)], None),
    ],
)
def test_what_is_wrong_with_a_first_axis(shapes: list[tuple[int, ...]], said: str | None):
    found = find_batch_fault(shapes, (8, 2)[: len(shapes)])
    assert found is None if said is None else said in (found or "")


# --- through the command line --------------------------------------------------------------------


def test_channels_first_run(ray_embed: Command, tmp_path: Path):
    folder = make_folder(tmp_path / "valid", {"a": 2, "b": 3})
    image = keras.Input((3, 16, 16))
    model = my_encoders.filled(keras.Model(image, keras.layers.Conv2D(6, 3, **FIRST)(image)))
    model.save("first.keras")
    shutil.copy(PROJECT / "my_encoders.py", tmp_path)
    result = ray_embed("run", "--source", "valid", "--model", "first.keras", "--out", "r")
    assert result.code == 0, result.err
    value = call_model(model, pixels(folder).transpose(0, 3, 1, 2) / np.float32(255))
    assert_features_equal(package.load("r").to_numpy()[0], pooled(value))
    assert "channels first" in result.err
    assert "Traceback" not in result.err
