# SPDX-License-Identifier: Apache-2.0
"""TensorFlow in a process of ours: imported, and its threads and precision set, before its use."""

import os
from pathlib import Path

from ray_embed import importing


def start_tensorflow(threads: int | None, folder: str) -> None:
    """Import TensorFlow and set its threads, which is possible only before its first use.

    Args:
        threads: how many; None leaves them to TensorFlow.
        folder: where the command was started; the user's modules are imported from it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if Path(folder).is_dir():
        # The user's code has relative paths, and Ray may have been started elsewhere.
        os.chdir(folder)
    importing.add_to_path(folder)
    with importing.without("pandas", "sklearn"):
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
