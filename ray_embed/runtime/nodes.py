# SPDX-License-Identifier: Apache-2.0
"""The nodes of the cluster: which are alive or draining, and whether an actor died with its node.

What Ray does not tell counts as unknown.
"""

import contextlib
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_embed.runtime import ray_private


@dataclass(frozen=True)
class Node:
    """A node: its id, and its CPUs and GPUs in total."""

    id: str
    cpus: int
    gpus: float


def list_nodes() -> list[Node]:
    """Return the nodes on which actors can be started: alive, and not being drained."""
    draining = draining_nodes()
    return [
        Node(node["NodeID"], int(node["Resources"].get("CPU", 0)), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def this_node_id() -> str:
    """Return the id of the node of this process; empty if it is not connected to Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def schedule_on_this_node() -> NodeAffinitySchedulingStrategy:
    """Return the strategy for an actor on this node, without which the run ends anyway."""
    return NodeAffinitySchedulingStrategy(this_node_id(), soft=False)


def draining_nodes() -> frozenset[str]:
    """Return the ids of the nodes that are to be taken away. Nothing new is started there."""
    with contextlib.suppress(Exception):
        return ray_private.draining_node_ids()
    return frozenset()


def is_placed(actor: Any) -> bool:
    """Return whether an actor that is being started has got its resources on a node."""
    with contextlib.suppress(Exception):
        return ray_private.process_id_of(actor) > 0
    return True


class Loss(Enum):
    """Why an actor died, apart from its work: its own process, its node, or preemption."""

    PROCESS = "its process ended"
    NODE = "its node died"
    PREEMPTED = "its node was taken away after a notice"


def find_loss(error: RayActorError) -> Loss:
    """Return why an actor died."""
    if error.preempted:
        return Loss.PREEMPTED
    with contextlib.suppress(Exception):
        node = ray_private.node_of_death(error.actor_id)
        if node is None:
            return Loss.PROCESS
        return Loss.PREEMPTED if _was_draining(node) else Loss.NODE
    return Loss.NODE if "its node has died" in str(error) else Loss.PROCESS


def _was_draining(node: str) -> bool:
    with contextlib.suppress(Exception):
        return ray_private.was_draining(node)
    return False
