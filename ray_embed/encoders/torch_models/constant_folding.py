# SPDX-License-Identifier: Apache-2.0
"""Compute once what a program computes from its weights alone, for every batch the same.

Modules resample their position embeddings and standardize the weights of convolutions in each call.
Engines then need not know these operators.
"""

import copy
import operator
from typing import Any

import torch

_PREFIX = "folded"


def fold_constants(module: Any) -> bool:
    """Replace operators on weights by their results in a graph module, and return whether any are.

    Views of weights stay, because they cost nothing and may be larger than the weights.
    """
    graph = module.graph
    values: dict[Any, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(module)
            if isinstance(value, torch.Tensor):
                values[node] = value
        elif _is_constant(node, values):
            values[node] = _compute(node, values)
    folded = [node for node in values if _is_worthwhile(node, values)]
    for number, node in enumerate(folded):
        name = f"{_PREFIX}_{number}"
        module.register_buffer(name, values[node].detach().clone().contiguous())
        with graph.inserting_before(node):
            made = graph.get_attr(name)
        made.meta = copy.copy(node.meta)
        node.replace_all_uses_with(made)
    if folded:
        graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
    return bool(folded)


def _is_constant(node: Any, values: dict[Any, Any]) -> bool:
    """Return whether an operator depends on nothing but weights, and always gives the same."""
    if node.op != "call_function" or any(each not in values for each in node.all_input_nodes):
        return False
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    tags = getattr(node.target, "tags", ())
    return (
        schema is not None
        and not schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in tags
    )


def _compute(node: Any, values: dict[Any, Any]) -> Any:
    arguments, named = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        return node.target(*arguments, **named)


def _is_worthwhile(node: Any, values: dict[Any, Any]) -> bool:
    """Return whether the result of a node is to replace it."""
    if node.op == "get_attr" or not isinstance(values[node], torch.Tensor):
        return False
    if not node.all_input_nodes or _is_view(node):
        return False
    return any(user not in values or _is_view(user) for user in node.users)


def _is_view(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(each.alias_info is not None for each in schema.returns)
