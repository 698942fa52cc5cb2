# SPDX-License-Identifier: Apache-2.0
"""The extractors: as many as are asked for, or as fit on the nodes that there are."""

from collections.abc import Callable
from typing import Any

from ray_embed.core.console import Reminder
from ray_embed.runtime import capacity, nodes
from ray_embed.runtime.actors import Worker
from ray_embed.runtime.resources import Resources

# So long an actor may take to start before it is said what it may wait for.
_PATIENCE = 10.0


class Crew:
    """The extractors of a session.

    Those that find no room wait for it within Ray, so that an autoscaler sees what is asked for.

    Args:
        start: starts an extractor's actor, returning at once.
        each: what it asks for.
        asked: how many of them; None for as many as fit, also on nodes that join later.
    """

    def __init__(self, start: Callable[[], Any], each: Resources, asked: int | None) -> None:
        self._start, self._each, self._asked = start, each, asked
        self._reminder = Reminder(_PATIENCE)
        # Importing TensorFlow takes seconds, so this starts at once.
        self.workers = [Worker(start)]

    @property
    def first(self) -> Worker:
        """One of them for what needs only one; rather one that is there."""
        return next((worker for worker in self.workers if worker.node), self.workers[0])

    def filled(self, useful: int | None) -> list[Worker]:
        """Start those that are missing, and give all; say it where they wait for room.

        Args:
            useful: how many there is work for; None where that is not known.
        """
        count = self._asked or self._each.fit(nodes.alive())
        if useful is not None:
            count = min(count, useful)
        while len(self.workers) < count:
            self.workers.append(Worker(self._start))
        self.say_waiting()
        return self.workers

    def dismiss_waiting(self) -> None:
        """End those that are not there yet, as there is nothing left for them to do.

        One is kept in any case.
        """
        kept = [worker for worker in self.workers if worker.node] or self.workers[:1]
        for worker in self.workers:
            if worker not in kept:
                worker.dismiss()
        self.workers = kept

    def say_waiting(self) -> None:
        """Say it where extractors wait for room: now and then while none is there, else once."""
        missing = [worker for worker in self.workers if worker.is_starting]
        none_here = not any(worker.node for worker in self.workers)
        if not missing:
            self._reminder = Reminder(_PATIENCE)
        elif self._reminder.is_due(again=none_here):
            waiting = sum(not nodes.is_placed(worker.actor) for worker in missing)
            if waiting:
                has = capacity.described(nodes.alive())
                self._reminder.say(
                    f"{'waiting' if none_here else f'{waiting} more actors wait'} for room: "
                    f"{len(self.workers) - waiting} of {len(self.workers)} actors are placed, each "
                    f"asks for {self._each}, and the cluster has {has}"
                )
