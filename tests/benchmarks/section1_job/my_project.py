# SPDX-License-Identifier: Apache-2.0
"""The user's project: the auto-encoder in Keras 2, and the data to look at.

    model = Auto_Encoder((240, 240, 3))
    model.forward_model.load_weights("DIR/weights_forward/")

    ray-embed run --model my_project:Auto_Encoder --submodel forward_model \
        --model-kwargs '{"input_img_shape": [240, 240, 3]}' --weights DIR/weights_forward \
        --source valid=my_project:dataset \
        --source-kwargs '{"valid": {"folder": "DIR/valid"}}'
"""

from __future__ import annotations

from typing import Any

import tf_keras as keras
from my_data import dataset

__all__ = ["Auto_Encoder", "dataset"]

layers = keras.layers


class Auto_Encoder(keras.Model):  # type: ignore[misc]  # noqa: N801  (as its user named it)
    """A slim convolutional auto-encoder; the features are the output of `forward_model`.

    For pictures of 240x240 they are (N, 15, 15, 1024); height and width have to be multiples of
    16.
    """

    def __init__(self, input_img_shape: tuple[int, int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.forward_model = encoder(input_img_shape)
        self.backward_model = decoder(self.forward_model.output_shape[1:], input_img_shape[-1])

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        features = self.forward_model(inputs, training=training)
        return self.backward_model(features, training=training)


def encoder(input_img_shape: tuple[int, int, int]) -> Any:
    """(N, H, W, C) to (N, H/16, W/16, 1024)."""
    inputs = keras.Input(input_img_shape)
    x = inputs
    for filters in (8, 16, 32, 64):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    outputs = layers.Conv2D(1024, 1, activation="relu")(x)
    return keras.Model(inputs, outputs)


def decoder(feature_shape: tuple[int, int, int], channels: int) -> Any:
    """(N, h, w, 1024) to (N, 16h, 16w, channels), in [0, 1]."""
    inputs = keras.Input(feature_shape)
    x = layers.Conv2D(64, 1, activation="relu")(inputs)
    for filters in (32, 16, 8):
        x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    last = layers.Conv2DTranspose(channels, 3, strides=2, padding="same", activation="sigmoid")
    return keras.Model(inputs, last(x))
