# SPDX-License-Identifier: Apache-2.0
"""Provide a threaded, ordered map with bounded lookahead, and limit BLAS to one thread."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Each thread holds some items in memory, so their number must not grow with the machine.
MAX_THREADS = 8

_blas_lock = threading.Lock()
_blas_users = 0
_blas_limits: Any = None


class OrderedMap(Protocol):
    """The signature of the builtin `map` with one iterable."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterator[Result]:
        """Yield the function's result for each item, in order."""


@contextlib.contextmanager
def open_ordered_map(
    threads: int | None = None, max_threads: int = MAX_THREADS
) -> Iterator[OrderedMap]:
    """Yield a `map` that runs on threads; its input may be the output of another one.

    Each call processes at most `threads` items beyond the last result taken from it. If the block
    raises, items that have not started are dropped.

    Args:
        threads: the number of threads. If None, the number of the machine's processors.
        max_threads: upper limit of `threads`, because each thread holds items in memory.
    """
    count = min(threads or os.cpu_count() or 1, max_threads)
    pool = ThreadPoolExecutor(count)

    def map_ordered(
        function: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterator[Result]:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    try:
        yield map_ordered
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def limit_blas_to_one_thread() -> Iterator[None]:
    """Run every NumPy and SciPy product on the thread that calls it.

    Splitting a product over several threads changes how it is rounded. The limit applies to the
    whole process, so the last thread to leave restores the original setting.
    """
    global _blas_users, _blas_limits
    with _blas_lock:
        _blas_users += 1
        if _blas_users == 1:
            # SciPy brings its own BLAS, which threadpoolctl only finds once it is loaded.
            import scipy.linalg  # noqa: F401
            from threadpoolctl import threadpool_limits

            _take_blas_control()
            _blas_limits = threadpool_limits(1, "blas")
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if not _blas_users:
                _take_blas_control()
                _blas_limits.restore_original_limits()


def _take_blas_control() -> None:
    """Let this thread change the setting.

    threadpoolctl 3.8 silently ignores changes from all threads but the first that made one, until
    that thread ends.
    """
    from threadpoolctl import OpenBLASController

    clear = getattr(OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
