# SPDX-License-Identifier: Apache-2.0
"""Check that an encoder returns the same features for the same images on every call."""

from collections.abc import Callable

import numpy as np

from ray_embed.encoders.engines.choice import Reference, agree
from ray_embed.encoders.features import load_preprocessing, run_recorded
from ray_embed.encoders.layers import selectable_layers
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError

# A layer that flips each image at random returns the same result for this many images only once in
# 2 ** IMAGES_TO_COMPARE calls.
IMAGES_TO_COMPARE = 8


def check_deterministic(
    spec: EncoderSpec, reference: Reference, list_steady: Callable[[], list[str]]
) -> None:
    """Refuse an encoder whose features change from call to call.

    Args:
        spec: the request, which names the model.
        reference: a plain call.
        list_steady: returns the layers whose outputs are equal in two calls.

    Raises:
        InputError: the features change; the message names layers whose outputs do not.
    """
    # A smaller batch is encoded more times.
    calls = (
        [np.asarray(value) for value in reference.encode(reference.images)]
        for _ in range(0, IMAGES_TO_COMPARE, len(reference.images))
    )
    if all(agree(features, reference.features, spec.precision) for features in calls):
        return
    steady = list_steady()
    raise InputError(
        f"--model {spec.model_name}: two calls on the same images give different features (a "
        "sampling layer, or dropout that stays on?); take a layer that is always the same with "
        f"--layer: {', '.join(steady[:-11:-1]) or 'none was found'}"
    )


def list_steady_layers(loaded: LoadedModel, spec: EncoderSpec, reference: Reference) -> list[str]:
    """Return the layers of a model whose outputs are equal in two calls."""
    images, count = load_preprocessing(spec)(reference.images), len(reference.images)
    first, second = (selectable_layers(run_recorded(loaded, images)[1], count) for _ in range(2))
    return [
        path
        for path, value in first.items()
        if path in second and agree([np.asarray(value)], [np.asarray(second[path])], spec.precision)
    ]
