# SPDX-License-Identifier: Apache-2.0
"""Load weights from a file of any accepted format into a model: all of them or none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_embed.encoders.enclosing_models import build_models, find_enclosing_models
from ray_embed.encoders.file_format import detect_format
from ray_embed.encoders.keras_compat import finish_normalization, weights_of
from ray_embed.encoders.submodels import nested_models
from ray_embed.encoders.weights.checkpoint import load_checkpoint
from ray_embed.encoders.weights.checkpoint_reader import find_checkpoint, link_literal_prefix
from ray_embed.encoders.weights.hdf5 import load_hdf5
from ray_embed.errors import InputError


def load_weights(
    model: Any,
    weights: str,
    outer: Any | None = None,
    images: Any | None = None,
    between: Sequence[Any] = (),
) -> None:
    """Set every weight of `model` from a file, or change nothing if there is an error.

    Args:
        model: a Keras 3 or tf_keras model whose variables exist.
        weights: the path of a file that Keras wrote, with any name; the prefix of a TensorFlow
            checkpoint; or a folder with a checkpoint.
        outer: the object that contains `model`, if any. The file may have been saved from it. The
            weights are loaded into that object if they do not fit `model` alone.
        images: (N, H, W, C) float32 that `model` takes, to build the parts of `outer` that were
            never called.
        between: the objects inside `outer` that lead to `model`.

    Raises:
        InputError: the file is missing, damaged, or in another format; or it does not belong to the
            model: a variable has no value, a value has another shape, or the file has more layers.
    """
    if not weights_of(model):
        raise InputError(
            f"{weights}: the model has no variables to load into; build it or call it once"
        )
    holders = [] if outer is None else [outer, *between]
    around = find_enclosing_models(model, holders)
    try:
        _load(model, weights, holders, around)
    except InputError as error:
        if images is None:
            raise
        tried, problems = build_models(around, images)
        if not tried:
            raise
        try:
            _load(model, weights, holders, around)
        except InputError:
            raise InputError(" ".join([str(error), *problems])) from error
    finish_normalization([model, *around])


def _load(model: Any, weights: str, holders: Sequence[Any], around: Sequence[Any]) -> None:
    nested = [item for holder in holders for item in nested_models(holder)]
    paths = [item.path for item in nested if item.model is model]
    around = [value for value in around if weights_of(value)]
    if Path(weights).is_file() and detect_format(weights):
        load_hdf5(model, weights, around, [path.replace(".", "/") for path in paths])
        return
    attributes = [pair for holder in holders for pair in getattr(holder, "__dict__", {}).items()]
    names = [name for name, value in attributes if value is model]
    names += [path.rpartition(".")[2] for path in paths]
    with link_literal_prefix(find_checkpoint(weights)) as prefix:
        load_checkpoint(prefix, weights, model, list(dict.fromkeys(names)), around)
