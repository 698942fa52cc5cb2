# SPDX-License-Identifier: Apache-2.0
"""Keep Python's garbage collector out of the imports of large packages."""

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Collect no garbage in this context, and never examine again what was created in it.

    For imports: they create hundreds of thousands of objects that stay, which the collector would
    examine again and again. That takes a quarter of the time of TensorFlow's import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    # Extension modules complain about objects that are left when Python ends.
    atexit.register(gc.unfreeze)
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
