# SPDX-License-Identifier: Apache-2.0
"""Refuse SavedModels with operations that access files, Python or the network.

A SavedModel is a program. Loading it runs its initializers and restores its variables; calling it
runs the rest. TensorFlow has no safe mode for SavedModels (see its SECURITY.md, "untrusted
models").
"""

import re
from pathlib import Path
from typing import Any

from ray_embed.encoders.saved_model_graph import (
    all_nodes,
    find_dependencies,
    is_node,
    node_key,
    reachable,
    read_saved_model,
    reverse_edges,
)
from ray_embed.errors import InputError

# No encoder needs these operations.
_FORBIDDEN = re.compile(
    r"(Read|Write)File|MatchingFiles|FileSystem\w+|(Save|Restore)(Slices?)?|DistributedSave"
    r"|LoadAndRemapMatrix|GenerateVocabRemapping|\w*(Dataset|Reader|PyFunc)\w*|ImmutableConst"
    r"|InitializeTableFromTextFile\w*|FixedUnigramCandidateSampler|RecordInput|\w+codeProto\w*"
    r"|\w*Summary\w*Writer|Write\w*Summary|Debug\w+|Abort"
)
# Every SavedModel has these operations, so that it can be loaded and saved again.
_SAVE, _RESTORE = ("SaveV2", "MergeV2Checkpoints"), ("RestoreV2",)


def refuse_unsafe_operations(path: Path) -> None:
    """Refuse a SavedModel that could read or write files other than its own, or run Python.

    Args:
        path: the folder.

    Raises:
        InputError: the SavedModel has such an operation, or cannot be parsed.
    """
    for graph in read_saved_model(path).meta_graphs:
        if operation := _find_forbidden(graph) or _find_stray_checkpoint_operation(graph):
            raise InputError(
                f"--model {path}: it has the operation {operation}, which reaches beyond the model "
                "(files, Python, or the network) and is not run; export the encoder without it, or "
                "build the model in a function of yours and give --model module:callable"
            )


def _find_forbidden(graph: Any) -> str | None:
    for node in all_nodes(graph):
        to_file = node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file")
        if to_file or _FORBIDDEN.fullmatch(node.op):
            return str(node.op)
    return None


def _find_stray_checkpoint_operation(graph: Any) -> str | None:
    """Return an operation on checkpoints that does more than save or restore the model itself."""
    needed = find_dependencies(graph)
    users = reverse_edges(needed)
    save, restore = map(
        node_key, (graph.saver_def.save_tensor_name, graph.saver_def.restore_op_name)
    )
    entries = _entry_points(graph)
    for operations, purpose, other in ((_SAVE, save, restore), (_RESTORE, restore, save)):
        using = reachable(operations, users)
        strays = set(filter(is_node, using)) - reachable({purpose}, needed)
        if strays or using & (entries | {other}):
            return operations[0]
    return None


def _entry_points(graph: Any) -> set[str]:
    """Return the nodes and functions that loading or calling the model may run directly."""
    tensors = {
        tensor.name
        for signature in graph.signature_def.values()
        for tensor in (*signature.inputs.values(), *signature.outputs.values())
    }
    tensors |= {name for values in graph.collection_def.values() for name in values.node_list.value}
    functions = set(graph.object_graph_def.concrete_functions)
    for node in graph.object_graph_def.nodes:
        functions.add(node.bare_concrete_function.concrete_function_name)
        functions.update(node.function.concrete_functions)
    return {*map(node_key, tensors), *functions}
