# SPDX-License-Identifier: Apache-2.0
"""Keras models in memory: passed as an object, or returned by the user's callable."""

from typing import Any

from ray_embed.config import is_callable_reference
from ray_embed.core import user_code
from ray_embed.encoders.custom_objects import Objects
from ray_embed.encoders.forms.base import Form
from ray_embed.encoders.frameworks.base import ModelOfAnotherFramework
from ray_embed.encoders.input_layout import model_input_layout
from ray_embed.encoders.keras_compat import keras_family
from ray_embed.encoders.loaded_model import LoadedModel, as_model_input
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.submodels import find_submodel, nested_models, public_attributes
from ray_embed.encoders.torch_models.recognition import is_module
from ray_embed.errors import InputError


def is_callable(spec: EncoderSpec) -> bool:
    """Return whether the model is a callable, or a reference to one, that returns the model."""
    if isinstance(spec.model, str):
        return is_callable_reference(spec.model)
    return user_code.is_factory(spec.model)


def call_user_code(spec: EncoderSpec) -> Any:
    """Return what the user's callable returns.

    Raises:
        InputError: the callable cannot be imported, or it fails.
    """
    return user_code.call_reference(spec.model, spec.model_kwargs, "--model")


def wrap_model(root: Any, spec: EncoderSpec, custom_objects: Objects) -> LoadedModel:
    """Return the requested Keras model in `root`, ready to be called.

    Args:
        root: a Keras model, or an object that holds Keras models.
        spec: the request, which may name a submodel.
        custom_objects: the classes and functions that `root` was loaded with.

    Raises:
        InputError: the requested model does not exist, or does not take one batch of images.
    """
    *holders, model = find_model(root, spec)
    shape, channels_first = model_input_layout(model, spec)
    dtype = _input_dtype(model)
    return LoadedModel(
        call=lambda images: model(as_model_input(images, channels_first, dtype), training=False),
        input_shape=shape,
        model=model,
        outer=holders[0] if holders else None,
        between=tuple(holders[1:]),
        dtype=dtype,
        custom_objects=custom_objects,
        channels_first=channels_first,
    )


def find_model(root: Any, spec: EncoderSpec) -> list[Any]:
    """Return the objects that lead from `root` to the requested Keras model, the model last.

    Raises:
        InputError: there is no such model.
    """
    where = f"--model {spec.model_name}"
    inside = [name for name, value in public_attributes(root).items() if keras_family(value)]
    inside += [nested.path for nested in nested_models(root) if nested.path not in inside]
    chain = [root]
    if spec.submodel:
        chain = find_submodel(root, spec.submodel)
        if not chain or chain[-1] is None:
            raise InputError(
                f"{where}: it has no attribute, and no layer that is a model, called "
                f"{spec.submodel!r}; the models in it: {', '.join(inside) or 'none'}"
            )
        where = f"{where}, --submodel {spec.submodel}"
    if not keras_family(chain[-1]):
        fix = f"; name the one inside with --submodel: {', '.join(inside)}" if inside else ""
        kind = type(chain[-1]).__name__
        raise InputError(f"{where}: it is {kind}, a Keras model is needed{fix}")
    return chain


def _input_dtype(model: Any) -> str:
    """Return the type of a model's input, or float32 if the model does not define it."""
    inputs = getattr(model, "inputs", None)
    dtype = getattr(inputs[0], "dtype", "float32") if inputs else "float32"
    return str(getattr(dtype, "name", dtype))


def _load(spec: EncoderSpec) -> LoadedModel:
    root = call_user_code(spec) if is_callable(spec) else spec.model
    if is_module(root):
        raise ModelOfAnotherFramework(root)
    return wrap_model(root, spec, {})


FORM = Form(matches=lambda spec: True, load=_load)
