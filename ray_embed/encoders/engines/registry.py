# SPDX-License-Identifier: Apache-2.0
"""Find the engines to try for an encoder, and open the one that was chosen."""

from collections.abc import Sequence

from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.frameworks.registry import get_framework
from ray_embed.encoders.spec import Encoder

# The option of the engines that need no compilation, whatever the framework.
UNCOMPILED = "uncompiled"


def candidates(engines: Sequence[Engine], option: str, gpu: bool) -> tuple[Engine, ...]:
    """Return the engines to try, in their fixed order.

    Args:
        engines: all engines of a framework.
        option: the value of ``--engine``, or UNCOMPILED.
        gpu: whether the framework has a GPU.
    """
    device = "gpu" if gpu else "cpu"
    if option == UNCOMPILED:
        option = engines[-1].option
    if option == "auto":
        return tuple(e for e in engines if device in e.devices and e.is_installed())
    asked = tuple(engine for engine in engines if engine.option == option)
    # If only one engine has this option, it is used on any device.
    return asked if len(asked) == 1 else tuple(e for e in asked if device in e.devices)


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


def _get_engine(encoder: Encoder) -> Engine:
    engines = get_framework(encoder.framework).engines
    return next(engine for engine in engines if engine.name == encoder.engine)
