# SPDX-License-Identifier: Apache-2.0
"""Preprocess images before an engine whose graph does not contain ``--preprocess``."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.engines.base import OpenEngine
from ray_embed.encoders.engines.folded import import_function
from ray_embed.encoders.features import load_preprocessing
from ray_embed.encoders.spec import Encoder


def preprocess_before(encoder: Encoder, engine: OpenEngine) -> OpenEngine:
    """Return an engine that preprocesses its images, if the encoder asks for that."""
    if encoder.preprocessing is None and encoder.spec.preprocess is None:
        return engine
    prepare = open_preprocessing(encoder)
    return replace(engine, run=lambda images: engine.run(prepare(images)))


def open_preprocessing(encoder: Encoder) -> Callable[[Array], Array]:
    """Return the function that preprocesses a batch (B, H, W, C) float32.

    Raises:
        InputError: the encoder has no graph of it, and the function cannot be imported.
    """
    import tensorflow as tf

    if (graph := encoder.preprocessing) is not None:
        imported = import_function(graph.content, graph.input_name, graph.output_names)
        return lambda images: np.asarray(imported(tf.constant(images))[0])
    prepare = load_preprocessing(encoder.spec)
    return lambda images: np.asarray(prepare(images))
