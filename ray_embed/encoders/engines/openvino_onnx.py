# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: run an ONNX graph on the CPU, which it reads without a conversion."""

import re

from ray_embed.encoders.engines.base import Engine, EngineError, OpenEngine
from ray_embed.encoders.engines.openvino import (
    compile_model,
    hide_from_telemetry,
    is_openvino_installed,
)
from ray_embed.encoders.engines.preprocessing import preprocess_before
from ray_embed.encoders.spec import Encoder

# The line of OpenVINO's message that names the operators that it does not have.
_UNCONVERTED = re.compile(
    r"(?:No conversion rule found for operations|does not support the following ONNX operations): "
    r"(.+)"
)


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    hide_from_telemetry()
    import openvino

    try:
        model = openvino.Core().read_model(encoder.graph)
    except RuntimeError as error:
        operators = ", ".join(_UNCONVERTED.findall(str(error)))
        if not operators:
            raise
        raise EngineError(f"it does not have the ONNX operators {operators}") from error
    opened = compile_model(model, encoder.output_names, encoder.spec.precision, threads)
    return preprocess_before(encoder, opened)


ENGINE = Engine(
    name="openvino",
    option="openvino",
    open=_open,
    needs_graph=True,
    lowers_precision=True,
    devices=("cpu",),
    is_installed=is_openvino_installed,
)
