# SPDX-License-Identifier: Apache-2.0
"""Export one program of an encoder: from images (N, H, W, C) float32 to pooled features."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ray_embed.core.triton import block_triton
from ray_embed.encoders.model_errors import quote_error
from ray_embed.encoders.spec import Output
from ray_embed.encoders.torch_models.constant_folding import fold_constants
from ray_embed.errors import InputError

# As in the pooling of TensorFlow tensors.
_GEM_P, _GEM_CLAMP = 3.0, 1e-6


class _Function(torch.nn.Module):  # type: ignore[misc]
    """A function of images as a module, which holds the module that the function calls."""

    def __init__(self, module: Any, function: Callable[[Any], tuple[Any, ...]]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, images: Any) -> Any:
        """Return the tuple that the function returns."""
        return self.function(images)


def export(
    module: Any, function: Callable[[Any], tuple[Any, ...]], shape: Sequence[int], where: str
) -> Any:
    """Return the exported program of a function that calls a module.

    Args:
        module: the module.
        function: takes images (N, H, W, C) float32, and returns a tuple of tensors.
        shape: the shape of the images.
        where: what error messages name.

    Raises:
        InputError: PyTorch cannot export it.
    """
    block_triton()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = _Function(module, function)
            program = torch.export.export(made, (torch.zeros(tuple(shape)),), strict=False)
            if any(map(_changes_tensors, program.graph.nodes)):
                # Only then does each value have a node of its own.
                program = program.run_decompositions({})
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where}: torch.export cannot export it: {quote_error(error)[:600]}\n"
            "remove what depends on the values of the images, or export the encoder yourself, with "
            "torch.export.save to a .pt2 file or with torch.onnx.export to an .onnx file"
        ) from error
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        # These checks fail in lower precision, and the shapes and types are fixed anyway.
        if node.target == torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    graph.eliminate_dead_code(_must_stay)
    _drop_unused(program)
    program.graph_module.recompile()
    return program


def fold(program: Any, shape: Sequence[int], where: str) -> Any:
    """Return a program in which what depends on weights only is computed already.

    Args:
        program: the exported program of an encoder.
        shape: the shape of the images.
        where: what error messages name.
    """
    module = program.module()
    for node in list(module.graph.nodes):
        # A check of the sizes of its inputs.
        if node.op == "call_module" and not node.users:
            module.graph.erase_node(node)
    return export(module, module, shape, where) if fold_constants(module) else program


def _changes_tensors(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _must_stay(node: Any) -> bool:
    """Return whether a node is needed even if nothing uses it. Dropout that is off is not."""
    return node.op in ("placeholder", "output") or _changes_tensors(node)


def _drop_unused(program: Any) -> None:
    """Drop the weights that the outputs of a program do not need."""
    kind = torch.export.graph_signature.InputKind
    kinds = (kind.PARAMETER, kind.BUFFER)
    unused = {n.name for n in program.graph.nodes if n.op == "placeholder" and not n.users}
    specs = program.graph_signature.input_specs
    dropped = [spec for spec in specs if spec.kind in kinds and spec.arg.name in unused]
    names = {spec.arg.name for spec in dropped}
    for node in list(program.graph.nodes):
        if node.op == "placeholder" and node.name in names:
            program.graph.erase_node(node)
    specs[:] = [spec for spec in specs if spec not in dropped]
    kept = {spec.target for spec in specs}
    for spec in dropped:
        if spec.target not in kept:
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)


def pool(value: Any, output: Output) -> Any:
    """Pool a tensor to (N, D) float32, as :func:`ray_embed.encoders.pooling.pool` does."""
    value = value.float()
    axis, rank = output.channel_axis % value.dim(), value.dim()
    if axis != rank - 1:
        value = value.movedim(axis, -1)
    places = list(range(1, rank - 1))
    match output.pool:
        case "gap":
            return value.mean(places)
        case "gmp":
            return value.amax(places)
        case "gem":
            return value.clamp(min=_GEM_CLAMP).pow(_GEM_P).mean(places).pow(1 / _GEM_P)
        case "cls":
            return value[:, 0]
        case "flatten":
            return value.reshape(value.shape[0], -1)
    # Without this, a layer that returns its input would be no output of its own.
    return value.clone()


# --- digests -------------------------------------------------------------------------------------


def digest(program: Any, *, weights: bool) -> str:
    """Return a hash of what a program computes, which does not depend on names.

    Without `weights`, float tensors are hashed by type and shape only; everything else is hashed by
    value.
    """
    return _hash_graph(
        program.graph_module, lambda name: _hash_tensor(_find(program, name), weights), weights
    )


def _hash_graph(module: Any, hash_constant: Callable[[str], str], weights: bool) -> str:
    found = hashlib.sha256()
    numbers: dict[Any, str] = {}

    def number(node: Any) -> str:
        if node not in numbers:
            # Weights are numbered where they are used first.
            numbers[node] = str(len(numbers))
            found.update(f"{numbers[node]} {hash_constant(node.name)}".encode())
        return numbers[node]

    def describe(value: Any) -> str:
        if isinstance(value, torch.fx.Node):
            if value.op == "get_attr":
                inner = getattr(module, value.target)
                if isinstance(inner, torch.nn.Module):
                    return _hash_graph(inner, lambda name: "", weights)
                return _hash_tensor(inner, weights)
            return f"%{number(value)}"
        if isinstance(value, (list, tuple)):
            return f"[{','.join(map(describe, value))}]"
        if isinstance(value, dict):
            return f"{{{','.join(f'{key}:{describe(item)}' for key, item in value.items())}}}"
        return repr(value)

    for node in module.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        found.update(
            f"{node.op} {node.target} {describe(node.args)} {describe(node.kwargs)}".encode()
        )
        numbers[node] = str(len(numbers))
    return found.hexdigest()


def _find(program: Any, name: str) -> Any:
    """Return the tensor of an input, or None for the images."""
    signature = program.graph_signature
    tensors = {**program.constants, **program.state_dict}
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        if name in names:
            return tensors[names[name]]
    return None


def _hash_tensor(tensor: Any, weights: bool) -> str:
    if tensor is None:
        return "input"
    described = f"{tensor.dtype}{tuple(tensor.shape)}"
    if not weights and tensor.dim() > 0 and tensor.is_floating_point():
        return described
    return described + hash_values(tensor)


def hash_values(tensor: Any) -> str:
    """Return a hash of the values of a tensor."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()
