# SPDX-License-Identifier: Apache-2.0
"""onnxruntime: run an ONNX graph on the CPU, or on a GPU if it was built for that."""

from ray_embed.core.arrays import Array
from ray_embed.encoders.engines.base import Engine, OpenEngine
from ray_embed.encoders.engines.preprocessing import preprocess_before
from ray_embed.encoders.onnx_models.sessions import CPU, CUDA, has_gpu, open_session
from ray_embed.encoders.spec import Encoder


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    on_gpu = has_gpu()
    # One thread per batch, as in OpenVINO: threads that share a batch wait for each other.
    session = open_session(encoder.graph or b"", 1, CUDA if on_gpu else CPU)
    names = list(encoder.output_names)

    def run(images: Array) -> list[Array]:
        rows: list[Array] = session.run(names, {encoder.input_name: images})
        return rows

    return preprocess_before(encoder, OpenEngine(run, 1 if on_gpu else threads))


ENGINE = Engine(name="onnxruntime", option="onnxruntime", open=_open, needs_graph=True)
