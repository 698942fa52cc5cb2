# SPDX-License-Identifier: Apache-2.0
"""Build an encoder from a Keras model or a SavedModel."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders import keras_state
from ray_embed.encoders.batch_axis import check_batch_axis, check_independent, list_row_layers
from ray_embed.encoders.channel_axes import find_channel_axes, layout_notes, track_channels
from ray_embed.encoders.determinism import (
    IMAGES_TO_COMPARE,
    check_deterministic,
    list_steady_layers,
)
from ray_embed.encoders.enclosing_models import describe_inner_input
from ray_embed.encoders.engines.choice import Reference, choose_engine
from ray_embed.encoders.features import Encode, encoding_function, layer_values, pool_layers
from ray_embed.encoders.frameworks.base import Framework
from ray_embed.encoders.graph import Trace, fold_encoder, trace
from ray_embed.encoders.keras_compat import keeps_state_in_weights, keras_family
from ray_embed.encoders.loaded_model import LoadedModel, computing_in_bfloat16, get_weights
from ray_embed.encoders.model_errors import explain_call_errors
from ray_embed.encoders.model_setup import ModelSetup, give_other_weights, set_up_model
from ray_embed.encoders.outputs import describe_outputs
from ray_embed.encoders.probe_images import probe_images
from ray_embed.encoders.spec import Encoder, EncoderSpec, Output
from ray_embed.errors import InputError
from ray_embed.options import RANDOM


class KerasBuilder:
    """Builds encoders one after the other.

    Encoders that differ only in their weights share what takes longest and does not depend on
    weights: the loaded model, what is known about its layers, and its traced graph.

    Args:
        framework: Keras, with its engines.
    """

    def __init__(self, framework: Framework) -> None:
        self._framework = framework
        self._latest: _Prepared | None = None
        self._trace = lru_cache(maxsize=1)(trace)

    def build(
        self,
        spec: EncoderSpec,
        local_spec: EncoderSpec,
        threads: int,
        saved_weights: tuple[Array, ...] | None,
    ) -> Encoder:
        """Build an encoder: load it, check it, fold it into a graph, and choose its engine.

        Args:
            spec: the requested encoder.
            local_spec: the same with a model and weights on this machine.
            threads: the number of threads, for engines with their own thread pool.
            saved_weights: the weights that an earlier start of the run saved.

        Raises:
            InputError: the model, its weights, a layer or the pooling is unsuitable, or two calls
                on the same images return different features.
        """
        _check_backend(spec)
        prepared = None if saved_weights else self._reuse(spec, local_spec)
        if prepared is None:
            prepared = self._load(spec, local_spec, saved_weights)
        setup, calls, encode = prepared.setup, prepared.calls, prepared.encode
        loaded, spec = setup.loaded, setup.spec
        draft = _draft_encoder(setup, calls.outputs, encode, self._trace)
        reference = _call_plainly(setup, draft, encode)
        check_deterministic(spec, reference, lambda: list_steady_layers(loaded, spec, reference))
        if calls.fewer:
            check_independent(spec, calls.pool(calls.values), calls.pool(calls.fewer))
        draft = replace(draft, notes=(*_model_notes(loaded, setup.image_shape), *calls.notes))
        encoder = choose_engine(
            self._framework, draft, reference, threads, partial(_fold_in_bfloat16, loaded, encode)
        )
        if keeps_state_in_weights(loaded.model):
            self._latest = replace(prepared, calls=replace(calls, values={}, fewer={}))
        return encoder

    def _reuse(self, spec: EncoderSpec, local_spec: EncoderSpec) -> "_Prepared | None":
        """Load the weights of a request into the latest model, if it differs in nothing else."""
        latest = self._latest
        if latest is None or spec.weights in (None, RANDOM):
            return None
        if replace(latest.asked, weights=spec.weights) != spec:
            return None
        return replace(latest, setup=give_other_weights(latest.setup, spec, local_spec))

    def _load(
        self, spec: EncoderSpec, local_spec: EncoderSpec, saved_weights: tuple[Array, ...] | None
    ) -> "_Prepared":
        """Load the model with its weights, and call it."""
        # Two models need not fit in memory.
        self._latest = None
        self._trace.cache_clear()
        if isinstance(spec.model, str):
            keras_state.restart_numbering()
        setup = set_up_model(spec, local_spec, saved_weights)
        calls = _call_layers(setup)
        encode = encoding_function(setup.loaded, setup.spec, calls.outputs)
        return _Prepared(asked=spec, setup=setup, calls=calls, encode=encode)


@dataclass(frozen=True)
class _Prepared:
    """A model with its weights, and what does not depend on their values.

    `asked` is the request that the model was loaded for.
    """

    asked: EncoderSpec
    setup: ModelSetup
    calls: "_LayerCalls"
    encode: Encode


def _fold_in_bfloat16(
    loaded: LoadedModel, encode: Encode, draft: Encoder
) -> tuple[Encoder, list[str]]:
    """Return the encoder with a graph that computes in bfloat16, which is part of the graph."""
    with computing_in_bfloat16(loaded):
        lowered, reasons = fold_encoder(draft, encode, draft.rescaling.dtype)
    return replace(lowered, rescaling=draft.rescaling), reasons


def _check_backend(spec: EncoderSpec) -> None:
    import keras

    backend = keras.config.backend()
    if spec.model is not None and backend != "tensorflow":
        raise InputError(f"Keras is set to the backend {backend!r}; set KERAS_BACKEND=tensorflow")


@dataclass(frozen=True, kw_only=True)
class _LayerCalls:
    """The outputs of the requested layers for a batch, and for one image fewer.

    `fewer` is empty if the model accepts only one batch size, or if the two were compared already.
    """

    values: dict[str, Any]
    fewer: dict[str, Any]
    outputs: tuple[Output, ...]
    notes: tuple[str, ...]

    def pool(self, values: dict[str, Any]) -> list[Array]:
        """Return the features of a call."""
        return [np.asarray(value) for value in pool_layers(values, self.outputs)]


def _call_layers(setup: ModelSetup) -> _LayerCalls:
    """Call the model, and describe the requested outputs.

    Raises:
        InputError: a layer cannot be pooled, or does not return one row per image.
    """
    loaded, spec, images = setup.loaded, setup.spec, setup.images
    with explain_call_errors(loaded, spec, images):
        with track_channels(images) as channels:
            values = layer_values(loaded, spec, channels.images, channels.watch)
        fewer = {} if setup.has_fixed_batch else layer_values(loaded, spec, images[:-1])
    check_batch_axis(spec, len(images), values, fewer, lambda: list_row_layers(loaded, images))
    axes, notes = find_channel_axes(loaded, values, channels)
    return _LayerCalls(
        values=values,
        fewer=fewer,
        outputs=describe_outputs(spec, values, axes),
        notes=(*layout_notes(loaded.channels_first, setup.image_shape), *notes),
    )


def _model_notes(loaded: LoadedModel, shape: tuple[int, int, int]) -> tuple[str, ...]:
    if loaded.outer is None or loaded.model is None:
        return loaded.notes
    height, width, channels = shape
    input_shape = (channels, height, width) if loaded.channels_first else shape
    note = describe_inner_input(loaded.model, (loaded.outer, *loaded.between), input_shape)
    return (*loaded.notes, note) if note else loaded.notes


def _draft_encoder(
    setup: ModelSetup, outputs: tuple[Output, ...], encode: Encode, trace: Trace
) -> Encoder:
    """Return the encoder without an engine, but with its graph if it can be folded into one."""
    weights = get_weights(setup.loaded)
    draft = Encoder(
        spec=setup.spec,
        image_shape=setup.image_shape,
        outputs=outputs,
        engine="plain",
        architecture="",
        weights_digest=_weights_digest(weights),
        graph=None,
        input_name="",
        output_names=(),
        weights=weights,
    )
    draft, warnings = fold_encoder(draft, encode, setup.loaded.dtype, trace)
    return replace(_with_layer_names(draft, setup.loaded), warnings=tuple(warnings))


def _with_layer_names(draft: Encoder, loaded: LoadedModel) -> Encoder:
    """Use the model's own names for rescaling layers: Keras 3 appends numbers to graph scopes."""
    if keras_family(loaded.model) != "keras":
        return draft
    names = {layer.name for layer in loaded.model._flatten_layers()}
    unnumbered = ((scope, scope.rpartition("_")[0]) for scope in draft.rescaling.layers)
    layers = tuple(name if name in names else scope for scope, name in unnumbered)
    return replace(draft, rescaling=replace(draft.rescaling, layers=layers))


def _weights_digest(weights: tuple[Array, ...]) -> str:
    digest = hashlib.sha256()
    for value in weights:
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _call_plainly(setup: ModelSetup, draft: Encoder, encode: Encode) -> Reference:
    """Return the features of a plain call on noise, which the features of any engine must match."""
    count = min(IMAGES_TO_COMPARE, setup.spec.batch_size)
    levels = draft.rescaling.expects_levels
    images = probe_images(setup.loaded, setup.spec, setup.image_shape, count, levels)
    return Reference(encode, images, [np.asarray(value) for value in encode(images)])
