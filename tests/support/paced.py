# SPDX-License-Identifier: Apache-2.0
"""An encoder that takes time, as a GPU would, and logs where it ran.

A batch takes PACE seconds, until the file PACE_END exists. PACE_LOG is a file that gets a line per
batch: time, node, CUDA_VISIBLE_DEVICES, process, and a digest of the pixels.

If PACE_DEADLY names a file, a white picture ends the process, and the file gets a byte. The
PACE_DEADLY_NODE-th time, it ends the node too.
"""

import hashlib
import os
import signal
import time

import keras
import numpy as np
import ray
import tensorflow as tf


class Paced(keras.Model):
    def call(self, images, training=None):
        # NumPy cannot be traced into a graph, so the model is called as it is.
        pixels = np.asarray(images)
        if not os.path.exists(os.environ.get("PACE_END", "")):
            time.sleep(float(os.environ.get("PACE", 0)))
        if "PACE_LOG" in os.environ and ray.is_initialized() and pixels.any():
            if "PACE_DEADLY" in os.environ and (pixels == 1).all((1, 2, 3)).any():
                die(os.environ["PACE_DEADLY"], int(os.environ["PACE_DEADLY_NODE"]))
            tell(os.environ["PACE_LOG"], hashlib.sha256(pixels.tobytes()).hexdigest()[:16])
        return tf.constant(np.sort(pixels, axis=1)[:, ::5])


def tell(log, what):
    node = ray.get_runtime_context().get_node_id()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    with open(log, "a") as file:
        file.write(f"{time.time()} {node} {gpus or '-'} {os.getpid()} {what}\n")


def die(log, with_node):
    with open(log, "ab") as file:
        file.write(b".")
        last = file.tell() == with_node
    if last:
        # The parent is the raylet of the node.
        os.kill(os.getppid(), signal.SIGKILL)
    os._exit(1)


def dataset():
    pixels = np.random.default_rng(4).random((240, 16, 16, 3), np.float32)
    return tf.data.Dataset.from_tensor_slices((pixels, np.arange(240) % 7))


def encoder():
    model = Paced()
    model(np.zeros((1, 16, 16, 3), np.float32))
    return model
