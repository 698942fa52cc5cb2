# SPDX-License-Identifier: Apache-2.0
"""An encoder compiled by OpenVINO for the processor, written without ray_embed.

The graph is the Keras model with global average pooling, its variables folded to constants; it is
computed in float32, either one batch on all threads or as many batches side by side as there are
threads. ray-embed does the latter on a processor, so that the other sides of the benchmarks lack
nothing that it has.
"""

from __future__ import annotations

import importlib
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Encode = Callable[[np.ndarray], np.ndarray]
BATCH = 32  # of the encoders of other libraries' jobs


def open_encoder(model: str, stored: int, threads: int) -> Encode:
    """Return the function from any number of images, (N, stored, stored, 3) uint8, to features."""
    encode = compile_model(convert(model, BATCH, stored), threads)
    return lambda images: encode_padded(encode, images)


def encode_padded(encode: Encode, images: np.ndarray) -> np.ndarray:
    """Encode images with an encoder that takes `BATCH` images at a time."""
    padded = np.zeros((-(-len(images) // BATCH) * BATCH, *images.shape[1:]), images.dtype)
    padded[: len(images)] = images
    batches = [encode(padded[at : at + BATCH]) for at in range(0, len(padded), BATCH)]
    return np.concatenate(batches)[: len(images)]


def convert(model: str, batch: int, stored: int | None = None) -> Any:
    """Build `module:callable` and convert it to an OpenVINO model.

    Args:
        model: gives a Keras model that takes (N, H, W, 3) float32 in [0, 1].
        batch: the one batch size it is to take.
        stored: where given, the converted model takes uint8 images (batch, stored, stored, 3) and
            resizes and scales them itself, as `tf.image.resize` does.
    """
    # It reports to its makers through this package, and does without it where it is not there.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import keras
    import openvino
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    module, _, name = model.partition(":")
    encoder = getattr(importlib.import_module(module), name)()
    height, width = encoder.input_shape[1:3]
    pool = keras.layers.GlobalAveragePooling2D()

    @tf.function(autograph=False)
    def encode(images: Any) -> Any:
        if stored is not None:
            images = tf.image.resize(images, (height, width)) / 255.0
        features = encoder(images, training=False)
        return pool(features) if features.shape.rank == 4 else features

    sides, kind = ((height, width), tf.float32) if stored is None else ((stored,) * 2, tf.uint8)
    traced = encode.get_concrete_function(tf.TensorSpec((batch, *sides, 3), kind))
    frozen = convert_variables_to_constants_v2(traced)
    converted = openvino.convert_model(frozen.graph.as_graph_def())
    converted.reshape([batch, *sides, 3])
    return converted


def compile_model(converted: Any, threads: int, side_by_side: bool = False) -> Encode:
    """Give the function from a batch of images to features (batch, D) float32.

    Args:
        converted: what :func:`convert` gave.
        threads: the number of threads it computes on.
        side_by_side: a thread a batch, for calling it from several threads at once; else all of
            them share a batch (the hint LATENCY).
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    together = {"PERFORMANCE_HINT": "LATENCY"}
    apart = {"NUM_STREAMS": threads, "ENABLE_CPU_PINNING": False}
    options = {
        **(apart if side_by_side else together),
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(converted, "CPU", options)
    output = compiled.output(0)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(threads):
        requests.put(compiled.create_infer_request())

    def encode(images: np.ndarray) -> np.ndarray:
        request = requests.get()
        try:
            return request.infer({0: images}, share_inputs=True)[output].copy()
        finally:
            requests.put(request)

    return encode
