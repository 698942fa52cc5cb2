# SPDX-License-Identifier: Apache-2.0
"""The weights that a model had before it was trained: what ``--weights random`` gives it.

They are those of each layer's own initialisers, with a fixed seed. Normalization layers keep
theirs: these hold the mean and variance of pixels, and nothing that was learnt.
"""

import sys
from typing import Any

import numpy as np

from ray_embed.config import is_callable_reference
from ray_embed.core import user_code
from ray_embed.encoders.keras_compat import has_base, is_positional, keras_family
from ray_embed.encoders.model_loading import (
    Loaded,
    custom_object_scope,
    find_model,
    get_weights,
    set_weights,
    variables,
)
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError, first_line
from ray_embed.options import RANDOM

Weights = tuple[np.ndarray[Any, Any], ...]

_SEED = 0


def give_random_weights(loaded: Loaded, spec: EncoderSpec, images: Any) -> None:
    """Give the model initial weights, the same each time.

    Args:
        loaded: the model, whose variables exist.
        spec: where it is from.
        images: (N, H, W, C) float32 that it takes.

    Raises:
        InputError: its layers cannot be made anew, or its own code gives it trained weights.
    """
    if loaded.model is None:
        raise _cannot(spec, "it is a SavedModel without Keras layers, whose weights are fixed")
    before = get_weights(loaded)
    sys.modules[keras_family(loaded.model)].utils.set_random_seed(_SEED)
    with custom_object_scope(loaded):
        fresh = _initial(loaded.model, spec, images, before)
    kept = {
        id(variable)
        for layer in loaded.model._flatten_layers()
        if has_base(layer, "Normalization")
        for variable in layer.weights
    }
    pairs = zip(variables(loaded), before, fresh, strict=True)
    set_weights(loaded, tuple(old if id(own) in kept else new for own, old, new in pairs))


def _initial(model: Any, spec: EncoderSpec, images: Any, before: Weights) -> Weights:
    """Make the model again, and give its weights."""
    reference = isinstance(spec.model, str)
    called = is_callable_reference(spec.model) if reference else user_code.makes(spec.model)
    error = None
    if is_positional(model):
        try:
            return _weights_of(_clone(model), model)
        except Exception as failed:
            error = failed
    try:
        if called:
            again = find_model(user_code.call(spec.model, spec.model_kwargs, "--model"), spec)[-1]
        else:
            again = type(model).from_config(model.get_config())
        again(images, training=False)
        fresh = _weights_of(again, model)
    except Exception as failed:
        raise _cannot(spec, first_line(error or failed)) from failed
    if called and _mostly_the_same(before, fresh):
        raise _cannot(
            spec,
            "its code gives it the same weights each time: trained ones, or of a fixed seed; give "
            "a function that leaves them as Keras initialises them",
        )
    return fresh


def _clone(model: Any) -> Any:
    """Make the layers of a functional or Sequential model again, those of models within it too."""
    if keras_family(model) == "keras":
        import keras

        return keras.models.clone_model(model, clone_function=_made_again, recursive=True)
    import tf_keras

    return tf_keras.models.clone_model(model, clone_function=_made_again)


def _made_again(layer: Any) -> Any:
    # A Lambda has no weights, and Keras would not run its code from a configuration.
    if has_base(layer, "Lambda"):
        return layer
    return type(layer).from_config(layer.get_config())


def _weights_of(again: Any, model: Any) -> Weights:
    shapes = [[tuple(weight.shape) for weight in one.weights] for one in (again, model)]
    if shapes[0] != shapes[1]:
        raise ValueError("made anew it has other weights")
    return tuple(np.asarray(weight) for weight in again.weights)


def _mostly_the_same(before: Weights, fresh: Weights) -> bool:
    """Whether more than half of what initialisers make at random came out the same."""
    random = [(old, new) for old, new in zip(before, fresh, strict=True) if np.ptp(new) > 0]
    same = sum(new.size for old, new in random if np.array_equal(old, new))
    return 2 * same > sum(new.size for _, new in random)


def _cannot(spec: EncoderSpec, why: str) -> InputError:
    return InputError(
        f"--weights {RANDOM}: {spec.model_name} cannot be given initial weights: {why}"
    )
