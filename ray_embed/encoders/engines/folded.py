# SPDX-License-Identifier: Apache-2.0
"""Folded graph: use TensorFlow to run the graph whose variables are folded to constants."""

from typing import Any

from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.spec import Encoder


def import_graph(encoder: Encoder) -> Any:
    """Return the encoder's graph as a TensorFlow function."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(encoder.graph)
    imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    return imported.prune(encoder.input_name, list(encoder.output_names))


def open_function(function: Any) -> OpenEngine:
    """Return an engine that calls a TensorFlow function."""
    import tensorflow as tf

    return OpenEngine(lambda images: [value.numpy() for value in function(tf.constant(images))])


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    return open_function(import_graph(encoder))


ENGINE = Engine(name="folded", option="tensorflow", open=_open, needs_graph=True)
