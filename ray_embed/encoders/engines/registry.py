# SPDX-License-Identifier: Apache-2.0
"""All engines, in the fixed order in which they are tried."""

from ray_embed.encoders.engines import folded, function, openvino, plain, xla
from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.spec import Encoder

ENGINES = (openvino.ENGINE, xla.ENGINE, folded.ENGINE, function.ENGINE, plain.ENGINE)
_BY_NAME = {engine.name: engine for engine in ENGINES}


def candidates(option: str, gpu: bool) -> tuple[Engine, ...]:
    """Return the engines to try, in their fixed order.

    Args:
        option: the value of ``--engine``.
        gpu: whether TensorFlow has a GPU.
    """
    device = "gpu" if gpu else "cpu"
    if option == "auto":
        return tuple(e for e in ENGINES if device in e.devices and e.is_installed())
    asked = tuple(engine for engine in ENGINES if engine.option == option)
    # If only one engine has this option, it is used on any device.
    return asked if len(asked) == 1 else tuple(e for e in asked if device in e.devices)


def runs_graph(name: str) -> bool:
    """Return whether the engine runs the folded graph instead of the Keras model."""
    return _BY_NAME[name].needs_graph


def open_engine(encoder: Encoder, threads: int) -> OpenEngine:
    """Open the engine that was chosen for an encoder.

    Args:
        encoder: the encoder.
        threads: the number of threads, for engines with their own thread pool.
    """
    return _BY_NAME[encoder.engine].open(encoder, threads)
