# SPDX-License-Identifier: Apache-2.0
"""bfloat16: close to float32, asked for only, and the model in hand stays as it was."""

import keras
import numpy as np
import pytest
import tf_keras

from ray_embed.encoders.build import build
from ray_embed.encoders.engines.registry import open_engine
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(4, 3),
        ]
    )


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
def test_bfloat16_is_close_and_leaves_the_model_alone(model, engine):
    images = np.random.default_rng(0).random((8, 16, 16, 3), np.float32)
    expected = np.asarray(model(images, training=False)).mean((1, 2))
    spec = EncoderSpec(model=model, folder=".", engine=engine, precision="bfloat16", batch_size=8)
    encoder = build(spec)
    (found,) = open_engine(encoder, 1)(images)
    assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()
    if engine == "tensorflow":
        assert encoder.engine == "folded"
        assert not np.allclose(found, expected, rtol=1e-5, atol=0)
    after = np.asarray(model(images, training=False)).mean((1, 2))
    assert np.array_equal(after, expected)


def test_bfloat16_of_a_keras_2_model_is_refused_by_tensorflow():
    old = tf_keras.Sequential([tf_keras.layers.InputLayer((8, 8, 3)), tf_keras.layers.Conv2D(2, 3)])
    with pytest.raises(InputError, match="bfloat16"):
        build(EncoderSpec(model=old, folder=".", engine="tensorflow", precision="bfloat16"))
