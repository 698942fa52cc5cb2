# SPDX-License-Identifier: Apache-2.0
"""XLA: compile the folded graph for a GPU. On a CPU it is slower than the folded graph."""

from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.engines.folded import import_graph, open_function
from ray_embed.encoders.spec import Encoder


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    import tensorflow as tf

    return open_function(tf.function(import_graph(encoder), jit_compile=True, autograph=False))


ENGINE = Engine(
    name="xla",
    option="tensorflow",
    open=_open,
    needs_graph=True,
    decodes_files=False,
    devices=("gpu",),
)
