# SPDX-License-Identifier: Apache-2.0
"""List the layers and nested models of a Keras model with the shapes of their outputs."""

from typing import Any

from ray_embed.core.console import say
from ray_embed.encoders.batch_axis import find_batch_fault
from ray_embed.encoders.features import run_recorded
from ray_embed.encoders.frameworks.base import Shapes
from ray_embed.encoders.layers import Recorded, selectable_layers
from ray_embed.encoders.model_errors import explain_call_errors
from ray_embed.encoders.model_setup import set_up_untrained
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.submodels import nested_models

Shape = tuple[int | None, ...]


def list_shapes(spec: EncoderSpec, local_spec: EncoderSpec) -> tuple[Shapes, Shapes]:
    """Return the models that ``--submodel`` accepts, and the layers that ``--layer`` accepts.

    Args:
        spec: the request.
        local_spec: the same with a model on this machine.

    Returns:
        The output shapes of the models and of the layers, by name, with None for the batch. A model
        that is never called has an empty shape.

    Raises:
        InputError: the model cannot be loaded or called.
    """
    setup = set_up_untrained(spec, local_spec)
    for note in setup.loaded.notes:
        say(note)
    images = setup.images
    batches = [images] if setup.has_fixed_batch else [images, images[:-1]]
    with explain_call_errors(setup.loaded, spec, images):
        recorded = [run_recorded(setup.loaded, batch)[1] for batch in batches]
    prefix = f"{spec.submodel}." if spec.submodel else ""
    models = {
        prefix + nested.path: next(map(_output_shape, recorded[0].get(nested.layer, [])), ())
        for nested in nested_models(setup.loaded.model)
    }
    return models, _layer_shapes(recorded, [len(batch) for batch in batches])


def _layer_shapes(recorded: list[Recorded], sizes: list[int]) -> Shapes:
    """Return the shapes of the layers that have one row per image in each of the calls."""
    calls = [selectable_layers(call) for call in recorded]
    return {
        path: _output_shape(value)
        for path, value in calls[0].items()
        if all(path in call for call in calls)
        and not find_batch_fault([call[path].shape for call in calls], sizes)
    }


def _output_shape(value: Any) -> Shape:
    shape = getattr(value, "shape", None)
    return () if shape is None else (None, *tuple(shape)[1:])
