# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that Keras 3 has saved without the layers in lists are named as such."""

from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras

from ray_embed.encoders.weights.load import load_weights
from ray_embed.errors import InputError


def make(k: Any, filters: int = 3, head: bool = True, lists: bool = True) -> Any:
    class Block(k.layers.Layer):
        def __init__(self):
            super().__init__()
            self.convs = [k.layers.Conv2D(filters, 1) for _ in range(2)]
            self.norm = k.layers.BatchNormalization()

        def call(self, x):
            for conv in self.convs:
                x = conv(x)
            return self.norm(x)

    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.stem = k.Sequential([k.layers.Conv2D(filters, 1)]) if head else None
            self.blocks = [Block() for _ in range(3)] if lists else []
            self.heads = {"a": k.layers.Dense(2)} if lists else {}

        def call(self, x):
            for layer in ([self.stem] if head else []) + list(self.blocks):
                x = layer(x)
            return self.heads["a"](x) if lists else x

    model = Net()
    model(tf.zeros((1, 4, 4, filters)))
    return model


@pytest.mark.parametrize("target", [keras, tf_keras])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("head", [True, False])
def test_layers_in_lists(tmp_path: Path, target: Any, wrapped: bool, head: bool) -> None:
    model = make(keras, head=head)
    checkpoint = tf.train.Checkpoint(model=model) if wrapped else tf.train.Checkpoint(model)
    prefix = checkpoint.save(str(tmp_path / "ckpt"))
    with pytest.raises(InputError) as caught:
        load_weights(make(target, head=head), prefix)
    message = str(caught.value)
    count = 2 if head else 0
    assert f"it holds {count} of the model's {count + 3 * 8 + 2} variables" in message
    assert ".blocks" in message
    assert "save_weights('encoder.weights.h5')" in message
    # The way that it names works.
    model.save_weights(tmp_path / "encoder.weights.h5")
    if target is keras:
        load_weights(make(keras, head=head), str(tmp_path / "encoder.weights.h5"))


def test_with_an_optimizer_and_a_trained_model(tmp_path: Path) -> None:
    model = make(keras)
    model.compile("adam", "mse")
    model.fit(tf.zeros((2, 4, 4, 3)), tf.zeros((2, 4, 4, 2)), verbose=0)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, step=tf.Variable(1))
    prefix = checkpoint.save(str(tmp_path / "ckpt"))
    with pytest.raises(InputError, match="it holds 2 of the model's 28 variables"):
        load_weights(make(keras), prefix)


@pytest.mark.parametrize(
    "saved",
    [
        lambda: make(keras, filters=5),
        lambda: keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(7, 1)]),
        lambda: make(tf_keras, filters=5),
    ],
)
def test_checkpoints_of_other_models_are_not_mistaken_for_it(tmp_path: Path, saved: Any) -> None:
    prefix = tf.train.Checkpoint(model=saved()).save(str(tmp_path / "ckpt"))
    with pytest.raises(InputError) as caught:
        load_weights(make(keras), prefix)
    assert "in lists" not in str(caught.value)


def test_complete_checkpoint_of_keras_2_loads(tmp_path: Path) -> None:
    model = make(tf_keras)
    prefix = tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    target = make(keras)
    load_weights(target, prefix)
    assert len(target.weights) == len(model.weights)
