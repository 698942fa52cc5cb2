# SPDX-License-Identifier: Apache-2.0
"""The state of cluster nodes (alive or draining), and why an actor died.

If Ray does not provide some information, it is treated as unknown.
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
    """A node: its id, its total CPUs and GPUs, and its memory in bytes, or 0 if it is unknown."""

    id: str
    cpus: int
    gpus: float
    memory: float = 0.0


def list_nodes() -> list[Node]:
    """Return the nodes that can run actors, that is, nodes that are alive and not draining."""
    draining = get_draining_nodes()
    alive = [
        (node["NodeID"], node["Resources"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]
    return [
        Node(
            id=node,
            cpus=int(has.get("CPU", 0)),
            gpus=has.get("GPU", 0),
            memory=has.get("memory", 0.0),
        )
        for node, has in alive
    ]


def may_have_gpus() -> bool:
    """Return whether a Ray that is started on this machine may find GPUs."""
    with contextlib.suppress(Exception):
        return ray_private.count_gpus() > 0
    return True


def get_node_id() -> str:
    """Return the node id of this process, or "" if it is not connected to Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def schedule_on_this_node() -> NodeAffinitySchedulingStrategy:
    """Return the scheduling strategy that pins an actor to this node.

    If this node dies, the run ends anyway.
    """
    return NodeAffinitySchedulingStrategy(get_node_id(), soft=False)


def get_draining_nodes() -> frozenset[str]:
    """Return the ids of the draining nodes, on which nothing new should be started."""
    with contextlib.suppress(Exception):
        return ray_private.list_draining_nodes()
    return frozenset()


def is_placed(actor: Any) -> bool:
    """Return whether a starting actor has been placed on a node."""
    with contextlib.suppress(Exception):
        return ray_private.get_process_id(actor) > 0
    return True


def find_process_id(actor: Any) -> int:
    """Return the process id of an actor on its node, or 0 if it has none or that is unknown."""
    if ray_private.have_processes_died():
        # The question would have no answer.
        return 0
    with contextlib.suppress(Exception):
        return ray_private.get_process_id(actor)
    return 0


class DeathCause(Enum):
    """How an actor died: its process, its node, or preemption."""

    PROCESS = "its process ended"
    NODE = "its node died"
    PREEMPTED = "its node was preempted"


def find_death_cause(error: RayActorError) -> DeathCause:
    """Return why an actor died."""
    if error.preempted:
        return DeathCause.PREEMPTED
    with contextlib.suppress(Exception):
        node = ray_private.find_node_of_death(error.actor_id)
        if node is None:
            return DeathCause.PROCESS
        return DeathCause.PREEMPTED if _was_draining(node) else DeathCause.NODE
    return DeathCause.NODE if "its node has died" in str(error) else DeathCause.PROCESS


def _was_draining(node: str) -> bool:
    with contextlib.suppress(Exception):
        return ray_private.was_draining(node)
    return False
