# SPDX-License-Identifier: Apache-2.0
"""Encoders as users write them: functions, classes and objects, of Keras 3 and of tf_keras.

Tests copy this file into the folder that the command is started in.
"""

import keras
import numpy as np
import tensorflow as tf
import tf_keras

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
SHAPE = (16, 16, 3)


def filled(model, seed=1):
    """Give every weight a value that no initializer gives, the same on every call."""
    random = np.random.default_rng(seed)
    model.set_weights(
        [
            # Variances are positive.
            random.uniform(0.1, 0.6, w.shape)
            if w.ndim == 1
            else random.normal(0, np.prod(w.shape[:-1]) ** -0.5, w.shape)
            for w in model.get_weights()
        ]
    )
    return model


def functional(library="keras", input_shape=SHAPE, seed=1, augment=True):
    """A convolutional encoder with layers that behave otherwise in training."""
    if not isinstance(input_shape, tuple):
        raise TypeError(f"a shape is a tuple, not {input_shape!r}")
    k = LIBRARIES[library]
    image = k.Input(input_shape)
    x = k.layers.RandomFlip()(image) if augment else image
    x = k.layers.Conv2D(6, 3, strides=2, activation="relu", name="first")(x)
    x = k.layers.BatchNormalization(name="norm")(x)
    x = k.layers.Dropout(0.5)(x)
    x = k.layers.Conv2D(8, 3, activation="tanh", name="second")(x)
    return filled(k.Model(image, x), seed)


def sequential(library="keras", seed=1):
    k = LIBRARIES[library]
    layers = [
        k.Input(SHAPE) if library == "keras" else k.layers.InputLayer(SHAPE),
        k.layers.Conv2D(5, 5, name="first"),
        k.layers.Flatten(),
        k.layers.Dense(7, name="code"),
    ]
    return filled(k.Sequential(layers), seed)


def _subclass(k):
    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.stem = k.layers.Conv2D(6, 3, strides=2, name="stem")
            self.blocks = [k.layers.Conv2D(6, 3, name=f"block{i}") for i in range(2)]
            self.norm = k.layers.BatchNormalization(name="norm")
            self.dropout = k.layers.Dropout(0.5)

        def call(self, images, training=None):
            x = self.stem(images)
            for block in self.blocks:
                x = block(x)
            return self.dropout(self.norm(x, training=training), training=training)

    return Net


SubclassedKeras3 = _subclass(keras)
SubclassedTfKeras = _subclass(tf_keras)


def subclassed(library="keras", seed=1):
    """A subclassed model with known weights: they exist only once it has been called."""
    model = {"keras": SubclassedKeras3, "tf_keras": SubclassedTfKeras}[library]()
    model(np.zeros((1, *SHAPE), np.float32))
    return filled(model, seed)


def random_encoder():
    """Other weights on every call."""
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(9, 3)])


class AutoEncoder:
    """An object that holds Keras models: the encoder, and the whole of it with its decoder."""

    def __init__(self, input_img_shape, library="keras", seed=1):
        if not isinstance(input_img_shape, tuple):
            raise TypeError(f"a shape is a tuple, not {input_img_shape!r}")
        k = LIBRARIES[library]
        image = k.Input(input_img_shape)
        x = k.layers.Conv2D(6, 3, strides=2, padding="same", name="down1")(image)
        code = k.layers.Conv2D(8, 3, strides=2, padding="same", name="down2")(x)
        self.forward_model = k.Model(image, code, name="forward_model")
        x = k.layers.Conv2DTranspose(6, 3, strides=2, padding="same", name="up1")(code)
        x = k.layers.Conv2DTranspose(3, 3, strides=2, padding="same", name="up2")(x)
        self.model = filled(k.Model(image, x, name="auto_encoder"), seed)


class SortedChannels(keras.Model):
    """NumPy in `call`: cannot be traced into a graph."""

    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(4, 3)

    def call(self, images):
        return tf.constant(np.sort(self.conv(images).numpy(), axis=-1))


class ByPyFunction(keras.Model):
    """Python within the graph: can be traced, but not be folded into a graph of its own."""

    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(4, 3)

    def call(self, images):
        maps = self.conv(images)
        result = tf.py_function(lambda x: tf.sort(x, axis=-1), [maps], tf.float32)
        result.set_shape(maps.shape)
        return result


def with_numpy(seed=1):
    model = SortedChannels()
    model(np.zeros((1, *SHAPE), np.float32))
    return filled(model, seed)


def with_py_function(seed=1):
    model = ByPyFunction()
    model(np.zeros((1, *SHAPE), np.float32))
    return filled(model, seed)


def reversed_channels(images):
    """As the Caffe-style models of keras.applications want their pixels."""
    return images[..., ::-1] - tf.constant([103.9, 116.8, 123.7])


def by_numpy(images):
    """Preprocessing that cannot be traced."""
    return np.clip(np.asarray(images), 10, 200) / 127.5 - 1


def broken():
    raise RuntimeError("the data set of the week is gone")


def number():
    return 42


not_callable = "text"
