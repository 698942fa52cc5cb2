# SPDX-License-Identifier: Apache-2.0
"""ONNX: files that other frameworks export, with their weights in them or in files beside them."""

import importlib.util
from pathlib import Path
from typing import NoReturn

from ray_embed.config import is_callable_reference
from ray_embed.core.uri import is_uri
from ray_embed.encoders.engines import onnxruntime, openvino_onnx
from ray_embed.encoders.frameworks.base import Framework, Shapes
from ray_embed.encoders.onnx_models.reading import list_external_files
from ray_embed.encoders.onnx_models.sessions import has_gpu
from ray_embed.encoders.protobuf_fields import is_onnx
from ray_embed.encoders.spec import Encoder, EncoderSpec, Weights
from ray_embed.errors import InputError
from ray_embed.options import RANDOM

_SUFFIX = ".onnx"
_PACKAGES = ("onnx", "onnxruntime")


def _matches(spec: EncoderSpec) -> bool:
    if not isinstance(spec.model, str) or is_callable_reference(spec.model):
        return False
    # What lies in an object store is recognized by content once it is on this machine.
    path = Path(spec.model)
    is_named_so = path.suffix.lower() == _SUFFIX and not path.is_dir()
    return is_named_so or (not is_uri(spec.model) and path.is_file() and is_onnx(path))


def _check(spec: EncoderSpec) -> None:
    path = Path(spec.model)
    if not path.exists():
        raise InputError(f"--model {path}: no such file; check the path")
    if not is_onnx(path):
        raise InputError(
            f"--model {path}: it is no ONNX model, or it is damaged (its content is not that of an "
            "ONNX file); export it again"
        )
    _refuse_options(spec)
    _check_packages(path)


def _check_packages(path: Path) -> None:
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--model {path}: ONNX models need the package {package}; "
                "pip install 'ray_embed[onnx]'"
            )


def _refuse_options(spec: EncoderSpec) -> None:
    def refuse(option: str, why: str) -> NoReturn:
        raise InputError(f"{option}: --model {spec.model_name} is an ONNX model, {why}")

    if spec.weights == RANDOM:
        refuse(
            f"--weights {RANDOM}",
            "whose file does not say how its weights were initialized, so there are no random ones",
        )
    if spec.weights is not None:
        refuse(f"--weights {spec.weights}", "whose file holds its weights; omit --weights")
    if spec.submodel is not None:
        refuse(
            f"--submodel {spec.submodel}",
            "a single graph without models inside; take a tensor of it with --layer",
        )
    if spec.tags is not None or spec.signature is not None:
        option = "--tags" if spec.signature is None else "--signature"
        refuse(option, "and the option is for SavedModel folders; omit it")
    if spec.model_kwargs:
        refuse("--model-kwargs", "and the option is for module:callable; omit it")


def _list_companions(path: Path) -> list[str]:
    _check_packages(path)
    return list_external_files(path)


def _build(
    spec: EncoderSpec, local_spec: EncoderSpec, threads: int, saved_weights: Weights | None
) -> Encoder:
    _check(local_spec)
    from ray_embed.encoders.onnx_models.build import build

    return build(FRAMEWORK, spec, local_spec, threads)


def _list_shapes(spec: EncoderSpec, local_spec: EncoderSpec) -> tuple[Shapes, Shapes]:
    _check(local_spec)
    from ray_embed.encoders.onnx_models.build import list_shapes

    return list_shapes(spec, local_spec)


FRAMEWORK = Framework(
    name="onnx",
    engines=(openvino_onnx.ENGINE, onnxruntime.ENGINE),
    graph_file="model.onnx",
    matches=_matches,
    check=_check,
    start_building=lambda: _build,
    list_shapes=_list_shapes,
    has_gpu=has_gpu,
    list_imports=lambda spec: _PACKAGES,
    list_companions=_list_companions,
    packages=("onnxruntime", "onnxruntime-gpu"),
)
