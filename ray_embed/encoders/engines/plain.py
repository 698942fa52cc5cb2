# SPDX-License-Identifier: Apache-2.0
"""Plain call: load the Keras model again and call it eagerly, which works for every encoder."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.features import Encode, encoding_function
from ray_embed.encoders.loaded_model import computing_in_bfloat16, set_weights
from ray_embed.encoders.local_copies import local_copies
from ray_embed.encoders.model_loading import load_model
from ray_embed.encoders.probe_images import blank_batch
from ray_embed.encoders.spec import Encoder


def open_model(encoder: Encoder, wrap: Callable[[Encode], Callable[[Any], Any]]) -> OpenEngine:
    """Load the encoder's model with its weights, and return an engine that calls it.

    Args:
        encoder: the encoder.
        wrap: takes the function from images to features, and returns the function that the engine
            calls.
    """
    import tensorflow as tf

    with local_copies(encoder.spec) as local_spec:
        loaded = load_model(local_spec)
    encode = encoding_function(loaded, encoder.spec, encoder.outputs)
    # A subclassed model has variables only after its first call.
    encode(tf.constant(blank_batch(encoder, 1)))
    set_weights(loaded, encoder.weights)
    call = wrap(encode)
    in_bfloat16 = encoder.spec.precision == "bfloat16"

    def run(images: Array) -> list[Array]:
        with computing_in_bfloat16(loaded) if in_bfloat16 else contextlib.nullcontext():
            return [np.asarray(value) for value in call(tf.constant(images))]

    return OpenEngine(run)


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    return open_model(encoder, lambda encode: encode)


ENGINE = Engine(name="plain", option="tensorflow", open=_open, needs_graph=False)
