# SPDX-License-Identifier: Apache-2.0
"""Models of a library that were loaded by their name before: neither network nor cache is needed.

The weights are set later, from those that were saved with the run.
"""

import json
from dataclasses import replace
from typing import Any

from ray_embed.encoders.forms.base import Form
from ray_embed.encoders.forms.keras_object import wrap_model
from ray_embed.encoders.keras_hub_import import import_keras_hub
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec, KeptModel
from ray_embed.errors import InputError


def describe_architecture(model: Any) -> str:
    """Return the JSON of a Keras model, without its weights."""
    import keras

    return json.dumps(keras.saving.serialize_keras_object(model))


def wrap_kept_model(model: Any, spec: EncoderSpec, kept: KeptModel) -> LoadedModel:
    """Return the requested model in the model of a library, ready to be called.

    Raises:
        InputError: the requested model does not exist, or does not take one batch of images.
    """
    loaded = wrap_model(model, spec, {})
    height, width, channels = loaded.input_shape
    if kept.image_size and not spec.image_size:
        height, width = height or kept.image_size[0], width or kept.image_size[1]
    return replace(
        loaded, input_shape=(height, width, channels), kept=kept, notes=(*loaded.notes, *kept.notes)
    )


def _load(spec: EncoderSpec) -> LoadedModel:
    """Build the model from its description.

    Raises:
        InputError: the installed libraries cannot build it.
    """
    import keras

    kept = spec.kept
    assert kept is not None  # noqa: S101 - it matched
    content = json.loads(kept.architecture)
    if str(content.get("registered_name")).startswith("keras_hub>"):
        import_keras_hub(spec.model_name)
    try:
        model = keras.saving.deserialize_keras_object(content, safe_mode=True)
    except Exception as error:
        raise InputError(
            f"--model {spec.model_name}: the installed version of its library cannot build the "
            f"model that was kept: {type(error).__name__}: {str(error)[:500]}"
        ) from error
    return wrap_kept_model(model, spec, kept)


FORM = Form(matches=lambda spec: spec.kept is not None, load=_load)
