# SPDX-License-Identifier: Apache-2.0
"""Layers of a user's own, registered when this is imported."""

import keras
import tf_keras


@keras.saving.register_keras_serializable("mine")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return x * 2


@tf_keras.saving.register_keras_serializable("mine2")
class Doubled2(tf_keras.layers.Layer):
    def call(self, x):
        return x * 2


@tf_keras.saving.register_keras_serializable("mine2")
def squared(x):
    return x * x


@keras.saving.register_keras_serializable("mine")
def cubed(x):
    return x * x * x
