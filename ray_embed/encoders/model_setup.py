# SPDX-License-Identifier: Apache-2.0
"""Load the model with its weights, together with a batch of images that it takes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_embed.core import legacy_keras
from ray_embed.core.arrays import Array
from ray_embed.encoders import model_loading
from ray_embed.encoders.batch_axis import fixed_batch_size
from ray_embed.encoders.features import load_preprocessing
from ray_embed.encoders.first_call import create_variables
from ray_embed.encoders.input_layout import image_shape
from ray_embed.encoders.loaded_model import LoadedModel, set_weights, transpose_images
from ray_embed.encoders.model_errors import explain_call_errors
from ray_embed.encoders.probe_images import probe_images
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.weights.random_init import give_random_weights
from ray_embed.errors import InputError, RayEmbedError
from ray_embed.options import RANDOM, VALUE_OPTIONS

# Layers are called on this many images, and on one fewer, to find the batch axis of outputs.
PROBE_COUNT = 3


@dataclass(frozen=True, kw_only=True)
class ModelSetup:
    """A model whose variables exist, and a batch of images that it takes.

    Attributes:
        spec: the requested encoder, with the layout that was found.
        image_shape: (H, W, C) of the images.
        images: the batch, preprocessed.
        has_fixed_batch: whether the model takes only batches of this size.
    """

    spec: EncoderSpec
    loaded: LoadedModel
    image_shape: tuple[int, int, int]
    images: Any
    has_fixed_batch: bool


def set_up_model(
    spec: EncoderSpec, local_spec: EncoderSpec, saved_weights: tuple[Array, ...] | None = None
) -> ModelSetup:
    """Load the model, create its variables, and load its weights.

    Args:
        spec: the requested encoder.
        local_spec: the same with a model and weights on this machine.
        saved_weights: weights that replace the model's own.

    Raises:
        InputError: the model, its weights or the preprocessing is unsuitable.
    """
    with legacy_keras.explain_legacy_errors():
        setup = _load_model(spec, local_spec)
        check_integer_input(setup.spec, setup.images, setup.loaded.dtype)
        _load_requested_weights(setup, local_spec)
    if saved_weights is not None:
        set_weights(setup.loaded, saved_weights)
    # Processes that load the model again must use the same layout.
    channels_first = setup.loaded.channels_first or spec.channels_first
    return replace(setup, spec=replace(setup.spec, channels_first=channels_first))


def give_other_weights(setup: ModelSetup, spec: EncoderSpec, local_spec: EncoderSpec) -> ModelSetup:
    """Load other weights into a model that is set up already.

    Args:
        setup: the model.
        spec: the request, which differs from that of `setup` only in ``--weights``.
        local_spec: the same with weights on this machine.

    Raises:
        InputError: the weights do not fit. The model keeps those that it has.
    """
    spec = _adopt_model(spec, setup.loaded)
    setup = replace(setup, spec=replace(spec, channels_first=setup.spec.channels_first))
    with legacy_keras.explain_legacy_errors():
        _load_requested_weights(setup, local_spec)
    return setup


def set_up_untrained(spec: EncoderSpec, local_spec: EncoderSpec) -> ModelSetup:
    """Load the model and create its variables, without loading weights into them.

    Raises:
        InputError: the model cannot be loaded or called.
    """
    # Any weights do, so that those of a named model are not downloaded.
    spec, local_spec = (replace(each, weights=RANDOM) for each in (spec, local_spec))
    with legacy_keras.explain_legacy_errors():
        return _load_model(spec, local_spec)


def _load_model(spec: EncoderSpec, local_spec: EncoderSpec) -> ModelSetup:
    loaded = model_loading.load_model(local_spec)
    spec = _adopt_model(spec, loaded)
    shape = image_shape(loaded, spec)
    batch_size = fixed_batch_size(loaded)
    images = preprocess_images(spec, probe_images(loaded, spec, shape, batch_size or PROBE_COUNT))
    with explain_call_errors(loaded, spec, images):
        loaded = create_variables(loaded, local_spec, images)
    return ModelSetup(
        spec=spec,
        loaded=loaded,
        image_shape=shape,
        images=images,
        has_fixed_batch=batch_size is not None,
    )


def _adopt_model(spec: EncoderSpec, loaded: LoadedModel) -> EncoderSpec:
    """Return the request with what a model of a library brings: itself, and its preprocessing."""
    if loaded.kept is None:
        return spec
    if not set(VALUE_OPTIONS) & set(spec.pixel_options):
        spec = replace(spec, preprocess=loaded.kept.pixels.get("preprocess"))
    return replace(spec, kept=loaded.kept)


def _load_requested_weights(setup: ModelSetup, local_spec: EncoderSpec) -> None:
    if local_spec.weights != RANDOM:
        model_loading.load_requested_weights(setup.loaded, local_spec, setup.images)
        return
    with explain_call_errors(setup.loaded, setup.spec, setup.images):
        images = transpose_images(setup.images, setup.loaded.channels_first)
        give_random_weights(setup.loaded, local_spec, images)


def preprocess_images(spec: EncoderSpec, images: Array) -> Any:
    """Return images (N, H, W, C) float32 as ``--preprocess`` makes them.

    Raises:
        InputError: the function fails.
    """
    try:
        return load_preprocessing(spec)(images)
    except RayEmbedError:
        raise
    except Exception as error:
        raise InputError(
            f"--preprocess {spec.preprocess}: it fails on a float32 batch {images.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error


def check_integer_input(spec: EncoderSpec, images: Any, dtype: str) -> None:
    """Refuse preprocessing whose values would be lost in an encoder that takes integers.

    Raises:
        InputError: it gives fractions, or negative values to an unsigned type.
    """
    if spec.preprocess is None or "int" not in dtype:
        return
    low, high = float(np.min(images)), float(np.max(images))
    if high <= 2 or ("uint" in dtype and low < -1):
        raise InputError(
            f"--preprocess {spec.preprocess}: it gives values from {low:.3g} to {high:.3g}, but "
            f"the input of {spec.model_name} is of type {dtype}, which would lose them; omit the "
            "option, as the encoder takes pixels from 0 to 255"
        )
