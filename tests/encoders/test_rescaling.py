# SPDX-License-Identifier: Apache-2.0
"""Encoders that rescale their input, or take integers: what they are fed, and what is said."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tifffile
from support.encoders import spec
from support.pictures import make_folder

import ray_embed as package
from ray_embed.encoders.build import build
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError

L = keras.layers
SIDE = 16
MEANS, DEVIATIONS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def model(*first: Any, dtype: str | None = None, family: Any = keras) -> Any:
    """Make an encoder that begins with these layers."""
    images = family.Input((SIDE, SIDE, 3), dtype=dtype)
    x = images
    for layer in first:
        x = layer(x)
    x = family.layers.Conv2D(4, 3, activation="relu", kernel_initializer="he_normal")(x)
    return family.Model(images, family.layers.GlobalAveragePooling2D()(x))


class Casting(keras.Model):
    """Casts its input to bytes, which its input's type does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = L.Conv2D(4, 3)

    def call(self, images: Any) -> Any:
        return self.conv(tf.cast(tf.cast(images, tf.uint8), tf.float32) / 255.0)


def trained_on_levels() -> Any:
    layer = L.BatchNormalization()
    encoder = model(layer)
    layer.set_weights([np.ones(3), np.zeros(3), np.full(3, 120.0), np.full(3, 65.0**2)])
    return encoder


def trained_on_unit() -> Any:
    layer = L.BatchNormalization()
    encoder = model(layer)
    layer.set_weights([np.full(3, 0.3), np.full(3, -1.0), np.full(3, 0.45), np.full(3, 0.06)])
    return encoder


EXPECT_LEVELS = {
    "rescaling": (lambda: model(L.Rescaling(1 / 255, name="to_unit")), "to_unit: × 1/255"),
    "rescaling of tf_keras": (
        lambda: model(tf_keras.layers.Rescaling(1 / 127.5, -1, name="both"), family=tf_keras),
        "both: × 1/127.5, then -1",
    ),
    "normalization": (
        lambda: model(L.Normalization(mean=[123.0] * 3, variance=[50.0**2] * 3, name="z")),
        "z: × 1/50, then -2.46",
    ),
    "two layers": (
        lambda: model(
            L.Rescaling(1 / 255, name="a"),
            L.Normalization(mean=MEANS, variance=np.square(DEVIATIONS), name="b"),
        ),
        "a, b: × (1/58.39, 1/57.12, 1/57.37), then",
    ),
    "resized first": (
        lambda: model(L.Resizing(12, 12), L.RandomFlip(), L.Rescaling(1 / 255, name="last")),
        "last: × 1/255",
    ),
    "means subtracted by a function": (
        lambda: model(L.Lambda(keras.applications.resnet50.preprocess_input, name="caffe")),
        "caffe: × 1, then (-103.9, -116.8, -123.7)",
    ),
    "cast": (Casting, "cast to whole numbers"),
    "integers": (lambda: model(L.Rescaling(1 / 255), dtype="uint8"), "input of type uint8"),
    "statistics of levels": (trained_on_levels, "× 1/65, then -1.846"),
}
EXPECT_UNIT = {
    "nothing": lambda: model(),
    "normalization of unit": lambda: model(
        L.Normalization(mean=MEANS, variance=np.square(DEVIATIONS))
    ),
    "symmetric from unit": lambda: model(L.Rescaling(2.0, -1.0)),
    "levels from unit": lambda: model(L.Rescaling(255.0), L.Rescaling(1 / 255)),
    "statistics of unit": trained_on_unit,
}


def built(encoder: Any, **options: Any) -> Encoder:
    return build(spec(encoder, engine="tensorflow", image_size=(SIDE, SIDE), **options))


@pytest.mark.parametrize("form", EXPECT_LEVELS)
def test_encoders_that_expect_levels_are_recognized(form):
    make, described = EXPECT_LEVELS[form]
    rescaling = built(make()).rescaling
    assert rescaling.expects_levels
    assert described in rescaling.describe()


@pytest.mark.parametrize("form", EXPECT_UNIT)
def test_encoders_that_expect_the_unit_range_are_left_as_they_are(form):
    assert not built(EXPECT_UNIT[form]()).rescaling.expects_levels


def test_exported_encoders_are_recognized_by_their_graph(tmp_path):
    model(L.Rescaling(1 / 255)).export(tmp_path / "a", verbose=False)
    assert built(tmp_path / "a").rescaling.expects_levels

    @tf.function(input_signature=[tf.TensorSpec((None, SIDE, SIDE, 3), tf.uint8)])
    def serve(images: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.cast(images, tf.float32), (1, 2))

    tf.saved_model.save(tf.Module(), tmp_path / "b", signatures=serve)
    rescaling = built(tmp_path / "b").rescaling
    assert rescaling.takes_integers
    assert rescaling.expects_levels


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("MobileNetV2", "--preprocess keras:mobilenet_v2"),
        ("VGG16", "--preprocess keras:vgg16"),
        ("MobileNetV3Small", ""),
    ],
)
def test_known_architectures_are_advised(name, option):
    applications = getattr(keras.applications, name)
    encoder = applications(weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg")
    found = build(spec(encoder, engine="tensorflow", layers=(encoder.layers[12].name,)))
    assert (option in found.advice) if option else not found.advice
    assert found.rescaling.expects_levels is (not option)


@pytest.mark.parametrize("module", ["vgg16", "mobilenet_v2", "densenet"])
@pytest.mark.parametrize("family", ["keras", "tf_keras"])
def test_preprocessing_may_work_in_place(module, family):
    function = f"{family}.applications.{module}:preprocess_input"
    encoder = model()
    found = built(encoder, preprocess=function)
    images = np.random.default_rng(0).random((4, SIDE, SIDE, 3), np.float32) * 255
    from ray_embed.encoders.engines.registry import open_engine

    before = images.copy()
    (features,) = open_engine(found, 1)(images)
    np.testing.assert_array_equal(images, before)
    prepare = getattr(keras.applications, module).preprocess_input
    expected = encoder(prepare(images.copy()), training=False).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_preprocessing_to_fractions_is_refused_where_integers_are_taken():
    with pytest.raises(InputError, match="would lose them"):
        built(
            model(dtype="int32"),
            preprocess="keras.applications.mobilenet_v2:preprocess_input",
        )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders of bytes and of rescaled pixels, and pictures for them."""
    root = tmp_path_factory.mktemp("rescaling")
    make_folder(root / "data", {"a": 3, "b": 3})
    keras.utils.set_random_seed(1)
    model(L.Rescaling(1 / 255, name="to_unit")).save(root / "rescaling.keras")
    model(L.Rescaling(1 / 255), dtype="uint8").save(root / "bytes.keras")
    return root


def levels(root: Path) -> np.ndarray:
    dataset = keras.utils.image_dataset_from_directory(
        root, image_size=(SIDE, SIDE), shuffle=False, verbose=False
    )
    return np.concatenate([images.numpy() for images, _ in dataset])


def test_runs_feed_levels_to_whom_expects_them_and_say_so(ray_embed, saved):
    data = saved / "data"
    result = ray_embed(
        "run", "--source", data, "--model", saved / "rescaling.keras", "--out", "r", "--actors", 1
    )
    assert result.code == 0, result.err
    assert (
        "encoder rescales its input itself (to_unit: × 1/255): pixels are given as 0–255"
    ) in result.err
    expected = keras.models.load_model(saved / "rescaling.keras")(levels(data)).numpy()
    np.testing.assert_allclose(package.load("r").to_numpy()[0], expected, rtol=1e-5, atol=1e-6)
    about = json.loads(Path("r/run.json").read_text())
    assert "to_unit" in about["identity"]["scale"]
    assert about["encoder"]["rescaling"]["expects_levels"]

    twice = ray_embed(
        "extract", "--source", data, "--model", saved / "rescaling.keras", "--scale", "unit",
        "--out", "s", "--actors", 1,
    )  # fmt: skip
    assert twice.code == 0, twice.err
    assert "pixels are rescaled twice; use --scale none" in twice.err

    result = ray_embed(
        "extract", "--source", data, "--model", saved / "bytes.keras", "--out", "t", "--actors", 1
    )
    assert result.code == 0, result.err
    assert "encoder takes whole numbers (input of type uint8" in result.err
    encoder = keras.models.load_model(saved / "bytes.keras")
    expected = encoder(levels(data)).numpy()
    np.testing.assert_allclose(package.load("t").to_numpy()[0], expected, rtol=1e-5, atol=1e-6)
    refused = ray_embed(
        "extract", "--source", data, "--model", saved / "bytes.keras", "--scale", "unit",
        "--out", "u",
    )  # fmt: skip
    assert refused.code == 2
    assert "pixels must remain integers" in refused.err


def test_float_arrays_are_compared_with_what_the_encoder_expects(ray_embed, saved):
    random = np.random.default_rng(0)
    np.savez("unit.npz", images=random.random((4, SIDE, SIDE, 3), np.float32), labels=np.arange(4))
    blank = np.zeros((3, SIDE, SIDE, 3), np.float32)
    np.savez("same.npz", images=blank, labels=np.arange(3))
    result = ray_embed(
        "extract", "--source", "unit.npz", "--model", saved / "rescaling.keras", "--out", "r",
        "--actors", 1,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "warning: unit: float images are passed to the encoder unchanged" in result.err
    refused = ray_embed(
        "extract", "--source", "unit.npz", "--model", saved / "bytes.keras", "--out", "s",
        "--actors", 1,
    )  # fmt: skip
    assert refused.code == 2
    assert "floats from 0 or" not in refused.err
    assert "the encoder takes uint8" in refused.err
    result = ray_embed(
        "extract", "--source", "same.npz", "--model", saved / "rescaling.keras", "--out", "t",
        "--actors", 1,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "all 3 records got the same features" in result.err


def test_deep_levels_and_float_files_are_compared_with_what_the_encoder_expects(ray_embed, saved):
    arguments = ("extract", "--actors", 1, "--model")
    refused = ray_embed(
        *arguments, saved / "bytes.keras", "--source", saved / "data", "--depth", 16
    )
    assert refused.code == 2
    assert "takes uint8 images; use --depth 8" in refused.err
    Path("deep").mkdir()
    random = np.random.default_rng(0)
    tifffile.imwrite("deep/a.tif", random.random((9, 9, 3), np.float32), photometric="rgb")
    tifffile.imwrite("deep/b.tif", random.integers(0, 65536, (9, 9, 3), np.uint16))
    source = ("--source", "deep", "--depth", 16)
    result = ray_embed(*arguments, saved / "rescaling.keras", *source)
    assert result.code == 0, result.err
    assert "pixels are given as 0–65535" in result.err
    assert "warning: --depth 16: pixels from 0 to 65535 reach" in result.err
    assert "deep: float images go to the encoder as they are" in result.err
    refused = ray_embed(*arguments, saved / "bytes.keras", "--source", "deep")
    assert refused.code == 2
    assert "its images are floats from 0" in refused.err


def test_gray_arrays_are_repeated_for_encoders_of_three_channels(ray_embed, saved):
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 9), np.uint8)
    np.savez("gray.npz", images=images, labels=np.arange(3))
    command = (
        "extract", "--source", "gray.npz", "--model", saved / "rescaling.keras", "--out", "r",
        "--actors", 1,
    )  # fmt: skip
    refused = ray_embed(*command)
    assert refused.code == 2
    assert "use --channels repeat" in refused.err
    assert "--image-size" not in refused.err
    result = ray_embed(*command, "--channels", "repeat")
    assert result.code == 0, result.err
    color = np.repeat(tf.image.resize(images[..., None], (SIDE, SIDE)).numpy(), 3, axis=-1)
    expected = keras.models.load_model(saved / "rescaling.keras")(color).numpy()
    np.testing.assert_allclose(package.load("r").to_numpy()[0], expected, rtol=1e-5, atol=1e-6)


def test_preview_shows_what_the_encoder_gets(ray_embed, saved):
    result = ray_embed(
        "preview", "--source", saved / "data", "--model", saved / "rescaling.keras",
        "--resize", "pad",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "(to_unit: × 1/255)" in result.out
    assert "the input batch has minimum 0, mean" in result.out
    assert "pixels: RGB files, 16×16 (pad, bilinear), given as 0–255" in result.out
    assert Path("preview.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("runs").exists()
    refused = ray_embed(
        "preview", "--source", saved / "data", "--model", "none.keras", "--sheet", "a.txt"
    )
    assert refused.code == 2
