# SPDX-License-Identifier: Apache-2.0
"""Open a module or an exported program: in evaluation mode, in float32, with its weights."""

import copy
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ray_embed.core.arrays import Array
from ray_embed.encoders.input_layout import choose_image_shape
from ray_embed.encoders.model_errors import quote_error
from ray_embed.encoders.spec import EncoderSpec, KeptModel, Weights
from ray_embed.encoders.torch_models import archive
from ray_embed.encoders.torch_models.calls import Values, call_layers
from ray_embed.encoders.torch_models.libraries.base import Library
from ray_embed.encoders.torch_models.libraries.registry import find_library
from ray_embed.encoders.torch_models.recognition import is_module
from ray_embed.encoders.torch_models.weights import (
    fix_seed,
    give_random_weights,
    load_weights,
    set_values,
)
from ray_embed.errors import InputError
from ray_embed.options import RANDOM

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A module that can be called, and what is known about its input.

    Attributes:
        spec: the request, with the batch size that the module takes.
        module: the module.
        image_shape: (H, W, C) of the images. The module takes (N, C, H, W).
        dtype: the type of its input.
        fixed_batch: the batch size that it is fixed to, or None.
        is_made: whether the user's callable has made it.
        outputs: functions of images, by names that ``--layer`` accepts besides those of modules.
        untrained: the names of parameters whose values are random, because the published weights of
            a library lack them.
        notes: choices that were made.
    """

    spec: EncoderSpec
    module: Any
    image_shape: tuple[int, int, int]
    dtype: Any = torch.float32
    fixed_batch: int | None = None
    is_made: bool = False
    outputs: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    untrained: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Return what error messages name."""
        return f"--model {self.spec.model_name}"

    def convert(self, images: Any) -> Any:
        """Return images (N, H, W, C) float32 in the layout and type of the module's input."""
        images = images.permute(0, 3, 1, 2)
        if not self.dtype.is_floating_point:
            # Interpolation may exceed the range of pixels.
            limits = torch.iinfo(self.dtype)
            images = images.clamp(limits.min, limits.max)
        return images.to(self.dtype)

    def take_layers(self, images: Any) -> Values:
        """Return the requested layers for images (N, H, W, C) float32, as tensors."""
        return call_layers(self.module, self.spec.layers, self.convert(images), self.outputs)

    def call(self, images: Any) -> dict[str, Array]:
        """Return the requested layers for images (N, H, W, C) float32, as arrays.

        Raises:
            InputError: the module fails, or a layer cannot be used as features.
        """

        def take(given: Any) -> dict[str, Array]:
            values = call_layers(self.module, self.spec.layers, given, self.outputs)
            return {name: value.float().cpu().numpy() for name, value in values.items()}

        return self.use(images, take)

    def use(self, images: Array, function: Callable[[Any], _Result]) -> _Result:
        """Return what a function, which calls the module, makes of images (N, H, W, C) float32.

        Raises:
            InputError: the module fails.
        """
        given = self.convert(torch.from_numpy(np.array(images)))
        try:
            with torch.inference_mode():
                return function(given)
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith("--") else f"{self.where}: {text}") from error
        except Exception as error:
            raise InputError(
                f"{self.where}: it fails on a batch of images (N, C, H, W) {tuple(given.shape)}: "
                f"{quote_error(error)[:800]}\ncheck --image-size, --submodel and --model-kwargs"
            ) from error


def open_model(
    spec: EncoderSpec, local_spec: EncoderSpec, saved_weights: Weights | None = None
) -> Opened:
    """Open a module or an exported program.

    Args:
        spec: the requested encoder.
        local_spec: the same with the module itself, or with a file on this machine.
        saved_weights: weights that replace those of the module.

    Raises:
        InputError: the model cannot be read, does not take one batch of images, or the weights do
            not fit it.
    """
    _check_version(f"--model {spec.model_name}")
    if is_module(local_spec.model):
        return _open_module(spec, local_spec, saved_weights)
    if (found := find_library(local_spec.model)) is not None:
        return _open_named(*found, spec, local_spec)
    return _open_program(spec, Path(local_spec.model))


def _check_version(where: str) -> None:
    """Refuse a version of PyTorch that writes archives as pickles."""
    if importlib.util.find_spec("torch.export.pt2_archive") is None:
        raise InputError(
            f"{where}: PyTorch {torch.__version__} is too old; at least 2.8 is needed: "
            "pip install 'ray_embed[torch]'"
        )


# --- modules -------------------------------------------------------------------------------------


def _open_module(spec: EncoderSpec, local_spec: EncoderSpec, saved: Weights | None) -> Opened:
    where = f"--model {spec.model_name}"
    # torch.compile wraps a module, and would compile it while it is exported.
    root = getattr(local_spec.model, "_orig_mod", local_spec.model)
    if isinstance(root, torch.jit.ScriptModule):
        raise InputError(
            f"{where}: it is a module of TorchScript, which PyTorch no longer develops; give the "
            "module that it was made from"
        )
    if is_module(spec.model):
        # It is the caller's, who may go on training it.
        root = copy.deepcopy(root)
    module, notes = _set_up(root, spec)
    if local_spec.weights == RANDOM:
        give_random_weights(module, spec.model_name)
    elif local_spec.weights is not None:
        notes += _load_weights(module, root, local_spec)
    elif saved:
        set_values(module, saved)
    sides = (None, None, _find_channels(module))
    return Opened(
        spec=spec,
        module=module,
        image_shape=choose_image_shape(sides, spec),
        is_made=not is_module(spec.model),
        notes=tuple(notes),
    )


def _open_named(library: Library, name: str, spec: EncoderSpec, local_spec: EncoderSpec) -> Opened:
    """Open a module of a library. Without the published weights, it has those of a fixed seed."""
    with fix_seed():
        named = library.load(local_spec, name, local_spec.weights is None)
    named.module.eval()
    module, notes = _set_up(named.module, spec)
    if local_spec.weights not in (None, RANDOM):
        notes += _load_weights(module, named.module, local_spec, named.weights_prefix)
    is_whole = module is named.module
    sides = (None, None) if spec.image_size or not named.image_size else named.image_size
    shape = choose_image_shape((*sides, _find_channels(module)), spec)
    if is_whole and not spec.layers and named.default_layer is not None:
        spec = replace(spec, layers=(named.default_layer,))
    # These libraries read images with Pillow.
    pixels = {"jpeg_dct": "accurate", **named.pixels}
    kept = KeptModel(pixels=pixels, image_size=named.image_size, notes=named.notes)
    return Opened(
        spec=replace(spec, kept=kept),
        module=module,
        image_shape=shape,
        outputs=named.outputs if is_whole else {},
        untrained=frozenset(
            parameter.removeprefix(f"{spec.submodel}.") for parameter in named.untrained
        ),
        notes=(*named.notes, *notes),
    )


def _set_up(root: Any, spec: EncoderSpec) -> tuple[Any, list[str]]:
    """Return the requested module in a module, ready to be called, and notes."""
    where, notes = f"--model {spec.model_name}", []
    module = _find_submodule(root, spec, where)
    _check_forward(module, where)
    if any(part.training for part in module.modules()):
        notes.append("the module was in training mode: it is put into evaluation mode")
    half = {str(p.dtype) for p in module.parameters() if p.is_floating_point()} - {"torch.float32"}
    if half:
        notes.append(f"weights of type {', '.join(sorted(half))} are computed in float32")
    root.eval().requires_grad_(False).float().cpu()
    for part in root.modules():
        if getattr(part, "inplace", None) is True:
            # Activations that change their input give the same, but take longer to export.
            part.inplace = False
    return module, notes


def _load_weights(module: Any, root: Any, local_spec: EncoderSpec, part: str = "") -> list[str]:
    holders = [module] if module is root else [module, root]
    return load_weights(holders, str(local_spec.weights), local_spec.model_name, part)


def _find_submodule(root: Any, spec: EncoderSpec, where: str) -> Any:
    if spec.submodel is None:
        return root
    try:
        return root.get_submodule(spec.submodel)
    except AttributeError as error:
        names = [name for name, _ in root.named_children()]
        raise InputError(
            f"{where}: it has no module called {spec.submodel!r}; the modules in it: "
            f"{', '.join(names[:20]) or 'none'}"
        ) from error


def _check_forward(module: Any, where: str) -> None:
    """Refuse a module that needs more than the images."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]
    if len(needed) > 1:
        raise InputError(
            f"{where}: its forward needs {', '.join(needed)}; an encoder takes one batch of "
            "images: name a module inside with --submodel, or return a module whose forward takes "
            "the images only"
        )


def _find_channels(module: Any) -> int | None:
    """Return the number of channels that the first convolution takes."""
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            return int(part.in_channels)
    return None


# --- exported programs ---------------------------------------------------------------------------


def _open_program(spec: EncoderSpec, path: Path) -> Opened:
    where = f"--model {spec.model_name}"
    try:
        program = archive.read_program(path.read_bytes())
    except archive.UnsafeArchive as error:
        raise InputError(
            f"{where}: {error}; such archives are not loaded: export the encoder again with "
            "torch.export.save, or give --model module:callable"
        ) from error
    except Exception as error:
        raise InputError(
            f"{where}: PyTorch {torch.__version__} cannot load it: {quote_error(error)[:300]}; "
            "export the encoder again with this version"
        ) from error
    images = [n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    if len(images) != 1 or images[0].meta["val"].dim() != 4:
        shapes = ", ".join(f"{n.name} {_show_shape(n)}" for n in images)
        raise InputError(
            f"{where}: its inputs are {shapes or 'none'}; an encoder takes one batch of images "
            "(N, C, H, W): export it with the images as its only input"
        )
    value, notes = images[0].meta["val"], []
    batch, channels, *sides = (side if isinstance(side, int) else None for side in value.shape)
    shape = choose_image_shape((sides[0], sides[1], channels), spec)
    if batch is not None and batch != spec.batch_size:
        notes.append(f"the encoder takes batches of {batch} images only: --batch-size follows it")
        spec = replace(spec, batch_size=batch)
    return Opened(
        spec=spec,
        module=program.module(),
        image_shape=shape,
        dtype=value.dtype,
        fixed_batch=batch,
        notes=tuple(notes),
    )


def _show_shape(node: Any) -> str:
    value = node.meta.get("val")
    sides = ("?" if not isinstance(s, int) else str(s) for s in getattr(value, "shape", ()))
    return f"({', '.join(sides)})"
