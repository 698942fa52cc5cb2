# SPDX-License-Identifier: Apache-2.0
"""Read the graphs of a SavedModel as data, and find what each of their nodes runs.

A vertex is a node, a function of the graph's library, or an operation such as ``Conv2D``. The keys
of nodes have a prefix, because a node often has the same name as its operation.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ray_embed.errors import InputError

Edges = dict[str, set[str]]

_NODE = "node:"


def read_saved_model(path: Path) -> Any:
    """Return the Protocol Buffer of a SavedModel, without running any of it.

    Raises:
        InputError: the SavedModel cannot be read.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((path / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise InputError(f"--model {path}: saved_model.pb cannot be read: {error}") from error
    return saved


def all_nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a meta graph and of its functions."""
    yield from graph.graph_def.node
    for function in graph.graph_def.library.function:
        yield from function.node_def


def node_key(tensor: str) -> str:
    """Return the vertex of the node that a tensor, or a control input, comes from."""
    return _NODE + tensor.removeprefix("^").partition(":")[0]


def is_node(vertex: str) -> bool:
    """Return whether a vertex is a node, not a function or an operation."""
    return vertex.startswith(_NODE)


def find_dependencies(graph: Any) -> Edges:
    """Return what each node and function needs: its inputs, operations and functions."""
    edges = {
        node_key(node.name): _called(node) | set(map(node_key, node.input))
        for node in graph.graph_def.node
    }
    for function in graph.graph_def.library.function:
        edges[function.signature.name] = set().union(*map(_called, function.node_def))
    return edges


def _called(node: Any) -> set[str]:
    """Return a node's operation, which may be a function, and the functions in its attributes."""
    functions = {value.func.name for value in node.attr.values()}
    functions |= {func.name for value in node.attr.values() for func in value.list.func}
    return {node.op, *functions} - {""}


def reverse_edges(edges: Edges) -> Edges:
    """Return which vertices need each vertex."""
    users: Edges = {}
    for vertex, needed in edges.items():
        for other in needed:
            users.setdefault(other, set()).add(vertex)
    return users


def reachable(start: Iterable[str], edges: Edges) -> set[str]:
    """Return the vertices that can be reached from `start`, including `start` itself."""
    seen = set(start)
    waiting = list(seen)
    while waiting:
        new = edges.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen
