# SPDX-License-Identifier: Apache-2.0
"""Work on several threads whose results come in order, a bounded number of them ahead."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Each thread has some items in memory, which must not grow with the machine.
MOST = 8


class Mapped(Protocol):
    """What the builtin `map` is with one iterable."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterator[Result]:
        """Give the function's result for each item, in order."""


@contextlib.contextmanager
def mapping(threads: int | None = None, most: int = MOST) -> Iterator[Mapped]:
    """Give a `map` that works ahead on threads; one may be fed with the results of another.

    Each is at most `threads` items ahead of what has been taken from it. Leaving with an error
    drops what has not begun.

    Args:
        threads: how many; None for the machine's processors.
        most: how many at most, as each has items in memory.
    """
    count = min(threads or os.cpu_count() or 1, most)
    pool = ThreadPoolExecutor(count)

    def mapped(function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield mapped
    finally:
        pool.shutdown(cancel_futures=True)
