# SPDX-License-Identifier: Apache-2.0
"""Build the encoder of a run: load it, check it, fold it into a graph, and choose its engine."""

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders import keras_state, pooling
from ray_embed.encoders.batch_axis import check_batch_axis, check_independent
from ray_embed.encoders.channel_axes import find_channel_axes, layout_notes, track_channels
from ray_embed.encoders.determinism import IMAGES_TO_COMPARE, check_deterministic
from ray_embed.encoders.enclosing_models import describe_inner_input
from ray_embed.encoders.engines.choice import Reference, choose_engine
from ray_embed.encoders.features import Encode, encoding_function, layer_values, pool_layers
from ray_embed.encoders.graph import Trace, fold_encoder, trace
from ray_embed.encoders.keras_compat import keeps_state_in_weights, keras_family
from ray_embed.encoders.loaded_model import LoadedModel, get_weights
from ray_embed.encoders.model_errors import explain_call_errors
from ray_embed.encoders.model_setup import ModelSetup, give_other_weights, set_up_model
from ray_embed.encoders.probe_images import probe_images
from ray_embed.encoders.spec import Encoder, EncoderSpec, Output
from ray_embed.errors import InputError
from ray_embed.options import RANDOM


def build(
    spec: EncoderSpec, threads: int = 1, saved_weights: tuple[Array, ...] | None = None
) -> Encoder:
    """Build the encoder.

    Args:
        spec: the requested encoder.
        threads: the number of threads, for engines with their own thread pool.
        saved_weights: the weights that an earlier start of the run saved. A model from a callable
            without ``--weights`` has random initial weights, which must stay the same.

    Raises:
        InputError: the model, its weights, a layer or the pooling is unsuitable, or two calls on
            the same images return different features.
    """
    return Builder().build(spec, threads, saved_weights)


class Builder:
    """Builds encoders one after the other.

    Encoders that differ only in their weights share what takes longest and does not depend on
    weights: the loaded model, what is known about its layers, and its traced graph.
    """

    def __init__(self) -> None:
        self._latest: _Prepared | None = None
        self._trace = functools.lru_cache(maxsize=1)(trace)

    def build(
        self, spec: EncoderSpec, threads: int, saved_weights: tuple[Array, ...] | None
    ) -> Encoder:
        """Build an encoder. See :func:`build`."""
        _check_backend(spec)
        prepared = self._reuse(spec, saved_weights) or self._load(spec, saved_weights)
        setup, calls, encode = prepared.setup, prepared.calls, prepared.encode
        draft = _draft_encoder(setup, calls.outputs, encode, self._trace)
        reference = _call_plainly(setup, draft, encode)
        check_deterministic(setup.loaded, setup.spec, reference)
        if calls.fewer:
            check_independent(spec, calls.pool(calls.values), calls.pool(calls.fewer))
        notes = (*_model_notes(setup.loaded, setup.image_shape), *calls.notes)
        encoder = choose_engine(replace(draft, notes=notes), setup.loaded, reference, threads)
        if keeps_state_in_weights(setup.loaded.model):
            self._latest = replace(prepared, calls=replace(calls, values={}, fewer={}))
        return encoder

    def _reuse(
        self, spec: EncoderSpec, saved_weights: tuple[Array, ...] | None
    ) -> "_Prepared | None":
        """Give the latest model the weights of a request that differs in nothing else."""
        latest = self._latest
        is_file = spec.weights not in (None, RANDOM) and saved_weights is None
        if latest is None or not is_file or replace(latest.asked, weights=spec.weights) != spec:
            return None
        return replace(latest, setup=give_other_weights(latest.setup, spec))

    def _load(self, spec: EncoderSpec, saved_weights: tuple[Array, ...] | None) -> "_Prepared":
        """Load the model with its weights, and call it."""
        # Two models need not fit in memory.
        self._latest = None
        self._trace.cache_clear()
        if isinstance(spec.model, str):
            keras_state.restart_numbering()
        setup = set_up_model(spec, saved_weights)
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
    check_batch_axis(loaded, spec, images, values, fewer)
    axes, notes = find_channel_axes(loaded, values, channels)
    return _LayerCalls(
        values=values,
        fewer=fewer,
        outputs=_describe_outputs(spec, values, axes),
        notes=(*layout_notes(loaded, setup.image_shape), *notes),
    )


def _describe_outputs(
    spec: EncoderSpec, values: dict[str, Any], axes: dict[str, int]
) -> tuple[Output, ...]:
    outputs = []
    for name, value in values.items():
        how = pooling.resolve_pool(spec.pool, name, (None, *value.shape[1:].as_list()))
        outputs.append(
            Output(
                layer=name,
                column="feature" if len(values) == 1 else f"feature_{name.replace('/', '.')}",
                pool=how,
                dimension=int(pooling.pool(value[:1], how, axes[name]).shape[-1]),
                channel_axis=axes[name],
            )
        )
    return tuple(outputs)


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
