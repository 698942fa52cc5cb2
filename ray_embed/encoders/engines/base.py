# SPDX-License-Identifier: Apache-2.0
"""The interface of an engine, and of an engine opened for one encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_embed.core.arrays import Array
from ray_embed.encoders.spec import Encoder


class EngineError(Exception):
    """An engine cannot run an encoder. The message says why, in one line."""


@dataclass(frozen=True)
class OpenEngine:
    """Runs batches of (B, H, W, C) float32 or (B,) bytes, and returns (B, D) float32 per output.

    `concurrency` is how many batches may run at the same time, each on its own thread.
    """

    run: Callable[[Array], list[Array]]
    concurrency: int = 1

    def __call__(self, images: Array) -> list[Array]:
        """Run a batch."""
        return self.run(images)


def _always() -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A way to run an encoder.

    Attributes:
        name: the name that `run.json` records.
        option: the value of ``--engine`` that selects it, besides ``auto``.
        open: opens the engine for an encoder, or raises EngineError. The integer is the number of
            threads, for engines with their own thread pool.
        needs_graph: whether it runs the folded graph instead of the Keras model.
        convert: makes the encoder's graph, in the format that `open` takes, from the framework's
            own graph, or raises EngineError; None if the framework makes it.
        graph_file: the name of the file in ``encoder/`` for the graph, if it differs from the
            framework's.
        decodes_files: whether it can run an encoder that decodes image files itself.
        lowers_precision: whether it lowers the precision itself, and therefore takes the float32
            graph.
        devices: where ``auto`` may choose it: ``cpu``, ``gpu`` or both.
        is_installed: whether its packages can be imported. It must not import them.
    """

    name: str
    option: str
    open: Callable[[Encoder, int], OpenEngine]
    needs_graph: bool
    convert: Callable[[Encoder, Any], bytes] | None = None
    graph_file: str | None = None
    decodes_files: bool = True
    lowers_precision: bool = False
    devices: tuple[str, ...] = ("cpu", "gpu")
    is_installed: Callable[[], bool] = _always


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
