# SPDX-License-Identifier: Apache-2.0
"""Read an ONNX file into a single model that holds its own weights.

Reading runs no code: ONNX graphs hold operators only, and libraries of operators are never loaded.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ray_embed.errors import InputError

# The domains whose operators onnxruntime has. An empty name is that of ONNX itself.
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
_OLDEST_OPSET = 7
# A message of Protocol Buffers cannot be larger.
_LARGEST = 2**31 - 1


def read_model(path: Path) -> Any:
    """Return the model in a file, together with the weights that it keeps in other files.

    Functions of the model are replaced by their operators, so that these have names for --layer.

    Raises:
        InputError: the file is no ONNX model, or is damaged; a file with its weights is missing; or
            it needs operators that onnxruntime does not have.
    """
    model = _parse(path)
    _refuse_unknown_operators(path, model)
    _fill_external(path, model)
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    return model


def list_external_files(path: Path) -> list[str]:
    """Return the names of the files that hold weights of a model, relative to its folder.

    Raises:
        InputError: the file is no ONNX model, or it names a file outside of its folder.
    """
    return list(dict.fromkeys(_locate(path, tensor) for tensor in _external(_parse(path))))


def get_opset(model: Any) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return int(next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0))


def graphs_of(node: Any) -> list[Any]:
    """Return the graphs inside a node, such as the branches of a condition."""
    return [
        graph
        for attribute in node.attribute
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        model.Clear()
    if not (model.ir_version and model.graph.node and model.graph.output):
        raise InputError(
            f"--model {path}: it is no ONNX model, or it is damaged (its graph cannot be read); "
            "export it again"
        )
    if get_opset(model) < _OLDEST_OPSET:
        raise InputError(
            f"--model {path}: it uses version {get_opset(model)} of ONNX's operators; at least "
            f"{_OLDEST_OPSET} is needed: convert it with onnx.version_converter.convert_version"
        )
    return model


def _refuse_unknown_operators(path: Path, model: Any) -> None:
    known = _DOMAINS | {function.domain for function in model.functions}
    nodes = [model.graph.node, *(function.node for function in model.functions)]
    unknown = dict.fromkeys(
        f"{node.op_type} of the domain {node.domain}"
        for node in _all_nodes(node for part in nodes for node in part)
        if node.domain not in known
    )
    if unknown:
        raise InputError(
            f"--model {path}: it has operators that onnxruntime lacks: {', '.join(unknown)}; "
            "libraries of custom operators are not loaded: export the encoder without them"
        )


def _all_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        yield node
        for graph in graphs_of(node):
            yield from _all_nodes(graph.node)


# --- weights in other files ----------------------------------------------------------------------


def _fill_external(path: Path, model: Any) -> None:
    """Read weights from the files that hold them into the model.

    Raises:
        InputError: a file is missing or too short, or all weights take more than 2 GB.
    """
    tensors = list(_external(model))
    sizes = dict.fromkeys((_locate(path, tensor) for tensor in tensors), 0)
    for name in sizes:
        file = path.parent / name
        if not file.is_file():
            raise InputError(
                f"--model {path}: the file {file}, which holds weights of the model, is missing; "
                "copy it beside the model"
            )
        sizes[name] = file.stat().st_size
    if sum(sizes.values()) > _LARGEST:
        raise InputError(
            f"--model {path}: its weights take {sum(sizes.values()) / 1e9:.1f} GB, and at most 2 "
            "GB are supported; export it in float16"
        )
    for tensor in tensors:
        _fill(path, tensor)


def _fill(path: Path, tensor: Any) -> None:
    options = {entry.key: entry.value for entry in tensor.external_data}
    file = path.parent / options["location"]
    with file.open("rb") as stream:
        stream.seek(int(options.get("offset", 0)))
        length = int(options["length"]) if "length" in options else -1
        data = stream.read(length)
    if length >= 0 and len(data) < length:
        raise InputError(
            f"--model {path}: the file {file}, which holds weights of the model, is too short for "
            f"{tensor.name!r}; copy it again"
        )
    tensor.raw_data = data
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _locate(path: Path, tensor: Any) -> str:
    """Return the file that holds a tensor, relative to the model's folder.

    Raises:
        InputError: the file lies outside of that folder.
    """
    name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name:
        raise InputError(
            f"--model {path}: it keeps weights in {name!r}, which is not in its own folder; save "
            "it again with all files in one folder"
        )
    return name


def _external(model: Any) -> Iterator[Any]:
    """Yield all tensors of a model whose values are in other files."""
    for tensor in _all_tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            yield tensor


def _all_tensors(model: Any) -> Iterator[Any]:
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes.extend(graph.node)
        while nodes:
            node = nodes.pop()
            graphs.extend(graphs_of(node))
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
