# SPDX-License-Identifier: Apache-2.0
"""Finds the models inside a model, or inside an object of the user's, by the names they have."""

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray_embed.encoders.keras_compat import has_base, keras_family


def find_submodel(outer: Any, path: str) -> list[Any]:
    """Return what leads to what `path` names inside `outer`, `outer` first, and that itself last.

    Args:
        outer: a Keras model, a container of models, or an object that holds some.
        path: attributes, names of layers, keys or positions, separated by dots. Names of layers may
            have dots themselves.

    Returns:
        An empty list where there is nothing.
    """
    found = [[outer, *chain] for chain in _resolve(outer, path)]
    models = [chain for chain in found if keras_family(chain[-1])]
    return next(iter(models or found), [])


@dataclass(frozen=True)
class Nested:
    """A model inside another: the path that finds it, and its path as ``--layer`` writes it."""

    path: str
    layer: str
    model: Any


def nested_models(outer: Any) -> list[Nested]:
    """Return the Keras models inside `outer`, each once, the nearest first."""
    found = []
    seen = {id(outer)}
    queue = deque([Nested("", "", outer)])
    while queue:
        parent = queue.popleft()
        for name, child in _children(parent.model).items():
            if id(child) in seen:
                continue
            seen.add(id(child))
            layer = child.name if keras_family(child) else ""
            path = ".".join(filter(None, (parent.path, name)))
            inner = Nested(path, "/".join(filter(None, (parent.layer, layer))), child)
            queue.append(inner)
            if has_base(child, "Model"):
                found.append(inner)
    return found


def layers_of(value: Any) -> list[Any]:
    """Return the layers directly inside a Keras layer or model, none for anything else."""
    if not keras_family(value):
        return []
    return list(value._flatten_layers(recursive=False, include_self=False))


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the public attributes that the object itself has, by name."""
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}


def _resolve(value: Any, path: str) -> Iterator[list[Any]]:
    yield from ([child] for child in _step(value, path))
    for at in (index for index, letter in enumerate(path) if letter == "."):
        for child in _step(value, path[:at]):
            yield from ([child, *rest] for rest in _resolve(child, path[at + 1 :]))


def _step(value: Any, name: str) -> list[Any]:
    """Return what one name may mean: an item or attribute first, then a layer."""
    found = []
    if isinstance(value, (list, tuple, Mapping)):
        found += [item for key, item in _items(value) if key == name]
    # A property of the user's class may raise anything.
    with contextlib.suppress(Exception):
        found.append(getattr(value, name))
    # A leaf is no encoder: its output is taken with --layer.
    found += [layer for layer in layers_of(value) if layer.name == name and layers_of(layer)]
    return found


def _children(value: Any) -> dict[str, Any]:
    """Return what may be, or hold, a model: by attribute or key, else by the layer's name."""
    if isinstance(value, (list, tuple, Mapping)):
        named = dict(_items(value))
    else:
        named = attributes_of(value)
    held = (list, tuple, Mapping) if not keras_family(value) else ()
    named = {k: v for k, v in named.items() if keras_family(v) or isinstance(v, held)}
    known = {id(child) for child in named.values()}
    for layer in layers_of(value):
        if id(layer) not in known:
            named.setdefault(layer.name, layer)
    return named


def _items(value: Any) -> list[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [(str(key), item) for key, item in pairs]
