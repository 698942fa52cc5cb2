# SPDX-License-Identifier: Apache-2.0
"""An encoder that takes its time, as a GPU would, and tells where it was when it worked.

PACE is how many seconds a batch takes, until the file PACE_END is there; PACE_LOG the file that a
line a batch is added to: when it was done, node, CUDA_VISIBLE_DEVICES, process, and what it was.

Where PACE_DEADLY names a file, a white picture ends the process, and when that has happened so
often as PACE_DEADLY_NODE says, its node with it; the file gets a byte each time.
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
        # Nobody can make a graph of this, so that it is called as it is.
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
        # Its parent is its node's raylet.
        os.kill(os.getppid(), signal.SIGKILL)
    os._exit(1)


def dataset():
    pixels = np.random.default_rng(4).random((240, 16, 16, 3), np.float32)
    return tf.data.Dataset.from_tensor_slices((pixels, np.arange(240) % 7))


def encoder():
    model = Paced()
    model(np.zeros((1, 16, 16, 3), np.float32))
    return model
