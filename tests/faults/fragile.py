# SPDX-License-Identifier: Apache-2.0
"""An encoder that pictures of one colour crash or hang, where FRAGILE=1 is set."""

import ctypes
import os
import time

import keras
import numpy as np
import tensorflow as tf


class Fragile(keras.Model):
    def call(self, images, training=None):
        pixels = np.asarray(images)
        if os.environ.get("FRAGILE") == "1":
            if is_there(pixels, (1, 0, 1)):
                ctypes.string_at(0)  # read where nothing is
            if is_there(pixels, (0, 1, 1)):
                time.sleep(100_000)
        return tf.constant(np.sort(pixels, axis=1)[:, ::5])


def is_there(images, colour):
    return bool((np.abs(images - np.array(colour, np.float32)) < 1e-3).all((1, 2, 3)).any())


def encoder():
    model = Fragile()
    model(np.zeros((1, 16, 16, 3), np.float32))
    return model
