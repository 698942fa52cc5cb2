# SPDX-License-Identifier: Apache-2.0
"""Ask the cluster's autoscaler whether it can start a node with an actor's resources."""

import contextlib
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any

from ray_embed.runtime import ray_private

_TIMEOUT_SECONDS = 5.0
# An autoscaler reads the demand every five seconds, but takes longer if it has just started.
_PATIENCE_SECONDS = 30.0
# A legacy autoscaler that has read a demand this often and started nothing cannot meet it.
_READS = 3


class Growth(Enum):
    """Whether the cluster can gain a node with the resources that an actor requests."""

    NO_AUTOSCALER = "the cluster has no autoscaler"
    NEVER = "the autoscaler has no such nodes"
    MAYBE = "the autoscaler has not said that it cannot"
    UNKNOWN = "no autoscaler has answered yet"


class Autoscaler:
    """The autoscaler's answers about one demand.

    The autoscaler's configuration is known only on its own machine, so it must be asked. It answers
    only about pending demands: an actor with this demand must be waiting, and it may take some
    seconds until the autoscaler has read the demand.

    Args:
        demand: the resources that the actor requests, by their names in Ray.
    """

    def __init__(self, demand: dict[str, float]) -> None:
        self._demand = {name: count for name, count in demand.items() if count}
        self._began = time.monotonic()
        self._times_read: set[float] = set()

    def growth(self) -> Growth:
        """Ask the autoscaler. If none answers for a while, assume that there is none."""
        answer = self._ask_current() or self._ask_legacy() or Growth.UNKNOWN
        if answer is Growth.UNKNOWN and time.monotonic() - self._began > _PATIENCE_SECONDS:
            return Growth.NO_AUTOSCALER
        return answer

    def _ask_current(self) -> Growth | None:
        """Ask the current autoscaler, which `ray up` and KubeRay use."""
        with contextlib.suppress(Exception):
            reply = ray_private.cluster_status(_TIMEOUT_SECONDS)
            state, cluster = reply.autoscaling_state, reply.cluster_resource_state
            if not state.autoscaler_state_version:
                return None
            infeasible = sum(map(self._is_demand, state.infeasible_resource_requests))
            waiting = sum(
                pending.count * self._is_demand(pending.request)
                for pending in cluster.pending_resource_requests
            )
            # If many actors wait, it also reports those above its limit as infeasible.
            return Growth.NEVER if infeasible and infeasible >= waiting else Growth.MAYBE
        return None

    def _is_demand(self, request: Any) -> bool:
        return self._equals_demand(dict(request.resources_bundle))

    def _equals_demand(self, asked: Mapping[str, float]) -> bool:
        # Ray counts in ten-thousandths.
        return asked.keys() == self._demand.keys() and all(
            abs(asked[name] - count) < 1e-3 for name, count in self._demand.items()
        )

    def _ask_legacy(self) -> Growth | None:
        """Ask the legacy autoscaler, which reports what it does, but not what it cannot do."""
        with contextlib.suppress(Exception):
            status = ray_private.legacy_autoscaler_status()
            report = status["autoscaler_report"]
            kinds = report["active_nodes"]
            if kinds and all(kind.startswith("node_") for kind in kinds):
                # An autoscaler that only monitors the cluster reports a type for every node.
                return Growth.NO_AUTOSCALER
            availability = report["node_availability_summary"]["node_availabilities"].values()
            starting = report["pending_launches"] or report["pending_nodes"]
            if starting or not all(kind["is_available"] for kind in availability):
                return Growth.MAYBE
            demands = status["load_metrics_report"]["resource_demand"]
            if any(self._equals_demand(demand) for demand, _ in demands):
                self._times_read.add(status["time"])
            return Growth.NEVER if len(self._times_read) >= _READS else Growth.MAYBE
        return None
