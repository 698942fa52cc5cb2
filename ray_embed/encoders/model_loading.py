# SPDX-License-Identifier: Apache-2.0
"""Load the model from any form in which it may be given, and load its weights."""

from pathlib import Path
from typing import Any

from ray_embed.core import user_code
from ray_embed.encoders.forms.registry import FORMS
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.model_json import refuse_without_weights
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError


def load_model(spec: EncoderSpec) -> LoadedModel:
    """Load the model, without ``--weights``: :func:`load_requested_weights` does that later.

    Raises:
        InputError: the model does not exist, is unsafe to load, or does not take one batch of
            images.
    """
    for module in spec.imports:
        user_code.import_module(module, f"--import {module}")
    form = next(form for form in FORMS if form.matches(spec))
    return form.load(spec)


def load_requested_weights(loaded: LoadedModel, spec: EncoderSpec, images: Any) -> None:
    """Load ``--weights`` into the model, whose variables must exist.

    Args:
        loaded: the model.
        spec: the request, which has the path of the weights.
        images: (N, H, W, C) float32 that the model takes.

    Raises:
        InputError: the weights do not fit the model, are missing, or cannot be loaded into it.
    """
    if spec.weights is None:
        if isinstance(spec.model, str):
            refuse_without_weights(Path(spec.model))
        return
    if loaded.model is None:
        raise InputError(
            f"--weights {spec.weights}: {spec.model_name} is a SavedModel without Keras layers, "
            "which holds its weights itself; omit --weights"
        )
    from ray_embed.encoders.weights.load import load_weights

    load_weights(loaded.model, spec.weights, loaded.outer, images, loaded.between)
