# SPDX-License-Identifier: Apache-2.0
"""Set a model's weights to values as they were before training, for ``--weights random``.

The values come from the layers' own initializers, with a fixed seed. Normalization layers keep
their weights, which are the mean and variance of pixels and were not trained.
"""

import sys
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.forms.keras_object import call_user_code, find_model, is_callable
from ray_embed.encoders.keras_compat import has_base, is_positional, keras_family
from ray_embed.encoders.loaded_model import (
    LoadedModel,
    custom_object_scope,
    get_variables,
    get_weights,
    set_weights,
)
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError, get_first_line
from ray_embed.options import RANDOM

Weights = tuple[Array, ...]

_SEED = 0


def give_random_weights(loaded: LoadedModel, spec: EncoderSpec, images: Any) -> None:
    """Set the model's weights to initial values, which are the same on every call.

    Args:
        loaded: the model, whose variables exist.
        spec: what the model was loaded from.
        images: (N, H, W, C) float32 that the model takes.

    Raises:
        InputError: the model's layers cannot be created again, or its own code sets trained
            weights.
    """
    if loaded.model is None:
        raise _cannot(spec, "it is a SavedModel without Keras layers, whose weights are fixed")
    before = get_weights(loaded)
    sys.modules[keras_family(loaded.model)].utils.set_random_seed(_SEED)
    with custom_object_scope(loaded):
        fresh = _initial_weights(loaded.model, spec, images, before)
    kept = {
        id(variable)
        for layer in loaded.model._flatten_layers()
        if has_base(layer, "Normalization")
        for variable in layer.weights
    }
    triples = zip(get_variables(loaded), before, fresh, strict=True)
    set_weights(loaded, tuple(old if id(v) in kept else new for v, old, new in triples))


def _initial_weights(model: Any, spec: EncoderSpec, images: Any, before: Weights) -> Weights:
    """Create the model again, and return its weights."""
    called, error = is_callable(spec), None
    if is_positional(model):
        try:
            return _weights_of(_clone(model), model)
        except Exception as failed:
            error = failed
    try:
        if called:
            again = find_model(call_user_code(spec), spec)[-1]
        else:
            again = type(model).from_config(model.get_config())
        again(images, training=False)
        fresh = _weights_of(again, model)
    except Exception as failed:
        raise _cannot(spec, get_first_line(error or failed)) from failed
    if called and _mostly_the_same(before, fresh):
        raise _cannot(
            spec,
            "its code gives it the same weights each time: trained ones, or of a fixed seed; give "
            "a function that leaves them as Keras initializes them",
        )
    return fresh


def _clone(model: Any) -> Any:
    """Create the layers of a functional or Sequential model again, including nested models."""
    if keras_family(model) == "keras":
        import keras

        return keras.models.clone_model(model, clone_function=_recreate, recursive=True)
    import tf_keras

    return tf_keras.models.clone_model(model, clone_function=_recreate)


def _recreate(layer: Any) -> Any:
    # A Lambda has no weights, and Keras would not run its code from a configuration.
    if has_base(layer, "Lambda"):
        return layer
    return type(layer).from_config(layer.get_config())


def _weights_of(again: Any, model: Any) -> Weights:
    shapes = [[tuple(weight.shape) for weight in m.weights] for m in (again, model)]
    if shapes[0] != shapes[1]:
        raise ValueError("created again, it has other weights")
    return tuple(np.asarray(weight) for weight in again.weights)


def _mostly_the_same(before: Weights, fresh: Weights) -> bool:
    """Return whether more than half of the random initial values are the same."""
    random = [(old, new) for old, new in zip(before, fresh, strict=True) if np.ptp(new) > 0]
    same = sum(new.size for old, new in random if np.array_equal(old, new))
    return 2 * same > sum(new.size for _, new in random)


def _cannot(spec: EncoderSpec, why: str) -> InputError:
    return InputError(
        f"--weights {RANDOM}: {spec.model_name} cannot be given initial weights: {why}"
    )
