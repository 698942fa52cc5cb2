# SPDX-License-Identifier: Apache-2.0
"""What each actor gets, and how many fit on which nodes."""

from collections.abc import Iterable
from dataclasses import dataclass

from ray_embed.config import RunConfig
from ray_embed.errors import InputError
from ray_embed.options import CPU_BATCH_SIZE, GPU_BATCH_SIZE, MAX_CPU_THREADS
from ray_embed.runtime.nodes import Node


@dataclass(frozen=True)
class Resources:
    """What each actor gets."""

    cpus: int
    gpus: float

    @property
    def batch_size(self) -> int:
        """The usual number of images a batch: what a core's cache holds, or what fills a GPU."""
        return GPU_BATCH_SIZE if self.gpus else CPU_BATCH_SIZE

    def fit(self, nodes: Iterable[Node]) -> int:
        """How many actors the nodes hold, whoever else may be there."""
        return sum(
            min(node.cpus // self.cpus, _slots(node.gpus, self.gpus))
            if self.gpus
            else node.cpus // self.cpus
            for node in nodes
        )

    def __str__(self) -> str:
        return f"{self.cpus} CPU and {self.gpus:g} GPU"


def threads(asked: int | None, cores: int) -> int:
    """Give the threads of an actor without a GPU: what was asked, else a function of the cores."""
    return asked or min(MAX_CPU_THREADS, cores)


def each(config: RunConfig, nodes: list[Node], asked: int | None) -> Resources:
    """Give each actor what was asked, else a GPU and its part of the cores, else a few cores.

    The threads of an actor never depend on the number of actors, so that the features do not.

    Args:
        config: what is asked for.
        nodes: those that are there.
        asked: the threads of an actor, where they are given.

    Returns:
        What each gets; it may be that no node has it.

    Raises:
        InputError: Ray does not give out GPUs like this.
    """
    share = config.gpus_per_actor
    if share is not None and share > 1 and share != int(share):
        raise InputError(f"--gpus-per-actor {share:g}: give a part of one, or a whole number")
    if share != 0 and any(node.gpus for node in nodes):
        share = share or 1.0
        slots = [(node.cpus, _slots(node.gpus, share)) for node in nodes]
        parts = [cpus // count for cpus, count in slots if count]
        return Resources(asked or max(1, min(parts, default=1)), share)
    cores = [node.cpus for node in nodes if node.cpus]
    if share:
        # The node that has one decides, once it is there.
        return Resources(asked or 1, share)
    return Resources(threads(asked, min(cores, default=1)), 0.0)


def _slots(gpus: float, share: float) -> int:
    """How many actors a node's GPUs hold: a part of a GPU lies within one."""
    return int(gpus) * int(1 / share) if share <= 1 else int(gpus // share)
