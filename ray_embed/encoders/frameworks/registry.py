# SPDX-License-Identifier: Apache-2.0
"""All frameworks that encoders may come from. The first one that matches builds the encoder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ray_embed.encoders.frameworks import keras, onnx, torch
from ray_embed.encoders.frameworks.base import Framework, ModelOfAnotherFramework
from ray_embed.encoders.local_copies import local_copies
from ray_embed.encoders.spec import EncoderSpec

_Result = TypeVar("_Result")

FRAMEWORKS = (onnx.FRAMEWORK, torch.FRAMEWORK, keras.FRAMEWORK)
_BY_NAME = {framework.name: framework for framework in FRAMEWORKS}


def find_framework(spec: EncoderSpec) -> Framework:
    """Return the framework of a model, which is on this machine if it is a file."""
    return next(framework for framework in FRAMEWORKS if framework.matches(spec))


def use_framework(spec: EncoderSpec, use: Callable[[Framework, EncoderSpec], _Result]) -> _Result:
    """Return what `use` makes of a model's framework and of the specification with local copies.

    If the model is a callable that returns an object of another framework, `use` is called again
    with that framework, and with the object as the model.
    """
    with local_copies(spec, _list_companions) as local_spec:
        try:
            return use(find_framework(local_spec), local_spec)
        except ModelOfAnotherFramework as found:
            local_spec = replace(local_spec, model=found.model)
        return use(find_framework(local_spec), local_spec)


def _list_companions(spec: EncoderSpec) -> list[str]:
    path = Path(spec.model)
    return find_framework(spec).list_companions(path) if path.is_file() else []


def get_framework(name: str) -> Framework:
    """Return the framework with a name."""
    return _BY_NAME[name]
