# SPDX-License-Identifier: Apache-2.0
"""A module as many are published: nothing in it is registered with Keras.

Tests copy this file into the folder that the command is started in.
"""

from subprocess import run  # noqa: F401 - what a module imports is not the module's own

import keras
import tf_keras
from keras.layers import Layer

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}


class Patches(Layer):
    """A custom layer with an argument."""

    def __init__(self, size=2, **options):
        super().__init__(**options)
        self.size = size

    def call(self, images):
        return images[:, :: self.size, :: self.size]

    def get_config(self):
        return {**super().get_config(), "size": self.size}


class Patches2(tf_keras.layers.Layer):
    """The same for tf_keras."""

    def __init__(self, size=2, **options):
        super().__init__(**options)
        self.size = size

    def call(self, images):
        return images[:, :: self.size, :: self.size]

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def bent(x):
    """An activation, of either Keras."""
    return x * x - 0.5 * x


def relu(x):
    """No activation: a helper that is called as one of Keras' own."""
    raise AssertionError("Keras has its own relu")


class Halves(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None, **options):
        return keras.ops.full(shape, 0.5, dtype)


class Halves2(tf_keras.initializers.Initializer):
    def __call__(self, shape, dtype=None, **options):
        return tf_keras.backend.constant(0.5, dtype, shape)


class Small(keras.regularizers.Regularizer):
    def __call__(self, weights):
        return keras.ops.sum(weights * weights)

    def get_config(self):
        return {}


class Small2(tf_keras.regularizers.Regularizer):
    def __call__(self, weights):
        return tf_keras.backend.sum(weights * weights)

    def get_config(self):
        return {}


def far(expected, found):
    """A loss."""
    return (expected - found) ** 2


class Wrapped(keras.Model):
    """A custom model around another."""

    def __init__(self, inner, **options):
        super().__init__(**options)
        self.inner = inner

    def call(self, images):
        return self.inner(images)

    def get_config(self):
        return {"inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["inner"]))


def encoder(library="keras"):
    """A model that holds all of these."""
    k = LIBRARIES[library]
    layer, start, weight = {
        "keras": (Patches, Halves, Small),
        "tf_keras": (Patches2, Halves2, Small2),
    }[library]
    image = k.Input((16, 16, 3))
    x = layer(2)(image)
    x = k.layers.Conv2D(4, 3, activation=bent, bias_initializer=start())(x)
    x = k.layers.Conv2D(4, 3, activation="relu", kernel_regularizer=weight())(x)
    return k.Model(image, x, name="encoder")


def left_behind(path="marker", **options):
    """A function that no file may call."""
    open(path, "w").close()
