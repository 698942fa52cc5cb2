# SPDX-License-Identifier: Apache-2.0
"""The interface of an engine, and of an engine opened for one encoder."""

from collections.abc import Callable
from dataclasses import dataclass

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
    decodes_files: bool = True
    lowers_precision: bool = False
    devices: tuple[str, ...] = ("cpu", "gpu")
    is_installed: Callable[[], bool] = _always
