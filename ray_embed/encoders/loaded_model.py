# SPDX-License-Identifier: Apache-2.0
"""A callable model in memory, regardless of its original form, and access to its weights."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.custom_objects import Objects
from ray_embed.encoders.keras_compat import finish_normalization, keras_family
from ray_embed.encoders.spec import KeptModel
from ray_embed.errors import InputError

Sides = tuple[int | None, int | None, int | None]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that can be called.

    Attributes:
        call: takes (N, H, W, C) float32, or the contents (N,) of image files if `dtype` is
            ``string``, and returns the model's outputs.
        input_shape: (H, W, C), where each side that the model does not fix is None.
        model: the Keras model, or None for a SavedModel that is called by a signature.
        signature: the concrete function of that SavedModel, if it takes pixels.
        outer: the object that contains `model`, or that must be kept alive for `signature`.
        between: the objects that lead from `outer` to `model`.
        dtype: the type of the model's input.
        custom_objects: the classes and functions that the model was loaded with.
        main_output: the output to take if there are several and no layer is requested.
        notes: choices that were made while the model was loaded.
        channels_first: whether the model itself takes (N, C, H, W).
        kept: what to keep of a model of a library, to load it again.
    """

    call: Callable[[Any], Any]
    input_shape: Sides
    model: Any = None
    signature: Any = None
    outer: Any = None
    between: tuple[Any, ...] = ()
    dtype: str = "float32"
    custom_objects: Objects = field(default_factory=dict)
    main_output: str | None = None
    notes: tuple[str, ...] = ()
    channels_first: bool = False
    kept: KeptModel | None = None

    @property
    def takes_bytes(self) -> bool:
        """Return whether the model takes the contents of image files."""
        return self.dtype == "string"


def as_model_input(images: Any, channels_first: bool, dtype: str) -> Any:
    """Return images (N, H, W, C) in the layout of the model, within the range of its input type."""
    return _clip_to_integers(transpose_images(images, channels_first), dtype)


def transpose_images(images: Any, channels_first: bool) -> Any:
    """Return images (N, H, W, C) as (N, C, H, W) if `channels_first`."""
    if not channels_first:
        return images
    import tensorflow as tf

    return tf.transpose(images, (0, 3, 1, 2))


def _clip_to_integers(images: Any, dtype: str) -> Any:
    """Clip images to the range of a small integer type: interpolation may exceed it."""
    import tensorflow as tf

    kind = tf.dtypes.as_dtype(dtype)
    if not kind.is_integer or kind.size > 2:
        return images
    return tf.clip_by_value(images, float(kind.min), float(kind.max))


def get_variables(loaded: LoadedModel) -> list[Any]:
    """Return the variables that hold the model's weights, in the model's order."""
    return [] if loaded.model is None else list(loaded.model.weights)


def get_weights(loaded: LoadedModel) -> tuple[Array, ...]:
    """Return the values of the weights, in the model's order."""
    return tuple(np.asarray(variable) for variable in get_variables(loaded))


def set_weights(loaded: LoadedModel, values: tuple[Array, ...]) -> None:
    """Set the weights, in the model's order.

    Raises:
        InputError: the number or the shapes of the weights differ from the model's.
    """
    variables = get_variables(loaded)
    _check_shapes([tuple(variable.shape) for variable in variables], [v.shape for v in values])
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    if loaded.model is not None:
        finish_normalization([loaded.model])


def _check_shapes(shapes: list[Any], saved: list[Any]) -> None:
    if shapes == saved:
        return
    pairs = enumerate(zip(shapes, saved, strict=False))
    index = next((index for index, (shape, other) in pairs if shape != other), None)
    difference = (
        f"{len(shapes)} variables instead of {len(saved)}"
        if index is None
        else f"variable {index} has the shape {shapes[index]} instead of {saved[index]}"
    )
    raise InputError(
        f"the model is not the one that this run folder was started with: {difference}; "
        "give another --out, or --overwrite to start again"
    )


def custom_object_scope(loaded: LoadedModel) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which Keras finds the custom objects that the model was loaded with."""
    library = sys.modules[keras_family(loaded.model)]
    scope: contextlib.AbstractContextManager[Any] = library.saving.custom_object_scope(
        loaded.custom_objects
    )
    return scope


@contextlib.contextmanager
def computing_in_bfloat16(loaded: LoadedModel) -> Iterator[None]:
    """Let a Keras 3 model compute in bfloat16 with float32 weights (the mixed policy).

    Raises:
        InputError: the model is not a Keras 3 model, so its precision was fixed when it was
            created.
    """
    if keras_family(loaded.model) != "keras":
        raise InputError(
            "--precision bfloat16: TensorFlow can switch the precision of Keras 3 models only; "
            "omit the option, or install OpenVINO: pip install 'ray_embed[openvino]'"
        )
    import keras

    lower = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    layers = list(loaded.model._flatten_layers())
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = lower
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy
