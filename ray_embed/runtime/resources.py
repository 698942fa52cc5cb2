# SPDX-License-Identifier: Apache-2.0
"""Choose the resources of each actor, and count how many actors fit on nodes."""

from collections.abc import Iterable
from dataclasses import dataclass

from ray_embed.config import RunConfig
from ray_embed.errors import InputError
from ray_embed.options import CPU_BATCH_SIZE, GPU_BATCH_SIZE, MAX_CPU_THREADS
from ray_embed.runtime.nodes import Node


@dataclass(frozen=True)
class Resources:
    """The resources of each actor."""

    cpus: int
    gpus: float

    @property
    def batch_size(self) -> int:
        """The default batch size: as many images as fit into a core's cache, or fill a GPU."""
        return GPU_BATCH_SIZE if self.gpus else CPU_BATCH_SIZE

    def count_on(self, nodes: Iterable[Node]) -> int:
        """Return how many actors fit on nodes, if nothing else runs there."""
        return sum(
            min(node.cpus // self.cpus, _slots(node.gpus, self.gpus))
            if self.gpus
            else node.cpus // self.cpus
            for node in nodes
        )

    def __str__(self) -> str:
        return f"{self.cpus} CPU and {self.gpus:g} GPU"


def choose_threads(asked: int | None, cores: int) -> int:
    """Return the threads of an actor without a GPU: as requested, or as many as suit the cores."""
    return asked or min(MAX_CPU_THREADS, cores)


def choose_resources(config: RunConfig, nodes: list[Node], asked: int | None) -> Resources:
    """Return each actor's resources: as requested, or a GPU with its cores, or a few cores.

    The number of threads per actor never depends on the number of actors, so neither do the
    features.

    Args:
        config: the options of the run.
        nodes: the nodes of the cluster.
        asked: the number of threads per actor, if it is fixed.

    Returns:
        the resources. Possibly, no node has them.

    Raises:
        InputError: Ray cannot share GPUs in this way.
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
        # Once a node with a GPU joins, it determines the number of cores.
        return Resources(asked or 1, share)
    return Resources(choose_threads(asked, min(cores, default=1)), 0.0)


def _slots(gpus: float, share: float) -> int:
    """Return how many actors fit on a node's GPUs. A share below 1 lies within one GPU."""
    return int(gpus) * int(1 / share) if share <= 1 else int(gpus // share)
