# SPDX-License-Identifier: Apache-2.0
"""Folded graph: use TensorFlow to run the graph whose variables are folded to constants."""

from collections.abc import Sequence
from typing import Any

from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.spec import Encoder


def import_graph(encoder: Encoder) -> Any:
    """Return the encoder's graph as a TensorFlow function."""
    return import_function(encoder.graph or b"", encoder.input_name, encoder.output_names)


def import_function(content: bytes, input_name: str, output_names: Sequence[str]) -> Any:
    """Return a serialized GraphDef as a TensorFlow function."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(content)
    imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    return imported.prune(input_name, list(output_names))


def open_function(function: Any) -> OpenEngine:
    """Return an engine that calls a TensorFlow function."""
    import tensorflow as tf

    return OpenEngine(lambda images: [value.numpy() for value in function(tf.constant(images))])


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    return open_function(import_graph(encoder))


ENGINE = Engine(name="folded", option="tensorflow", open=_open, needs_graph=True)
