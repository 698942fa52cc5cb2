# SPDX-License-Identifier: Apache-2.0
"""TensorFlow in a process of ours: imported, and its threads and precision set, before its use."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from ray_embed.core import user_code

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def start_tensorflow(threads: int | None, folder: str) -> None:
    """Import TensorFlow and set its threads, which is possible only before its first use.

    Args:
        threads: how many; None leaves them to TensorFlow.
        folder: where the command was started; the user's modules are imported from it.
    """
    os.environ.setdefault(_LEVEL, "3")
    if Path(folder).is_dir():
        # The user's code has relative paths, and Ray may have been started elsewhere.
        os.chdir(folder)
    user_code.add_to_path(folder)
    with user_code.without("pandas", "sklearn"), quiet_start():
        # Keras imports them where they are there, for training on tables: a third of the time.
        import tensorflow as tf

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    # It rounds the factors of float32 products to 10 bits on GPUs; --precision is for asking.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for gpu in tf.config.list_physical_devices("GPU"):
        # Actors that share a GPU would else each take all of its memory.
        tf.config.experimental.set_memory_growth(gpu, True)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Hide what TensorFlow and TensorBoard print while they start, unless that fails.

    TensorFlow's libraries print to the file descriptor before they read the log level. Whoever
    sets a level below 3 sees it all.
    """
    if sys.stderr is None or "tensorflow" in sys.modules or os.environ.get(_LEVEL, "3") != "3":
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as hidden:
        kept = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            hidden.seek(0)
            os.write(kept, hidden.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def quiet_keras() -> Iterator[None]:
    """Hide remarks of TensorFlow and Keras on a model that is only looked at, not trained."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for library in ("keras", "tf_keras", "tensorflow"):
                warnings.filterwarnings("ignore", module=rf"{library}\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
