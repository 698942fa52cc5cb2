# SPDX-License-Identifier: Apache-2.0
"""Map a function over items in actors, such as the blocks and tasks of a merge on other nodes."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from ray_embed.runtime.actors import ActorDiedError, get_result

Item = TypeVar("Item")
Result = TypeVar("Result")

# An actor reads one item while it writes another.
_ITEMS_PER_ACTOR = 2


def map_in_actors(
    actors: list[Any], function: Callable[[Item], Result], items: Iterable[Item], /
) -> Iterator[Result]:
    """Yield a function's result for each item, in order, computed by actors.

    If an actor has died, its items are computed in this process.

    Args:
        actors: actors with a method ``call(function, item)``.
        function: the function; it is sent to the cluster once.
        items: its arguments; a few for each actor are submitted ahead.

    Raises:
        RunError: Ray is no longer running. Errors that the function raises are also passed on.
    """
    sent = ray.put(function)
    waiting: deque[tuple[Item, Any]] = deque()

    def wait_for_next() -> Result:
        item, reference = waiting.popleft()
        try:
            result: Result = get_result(reference)
        except ActorDiedError:
            result = function(item)
        return result

    for item, actor in zip(items, itertools.cycle(actors), strict=False):
        waiting.append((item, actor.call.remote(sent, item)))
        if len(waiting) > _ITEMS_PER_ACTOR * len(actors):
            yield wait_for_next()
    while waiting:
        yield wait_for_next()
