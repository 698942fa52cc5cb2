# SPDX-License-Identifier: Apache-2.0
"""The actor pool: a fixed number of actors, or as many as fit on the nodes."""

from collections.abc import Callable
from typing import Any

from ray_embed.core.console import Reminder
from ray_embed.runtime import capacity, nodes
from ray_embed.runtime.actors import Worker
from ray_embed.runtime.resources import Resources

# Seconds after which an actor that has not started is reported as waiting.
_PATIENCE_SECONDS = 10.0


class ActorPool:
    """The actors of a session.

    Actors are submitted even if there are no resources for them yet, so that the autoscaler sees
    the demand.

    Args:
        start: function that starts an actor without waiting for it.
        resources: the resources of each actor.
        size: the number of actors; None for as many as fit, including on nodes that join later.
    """

    def __init__(self, start: Callable[[], Any], resources: Resources, size: int | None) -> None:
        self._start, self._resources, self._size = start, resources, size
        self._reminder = Reminder(_PATIENCE_SECONDS)
        # Start the first actor immediately, because importing TensorFlow takes seconds.
        self.workers = [Worker(start)]

    @property
    def first(self) -> Worker:
        """An actor for work that needs only one, preferably one that has started."""
        return next((worker for worker in self.workers if worker.node), self.workers[0])

    def fill(self, useful: int | None) -> list[Worker]:
        """Start missing actors, report waiting actors, and return all actors.

        Args:
            useful: the number of actors that there is work for; None if unknown.
        """
        count = self._size or self._resources.count_on(nodes.list_nodes())
        if useful is not None:
            count = min(count, useful)
        while len(self.workers) < count:
            self.workers.append(Worker(self._start))
        self.report_waiting()
        return self.workers

    def dismiss_waiting(self) -> None:
        """Stop the actors that have not started. At least one actor is kept."""
        kept = [worker for worker in self.workers if worker.node] or self.workers[:1]
        for worker in self.workers:
            if worker not in kept:
                worker.dismiss()
        self.workers = kept

    def report_waiting(self) -> None:
        """Report actors that wait for resources: once, or repeatedly while no actor is running."""
        starting = [worker for worker in self.workers if worker.is_starting]
        none_runs = not any(worker.node for worker in self.workers)
        if not starting:
            self._reminder = Reminder(_PATIENCE_SECONDS)
        elif self._reminder.is_due(again=none_runs):
            waiting = sum(not nodes.is_placed(worker.actor) for worker in starting)
            if waiting:
                cluster = capacity.describe_nodes(nodes.list_nodes())
                self._reminder.say(
                    f"{'waiting' if none_runs else f'{waiting} more actors wait'} for room: "
                    f"{len(self.workers) - waiting} of {len(self.workers)} actors are placed, each "
                    f"asks for {self._resources}, and the cluster has {cluster}"
                )
