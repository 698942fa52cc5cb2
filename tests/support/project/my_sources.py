# SPDX-License-Identifier: Apache-2.0
"""A folder of images as users write datasets: sequences, generators and datasets of TensorFlow.

Tests copy this file into the folder that the command is started in.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


def find_files(folder, unreadable=True):
    """Return the files with their labels; one of them is no image."""
    paths = sorted(Path(folder).rglob("*.png"))
    return [p for p in paths if unreadable or p.read_bytes().startswith(b"\x89PNG")]


def read_pixels(path):
    return np.asarray(keras.utils.load_img(path))


class Sequence:
    """The files as they are."""

    def __init__(self, folder):
        self.paths = find_files(folder)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, position):
        path = self.paths[position]
        return path.read_bytes(), path.parent.name


class Batches(keras.utils.PyDataset):
    """Batches of decoded images."""

    def __init__(self, folder):
        super().__init__()
        self.paths = find_files(folder, unreadable=False)

    def __len__(self):
        return -(-len(self.paths) // 4)

    def __getitem__(self, number):
        paths = self.paths[number * 4 : number * 4 + 4]
        labels = np.array([path.parent.name for path in paths])
        return np.stack([read_pixels(path) for path in paths]), labels


def generate(folder):
    for path in find_files(folder):
        yield {"image": path.read_bytes(), "label": path.parent.name}


def read_with_tensorflow(folder):
    paths = find_files(folder, unreadable=False)
    labels = [path.parent.name for path in paths]
    files = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    images = files.map(lambda path: tf.io.decode_png(tf.io.read_file(path), channels=3))
    return tf.data.Dataset.zip((images, tf.data.Dataset.from_tensor_slices(labels))).batch(5)
