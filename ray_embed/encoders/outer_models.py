# SPDX-License-Identifier: Apache-2.0
"""Builds the models around the encoder, so that a file of all their weights can be loaded.

Keras makes the variables of a subclassed model when it is first called. Its encoder has been
called, its decoder has not.
"""

import contextlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_embed.encoders.keras_compat import keras_family, weights_of
from ray_embed.encoders.layers import inputs_of
from ray_embed.encoders.submodels import layers_of, nested_models

# A model around an encoder may take pairs or triplets of images.
_MOST_INPUTS = 3


def models_around(model: Any, holders: Sequence[Any]) -> list[Any]:
    """Return the Keras models that contain `model`, the outermost first.

    Args:
        model: the encoder.
        holders: objects that it is inside of.
    """
    candidates = {
        id(value): value
        for holder in holders
        for value in (holder, *(one.model for one in nested_models(holder)))
    }
    return [
        value
        for value in candidates.values()
        if value is not model
        and keras_family(value)
        and hasattr(value, "load_weights")
        and _contains(value, model)
    ]


def build_models(models: Sequence[Any], images: Any) -> tuple[bool, list[str]]:
    """Create the variables of models that were never called.

    Args:
        models: what contains the encoder.
        images: (N, H, W, C) float32 that the encoder takes.

    Returns:
        Whether there was anything to build, and what could not be built, and why.
    """
    unbuilt = [model for model in models if not model.built or _unbuilt(model)]
    problems = []
    for model in unbuilt:
        reason = _build(model, np.zeros_like(np.asarray(images[:1])))
        left = [one.name for one in layers_of(model) if not one.built or _unbuilt(one)]
        if left and reason:
            problems.append(
                f"The model {type(model).__name__} that it is inside of has layers without weights "
                f"so far ({', '.join(left)}), and calling it on a blank image fails ({reason}): "
                "call it once in the function that --model names"
            )
        elif not left:
            # All that it consists of is there, even if it cannot be called itself.
            model.built = True
    return bool(unbuilt), problems


def describe_input_inside(model: Any, holders: Sequence[Any], shape: tuple[int, ...]) -> str:
    """Say what the encoder gets of pixels from 0 to 255 inside the whole model.

    Args:
        model: the encoder.
        holders: objects that it is inside of, the outermost first.
        shape: (H, W, C) of its images.

    Returns:
        An empty string where it gets the pixels as they are, or where that cannot be found out.
    """
    whole = next((holder for holder in holders if keras_family(holder)), None)
    if whole is None:
        return ""
    levels = np.linspace(0, 255, 2 * int(np.prod(shape)), dtype=np.float32).reshape(2, *shape)
    count = len(getattr(whole, "inputs", None) or [None])
    with warnings.catch_warnings(), inputs_of(model) as seen, contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        whole(levels if count == 1 else [levels] * count, training=False)
    # Keras may trace the model before it calls it; only values count.
    values = [value for value in seen if hasattr(value, "numpy")]
    if not values:
        return ""
    found = np.asarray(values[0])
    if found.shape == levels.shape and np.array_equal(found, levels):
        return ""
    return (
        f"inside {whole.name}, {model.name} gets pixels from 0–255 as {found.min():.3g} to "
        f"{found.max():.3g}; alone, it gets what --scale or --preprocess makes of them"
    )


def _contains(value: Any, model: Any) -> bool:
    if any(layer is model for layer in value._flatten_layers()):
        return True
    wanted = {id(variable) for variable in weights_of(model)}
    return wanted <= {id(variable) for variable in weights_of(value)}


def _unbuilt(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if layer is not model and not layer.built]


def _build(model: Any, image: Any) -> str:
    """Call the model, or its own `build`; return why that fails, an empty string if it does not."""
    reasons = []
    with warnings.catch_warnings():
        # Keras warns of each way that does not work.
        warnings.simplefilter("ignore")
        for count in range(1, _MOST_INPUTS + 1):
            try:
                model(image if count == 1 else [image] * count, training=False)
            except Exception as error:
                reasons.append(_reason(error))
            else:
                return ""
        with contextlib.suppress(Exception):
            if type(model).build.__module__.partition(".")[0] != keras_family(model):
                model.build((None, *image.shape[1:]))
                return ""
    return reasons[0]


def _reason(error: Exception) -> str:
    """Return the line of Keras' text that says what is wrong."""
    if isinstance(error, NotImplementedError):
        return "it has no method `call`"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception encountered")]
    return (said or lines or [type(error).__name__])[0].rstrip(".")[:200]
