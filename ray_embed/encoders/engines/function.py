# SPDX-License-Identifier: Apache-2.0
"""tf.function: call the Keras model inside a traced function, for what cannot be folded."""

from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.engines.plain import open_model
from ray_embed.encoders.spec import Encoder


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    import tensorflow as tf

    return open_model(encoder, lambda encode: tf.function(encode, autograph=False))


ENGINE = Engine(name="function", option="tensorflow", open=_open, needs_graph=False)
