# SPDX-License-Identifier: Apache-2.0
"""Import and configure TensorFlow (threads, memory and precision) before its first use."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from ray_embed.core import user_code
from ray_embed.core.garbage import pause_garbage_collection
from ray_embed.core.triton import block_triton

_LOG_LEVEL_VARIABLE = "TF_CPP_MIN_LOG_LEVEL"


def start_tensorflow(threads: int | None, folder: str) -> None:
    """Import TensorFlow and configure it. Must be called before TensorFlow is used.

    Args:
        threads: the number of threads; None for TensorFlow's default.
        folder: the original working directory of the command. It becomes the working directory, and
            user modules are imported from it.
    """
    user_code.enter_folder(folder)
    import_tensorflow()
    configure_tensorflow(threads)


def import_tensorflow() -> None:
    """Import TensorFlow, without its startup messages."""
    os.environ.setdefault(_LOG_LEVEL_VARIABLE, "3")
    if "tensorflow" in sys.modules:
        block_triton()
        return
    with (
        # Keras imports these packages if they are installed, which takes a third of the import
        # time.
        user_code.hide_modules("pandas", "sklearn", "matplotlib"),
        hide_startup_messages(),
        pause_garbage_collection(),
    ):
        import tensorflow  # noqa: F401
    block_triton()


def configure_tensorflow(threads: int | None) -> None:
    """Set the threads, the precision and the memory of TensorFlow; see :func:`start_tensorflow`."""
    import tensorflow as tf

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    # Disable TensorFloat-32, which rounds the inputs of float32 products to 10 bits. Only
    # --precision may reduce precision.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for gpu in tf.config.list_physical_devices("GPU"):
        # Allows several actors to share a GPU.
        tf.config.experimental.set_memory_growth(gpu, True)


@contextlib.contextmanager
def hide_startup_messages() -> Iterator[None]:
    """Hide the startup messages of TensorFlow and TensorBoard, unless startup fails.

    File descriptor 2 is redirected, because native libraries write to it before they read the log
    level. With TF_CPP_MIN_LOG_LEVEL below 3, nothing is hidden.
    """
    if (
        sys.stderr is None
        or "tensorflow" in sys.modules
        or os.environ.get(_LOG_LEVEL_VARIABLE, "3") != "3"
    ):
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
def hide_training_warnings() -> Iterator[None]:
    """Hide TensorFlow and Keras warnings that only matter for training."""
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
