# SPDX-License-Identifier: Apache-2.0
"""Blocks and pieces of a merge, done by actors on other machines."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from ray_embed.runtime.actors import ActorDiedError, result

Item = TypeVar("Item")
Result = TypeVar("Result")

# One is read while the other one is written.
_ITEMS_AN_ACTOR = 2


def by_others(
    others: list[Any], function: Callable[[Item], Result], items: Iterable[Item], /
) -> Iterator[Result]:
    """Give a function's result for each item, in order, computed by extractors.

    What an actor that is gone was to do is done here.

    Args:
        others: the extractors' actors.
        function: what to do; it is sent once.
        items: what with; a few for each actor are taken ahead.

    Raises:
        RunError: Ray has gone. Also whatever the function raises.
    """
    sent = ray.put(function)
    waiting: deque[tuple[Item, Any]] = deque()

    def taken() -> Result:
        item, reference = waiting.popleft()
        try:
            found: Result = result(reference)
        except ActorDiedError:
            found = function(item)
        return found

    for item, other in zip(items, itertools.cycle(others), strict=False):
        waiting.append((item, other.call.remote(sent, item)))
        if len(waiting) > _ITEMS_AN_ACTOR * len(others):
            yield taken()
    while waiting:
        yield taken()
