# SPDX-License-Identifier: Apache-2.0
"""Find the models inside a model, or inside one of the user's objects, by name."""

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray_embed.encoders.keras_compat import has_base, keras_family


def find_submodel(outer: Any, path: str) -> list[Any]:
    """Return the objects from `outer` to the one that `path` names, including both.

    Args:
        outer: a Keras model, a container of models, or an object that holds models.
        path: attributes, layer names, keys or positions, separated by dots. Layer names may contain
            dots.

    Returns:
        An empty list if `path` names nothing.
    """
    chains = [[outer, *chain] for chain in _resolve(outer, path)]
    models = [chain for chain in chains if keras_family(chain[-1])]
    return next(iter(models or chains), [])


@dataclass(frozen=True)
class Nested:
    """A model inside another one, with its path for ``--submodel`` and for ``--layer``."""

    path: str
    layer: str
    model: Any


def nested_models(outer: Any) -> list[Nested]:
    """Return the Keras models inside `outer`, each once, outermost first."""
    models = []
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
                models.append(inner)
    return models


def layers_of(value: Any) -> list[Any]:
    """Return the layers directly inside a Keras layer or model; other values have none."""
    if not keras_family(value):
        return []
    return list(value._flatten_layers(recursive=False, include_self=False))


def public_attributes(value: Any) -> dict[str, Any]:
    """Return the public attributes of the object itself, by name."""
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}


def _resolve(value: Any, path: str) -> Iterator[list[Any]]:
    yield from ([child] for child in _step(value, path))
    for dot in (index for index, letter in enumerate(path) if letter == "."):
        for child in _step(value, path[:dot]):
            yield from ([child, *rest] for rest in _resolve(child, path[dot + 1 :]))


def _step(value: Any, name: str) -> list[Any]:
    """Return what a single name may mean: an item or attribute first, then a layer."""
    children = []
    if isinstance(value, (list, tuple, Mapping)):
        children += [item for key, item in _items(value) if key == name]
    # A property of the user's class may raise any exception.
    with contextlib.suppress(Exception):
        children.append(getattr(value, name))
    # A layer without inner layers is not a submodel; --layer selects its output.
    children += [layer for layer in layers_of(value) if layer.name == name and layers_of(layer)]
    return children


def _children(value: Any) -> dict[str, Any]:
    """Return the parts that may be or contain a model, by attribute, key or layer name."""
    if isinstance(value, (list, tuple, Mapping)):
        named = dict(_items(value))
    else:
        named = public_attributes(value)
    containers = (list, tuple, Mapping) if not keras_family(value) else ()
    named = {k: v for k, v in named.items() if keras_family(v) or isinstance(v, containers)}
    known = {id(child) for child in named.values()}
    for layer in layers_of(value):
        if id(layer) not in known:
            named.setdefault(layer.name, layer)
    return named


def _items(value: Any) -> list[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [(str(key), item) for key, item in pairs]
