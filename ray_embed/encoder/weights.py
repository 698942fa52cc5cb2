# SPDX-License-Identifier: Apache-2.0
"""Loads weights from a file of any accepted kind into a model: all of them or none."""

from pathlib import Path
from typing import Any

from ray_embed.encoder.checkpoint_file import find_checkpoint, plain_prefix
from ray_embed.encoder.hdf5_weights import load_hdf5
from ray_embed.encoder.keras_objects import finish_normalization, keras_family, weights_of
from ray_embed.encoder.tf_checkpoint import load_checkpoint
from ray_embed.errors import InputError


def load_weights(model: Any, weights: str, outer: Any | None = None) -> None:
    """Give every weight of `model` its value from a file; on an error nothing is changed.

    Args:
        model: a Keras 3 or tf_keras model whose variables exist.
        weights: path of a `.weights.h5`, `.h5` or `.keras` file, prefix of a TensorFlow
            checkpoint, or a folder with one.
        outer: the object that holds `model` as an attribute, if any. The file may have been saved
            from it: the weights go into it where only that fits.

    Raises:
        InputError: the file is missing, damaged, of another kind, or does not belong to the model:
            a variable has no value or one of another shape, or the file has more layers.
    """
    if not weights_of(model):
        raise InputError(
            f"{weights}: the model has no variables to load into; build it or call it once"
        )
    around = _models_around(model, outer)
    if Path(weights).is_file() and weights.endswith((".h5", ".keras")):
        load_hdf5(model, weights, around)
    else:
        names = [name for name, value in _attributes(outer) if value is model]
        with plain_prefix(find_checkpoint(weights)) as prefix:
            load_checkpoint(prefix, weights, model, names, around)
    finish_normalization([model, *around])


def _models_around(model: Any, outer: Any | None) -> list[Any]:
    """The Keras models at hand that contain all of `model`: outer itself, or attributes of it."""
    wanted = {id(variable) for variable in weights_of(model)}
    return [
        value
        for value in (outer, *(value for _, value in _attributes(outer)))
        if value is not model
        and keras_family(value)
        and hasattr(value, "load_weights")
        and wanted <= {id(variable) for variable in weights_of(value)}
    ]


def _attributes(outer: Any | None) -> list[tuple[str, Any]]:
    return list(getattr(outer, "__dict__", {}).items())
