# SPDX-License-Identifier: Apache-2.0
"""Loads a TensorFlow object-graph checkpoint into a Keras 3 or tf_keras model.

Keras 3 cannot read such checkpoints, and `tf.train.Checkpoint(model).read` binds only part of a
Keras 3 model without saying so. Here the object graph stored in the file is walked in step with
the model's own objects. Nothing is assigned before every variable of the model has its value.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_embed.errors import InputError

MEND = "Are these the weights of this architecture? See --submodel and --model-kwargs."

# Names that one Keras gives to what the other calls differently (beyond leading underscores).
_ALIASES = {"kernel": "depthwise_kernel", "depthwise_kernel": "kernel"}
# Where Keras itself keeps its layers: these are paired by position, never by attribute name.
_STRUCTURE = {"_functional", "_operations", "_layers", "_tracked", "_self_tracked_trackables"}
_POSITION = re.compile(r"layer(_with_weights)?-\d+")
_RANDOM_STATE = {"seed_generator", "_seed_generators", "_random_generator"}


@dataclass(frozen=True)
class Node:
    """An object of the graph in the file; `key` is set where the object is a variable."""

    children: dict[str, int]
    key: str | None
    full_name: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened for reading: its object graph and the shapes of its values."""

    shown: str
    reader: Any
    nodes: Sequence[Node]
    shapes: Mapping[str, Sequence[int]]

    def variables_below(self, start: int) -> list[int]:
        """Variable nodes below `start`, the states of random generators left out."""
        found, seen, todo = [], {start}, [start]
        while todo:
            node = todo.pop()
            if self.nodes[node].key is not None:
                found.append(node)
            for name, child in self.nodes[node].children.items():
                if child not in seen and name not in _RANDOM_STATE:
                    seen.add(child)
                    todo.append(child)
        return found

    def layer_names(self, start: int) -> set[str]:
        """The scopes that all variables below `start` were created in: the layer's name is one."""
        scopes = [
            set(self.nodes[node].full_name.split("/")[:-1]) for node in self.variables_below(start)
        ]
        return set.intersection(*scopes) if scopes else set()

    def positional(self, start: int) -> tuple[str, list[int]]:
        """Who wrote the functional or Sequential model at `start`, and its layers with weights."""
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
        """The items of the list at `start` that hold variables, in order."""
        children = self.nodes[start].children
        order = sorted((int(name), node) for name, node in children.items() if name.isdigit())
        return [node for _, node in order if self.variables_below(node)]


@dataclass
class Match:
    """Which node of the file gives each variable its value, and what speaks against it."""

    found: dict[int, tuple[Any, int]] = field(default_factory=dict)
    problems: list[tuple[Any, str]] = field(default_factory=list)  # (variable or None, reason)
    seen: dict[tuple[int, int], Any] = field(default_factory=dict)

    def missing(self, wanted: Sequence[Any]) -> list[Any]:
        """Those of `wanted` without a value."""
        return [variable for variable in wanted if id(variable) not in self.found]

    def fits(self, wanted: Sequence[Any]) -> bool:
        """Whether all of `wanted` have a value and nothing speaks against it."""
        return not self.problems and not self.missing(wanted)

    def nodes(self) -> frozenset[int]:
        """The nodes used: two matches with the same ones are the same."""
        return frozenset(node for _, node in self.found.values())

    def copy(self) -> Match:
        """A match to try with."""
        return Match(dict(self.found), list(self.problems), dict(self.seen))


def load_checkpoint(
    prefix: str, shown: str, model: Any, names: Sequence[str] = (), around: Sequence[Any] = ()
) -> None:
    """Gives every weight of `model` its value from the checkpoint, or changes nothing.

    Args:
        prefix: path of the checkpoint without `.index`.
        shown: the file's name for messages.
        model: a built Keras 3 or tf_keras model.
        names: the attribute names under which an outer object holds `model`.
        around: models that contain `model`, one of which may have been saved instead.

    Raises:
        InputError: the checkpoint cannot be read or does not belong to the model.
    """
    checkpoint = open_checkpoint(prefix, shown)
    match = _find(checkpoint, model, names, around)
    try:
        values = [
            (variable, checkpoint.reader.get_tensor(checkpoint.nodes[node].key))
            for variable, node in match.found.values()
        ]
    except Exception as error:  # TensorFlow has a class of its own for each kind of damage
        raise InputError(f"{shown}: damaged checkpoint, copy it anew ({_line(error)})") from error
    for variable, value in values:
        # Counters are int64 in Keras 2 and int32 in Keras 3, and half-precision files exist.
        variable.assign(value.astype(_numpy_dtype(variable)))


def open_checkpoint(prefix: str, shown: str) -> Checkpoint:
    """Opens the checkpoint at `prefix` and reads its object graph.

    Raises:
        InputError: it is damaged, or was written by a Saver that stores no object graph.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    try:
        # Not tf.train.load_checkpoint: it takes the prefix "folder/" for a folder and then
        # follows the state file, which says "." there.
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        shapes = reader.get_variable_to_shape_map()
        if "_CHECKPOINTABLE_OBJECT_GRAPH" not in shapes:
            raise InputError(
                f"{shown}: a name-based checkpoint (tf.compat.v1 Saver) without an object graph; "
                "load it in the program that made it and save it with model.save_weights"
            )
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    except InputError:
        raise
    except Exception as error:  # DataLossError, NotFoundError, DecodeError, RuntimeError ...
        raise InputError(f"{shown}: not a readable checkpoint ({_line(error)})") from error
    return Checkpoint(shown, reader, [_node(proto, shapes) for proto in graph.nodes], shapes)


def _node(proto: Any, shapes: Mapping[str, Sequence[int]]) -> Node:
    children = {child.local_name: child.node_id for child in proto.children}
    for attribute in proto.attributes:
        if attribute.name == "VARIABLE_VALUE" and attribute.checkpoint_key in shapes:
            return Node(children, attribute.checkpoint_key, attribute.full_name)
    return Node(children, None, "")


# --- finding the sub-tree ------------------------------------------------------------------------


def _find(checkpoint: Checkpoint, model: Any, names: Sequence[str], around: Sequence[Any]) -> Match:
    """The only match of all of the model's weights, looked for in the likeliest places first."""
    wanted = list(model.weights)
    tried: list[Match] = []

    def attempt(target: Any, weights: Sequence[Any], starts: Iterator[list[int]]) -> Match | None:
        for level in starts:
            fitting: dict[frozenset[int], Match] = {}
            for start in level:
                match = Match()
                _bind(checkpoint, target, start, match)
                if target is model:
                    tried.append(match)
                if match.fits(weights) and not match.missing(wanted):
                    fitting.setdefault(match.nodes(), match)
            if len(fitting) > 1:
                keys = sorted(_first_key(checkpoint, match) for match in fitting.values())
                raise InputError(
                    f"{checkpoint.shown}: the model fits in more than one place of the file "
                    f"({', '.join(keys)}); name the one with --submodel, or save it alone"
                )
            if fitting:
                return next(iter(fitting.values()))
        return None

    found = attempt(model, wanted, _levels(checkpoint, names)) if names else None
    found = found or attempt(model, wanted, iter([[0]]))
    for outer in around:
        found = found or attempt(outer, list(outer.weights), _levels(checkpoint))
    found = found or attempt(model, wanted, _levels(checkpoint, ["model"]))
    found = found or attempt(model, wanted, _levels(checkpoint))
    if found is None:
        # The place where most of the model was found tells best what is wrong.
        raise _mismatch(checkpoint, max(tried, key=lambda match: len(match.found)), wanted)
    return found


def _levels(checkpoint: Checkpoint, names: Sequence[str] = ()) -> Iterator[list[int]]:
    """Nodes by distance from the root, only those under one of `names` if given.

    Layers by position are not entered: a model that happens to equal the first layers of another
    must not take its weights.
    """
    seen, level = {0}, [0]
    if not names:
        yield [0]
    while level:
        edges = [
            (name, child)
            for node in level
            for name, child in checkpoint.nodes[node].children.items()
            if not _POSITION.fullmatch(name)
            and name not in _STRUCTURE
            and checkpoint.nodes[child].children
        ]
        yield list(dict.fromkeys(child for name, child in edges if not names or name in names))
        level = list(dict.fromkeys(child for _, child in edges if child not in seen))
        seen.update(level)


def _mismatch(checkpoint: Checkpoint, match: Match, wanted: Sequence[Any]) -> InputError:
    missing = match.missing(wanted)
    reasons = {id(variable): reason for variable, reason in reversed(match.problems)}
    for variable in missing:
        reasons[id(variable)] = (
            f"no value for {variable_path(variable)}: the model wants shape "
            f"{tuple(variable.shape)}, the file has no value"
        )
    # The model's first variable at fault; what is not about one variable comes last.
    order = [id(variable) for variable in wanted if id(variable) in reasons] + list(reasons)
    count = f"{len(wanted) - len(missing)} of {len(wanted)} variables found"
    return InputError(f"{checkpoint.shown}: {reasons[order[0]]} ({count}). {MEND}")


def _first_key(checkpoint: Checkpoint, match: Match) -> str:
    return min(checkpoint.nodes[node].key or "" for node in match.nodes())


# --- walking model and file in step --------------------------------------------------------------


def _bind(checkpoint: Checkpoint, target: Any, start: int, match: Match) -> None:
    """Pairs what is below `target` with what is below the node `start`."""
    if (id(target), start) in match.seen:
        return
    match.seen[id(target), start] = target  # the reference keeps the id from being used again
    node = checkpoint.nodes[start]
    if _is_variable(target):
        _bind_variable(checkpoint, target, start, match)
        return
    named = _children(target)
    if _is_positional(target):
        _bind_layers(checkpoint, target, named, start, match)
    pairs = _pair_names(checkpoint, named, node)
    for child, child_node in pairs:
        _bind(checkpoint, child, child_node, match)
    _check_extra(checkpoint, target, start, {child_node for _, child_node in pairs}, match)


def _bind_variable(checkpoint: Checkpoint, variable: Any, start: int, match: Match) -> None:
    key = checkpoint.nodes[start].key
    if key is None:
        return
    wanted, stored = tuple(variable.shape), tuple(checkpoint.shapes[key])
    shape = f"{variable_path(variable)}: the model wants shape {wanted}, the file has"
    _, before = match.found.setdefault(id(variable), (variable, start))
    if wanted != stored:
        match.problems.append((variable, f"{shape} {stored} ({key})"))
    elif before != start:
        two = f"{checkpoint.nodes[before].key} and {key}"
        match.problems.append((variable, f"{shape} two values of it, {two}"))


def _bind_layers(
    checkpoint: Checkpoint, target: Any, named: list[tuple[str, Any]], start: int, match: Match
) -> None:
    """Pairs the i-th layer with weights of a functional or Sequential model with the file's."""
    layers = [layer for layer in target.layers if _weights(layer)]
    writer, nodes = checkpoint.positional(start)
    # A layer set as an attribute without being part of the graph is one of `layers` in Keras 2,
    # not so in Keras 3: it is paired by its attribute name.
    children = checkpoint.nodes[start].children
    inside = {id(layer) for layer in layers}
    aside = {
        children[name] for name, child in named if name in children and id(child) not in inside
    }
    nodes = [node for node in nodes if node not in aside]
    if writer and len(nodes) > len(layers):
        match.problems.append((None, _too_many(checkpoint, target, len(layers), nodes)))
    orders = [nodes]
    if _mro_has(target, "Functional") and writer not in ("", keras_family(target)):
        orders.insert(0, _order_by_name(checkpoint, layers, nodes))
    for order in orders:
        trial = match.copy()
        for layer, node in zip(layers, order, strict=False):
            _bind(checkpoint, layer, node, trial)
        if trial.fits([variable for layer in layers for variable in _weights(layer)]):
            break
    match.found, match.problems, match.seen = trial.found, trial.problems, trial.seen


def _order_by_name(checkpoint: Checkpoint, layers: list[Any], nodes: list[int]) -> list[int]:
    """The file's layers in the model's order, by layer names where these are known.

    Both Keras sort a functional model's layers by depth, but an operation between layers may
    count as several in one and as one in the other, so that two branches of equal shapes change
    places. Names given by the user decide; names given by Keras only if all of them are there.
    """
    if len(layers) != len(nodes):
        return nodes
    names = [checkpoint.layer_names(node) for node in nodes]
    every = set().union(*names)
    complete = all(layer.name in every for layer in layers if not _is_positional(layer))
    free, order = list(nodes), [-1] * len(layers)
    for index, layer in enumerate(layers):
        hits = [node for node, known in zip(nodes, names, strict=True) if layer.name in known]
        if (complete or not _named_by_keras(layer)) and len(hits) == 1 and hits[0] in free:
            order[index] = hits[0]
            free.remove(hits[0])
    return [node if node >= 0 else free.pop(0) for node in order]


def _named_by_keras(layer: Any) -> bool:
    stem = re.sub(r"_\d+$", "", layer.name)
    return bool(stem.replace("_", "") == type(layer).__name__.lower())


def _pair_names(
    checkpoint: Checkpoint, named: list[tuple[str, Any]], node: Node
) -> list[tuple[Any, int]]:
    """Pairs attributes with the node's children: the surest names of all first, each child once."""
    pairs: list[tuple[Any, int]] = []
    done: set[int] = set()
    free = dict(node.children)
    for spell in _spellings(named, free):
        hits = []
        for name, child in named:
            spelled = spell(name, child)
            if id(child) in done or spelled not in free:
                continue
            if _is_variable(child) == (checkpoint.nodes[free[spelled]].key is not None):
                hits.append((spelled, child))
        pairs += [(child, free[spelled]) for spelled, child in hits]
        done |= {id(child) for _, child in hits}
        taken = {free[spelled] for spelled, _ in hits}
        free = {name: child for name, child in free.items() if child not in taken}
    return pairs


def _spellings(
    named: list[tuple[str, Any]], free: Mapping[str, int]
) -> list[Callable[[str, Any], str | None]]:
    """How the file may spell an attribute: as it is, without underscores, otherwise, by name."""
    bare = {name.lstrip("_"): name for name in free}
    for name in free:
        if bare[name.lstrip("_")] != name:
            bare[name.lstrip("_")] = ""  # two names differ by underscores only
    variables = {id(child): child for _, child in named if _is_variable(child)}
    own_names = [_own_name(variable) for variable in variables.values()]

    def alias(name: str, child: Any) -> str | None:
        return _ALIASES.get(name.lstrip("_")) if id(child) in variables else None

    def own(name: str, child: Any) -> str | None:
        if id(child) not in variables or own_names.count(_own_name(child)) > 1:
            return None
        return _own_name(child)

    return [
        lambda name, child: name,
        lambda name, child: bare.get(name.lstrip("_")),
        alias,
        own,
    ]


def _check_extra(
    checkpoint: Checkpoint, target: Any, start: int, paired: set[int], match: Match
) -> None:
    """Notes values in the file that a list or a layer of the model has no place for."""
    children = checkpoint.nodes[start].children
    if isinstance(target, (list, tuple)):
        nodes = [children[name] for name in children if name.isdigit() and int(name) >= len(target)]
        nodes = [node for node in nodes if checkpoint.variables_below(node)]
        if nodes:
            match.problems.append((None, _too_many(checkpoint, target, len(target), nodes)))
    elif keras_family(target) and not _mro_has(target, "Model"):
        for child in sorted(set(children.values()) - paired):
            key = checkpoint.nodes[child].key
            if key is not None:
                reason = (
                    f"layer {target.name} of the model has no place for {key}, of shape "
                    f"{tuple(checkpoint.shapes[key])} in the file"
                )
                match.problems.append((None, reason))


def _too_many(checkpoint: Checkpoint, target: Any, have: int, nodes: Sequence[int]) -> str:
    name = getattr(target, "name", "a list of layers")
    extra = nodes[-1]
    key = checkpoint.nodes[checkpoint.variables_below(extra)[0]].key or ""
    return (
        f"the file has more layers with weights than {name} of the model, which has {have}: "
        f"no place for {key}, of shape {tuple(checkpoint.shapes[key])}"
    )


# --- looking at the model's objects --------------------------------------------------------------


def keras_family(value: Any) -> str:
    """`keras` or `tf_keras` for a layer or model of it, else an empty string."""
    for base in type(value).__mro__:
        root = base.__module__.partition(".")[0]
        if root in ("keras", "tf_keras") and base.__name__ == "Layer":
            return root
    return ""


def variable_path(variable: Any) -> str:
    """The variable's path in Keras 3, its name in tf_keras."""
    return str(getattr(variable, "path", None) or variable.name)


def _mro_has(value: Any, name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] in ("keras", "tf_keras")
        for base in type(value).__mro__
    )


def _is_positional(value: Any) -> bool:
    return _mro_has(value, "Functional") or _mro_has(value, "Sequential")


def _is_variable(value: Any) -> bool:
    return any(
        base.__name__ == "Variable" and base.__module__.partition(".")[0] in ("keras", "tensorflow")
        for base in type(value).__mro__
    )


def _own_name(variable: Any) -> str:
    return str(variable.name).rpartition("/")[2].partition(":")[0]


def _weights(layer: Any) -> list[Any]:
    try:
        return list(layer.weights)
    except ValueError:  # a tf_keras model that was never called
        return []


def _children(value: Any) -> list[tuple[str, Any]]:
    """What `value` holds, by the names that the file may know it by."""
    if isinstance(value, (list, tuple)):
        items = [(str(index), item) for index, item in enumerate(value)]
    elif isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif keras_family(value) != "keras" and hasattr(value, "_trackable_children"):
        items = list(value._trackable_children().items())
    else:
        items = list(getattr(value, "__dict__", {}).items())
        # Variables made by add_weight that no attribute holds go by their own name.
        held = {id(item) for _, item in items}
        for name in ("_trainable_variables", "_non_trainable_variables"):
            own = getattr(value, name, [])
            items += [(_own_name(item), item) for item in own if id(item) not in held]
    hidden = _bookkeeping() if keras_family(value) == "keras" else frozenset()
    return [
        (name, item)
        for name, item in items
        if not _POSITION.fullmatch(name) and name not in hidden and _holds_weights(item)
    ]


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Attributes that every Keras 3 layer has for itself: no file knows them by these names."""
    import keras

    return frozenset(vars(keras.layers.Layer())) | _STRUCTURE


def _holds_weights(value: Any) -> bool:
    if isinstance(value, (list, tuple, Mapping)) or _is_variable(value):
        return True
    if any(base.__name__ in ("Metric", "Optimizer") for base in type(value).__mro__):
        return False
    return hasattr(value, "_trackable_children") or bool(keras_family(value))


def _numpy_dtype(variable: Any) -> Any:
    import tensorflow as tf

    return tf.as_dtype(variable.dtype).as_numpy_dtype


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
