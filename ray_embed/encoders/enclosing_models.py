# SPDX-License-Identifier: Apache-2.0
"""Build the models that contain the encoder, so that a file with all their weights can be loaded.

Keras creates the variables of a subclassed model in its first call. In the case of an auto-encoder,
only the encoder has been called so far, not the decoder.
"""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_embed.encoders.keras_compat import keras_family, weights_of
from ray_embed.encoders.layers import record_inputs
from ray_embed.encoders.model_errors import quote_error
from ray_embed.encoders.submodels import layers_of, nested_models
from ray_embed.errors import strip_ansi

# A model that contains an encoder may take pairs or triplets of images as its inputs.
_MOST_INPUTS = 3


def find_enclosing_models(model: Any, holders: Sequence[Any]) -> list[Any]:
    """Return the Keras models that contain `model`, the outermost first.

    Args:
        model: the encoder.
        holders: the objects that contain it.
    """
    candidates = {
        id(value): value
        for holder in holders
        for value in (holder, *(nested.model for nested in nested_models(holder)))
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
        models: the models that contain the encoder.
        images: (N, H, W, C) float32 that the encoder takes.

    Returns:
        Whether there was anything to build, and a sentence for each model that cannot be built.
    """
    unbuilt = [model for model in models if not model.built or _unbuilt(model)]
    problems = []
    for model in unbuilt:
        reason = _build(model, np.zeros_like(np.asarray(images[:1])))
        missing = [e.name for e in layers_of(model) if not e.built or _unbuilt(e)]
        if missing and reason:
            problems.append(
                f"The model {type(model).__name__} that contains it has layers without weights "
                f"({', '.join(missing)}), and calling it on a blank image fails ({reason}): "
                "call it once in the function that --model names"
            )
        elif not missing:
            # All of its layers are built, even if the model itself cannot be called.
            model.built = True
    return bool(unbuilt), problems


def describe_inner_input(model: Any, holders: Sequence[Any], shape: tuple[int, ...]) -> str:
    """Return a note on what the encoder receives inside the whole model for pixels from 0 to 255.

    Args:
        model: the encoder.
        holders: the objects that contain it, the outermost first.
        shape: (H, W, C) of its images.

    Returns:
        An empty string if the encoder receives the pixels unchanged, or if this cannot be
        determined.
    """
    whole = next((holder for holder in holders if keras_family(holder)), None)
    if whole is None:
        return ""
    levels = np.linspace(0, 255, 2 * int(np.prod(shape)), dtype=np.float32).reshape(2, *shape)
    count = len(getattr(whole, "inputs", None) or [None])
    with warnings.catch_warnings(), record_inputs(model) as inputs, contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        whole(levels if count == 1 else [levels] * count, training=False)
    # Keras may trace the model before it calls it; only eager values count.
    values = [value for value in inputs if hasattr(value, "numpy")]
    if not values:
        return ""
    pixels = np.asarray(values[0])
    if np.array_equal(pixels, levels):
        return ""
    return (
        f"inside {whole.name}, {model.name} gets pixels from 0–255 as {pixels.min():.3g} to "
        f"{pixels.max():.3g}; alone, it gets what --scale or --preprocess makes of them"
    )


def _contains(value: Any, model: Any) -> bool:
    if any(layer is model for layer in value._flatten_layers()):
        return True
    wanted = {id(variable) for variable in weights_of(model)}
    return wanted <= {id(variable) for variable in weights_of(value)}


def _unbuilt(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if layer is not model and not layer.built]


def _build(model: Any, image: Any) -> str:
    """Call the model, or else its own `build`; return why that fails, or an empty string."""
    reasons = []
    with warnings.catch_warnings():
        # Keras warns about each attempt that fails.
        warnings.simplefilter("ignore")
        for count in range(1, _MOST_INPUTS + 1):
            try:
                model(image if count == 1 else [image] * count, training=False)
            except Exception as error:
                reasons.append(_describe(error))
            else:
                return ""
        with contextlib.suppress(Exception):
            if type(model).build.__module__.partition(".")[0] != keras_family(model):
                model.build((None, *image.shape[1:]))
                return ""
    return reasons[0]


def _describe(error: Exception) -> str:
    if isinstance(error, NotImplementedError):
        return "it has no method `call`"
    return strip_ansi(quote_error(error)).rstrip(".")[:200]
