# SPDX-License-Identifier: Apache-2.0
"""Matrix products whose bits do not depend on the number of processors."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()
_inside = 0
_limited: Any = None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have each product of NumPy and SciPy computed by the thread that asks for it.

    How a product is shared out among threads changes what it is rounded to. The setting is one of
    the whole process, so the last of all threads to leave sets back what the first one found.
    """
    global _inside, _limited
    with _lock:
        _inside += 1
        if _inside == 1:
            # Has a BLAS of its own, which is to be found.
            import scipy.linalg  # noqa: F401
            from threadpoolctl import threadpool_limits

            _take_control()
            _limited = threadpool_limits(1, "blas")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _take_control()
                _limited.restore_original_limits()


def _take_control() -> None:
    """Let this thread change the setting, which threadpoolctl 3.8 leaves to the first that did.

    It ignores all other threads without a word, until that one has ended.
    """
    from threadpoolctl import OpenBLASController

    clear = getattr(OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
