# SPDX-License-Identifier: Apache-2.0
"""The nodes of the cluster: who is there, who is going, who has died, and whether more can come.

Ray has no public calls for much of this, so all that is private of it is used here and nowhere
else; where another version of Ray has it not, what it would have told counts as unknown.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ASK_SECONDS = 5.0
# An autoscaler looks at the demand every five seconds; one that has just been started, later.
_PATIENCE = 30.0
# So many looks of an old autoscaler at a demand, for which it starts nothing, are no accident.
_LOOKS = 3


@dataclass(frozen=True)
class Node:
    """A node, by its id, and what it has in all."""

    id: str
    cpus: int
    gpus: float


def alive() -> list[Node]:
    """Give the nodes on which something can be started: those that are there, and stay."""
    going = draining()
    return [
        Node(node["NodeID"], int(node["Resources"].get("CPU", 0)), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in going
    ]


def this_one() -> str:
    """Give the id of the node that this process works on."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def on_this_one() -> NodeAffinitySchedulingStrategy:
    """Have an actor started on the node of this process, without which the run ends anyway."""
    return NodeAffinitySchedulingStrategy(this_one(), soft=False)


def draining() -> frozenset[str]:
    """Give the ids of the nodes that are to be taken away, on which nothing new is started."""
    with contextlib.suppress(Exception):
        # Nothing else tells it: their actors get no signal, and `ray.nodes` does not say so.
        return frozenset(_state().get_draining_nodes())
    return frozenset()


def is_placed(actor: Any) -> bool:
    """Whether an actor that is being started has found room."""
    with contextlib.suppress(Exception):
        # The public table of actors needs the dashboard. This one names a node also for those that
        # only queue there.
        return bool(_state().actor_table(actor._actor_id.hex())["Pid"])
    return True


class Loss(Enum):
    """What an actor has died of, as far as that is not for its work."""

    PROCESS = "its process ended"
    NODE = "its node died"
    TAKEN = "its node was taken away, as had been said"


def loss(error: RayActorError) -> Loss:
    """Tell what an actor has died of."""
    if error.preempted:
        return Loss.TAKEN
    with contextlib.suppress(Exception):
        # The exception was made of this, but keeps only the text of it.
        found = _state().actor_table(error.actor_id)
        if not found["DeathCause"].actor_died_error_context.HasField("node_death_info"):
            return Loss.PROCESS
        return Loss.TAKEN if _was_draining(found["Address"]["NodeID"]) else Loss.NODE
    return Loss.NODE if "its node has died" in str(error) else Loss.PROCESS


def _was_draining(node: str) -> bool:
    """Whether a node that has died was being drained, though its time was not up yet."""
    with contextlib.suppress(Exception):
        from ray.core.generated.gcs_pb2 import NodeSnapshot

        # Ray calls a node preempted only where it has died after its time.
        known = ray._private.worker.global_worker.gcs_client.get_all_node_info()
        for id_, info in known.items():
            if id_.hex() == node:
                return bool(info.state_snapshot.state == NodeSnapshot.DRAINING)
    return False


class Growth(Enum):
    """Whether the cluster can get a node that has what an actor asks for."""

    NO_AUTOSCALER = "nobody starts nodes"
    NEVER = "its autoscaler has no such nodes"
    MAYBE = "its autoscaler has not said that it cannot"
    UNKNOWN = "none has been heard of yet"


class Autoscaler:
    """What the cluster's autoscaler, if there is one, says of a demand that waits for a node.

    It is asked, not its configuration read: that is known on its own machine alone. So an actor
    with this demand must be waiting, and it may take some seconds until it has seen that.

    Args:
        demand: what the actor asks for, by Ray's names.
    """

    def __init__(self, demand: dict[str, float]) -> None:
        self._demand = {name: count for name, count in demand.items() if count}
        self._began = time.monotonic()
        self._looks: set[float] = set()

    def growth(self) -> Growth:
        """Ask it; what is not told for long counts as that there is none."""
        found = self._second() or self._first() or Growth.UNKNOWN
        if found is Growth.UNKNOWN and time.monotonic() - self._began > _PATIENCE:
            return Growth.NO_AUTOSCALER
        return found

    def _second(self) -> Growth | None:
        """Ask the autoscaler of the second kind, which `ray up` and KubeRay use."""
        with contextlib.suppress(Exception):
            from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

            client = ray._private.worker.global_worker.gcs_client
            told = client.get_cluster_status(timeout_s=_ASK_SECONDS)
            reply = GetClusterStatusReply.FromString(told)
            state, cluster = reply.autoscaling_state, reply.cluster_resource_state
            if not state.autoscaler_state_version:
                return None
            never = sum(map(self._is_demand, state.infeasible_resource_requests))
            waiting = sum(
                pending.count * self._is_demand(pending.request)
                for pending in cluster.pending_resource_requests
            )
            # Of many that wait, those beyond what it may start are called infeasible too.
            return Growth.NEVER if never and never >= waiting else Growth.MAYBE
        return None

    def _is_demand(self, request: Any) -> bool:
        return self._is_same(dict(request.resources_bundle))

    def _is_same(self, asked: Mapping[str, float]) -> bool:
        # Ray counts in ten-thousandths.
        return asked.keys() == self._demand.keys() and all(
            abs(asked[name] - count) < 1e-3 for name, count in self._demand.items()
        )

    def _first(self) -> Growth | None:
        """Ask the autoscaler of the first kind, which tells what it does, not what it cannot do."""
        with contextlib.suppress(Exception):
            from ray.experimental.internal_kv import _internal_kv_get

            status = json.loads(_internal_kv_get(b"__autoscaling_status"))
            report = status["autoscaler_report"]
            kinds = report["active_nodes"]
            if kinds and all(kind.startswith("node_") for kind in kinds):
                # It names each node a kind of its own where it only looks on.
                return Growth.NO_AUTOSCALER
            availability = report["node_availability_summary"]["node_availabilities"].values()
            starting = report["pending_launches"] or report["pending_nodes"]
            if starting or not all(kind["is_available"] for kind in availability):
                return Growth.MAYBE
            demands = status["load_metrics_report"]["resource_demand"]
            if any(self._is_same(demand) for demand, _ in demands):
                self._looks.add(status["time"])
            return Growth.NEVER if len(self._looks) >= _LOOKS else Growth.MAYBE
        return None


def _state() -> Any:
    from ray._private.state import state

    return state
