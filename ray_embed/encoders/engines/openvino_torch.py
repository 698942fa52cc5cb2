# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: run a program that PyTorch has exported on the CPU."""

import re
import warnings
from typing import Any

from ray_embed.encoders.engines.base import Engine, EngineError, OpenEngine
from ray_embed.encoders.engines.openvino import (
    compile_model,
    hide_from_telemetry,
    is_openvino_installed,
)
from ray_embed.encoders.engines.openvino_files import GRAPH_FILE, read_model, write_model
from ray_embed.encoders.engines.preprocessing import preprocess_before
from ray_embed.encoders.spec import Encoder

# The lines of OpenVINO's message that name the operations that it cannot convert.
_UNCONVERTED = re.compile(r"(?:No conversion rule found for operations|is failed for): (.+)")


def _convert(encoder: Encoder, program: Any) -> bytes:
    """Convert a program once, so that the actors need not import PyTorch."""
    hide_from_telemetry()
    import openvino
    from openvino.frontend import OpConversionFailure

    _refuse_empty(program)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = openvino.convert_model(program)
    except OpConversionFailure as error:
        operations = ", ".join(_UNCONVERTED.findall(str(error)))
        if not operations:
            raise
        reason = f"it cannot convert the PyTorch operations {operations}"
        raise EngineError(reason) from error
    model.reshape([encoder.spec.batch_size, *encoder.image_shape])
    for port, name in zip(model.outputs, encoder.output_names, strict=True):
        port.get_tensor().set_names({name})
    return write_model(model)


def _refuse_empty(program: Any) -> None:
    """Refuse a program that expands a tensor without elements, which ends OpenVINO's process.

    Raises:
        EngineError: it does.
    """
    for node in program.graph.nodes:
        # Other values of a program are numbers, or several tensors.
        shape = getattr(node.meta.get("val"), "shape", ())
        if "aten.expand" in str(node.target) and 0 in shape:
            raise EngineError("it cannot convert the expansion of a tensor without elements")


def _open(encoder: Encoder, threads: int) -> OpenEngine:
    hide_from_telemetry()
    model = read_model(encoder.graph or b"")
    opened = compile_model(model, encoder.output_names, encoder.spec.precision, threads)
    return preprocess_before(encoder, opened)


ENGINE = Engine(
    name="openvino",
    option="openvino",
    open=_open,
    needs_graph=True,
    convert=_convert,
    graph_file=GRAPH_FILE,
    lowers_precision=True,
    devices=("cpu",),
    is_installed=is_openvino_installed,
)
