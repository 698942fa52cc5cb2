# SPDX-License-Identifier: Apache-2.0
"""Finds operations in a SavedModel that reach beyond the model: files, Python, the network.

A SavedModel is a program: loading runs its initializers and its restoring, calling it runs the
rest. TensorFlow says so itself (SECURITY.md, "untrusted models") and has no safe mode for it.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ray_embed.errors import InputError

_REACHING = re.compile(
    r"(Read|Write)File|MatchingFiles|FileSystem\w+|(Save|Restore)(Slices?)?|DistributedSave"
    r"|LoadAndRemapMatrix|GenerateVocabRemapping|\w*(Dataset|Reader|PyFunc)\w*|ImmutableConst"
    r"|InitializeTableFromTextFile\w*|FixedUnigramCandidateSampler|RecordInput|\w+codeProto\w*"
    r"|\w*Summary\w*Writer|Write\w*Summary|Debug\w+|Abort"
)
# Each SavedModel has them, for being loaded, and saved again.
_SAVING, _RESTORING = {"SaveV2", "MergeV2Checkpoints"}, {"RestoreV2"}


def refuse_reaching(path: Path) -> None:
    """Refuse a SavedModel that could read or write files other than its own, or run Python.

    Args:
        path: the folder.

    Raises:
        InputError: it could, naming the operation; or it cannot be parsed.
    """
    for graph in read_saved_model(path).meta_graphs:
        if found := _reaching(graph) or _elsewhere(graph):
            raise InputError(
                f"--model {path}: it holds the operation {found}, which reaches beyond the model "
                "(files, Python, or the network) and is not run; export the encoder without it, or "
                "build the model in a function of yours and give --model module:callable"
            )


def read_saved_model(path: Path) -> Any:
    """Read the Protocol Buffer of a SavedModel; nothing of it is run.

    Raises:
        InputError: it cannot be parsed.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((path / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise InputError(f"--model {path}: saved_model.pb cannot be read: {error}") from error
    return saved


def _reaching(graph: Any) -> str | None:
    """Name an operation that no encoder needs."""
    functions = (node for f in graph.graph_def.library.function for node in f.node_def)
    for nodes in (graph.graph_def.node, functions):
        for node in nodes:
            to_file = node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file")
            if to_file or _REACHING.fullmatch(node.op):
                return str(node.op)
    return None


def _elsewhere(graph: Any) -> str | None:
    """Name an operation on checkpoints that is not only there for the model's own."""
    saver = graph.saver_def
    save, restore = _name(saver.save_tensor_name), _name(saver.restore_op_name)
    asked = _asked_for(graph)
    if _used_beside(graph, _SAVING, save, asked | {restore}):
        return "SaveV2"
    if _used_beside(graph, _RESTORING, restore, asked | {save}):
        return "RestoreV2"
    return None


def _used_beside(graph: Any, operations: set[str], purpose: str, asked: set[str]) -> bool:
    """Whether operations are used for something else than the node `purpose`.

    Args:
        graph: the meta graph.
        operations: their names.
        purpose: the node that may depend on them.
        asked: nodes that may not.
    """
    functions = {f.signature.name: f.node_def for f in graph.graph_def.library.function}
    using = _callers(functions, operations)
    if using & _callable(graph.object_graph_def):
        return True
    nodes = {node.name: node for node in graph.graph_def.node}
    start = {name for name, node in nodes.items() if _uses(node) & (operations | using)}
    depending = _closure(start, _consumers(nodes.values()))
    allowed = _closure({purpose}, {name: list(_inputs(node)) for name, node in nodes.items()})
    return bool(depending - allowed or depending & asked)


def _callable(objects: Any) -> set[str]:
    """Name the functions that loading takes from the library, to be called by it or by others."""
    names = set(objects.concrete_functions)
    for node in objects.nodes:
        names.add(node.bare_concrete_function.concrete_function_name)
        names.update(node.function.concrete_functions)
    return names


def _callers(functions: dict[str, Any], operations: set[str]) -> set[str]:
    """Name the functions that use operations, themselves or by others that they call."""
    used = {name: set().union(*map(_uses, nodes)) for name, nodes in functions.items()}
    found: set[str] = set()
    while more := {name for name, uses in used.items() if uses & (operations | found)} - found:
        found |= more
    return found


def _uses(node: Any) -> set[str]:
    """Name a node's operation, which may be a function, and the functions it is given."""
    given = {value.func.name for value in node.attr.values()}
    given |= {func.name for value in node.attr.values() for func in value.list.func}
    return {node.op, *given}


def _inputs(node: Any) -> Iterator[str]:
    yield from map(_name, node.input)


def _name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _consumers(nodes: Iterable[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in nodes:
        for name in _inputs(node):
            found.setdefault(name, []).append(node.name)
    return found


def _closure(start: set[str], following: dict[str, list[str]]) -> set[str]:
    found, new = set(start), list(start)
    while new:
        more = set(following.get(new.pop(), ())) - found
        found |= more
        new += more
    return found


def _asked_for(graph: Any) -> set[str]:
    """Name the nodes that loading or calling asks for."""
    names = {
        tensor.name
        for signature in graph.signature_def.values()
        for tensor in (*signature.inputs.values(), *signature.outputs.values())
    }
    names |= {name for kept in graph.collection_def.values() for name in kept.node_list.value}
    return set(map(_name, names))
