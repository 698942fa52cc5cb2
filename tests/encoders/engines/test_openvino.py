# SPDX-License-Identifier: Apache-2.0
"""OpenVINO runs today's encoders, in memory and saved, and names what it cannot convert."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.applications.convnext import ConvNeXt
from support.encoders import call_model, encode, gap, noise, spec

from ray_embed.encoders.build import build
from ray_embed.encoders.engines.openvino import is_openvino_installed

pytestmark = pytest.mark.skipif(not is_openvino_installed(), reason="OpenVINO is not installed")
layers = keras.layers
SIDE = 32


def convnext():
    return ConvNeXt(
        depths=[1, 1, 1, 1],
        projection_dims=[8, 16, 16, 16],
        weights=None,
        include_top=False,
        input_shape=(SIDE, SIDE, 3),
        name="small_convnext",
    )


def mobilenet_v3():
    return keras.applications.MobileNetV3Small(
        weights=None, include_top=False, input_shape=(SIDE, SIDE, 3)
    )


def vision_transformer():
    """Build a vision transformer whose patches are cut as in the examples of Keras."""
    image = keras.Input((SIDE, SIDE, 3))
    patches = layers.Lambda(lambda images: keras.ops.image.extract_patches(images, 8))(image)
    x = layers.Dense(16)(layers.Reshape((16, 192))(patches))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(y, y)])
        y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(16)(y)])
    return keras.Model(image, layers.LayerNormalization()(x))


def edge_detector():
    """Build what holistically-nested edge detection is: side outputs, upsampled and fused."""
    image = x = keras.Input((SIDE, SIDE, 3))
    sides = []
    for factor, width in ((1, 8), (2, 16), (4, 16)):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        sides.append(layers.UpSampling2D(factor, interpolation="bilinear")(layers.Conv2D(4, 1)(x)))
        x = layers.MaxPooling2D()(x)
    return keras.Model(image, layers.Conv2D(4, 1)(layers.Concatenate()(sides)))


def recurrent():
    image = keras.Input((SIDE, SIDE, 3))
    return keras.Model(image, layers.GRU(8)(layers.Reshape((SIDE, SIDE * 3))(image)))


@pytest.mark.parametrize(
    ("make", "saved"),
    [
        (convnext, False),
        (vision_transformer, False),
        (recurrent, False),
        (vision_transformer, True),
        (mobilenet_v3, True),
        (edge_detector, True),
    ],
)
def test_an_encoder_runs_in_openvino_and_agrees(make, saved, tmp_path):
    keras.utils.set_random_seed(0)
    model = source = make()
    if saved:
        model.export(tmp_path / "saved", verbose=False)
        source = tmp_path / "saved"
    encoder = build(spec(source))
    assert (encoder.engine, encoder.warnings) == ("openvino", ())
    images = noise(shape=(SIDE, SIDE, 3)) * (255 if encoder.rescaling.expects_levels else 1)
    (features,) = encode(encoder, images)
    expected = call_model(model, images)
    expected = gap(expected) if expected.ndim > 2 else expected
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_the_saved_graph_is_the_one_that_tensorflow_runs():
    keras.utils.set_random_seed(0)
    model = vision_transformer()
    assert build(spec(model)).graph == build(spec(model, engine="tensorflow")).graph


def test_values_that_do_not_depend_on_the_images_need_no_conversion():
    keras.utils.set_random_seed(0)
    weights = np.random.default_rng(0).random((6, 4), np.float32)
    image = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 3)(image)
    model = keras.Model(image, layers.Lambda(lambda values: values @ tf.linalg.qr(weights)[1])(x))
    encoder = build(spec(model))
    assert (encoder.engine, encoder.warnings) == ("openvino", ())
    images = noise(shape=(SIDE, SIDE, 3))
    expected = gap(call_model(model, images))
    np.testing.assert_allclose(encode(encoder, images)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_warning_names_the_operations_that_openvino_lacks():
    image = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 3)(image)
    x = layers.Lambda(lambda values: tf.math.lgamma(tf.math.erfinv(tf.tanh(values))))(x)
    encoder = build(spec(keras.Model(image, x)))
    assert encoder.engine == "folded"
    (warning,) = encoder.warnings
    assert warning == "engine openvino: it cannot convert the TensorFlow operations Erfinv, Lgamma"
