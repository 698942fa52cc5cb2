# SPDX-License-Identifier: Apache-2.0
"""Start TensorFlow: import it, and set its threads, memory and precision before its first use."""

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
    """Import TensorFlow and configure it, which is possible only before its first use.

    Args:
        threads: the number of threads, or None for TensorFlow's default.
        folder: the folder that the command was started in; it becomes the working folder, and the
            user's modules are imported from it.
    """
    os.environ.setdefault(_LEVEL, "3")
    if Path(folder).is_dir():
        # The user's code may use relative paths, and Ray may have been started elsewhere.
        os.chdir(folder)
    user_code.add_to_path(folder)
    with user_code.hide_modules("pandas", "sklearn"), quiet_start():
        # Keras imports both if it can, for training on tables: a third of the import time.
        import tensorflow as tf

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    # TensorFloat-32 rounds the factors of float32 products to 10 bits on GPUs; only --precision
    # may lower the precision.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for gpu in tf.config.list_physical_devices("GPU"):
        # Otherwise each of the actors that share a GPU would take all of its memory.
        tf.config.experimental.set_memory_growth(gpu, True)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Hide what TensorFlow and TensorBoard print while they start, unless the start fails.

    TensorFlow's libraries print to the file descriptor before they read the log level. With a log
    level below 3 nothing is hidden.
    """
    if sys.stderr is None or "tensorflow" in sys.modules or os.environ.get(_LEVEL, "3") != "3":
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as hidden:
        saved = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            hidden.seek(0)
            os.write(saved, hidden.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


@contextlib.contextmanager
def quiet_keras() -> Iterator[None]:
    """Hide warnings of TensorFlow and Keras about a model that is inspected, not trained."""
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
