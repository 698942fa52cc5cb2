# SPDX-License-Identifier: Apache-2.0
"""A user's encoders for the baseline with random weights, and a dataset."""

import keras
import numpy as np
import tensorflow as tf
from my_encoders import SHAPE, filled


def nested():
    """A trained model with another one, a Normalization and a Lambda inside."""
    image = keras.Input(SHAPE)
    inner = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(4, 3)], name="inner")
    normalization = keras.layers.Normalization()
    x = keras.layers.Lambda(lambda pixels: pixels * 2)(normalization(image))
    model = filled(keras.Model(image, keras.layers.Conv2D(5, 3, name="late")(inner(x))))
    # Its mean, variance and count.
    normalization.adapt(np.random.default_rng(0).uniform(3, 9, (8, *SHAPE)))
    return model


class Unsaid(keras.layers.Layer):
    """A layer that says nothing of its arguments, so that it cannot be cloned."""

    def __init__(self, activation_of):
        super().__init__()
        self.inner = keras.layers.Conv2D(6, 3, activation=activation_of())

    def call(self, images):
        return self.inner(images)


def unsaid(trained=False):
    image = keras.Input(SHAPE)
    model = keras.Model(image, Unsaid(lambda: tf.nn.relu)(image))
    return filled(model) if trained else model


def dataset(count, seed):
    """Pictures of two labels, of shape (N, 16, 16, 3) float32."""
    images = np.random.default_rng(seed).random((count, *SHAPE), np.float32)
    keys = [f"{seed}/{at}.png" for at in range(count)]
    return tf.data.Dataset.from_tensor_slices((images, [at % 2 for at in range(count)], keys))
