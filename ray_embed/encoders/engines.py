# SPDX-License-Identifier: Apache-2.0
"""Engines: ways to run a built encoder on batches of one fixed shape.

`openvino`, `xla` and `folded` run the graph whose variables are constants, `function` calls the
Keras model inside `tf.function`, `plain` calls it as it is.
"""

import contextlib
import importlib.util
import queue
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders import model_loading
from ray_embed.encoders.encoded_images import blank_images
from ray_embed.encoders.graph import function_of
from ray_embed.encoders.local_copies import at_hand
from ray_embed.encoders.spec import Encoder

# As TensorFlow's graphs number the types.
_FLOAT32 = 1


@dataclass(frozen=True)
class Engine:
    """Runs batches (B, H, W, C) float32, or (B,) bytes; gives one (B, D) float32 an output.

    `at_once` batches may be under way side by side, each called from a thread of its own.
    """

    run: Callable[[Array], list[Array]]
    at_once: int = 1

    def __call__(self, images: Array) -> list[Array]:
        """Run a batch."""
        return self.run(images)


def candidates(asked: str, gpu: bool) -> tuple[str, ...]:
    """Give the engines to try, in their fixed order, for the option `--engine`.

    Args:
        asked: the option.
        gpu: whether TensorFlow has a GPU; OpenVINO computes on the CPU.
    """
    if asked == "openvino":
        return ("openvino",)
    tensorflow = ("folded", "function", "plain")
    if gpu:
        # On a CPU, XLA is slower than the folded graph.
        return ("xla", *tensorflow)
    return tensorflow if asked == "tensorflow" or not has_openvino() else ("openvino", *tensorflow)


def has_openvino() -> bool:
    """Whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def open_engine(encoder: Encoder, threads: int) -> Engine:
    """Make the function from a batch (B, H, W, C) float32 to one (B, D) float32 an output.

    Args:
        encoder: the encoder, with the engine to use.
        threads: the number of threads, where the engine has its own.
    """
    match encoder.engine:
        case "openvino":
            return _openvino(encoder, threads)
        case "xla" | "folded":
            return _folded(encoder)
    return _keras(encoder)


def blank_batch(encoder: Encoder, count: int) -> Array:
    """Return black images, as the encoder takes them: float32 pixels, or the bytes of files."""
    if encoder.takes_bytes:
        return blank_images(count)
    return np.zeros((count, *encoder.image_shape), np.float32)


def _folded(encoder: Encoder) -> Engine:
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(encoder.graph)
    imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    function = imported.prune(encoder.input_name, list(encoder.output_names))
    if encoder.engine == "xla":
        function = tf.function(function, jit_compile=True, autograph=False)
    return Engine(lambda images: [value.numpy() for value in function(tf.constant(images))])


def _openvino(encoder: Encoder, threads: int) -> Engine:
    # OpenVINO reports each import and conversion to its makers through this optional package;
    # where it cannot be imported, OpenVINO itself falls back to reporting nothing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(encoder.graph)
    output_names = [_named_output(graph, name) for name in encoder.output_names]
    model = openvino.convert_model(graph)
    model.reshape([encoder.spec.batch_size, *encoder.image_shape])
    precision = {"float32": "f32", "bfloat16": "bf16"}[encoder.spec.precision]
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            # A batch a thread: threads that share one would wait for each other after each layer
            # while others decode. Not pinned, for the same reason.
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": precision,
        },
    )
    ports = [compiled.output(name) for name in output_names]
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(threads):
        free.put(compiled.create_infer_request())

    def run(images: Array) -> list[Array]:
        request = free.get()
        try:
            results = request.infer({0: images}, share_inputs=True)
            return [results[port].copy() for port in ports]
        finally:
            free.put(request)

    return Engine(run, threads)


def _named_output(graph: Any, name: str) -> str:
    """Return a name that OpenVINO keeps: of all outputs of an operation, it names the first one."""
    operation, _, number = name.partition(":")
    if number in ("", "0"):
        return name
    added = f"{operation}_output_{number}"
    graph.node.add(name=added, op="Identity", input=[name]).attr["T"].type = _FLOAT32
    return f"{added}:0"


def _keras(encoder: Encoder) -> Engine:
    import tensorflow as tf

    with at_hand(encoder.spec) as here:
        loaded = model_loading.load(here)
    encode = function_of(loaded, encoder.spec, encoder.outputs)
    encode(tf.constant(blank_batch(encoder, 1)))
    model_loading.set_weights(loaded, encoder.weights)
    call = tf.function(encode, autograph=False) if encoder.engine == "function" else encode

    def run(images: Array) -> list[Array]:
        lowered = encoder.spec.precision == "bfloat16"
        with model_loading.computing_in_bfloat16(loaded) if lowered else contextlib.nullcontext():
            return [np.asarray(value) for value in call(tf.constant(images))]

    return Engine(run)
