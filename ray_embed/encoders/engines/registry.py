# SPDX-License-Identifier: Apache-2.0
"""Find and open the engine that was chosen for an encoder."""

from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.frameworks.registry import get_framework
from ray_embed.encoders.spec import Encoder


def runs_graph(encoder: Encoder) -> bool:
    """Return whether the encoder's engine runs its graph instead of the Keras model."""
    return _get_engine(encoder).needs_graph


def open_engine(encoder: Encoder, threads: int) -> OpenEngine:
    """Open the engine that was chosen for an encoder.

    Args:
        encoder: the encoder.
        threads: the number of threads, for engines with their own thread pool.
    """
    return _get_engine(encoder).open(encoder, threads)


def name_graph_file(encoder: Encoder) -> str:
    """Return the name of the file for the encoder's graph in the run folder."""
    return _get_engine(encoder).graph_file or get_framework(encoder.framework).graph_file


def _get_engine(encoder: Encoder) -> Engine:
    engines = get_framework(encoder.framework).engines
    return next(engine for engine in engines if engine.name == encoder.engine)
