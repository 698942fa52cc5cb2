# SPDX-License-Identifier: Apache-2.0
"""The variants of a sweep: one run per model, weights and set of layers, and their names."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_embed.config import RunConfig, is_callable_reference, make_config
from ray_embed.core.model_names import names_model
from ray_embed.core.uri import join_uri
from ray_embed.errors import InputError

_ENDINGS = re.compile(
    r"(\.weights)?\.(h5|hdf5|keras|onnx|index|ckpt|pt|pth|pt2|safetensors)$", re.IGNORECASE
)
_OUTSIDE_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Variant:
    """A run of a sweep."""

    name: str
    config: RunConfig


def make_variants(
    config: RunConfig,
    models: Sequence[Any],
    weights: Sequence[str],
    layers: Sequence[Sequence[str]],
    out: str,
) -> list[Variant]:
    """Return a variant for each combination of a model, weights and a set of layers.

    Args:
        config: all other options.
        models: the models; none for that of `config`.
        weights: the weights; none for those of `config`.
        layers: the sets of layers; none for that of `config`.
        out: the folder of the sweep.

    Raises:
        InputError: two variants are the same.
    """
    axes: list[list[tuple[str, dict[str, Any]]]] = [
        [(name, {"model": value}) for name, value in zip(_name_paths(models), models, strict=True)],
        [
            (name, {"weights": value})
            for name, value in zip(_name_paths(weights), weights, strict=True)
        ],
        [("+".join(value), {"layers": tuple(value)}) for value in layers],
    ]
    # What all variants share is not part of their names.
    naming = [axis for axis in axes if len(axis) > 1] or [axis for axis in axes if axis][-1:]
    variants = []
    for choice in itertools.product(*(axis or [("", {})] for axis in axes)):
        names = [
            name
            for axis, (name, _) in zip(axes, choice, strict=True)
            if any(axis is other for other in naming)
        ]
        name = _OUTSIDE_NAMES.sub("_", "-".join(names)).lstrip(".") or "run"
        changes = {key: value for _, change in choice for key, value in change.items()}
        changes["out"] = join_uri(out, name)
        given = {field: getattr(config, field) for field in config.model_fields_set}
        variants.append(Variant(name, make_config(given | changes)))
    repeated = [
        name for name, count in Counter(each.name for each in variants).items() if count > 1
    ]
    if repeated:
        raise InputError(
            f"{len(variants)} encoders, but several would be named {repeated[0]!r}; give each of "
            "the models, weights and layers once"
        )
    return variants


def _name_paths(paths: Sequence[Any]) -> list[str]:
    """Name paths by their last part without its ending, and as many parts before it as needed.

    The ending is kept if the names differ in nothing else.
    """
    names: list[str] = []
    for keeps_ending in (False, True):
        parts = [_split(path, keeps_ending=keeps_ending) for path in paths]
        for depth in range(1, max(map(len, parts), default=0) + 1):
            names = ["-".join(each[-depth:]) for each in parts]
            if len(set(names)) == len(names):
                return names
    return names


def _split(path: Any, *, keeps_ending: bool) -> list[str]:
    if not isinstance(path, str):
        return [str(getattr(path, "name", None) or getattr(path, "__name__", "model"))]
    if is_callable_reference(path):
        return path.replace(":", ".").split(".")
    if names_model(path):
        library, _, name = path.partition(":")
        return [library, *filter(None, name.split("/"))]
    *folders, last = path.rstrip("/").split("/")
    stem = last if keeps_ending else _ENDINGS.sub("", last) or last
    return [*filter(None, folders), stem]
