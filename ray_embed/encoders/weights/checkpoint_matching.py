# SPDX-License-Identifier: Apache-2.0
"""Match the variables of a model with the values in the object graph of a checkpoint.

`tf.train.Checkpoint(model).read` silently restores only a part of a Keras 3 model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_embed.encoders.keras_compat import (
    bare_name,
    children_of,
    has_base,
    is_positional,
    is_variable,
    keras_family,
    wanted_shape,
    weights_of,
)
from ray_embed.encoders.weights.checkpoint_reader import Checkpoint, Node

# Attribute names that differ between Keras 2 and 3 by more than leading underscores.
_ALIASES = {"kernel": "depthwise_kernel", "depthwise_kernel": "kernel"}


@dataclass
class Match:
    """The nodes of the file that hold the values of variables, and what does not fit.

    Attributes:
        pairs: each variable and its node, by the id of the variable.
        problems: pairs of a variable, or None, and the reason why it does not fit.
        seen: the objects that were visited, by their id and the node.
    """

    pairs: dict[int, tuple[Any, int]] = field(default_factory=dict)
    problems: list[tuple[Any, str]] = field(default_factory=list)
    seen: dict[tuple[int, int], Any] = field(default_factory=dict)

    def missing(self, wanted: Sequence[Any]) -> list[Any]:
        """Return the variables of `wanted` without a value."""
        return [variable for variable in wanted if id(variable) not in self.pairs]

    def fits(self, wanted: Sequence[Any]) -> bool:
        """Return whether all of `wanted` have a value, and there are no problems."""
        return not self.problems and not self.missing(wanted)

    def nodes(self) -> frozenset[int]:
        """Return the nodes with values; matches with the same nodes are equal."""
        return frozenset(node for _, node in self.pairs.values())

    def copy(self) -> "Match":
        """Return a copy that can be changed."""
        return Match(dict(self.pairs), list(self.problems), dict(self.seen))


def match_variables(checkpoint: Checkpoint, target: Any, start: int, match: Match) -> None:
    """Match the variables below `target` with the variables below a node of the file.

    Args:
        checkpoint: the file.
        target: a model, or anything in it down to a single variable.
        start: the node.
        match: the match to which pairs and problems are added.
    """
    if (id(target), start) in match.seen:
        return
    match.seen[id(target), start] = target  # keeps the id in use
    node = checkpoint.nodes[start]
    if is_variable(target):
        _match_variable(checkpoint, target, start, match)
        return
    named = children_of(target)
    if is_positional(target):
        _match_layers(checkpoint, target, named, start, match)
    pairs = _match_names(checkpoint, named, node)
    for child, child_node in pairs:
        match_variables(checkpoint, child, child_node, match)
    _check_extra(checkpoint, target, start, {child_node for _, child_node in pairs}, match)


def _match_variable(checkpoint: Checkpoint, variable: Any, start: int, match: Match) -> None:
    key = checkpoint.nodes[start].key
    if key is None:
        return
    stored = tuple(checkpoint.shapes[key])
    shape = f"{wanted_shape(variable)}, the file has"
    _, before = match.pairs.setdefault(id(variable), (variable, start))
    if tuple(variable.shape) != stored:
        match.problems.append((variable, f"{shape} {stored} ({key})"))
    elif before != start:
        two = f"{checkpoint.nodes[before].key} and {key}"
        match.problems.append((variable, f"{shape} two values of it, {two}"))


def _match_layers(
    checkpoint: Checkpoint, target: Any, named: list[tuple[str, Any]], start: int, match: Match
) -> None:
    """Match the layers with weights of a functional or Sequential model by position."""
    layers = [layer for layer in target.layers if weights_of(layer)]
    writer, nodes = checkpoint.positional_layers(start)
    # Keras 2 lists a layer that is only an attribute in `layers`, but Keras 3 does not. Such a
    # layer is matched by its attribute name.
    children = checkpoint.nodes[start].children
    inside = {id(layer) for layer in layers}
    attributes = {
        children[name] for name, child in named if name in children and id(child) not in inside
    }
    nodes = [node for node in nodes if node not in attributes]
    if writer and len(nodes) > len(layers):
        match.problems.append((None, _too_many(checkpoint, target, len(layers), nodes)))
    orders = [nodes]
    if has_base(target, "Functional") and writer not in ("", keras_family(target)):
        orders.insert(0, _order_by_name(checkpoint, layers, nodes))
    for order in orders:
        attempt = match.copy()
        for layer, node in zip(layers, order, strict=False):
            match_variables(checkpoint, layer, node, attempt)
        if attempt.fits([variable for layer in layers for variable in weights_of(layer)]):
            break
    match.pairs, match.problems, match.seen = attempt.pairs, attempt.problems, attempt.seen


def _order_by_name(checkpoint: Checkpoint, layers: list[Any], nodes: list[int]) -> list[int]:
    """Return the file's layers in the model's order, by the names of the layers if possible.

    Both Keras versions sort a functional model's layers by depth. However, an operation between
    layers may count as several in one version and as one in the other, which swaps two branches of
    equal shapes. User-given names decide; names generated by Keras decide only if the file has all
    of them.
    """
    if len(layers) != len(nodes):
        return nodes
    names = [checkpoint.layer_names(node) for node in nodes]
    all_names = set().union(*names)
    complete = all(layer.name in all_names for layer in layers if not is_positional(layer))
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


def _match_names(
    checkpoint: Checkpoint, named: list[tuple[str, Any]], node: Node
) -> list[tuple[Any, int]]:
    """Match attributes with the node's children, exact names first, each child once."""
    pairs: list[tuple[Any, int]] = []
    done: set[int] = set()
    free = dict(node.children)
    for spell in _spellings(named, free):
        hits = []
        for name, child in named:
            spelled = spell(name, child)
            if id(child) in done or spelled not in free:
                continue
            if is_variable(child) == (checkpoint.nodes[free[spelled]].key is not None):
                hits.append((spelled, child))
        pairs += [(child, free[spelled]) for spelled, child in hits]
        done |= {id(child) for _, child in hits}
        taken = {free[spelled] for spelled, _ in hits}
        free = {name: child for name, child in free.items() if child not in taken}
    return pairs


def _spellings(
    named: list[tuple[str, Any]], free: Mapping[str, int]
) -> list[Callable[[str, Any], str | None]]:
    """Return the ways to spell an attribute: exactly, without underscores, by alias, by name."""
    bare = {name.lstrip("_"): name for name in free}
    for name in free:
        if bare[name.lstrip("_")] != name:
            bare[name.lstrip("_")] = ""  # ambiguous: two names differ by underscores only
    variables = {id(child): child for _, child in named if is_variable(child)}
    bare_names = [bare_name(variable) for variable in variables.values()]

    def alias(name: str, child: Any) -> str | None:
        return _ALIASES.get(name.lstrip("_")) if id(child) in variables else None

    def by_name(name: str, child: Any) -> str | None:
        if id(child) not in variables or bare_names.count(bare_name(child)) > 1:
            return None
        return bare_name(child)

    return [
        lambda name, child: name,
        lambda name, child: bare.get(name.lstrip("_")),
        alias,
        by_name,
    ]


def _check_extra(
    checkpoint: Checkpoint, target: Any, start: int, paired: set[int], match: Match
) -> None:
    """Add a problem for values in the file that a list or a layer of the model cannot hold."""
    children = checkpoint.nodes[start].children
    if isinstance(target, (list, tuple)):
        nodes = [children[name] for name in children if name.isdigit() and int(name) >= len(target)]
        nodes = [node for node in nodes if checkpoint.variables_below(node)]
        if nodes:
            match.problems.append((None, _too_many(checkpoint, target, len(target), nodes)))
    elif keras_family(target) and not has_base(target, "Model"):
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
