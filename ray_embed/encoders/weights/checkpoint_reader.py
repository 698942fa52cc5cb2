# SPDX-License-Identifier: Apache-2.0
"""Find the TensorFlow checkpoint that a path refers to, and read its object graph and values."""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.errors import InputError, get_first_line

ACCEPTED = (
    "accepted are .weights.h5, .h5 and .keras files, and TensorFlow checkpoints: the path without "
    ".index, or the folder that holds it"
)

_RANDOM_STATE = {"seed_generator", "_seed_generators", "_random_generator"}


@dataclass(frozen=True)
class Node:
    """An object of the graph in the file; `key` is None unless the object is a variable."""

    children: dict[str, int]
    key: str | None
    full_name: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened for reading: its object graph and the shapes of its values."""

    display_name: str
    reader: Any
    nodes: Sequence[Node]
    shapes: Mapping[str, Sequence[int]]

    def value(self, start: int) -> Any:
        """Read the value of the variable at `start`.

        Raises:
            InputError: the value is damaged.
        """
        try:
            return self.reader.get_tensor(self.nodes[start].key)
        except Exception as error:  # TensorFlow has an exception class for each kind of damage
            raise InputError(
                f"{self.display_name}: damaged checkpoint, copy it again ({get_first_line(error)})"
            ) from error

    def variables_below(self, start: int) -> list[int]:
        """Return the variable nodes below `start`, except the states of random generators."""
        variables, seen, todo = [], {start}, [start]
        while todo:
            node = todo.pop()
            if self.nodes[node].key is not None:
                variables.append(node)
            for name, child in self.nodes[node].children.items():
                if child not in seen and name not in _RANDOM_STATE:
                    seen.add(child)
                    todo.append(child)
        return variables

    def layer_names(self, start: int) -> set[str]:
        """Return the scopes shared by all variables below `start`, including the layer's name."""
        scopes = [
            set(self.nodes[node].full_name.split("/")[:-1]) for node in self.variables_below(start)
        ]
        return set.intersection(*scopes) if scopes else set()

    def positional_layers(self, start: int) -> tuple[str, list[int]]:
        """Return which Keras wrote a functional or Sequential model, and its layers with weights.

        Args:
            start: the model's node.

        Returns:
            `keras` or `tf_keras`, and the layers' nodes in order. For other models, an empty string
            and no nodes.
        """
        children = self.nodes[start].children
        numbered = sorted(
            (int(name.rpartition("-")[2]), node)
            for name, node in children.items()
            if name.startswith("layer_with_weights-")
        )
        if numbered:
            return "tf_keras", [node for _, node in numbered]
        if "_operations" not in children and "_functional" in children:
            children = self.nodes[children["_functional"]].children
        if "_operations" not in children:
            return "", []
        return "keras", self.items(children["_operations"])

    def items(self, start: int) -> list[int]:
        """Return the items of the list at `start` that hold variables, in order."""
        children = self.nodes[start].children
        order = sorted((int(name), node) for name, node in children.items() if name.isdigit())
        return [node for _, node in order if self.variables_below(node)]


def open_checkpoint(prefix: str, display_name: str) -> Checkpoint:
    """Open a checkpoint and read its object graph.

    Args:
        prefix: path of the checkpoint without `.index`.
        display_name: the name of the file in messages.

    Raises:
        InputError: the checkpoint is damaged, or was written by a Saver that stores no object
            graph.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    try:
        # tf.train.load_checkpoint would take the prefix "folder/" for a folder, and then follow
        # its state file, which says ".".
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        shapes = reader.get_variable_to_shape_map()
        if "_CHECKPOINTABLE_OBJECT_GRAPH" not in shapes:
            raise InputError(
                f"{display_name}: a name-based checkpoint (tf.compat.v1 Saver) without an object "
                "graph; load it in the program that made it and save it with model.save_weights"
            )
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    except InputError:
        raise
    except Exception as error:  # DataLossError, NotFoundError, DecodeError, RuntimeError ...
        raise InputError(
            f"{display_name}: not a readable checkpoint ({get_first_line(error)})"
        ) from error
    nodes = [_node(proto, shapes) for proto in graph.nodes]
    return Checkpoint(display_name, reader, nodes, shapes)


def _node(proto: Any, shapes: Mapping[str, Sequence[int]]) -> Node:
    children = {child.local_name: child.node_id for child in proto.children}
    for attribute in proto.attributes:
        if attribute.name == "VARIABLE_VALUE" and attribute.checkpoint_key in shapes:
            return Node(children, attribute.checkpoint_key, attribute.full_name)
    return Node(children, None, "")


# --- from a path to a checkpoint --------------------------------------------------------------


def find_checkpoint(weights: str) -> str:
    """Return the prefix of the TensorFlow checkpoint that a path refers to.

    Args:
        weights: the prefix, or a folder with a single checkpoint or a state file.

    Raises:
        InputError: there is no checkpoint, or there are several.
    """
    folder = Path(weights)
    if Path(f"{weights}.index").is_file():
        return weights
    if not folder.exists():
        raise InputError(f"{weights}: no such file, folder or checkpoint; {ACCEPTED}")
    if not folder.is_dir():
        raise InputError(f"{weights}: not a file of weights; {ACCEPTED}")
    if (folder / ".index").is_file():
        return f"{folder}/"
    recorded = _recorded_checkpoint(folder)
    if recorded and (folder / f"{recorded}.index").is_file():
        return str(folder / recorded)
    prefixes = sorted(str(path).removesuffix(".index") for path in folder.glob("*.index"))
    if len(prefixes) == 1:
        return prefixes[0]
    if not prefixes:
        raise InputError(f"{weights}: no checkpoint (*.index) in this folder; {ACCEPTED}")
    raise InputError(
        f"{weights}: several checkpoints in this folder; give one of {', '.join(prefixes)}"
    )


def _recorded_checkpoint(folder: Path) -> str:
    """Return the base name of the newest checkpoint according to the state file."""
    import tensorflow as tf

    try:
        state = tf.train.get_checkpoint_state(str(folder))
    except ValueError:  # not text, or no path; TensorFlow returns None for other faults
        return ""
    return re.split(r"[/\\]", state.model_checkpoint_path)[-1] if state else ""


@contextlib.contextmanager
def link_literal_prefix(prefix: str) -> Iterator[str]:
    """Yield the prefix, or the prefix of links to its files if TensorFlow reads it as a pattern.

    Args:
        prefix: path of the checkpoint without `.index`. Read it only inside the ``with`` block.
    """
    if not re.search(r"[*?\[\]\\]", prefix):
        yield prefix
        return
    folder, _, base = prefix.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="ray_embed_weights_") as scratch:
        for path in Path(folder or ".").iterdir():
            if path.name == f"{base}.index" or path.name.startswith(f"{base}.data-"):
                Path(scratch, f"linked{path.name.removeprefix(base)}").symlink_to(path.resolve())
        yield f"{scratch}/linked"
