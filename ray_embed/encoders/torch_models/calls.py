# SPDX-License-Identifier: Apache-2.0
"""Call a module of PyTorch, and take the outputs of its layers by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ray_embed.encoders.layers import unknown_layer
from ray_embed.errors import InputError

Values = dict[str, Any]
# Functions of images, by the names of their results.
Functions = Mapping[str, Callable[[Any], Any]]


def call_layers(
    module: Any, names: Sequence[str], images: Any, functions: Functions | None = None
) -> Values:
    """Call a module, and return the outputs of layers, or its own if none is named.

    Args:
        module: the module.
        names: submodules, as `named_modules` names them, or outputs of the module.
        images: the batch that the module takes.
        functions: what else `names` may name. Their results come before layers of the same name.

    Raises:
        InputError: there is no such layer, or it gives no single float tensor; or the module has
            several outputs and no layer is named.
    """
    functions = functions or {}
    results = {name: [functions[name](images)] for name in names if name in functions}
    if names and len(results) == len(set(names)):
        return {name: _select(name, module, results, {}) for name in names}
    output, recorded = record_layers(module, images, names)
    outputs = name_outputs(output)
    if names:
        recorded |= results
        return {name: _select(name, module, recorded, {**outputs, **functions}) for name in names}
    if len(outputs) != 1:
        raise InputError(
            f"it has {len(outputs)} outputs; choose one with --layer: {', '.join(outputs)}"
        )
    (value,) = outputs.values()
    if not is_feature(value):
        raise InputError(
            f"its output is {_describe(value)}; one float tensor of rank 2 to 4 is needed: name a "
            "layer with --layer (`ray-embed layers --model …` lists them)"
        )
    return outputs


def record_layers(
    module: Any, images: Any, names: Sequence[str] | None = None
) -> tuple[Any, dict[str, list[Any]]]:
    """Call a module; return its output, and what each call of its submodules returned, by name.

    Args:
        module: the module.
        images: the batch that the module takes.
        names: the submodules to record; None for all.
    """
    recorded: dict[str, list[Any]] = {}

    def record(name: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            # A layer that works in place may change the tensor afterwards.
            keep = names is not None and isinstance(output, torch.Tensor)
            recorded.setdefault(name, []).append(output.clone() if keep else output)

        return hook

    hooks = [
        child.register_forward_hook(record(name))
        for name, child in module.named_modules()
        if name and (names is None or name in names)
    ]
    try:
        output = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return output, recorded


def name_outputs(output: Any) -> Values:
    """Return the outputs of a module by name."""
    if isinstance(output, dict):
        return dict(output)
    if isinstance(output, (list, tuple)) and len(output) != 1:
        return {f"output_{index}": value for index, value in enumerate(output)}
    return {"output": output[0] if isinstance(output, (list, tuple)) else output}


def list_layer_shapes(
    module: Any, images: Any, functions: Functions | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layers and outputs that --layer accepts, for a batch."""
    output, recorded = record_layers(module, images)
    values = {name: each[0] for name, each in recorded.items() if len(each) == 1}
    named = {name: function(images) for name, function in (functions or {}).items()}
    # A dict has names of its own; otherwise, the function for the output has a better one.
    outputs = {} if named and not isinstance(output, dict) else name_outputs(output)
    values = outputs | values | named
    return {name: tuple(value.shape) for name, value in values.items() if is_feature(value)}


def is_feature(value: Any) -> bool:
    """Return whether a value can be pooled: it is one float tensor of rank 2 to 4."""
    return (
        isinstance(value, torch.Tensor)
        and value.dim() in (2, 3, 4)
        and bool(value.is_floating_point())
    )


def _select(name: str, module: Any, recorded: dict[str, list[Any]], outputs: Values) -> Any:
    if name not in recorded and name not in outputs:
        known = [child for child, _ in module.named_modules() if child]
        if name in known:
            raise InputError(f"--layer {name}: the module never calls it; take another layer")
        raise unknown_layer(name, [*known, *outputs])
    values = recorded.get(name) or [outputs[name]]
    if len(values) > 1:
        raise InputError(
            f"--layer {name}: the module calls this layer {len(values)} times, so its output is "
            "not one; take a layer that is called once"
        )
    if not is_feature(values[0]):
        raise InputError(
            f"--layer {name}: it gives {_describe(values[0])}; one float tensor of rank 2 to 4 is "
            "needed: take another layer (`ray-embed layers --model …` lists them)"
        )
    return values[0]


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__
