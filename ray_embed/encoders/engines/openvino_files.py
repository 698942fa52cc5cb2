# SPDX-License-Identifier: Apache-2.0
"""Write and read models of OpenVINO as one file: a zip archive of its two."""

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

GRAPH_FILE = "openvino.zip"
_NAMES = ("model.xml", "model.bin")


def write_model(model: Any) -> bytes:
    """Return the content of a file with a model of OpenVINO."""
    import openvino

    sink = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="ray_embed-") as folder:
        paths = [Path(folder) / name for name in _NAMES]
        openvino.serialize(model, *paths)
        with zipfile.ZipFile(sink, "w") as archive:
            for path in paths:
                archive.write(path, path.name)
    return sink.getvalue()


def read_model(content: bytes) -> Any:
    """Return the model in a file that `write_model` made."""
    import openvino

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        graph, weights = (archive.read(name) for name in _NAMES)
    return openvino.Core().read_model(graph, weights)
