# SPDX-License-Identifier: Apache-2.0
"""PyTorch: modules of the user's code and of libraries, and programs that torch.export saved."""

import importlib.util
from pathlib import Path
from typing import NoReturn

from ray_embed.config import is_callable_reference
from ray_embed.core.uri import is_uri
from ray_embed.encoders.engines import openvino_torch, torch
from ray_embed.encoders.frameworks.base import Framework, Shapes
from ray_embed.encoders.spec import Encoder, EncoderSpec, Weights
from ray_embed.encoders.torch_models.libraries.registry import find_library
from ray_embed.encoders.torch_models.recognition import is_archive, is_module
from ray_embed.errors import InputError

_SUFFIX = ".pt2"


def _matches(spec: EncoderSpec) -> bool:
    if not isinstance(spec.model, str):
        return is_module(spec.model)
    if find_library(spec.model) is not None:
        return True
    if is_callable_reference(spec.model):
        return False
    path = Path(spec.model)
    is_named_so = path.suffix.lower() == _SUFFIX and not path.is_dir()
    return is_named_so or (not is_uri(spec.model) and path.is_file() and is_archive(path))


def _check(spec: EncoderSpec) -> None:
    if is_module(spec.model):
        _refuse_options_of_saved_models(spec, "a PyTorch module")
        return
    if (found := find_library(spec.model)) is not None:
        found[0].check(spec)
        _refuse_options_of_saved_models(spec, "a PyTorch module")
        return
    path = Path(spec.model)
    if not path.exists():
        raise InputError(f"--model {path}: no such file; check the path")
    if not is_archive(path):
        raise InputError(
            f"--model {path}: it is no archive of torch.export.save, or it is damaged; export the "
            "encoder again"
        )
    _refuse_options(spec)
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"--model {path}: exported programs need the package torch; "
            "pip install 'ray_embed[torch]'"
        )


def _refuse_options(spec: EncoderSpec) -> None:
    def refuse(option: str, why: str) -> NoReturn:
        raise InputError(f"{option}: --model {spec.model_name} is an exported program, {why}")

    if spec.weights is not None:
        refuse(f"--weights {spec.weights}", "which holds its weights; omit --weights")
    if spec.submodel is not None:
        refuse(f"--submodel {spec.submodel}", "without models inside; omit the option")
    if spec.model_kwargs:
        refuse("--model-kwargs", "and the option is for module:callable; omit it")
    _refuse_options_of_saved_models(spec, "an exported program")


def _refuse_options_of_saved_models(spec: EncoderSpec, kind: str) -> None:
    if spec.tags is not None or spec.signature is not None:
        option = "--tags" if spec.signature is None else "--signature"
        raise InputError(
            f"{option}: --model {spec.model_name} is {kind}, and the option is for SavedModel "
            "folders; omit it"
        )


def _list_imports(spec: EncoderSpec) -> tuple[str, ...]:
    found = find_library(spec.model)
    return (found[0].package if found else "torch",)


def _build(
    spec: EncoderSpec, local_spec: EncoderSpec, threads: int, saved_weights: Weights | None
) -> Encoder:
    _check(local_spec)
    from ray_embed.encoders.torch_models.build import build

    return build(FRAMEWORK, spec, local_spec, threads, saved_weights)


def _list_shapes(spec: EncoderSpec, local_spec: EncoderSpec) -> tuple[Shapes, Shapes]:
    _check(local_spec)
    from ray_embed.encoders.torch_models.build import list_shapes

    return list_shapes(spec, local_spec)


FRAMEWORK = Framework(
    name="torch",
    engines=(openvino_torch.ENGINE, torch.ENGINE),
    graph_file="model.pt2",
    matches=_matches,
    check=_check,
    start_building=lambda: _build,
    list_shapes=_list_shapes,
    has_gpu=torch.has_gpu,
    list_imports=_list_imports,
    packages=("torch",),
)
