# SPDX-License-Identifier: Apache-2.0
"""Convert a TensorFlow graph to an OpenVINO model."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_embed.encoders.engines.base import EngineError
from ray_embed.encoders.engines.constant_values import evaluate_constants

# The lines of OpenVINO's summary that name the operations that could not be converted.
_UNCONVERTED = re.compile(
    r"^-- (?:No conversion rule found for operations|Conversion is failed for): (.+)$", re.MULTILINE
)


def convert_graph(graph: Any, output_names: Sequence[str]) -> Any:
    """Return the OpenVINO model of a graph.

    Args:
        graph: a GraphDef without variables.
        output_names: the tensors that the model returns.

    Raises:
        EngineError: OpenVINO cannot convert operations of the graph.
    """
    try:
        return _convert(graph)
    except EngineError:
        # What OpenVINO cannot convert may not depend on the images, and then needs no conversion.
        return _convert(evaluate_constants(graph, output_names))


def _convert(graph: Any) -> Any:
    import openvino
    from openvino.frontend import OpConversionFailure

    # From a graph in memory, OpenVINO does not convert the functions that the graph calls: those of
    # exported SavedModels, of layers compiled by XLA, of loops and of conditions.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.pb")
        path.write_bytes(graph.SerializeToString(deterministic=True))
        try:
            return openvino.convert_model(path)
        except OpConversionFailure as error:
            operations = ", ".join(_UNCONVERTED.findall(str(error)))
            if not operations:
                raise
            reason = f"it cannot convert the TensorFlow operations {operations}"
            raise EngineError(reason) from error
