# SPDX-License-Identifier: Apache-2.0
"""Build an encoder from a module of PyTorch or from an exported program."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ray_embed.core.arrays import Array
from ray_embed.core.console import say
from ray_embed.encoders.batch_axis import check_batch_axis, check_independent, find_batch_fault
from ray_embed.encoders.channel_axes import describe_axes, layout_notes
from ray_embed.encoders.determinism import IMAGES_TO_COMPARE, check_deterministic
from ray_embed.encoders.engines.choice import Reference, agree, choose_engine
from ray_embed.encoders.features import load_preprocessing, pool_layers
from ray_embed.encoders.folded_preprocessing import fold_preprocessing
from ray_embed.encoders.frameworks.base import Framework, Shapes
from ray_embed.encoders.model_setup import PROBE_COUNT, check_integer_input, preprocess_images
from ray_embed.encoders.outputs import describe_outputs
from ray_embed.encoders.probe_images import pixel_noise
from ray_embed.encoders.spec import Encoder, EncoderSpec, Output, Weights
from ray_embed.encoders.torch_models.archive import forget_origin
from ray_embed.encoders.torch_models.calls import list_layer_shapes
from ray_embed.encoders.torch_models.libraries.registry import find_library
from ray_embed.encoders.torch_models.loading import Opened, open_model
from ray_embed.encoders.torch_models.program import digest, export, fold, pool
from ray_embed.encoders.torch_models.tracing import find_axes, find_rescaling
from ray_embed.encoders.torch_models.weights import get_values
from ray_embed.errors import InputError
from ray_embed.options import RANDOM

# How many layers an error suggests or compares.
_MOST_SUGGESTED = 60


def build(
    framework: Framework,
    spec: EncoderSpec,
    local_spec: EncoderSpec,
    threads: int,
    saved_weights: Weights | None,
) -> Encoder:
    """Build the encoder: load it, check it, export one program of it, and choose its engine.

    Args:
        framework: PyTorch, with its engines.
        spec: the requested encoder.
        local_spec: the same with the module itself, or with a file on this machine.
        threads: the number of threads, for engines with their own thread pool.
        saved_weights: the weights that an earlier start of the run saved.

    Raises:
        InputError: the model, its weights, a layer, the preprocessing or the pooling is unsuitable,
            or two calls on the same images return different features.
    """
    torch.set_num_threads(threads)
    opened = open_model(spec, local_spec, saved_weights)
    images = np.asarray(preprocess_images(opened.spec, _make_noise(opened)))
    check_integer_input(opened.spec, images, _name_dtype(opened))
    values = opened.call(images)
    fewer = {} if opened.fixed_batch else opened.call(images[:-1])
    check_batch_axis(
        opened.spec, len(images), values, fewer, lambda: list(_list_layers(opened, images))
    )
    axes, axis_notes = _find_axes(opened, images, values)
    outputs = describe_outputs(opened.spec, values, axes)
    draft, program = _draft_encoder(opened, outputs)
    draft = replace(draft, notes=(*opened.notes, *draft.notes, *axis_notes))
    prepare = load_preprocessing(opened.spec)

    def encode(images: Any) -> list[Any]:
        return pool_layers(opened.call(np.asarray(prepare(images))), outputs)

    count = opened.fixed_batch or IMAGES_TO_COMPARE
    noise = _make_noise(opened, count, levels=draft.rescaling.expects_levels)
    reference = Reference(encode, noise, encode(noise), program)
    check_deterministic(
        opened.spec, reference, lambda: _list_steady(opened, np.asarray(prepare(noise)))
    )
    if fewer:
        check_independent(opened.spec, *(pool_layers(call, outputs) for call in (values, fewer)))
    return choose_engine(framework, draft, reference, threads, lambda encoder: (encoder, []))


def list_shapes(spec: EncoderSpec, local_spec: EncoderSpec) -> tuple[Shapes, Shapes]:
    """Return no submodels, and the shapes of the layers that ``--layer`` accepts.

    Raises:
        InputError: the model cannot be read, or does not take one batch of images.
    """
    # The weights do not matter, so those of a library need not be downloaded.
    weights = RANDOM if find_library(local_spec.model) else None
    opened = open_model(spec, replace(local_spec, weights=weights))
    for note in opened.notes:
        say(note)
    return {}, _list_layers(opened, _make_noise(opened))


def _make_noise(opened: Opened, count: int | None = None, *, levels: bool = False) -> Array:
    """Return noise (N, H, W, C) float32 in the range of the preprocessing or of the encoder."""
    count = count or opened.fixed_batch or PROBE_COUNT
    return pixel_noise(count, opened.image_shape, levels or opened.spec.preprocess is not None)


def _name_dtype(opened: Opened) -> str:
    return str(opened.dtype).removeprefix("torch.")


def _find_axes(
    opened: Opened, images: Array, values: dict[str, Array]
) -> tuple[dict[str, int], list[str]]:
    """Return the channel axis of each layer, -1 for the last one, and notes."""
    traced: list[int | None] = [None] * len(values)
    if any(value.ndim > 2 for value in values.values()):
        program = export(
            opened.module,
            lambda images: tuple(value.clone() for value in opened.take_layers(images).values()),
            images.shape,
            opened.where,
        )
        traced = find_axes(program)
    known = {name: (axis, True) for name, axis in zip(values, traced, strict=True)}

    def guess(name: str, rank: int) -> tuple[int, str]:
        return (1 if rank == 4 else rank - 1), "as is usual in PyTorch"

    return describe_axes(values, known, guess)


def _list_layers(opened: Opened, images: Array) -> Shapes:
    """Return the layers that have one row per image."""
    arrays = [images] if opened.fixed_batch else [images, images[:-1]]
    calls = [
        opened.use(batch, lambda given: list_layer_shapes(opened.module, given, opened.outputs))
        for batch in arrays
    ]
    sizes = [len(batch) for batch in arrays]
    return {
        name: (None, *shape[1:])
        for name, shape in calls[0].items()
        if all(name in call for call in calls)
        and not find_batch_fault([call[name] for call in calls], sizes)
    }


def _list_steady(opened: Opened, images: Array) -> list[str]:
    """Return layers whose values are equal in two calls."""
    names = tuple(_list_layers(opened, images))[-_MOST_SUGGESTED:]
    asked = replace(opened, spec=replace(opened.spec, layers=names))
    first, second = (asked.call(images) for _ in range(2))
    return [name for name in names if agree([first[name]], [second[name]])]


def _refuse_untrained(opened: Opened, program: Any) -> None:
    """Refuse layers that depend on weights whose values are random.

    Raises:
        InputError: they do.
    """
    used = {name.removeprefix("module.") for name in program.state_dict}
    found = sorted(used & opened.untrained)
    if found:
        layers = ", ".join(opened.spec.layers)
        raise InputError(
            f"--layer {layers}: the published weights of {opened.spec.model_name} lack "
            f"{found[0]!r}{f' and {len(found) - 1} others' if len(found) > 1 else ''}, which would "
            "be random; take another layer (`ray-embed layers --model …` lists them), or give "
            "--weights"
        )


def _draft_encoder(opened: Opened, outputs: tuple[Output, ...]) -> tuple[Encoder, Any]:
    """Return the encoder without an engine and its graph, and the program for the engines."""
    spec, shape = opened.spec, (opened.spec.batch_size, *opened.image_shape)

    def encode(images: Any) -> tuple[Any, ...]:
        values = opened.take_layers(images).values()
        return tuple(pool(value, output) for value, output in zip(values, outputs, strict=True))

    program = export(opened.module, encode, shape, opened.where)
    _refuse_untrained(opened, program)
    program = fold(program, shape, opened.where)
    folded = fold_preprocessing(spec, shape)
    prepare = load_preprocessing(spec)
    rescaling = find_rescaling(
        program, shape, _name_dtype(opened), lambda images: np.asarray(prepare(images))
    )
    architecture, content = folded.join_digests(
        digest(program, weights=False), digest(program, weights=True)
    )
    forget_origin(program)
    encoder = Encoder(
        spec=spec,
        framework="torch",
        image_shape=opened.image_shape,
        outputs=outputs,
        engine="torch",
        architecture=architecture,
        weights_digest=content,
        graph=None,
        input_name="images",
        output_names=tuple(f"features_{number}" for number in range(len(outputs))),
        weights=get_values(opened.module) if opened.is_made and spec.weights is None else (),
        rescaling=rescaling,
        preprocessing=folded.graph,
        notes=tuple(layout_notes(True, opened.image_shape)),
        warnings=folded.warnings,
    )
    return encoder, program
