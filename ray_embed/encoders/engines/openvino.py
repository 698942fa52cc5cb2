# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: run the folded graph on the CPU, usually faster than TensorFlow."""

import importlib.util
import queue
import sys
from collections.abc import Sequence
from typing import Any

from ray_embed.core.arrays import Array
from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.engines.openvino_conversion import convert_graph
from ray_embed.encoders.spec import Encoder

# The number that stands for float32 in TensorFlow graphs.
_FLOAT32 = 1


def is_openvino_installed() -> bool:
    """Return whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    hide_from_telemetry()
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(encoder.graph)
    output_names = [_add_named_output(graph, name) for name in encoder.output_names]
    model = convert_graph(graph, output_names)
    model.reshape([encoder.spec.batch_size, *encoder.image_shape])
    return compile_model(model, output_names, encoder.spec.precision, threads)


def hide_from_telemetry() -> None:
    """Keep OpenVINO from reporting imports and conversions to its developers.

    It does so via an optional package, and reports nothing if that cannot be imported.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def compile_model(
    model: Any, output_names: Sequence[str], precision: str, threads: int
) -> OpenEngine:
    """Compile a model whose input has a fixed shape, and return an engine that runs it.

    Args:
        model: the OpenVINO model.
        output_names: the tensors to return.
        precision: float32 or bfloat16.
        threads: the number of batches to compute at the same time, each on a thread of its own.
    """
    import openvino

    options = {
        # One thread per batch: threads that share a batch wait for each other after every layer
        # while other threads decode. For the same reason, threads are not pinned.
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
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

    return OpenEngine(run, threads)


def _add_named_output(graph: Any, name: str) -> str:
    """Return an output name that OpenVINO keeps: it names only an operation's first output."""
    operation, _, number = name.partition(":")
    if number in ("", "0"):
        return name
    copy = f"{operation}_output_{number}"
    graph.node.add(name=copy, op="Identity", input=[name]).attr["T"].type = _FLOAT32
    return f"{copy}:0"


ENGINE = Engine(
    name="openvino",
    option="openvino",
    open=_open,
    needs_graph=True,
    decodes_files=False,
    lowers_precision=True,
    devices=("cpu",),
    is_installed=is_openvino_installed,
)
