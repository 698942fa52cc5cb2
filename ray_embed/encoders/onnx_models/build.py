# SPDX-License-Identifier: Apache-2.0
"""Build an encoder from an ONNX file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.core.console import say
from ray_embed.encoders.batch_axis import check_batch_axis, check_independent
from ray_embed.encoders.channel_axes import describe_axes, layout_notes
from ray_embed.encoders.determinism import IMAGES_TO_COMPARE, check_deterministic
from ray_embed.encoders.engines.choice import Reference, agree, choose_engine
from ray_embed.encoders.features import load_preprocessing, pool_layers
from ray_embed.encoders.folded_preprocessing import fold_preprocessing
from ray_embed.encoders.frameworks.base import Framework, Shapes
from ray_embed.encoders.input_layout import choose_image_shape
from ray_embed.encoders.layers import unknown_layer
from ray_embed.encoders.model_setup import PROBE_COUNT, check_integer_input, preprocess_images
from ray_embed.encoders.onnx_models import metadata
from ray_embed.encoders.onnx_models.channel_axes import find_layout, trace_axes
from ray_embed.encoders.onnx_models.encoder_graph import make_encoder_graph
from ray_embed.encoders.onnx_models.graph import (
    Tensor,
    infer_tensors,
    list_inputs,
    list_outputs,
    list_tensors,
    list_uninferred,
)
from ray_embed.encoders.onnx_models.layers import list_layers
from ray_embed.encoders.onnx_models.reading import read_model
from ray_embed.encoders.onnx_models.rescaling import find_rescaling
from ray_embed.encoders.onnx_models.sessions import PlainModel, finds_gpu, has_cuda
from ray_embed.encoders.outputs import describe_outputs
from ray_embed.encoders.probe_images import pixel_noise
from ray_embed.encoders.spec import Encoder, EncoderSpec, Output
from ray_embed.errors import InputError

# How many layers an error suggests or compares.
_MOST_SUGGESTED = 60
_CPU_ONLY = (
    "the encoder runs on the CPU, because onnxruntime was built without CUDA; for GPUs: "
    "pip uninstall onnxruntime && pip install onnxruntime-gpu"
)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """An ONNX model, and what is known about its input.

    Attributes:
        spec: the request, with the batch size that the model takes.
        model: the model.
        image: its input.
        image_shape: (H, W, C) of the images.
        channels_first: whether the input is (N, C, H, W).
        fixed_batch: the batch size that the model is fixed to, or None.
        notes: choices that were made.
    """

    spec: EncoderSpec
    model: Any
    image: Tensor
    image_shape: tuple[int, int, int]
    channels_first: bool
    fixed_batch: int | None
    notes: tuple[str, ...]

    @property
    def where(self) -> str:
        """Return what error messages name."""
        return f"--model {self.spec.model_name}"

    @property
    def dtype(self) -> str:
        """Return the type of the input."""
        return self.image.dtype or "float32"

    def get_input_shape(self, images: Array) -> tuple[int, ...]:
        """Return the shape of the model's input for a batch (N, H, W, C)."""
        count, height, width, channels = images.shape
        if self.channels_first:
            return (count, channels, height, width)
        return (count, height, width, channels)

    def convert(self, images: Any) -> Array:
        """Return a batch (N, H, W, C) float32 in the layout and type of the model's input."""
        images = np.asarray(images)
        if self.channels_first:
            images = images.transpose(0, 3, 1, 2)
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            # Interpolation may exceed the range of pixels.
            images = images.clip(np.iinfo(kind).min, np.iinfo(kind).max)
        return np.ascontiguousarray(images, kind)


def build(
    framework: Framework, spec: EncoderSpec, local_spec: EncoderSpec, threads: int
) -> Encoder:
    """Build the encoder: read it, check it, make one graph of it, and choose its engine.

    Args:
        framework: ONNX, with its engines.
        spec: the requested encoder.
        local_spec: the same with a model on this machine.
        threads: the number of threads, for engines with their own thread pool.

    Raises:
        InputError: the model, a layer, the preprocessing or the pooling is unsuitable, or two calls
            on the same images return different features.
    """
    opened = _open(spec, Path(local_spec.model))
    names, notes = _choose_layers(opened)
    calls = _call_layers(opened, names, threads)
    axes, axis_notes = _find_axes(opened, calls)
    outputs = describe_outputs(opened.spec, calls.values, axes)
    draft = _draft_encoder(opened, outputs, calls)
    draft = replace(draft, notes=(*opened.notes, *notes, *draft.notes, *axis_notes))
    prepare = load_preprocessing(opened.spec)

    def encode(images: Any) -> list[Any]:
        return pool_layers(calls.plain.call(opened.convert(prepare(images))), outputs)

    images = _make_noise(opened, IMAGES_TO_COMPARE, levels=draft.rescaling.expects_levels)
    reference = Reference(encode, images, [np.asarray(value) for value in encode(images)])
    check_deterministic(
        opened.spec, reference, lambda: _list_steady(opened, np.asarray(prepare(images)))
    )
    if calls.fewer:
        check_independent(opened.spec, *calls.pool(outputs))
    return choose_engine(framework, draft, reference, threads, _refuse_bfloat16)


def list_shapes(spec: EncoderSpec, local_spec: EncoderSpec) -> tuple[Shapes, Shapes]:
    """Return no submodels, and the shapes of the tensors that ``--layer`` accepts.

    Raises:
        InputError: the model cannot be read, or does not take one batch of images.
    """
    opened = _open(spec, Path(local_spec.model))
    for note in opened.notes:
        say(note)
    images: Array = np.zeros((opened.fixed_batch or PROBE_COUNT, *opened.image_shape), np.float32)
    layers, left_out = _list_layers(opened, images)
    if left_out:
        say(
            f"{left_out} tensors are not listed, as they are steps on the way to these: --layer "
            "accepts them, too"
        )
    return {}, layers


# --- the model -----------------------------------------------------------------------------------


def _open(spec: EncoderSpec, path: Path) -> _Opened:
    model = read_model(path)
    where = f"--model {spec.model_name}"
    inputs = list_inputs(model.graph)
    if len(inputs) != 1:
        names = ", ".join(f"{each.name} {_format_shape(each)}" for each in inputs)
        raise InputError(
            f"{where}: it has {len(inputs)} inputs ({names or 'none'}); an encoder takes one batch "
            "of images: export it with the images as its only input"
        )
    (image,) = inputs
    if image.dtype is None or image.dtype == "string" or image.dtype.startswith(("bool", "comp")):
        raise InputError(
            f"{where}: its input {image.name} takes {image.dtype or 'no tensor'}; an encoder takes "
            "one batch of images, of a float or integer type"
        )
    sides, channels_first, notes = find_layout(model, image, spec)
    try:
        shape = choose_image_shape(sides, spec)
    except InputError as error:
        hint = "" if spec.image_size else metadata.describe_size(model)
        raise InputError(f"{error}{hint}") from error
    fixed = image.shape[0] if image.shape else None
    if fixed is not None and fixed != spec.batch_size:
        notes.append(f"the encoder takes batches of {fixed} images only: --batch-size follows it")
        spec = replace(spec, batch_size=fixed)
    return _Opened(
        spec=spec,
        model=model,
        image=image,
        image_shape=shape,
        channels_first=channels_first,
        fixed_batch=fixed,
        notes=tuple(notes),
    )


def _format_shape(tensor: Tensor) -> str:
    sides = ", ".join("?" if side is None else str(side) for side in tensor.shape or ())
    return f"({sides})"


def _make_noise(opened: _Opened, count: int, *, levels: bool = False) -> Array:
    """Return noise (N, H, W, C) float32 in the range of the preprocessing or of the encoder."""
    return pixel_noise(count, opened.image_shape, levels or opened.spec.preprocess is not None)


# --- the plain call ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """Plain calls of a model on a few images, and on one fewer unless its batch size is fixed."""

    plain: PlainModel
    images: Array
    values: dict[str, Array]
    fewer: dict[str, Array]

    def pool(self, outputs: tuple[Output, ...]) -> tuple[list[Array], list[Array]]:
        """Return the features of both calls."""
        whole, fewer = (pool_layers(call, outputs) for call in (self.values, self.fewer))
        return [np.asarray(value) for value in whole], [np.asarray(value) for value in fewer]


def _call_layers(opened: _Opened, names: tuple[str, ...], threads: int) -> _Calls:
    """Call the model, and check that the requested tensors are features of the images.

    Raises:
        InputError: the model or the preprocessing fails, or a tensor cannot be used as features.
    """
    spec = opened.spec
    noise = _make_noise(opened, opened.fixed_batch or PROBE_COUNT)
    images = np.asarray(preprocess_images(spec, noise))
    check_integer_input(spec, images, opened.dtype)
    plain = PlainModel(opened.where, opened.model, names, opened.fixed_batch, threads)
    values = plain.call(opened.convert(images))
    _check_features(opened, values)
    fewer = {} if opened.fixed_batch else plain.call(opened.convert(images[:-1]))
    check_batch_axis(
        spec, len(images), values, fewer, lambda: list(_list_layers(opened, images)[0])
    )
    return _Calls(plain=plain, images=images, values=values, fewer=fewer)


# --- layers --------------------------------------------------------------------------------------


def _choose_layers(opened: _Opened) -> tuple[tuple[str, ...], list[str]]:
    """Return the tensors to pool, and a note if one of several outputs was chosen.

    Raises:
        InputError: there is no such tensor.
    """
    known = list_tensors(opened.model.graph)
    for name in opened.spec.layers:
        if name not in known:
            raise unknown_layer(name, known)
    if opened.spec.layers:
        return opened.spec.layers, []
    outputs = list_outputs(opened.model.graph)
    fitting = [each for each in outputs if each.shape is None or each.is_feature] or outputs
    chosen = fitting[0].name
    if len(outputs) == 1:
        return (chosen,), []
    names = ", ".join(each.name for each in outputs)
    return (chosen,), [
        f"the model has {len(outputs)} outputs ({names}): {chosen!r} is taken; others with --layer"
    ]


def _check_features(opened: _Opened, values: dict[str, Array]) -> None:
    for name, value in values.items():
        is_float = isinstance(value, np.ndarray) and value.dtype.name.startswith(("float", "bfl"))
        if not is_float or value.ndim not in (2, 3, 4):
            found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else "no tensor"
            option = f"--layer {name}" if opened.spec.layers else f"{opened.where}, its output"
            raise InputError(
                f"{option}: it gives {found}; one float tensor of rank 2 to 4 is needed: name "
                "another with --layer (`ray-embed layers --model …` lists them)"
            )


def _list_layers(opened: _Opened, images: Array) -> tuple[Shapes, int]:
    batches = [images] if opened.fixed_batch else [images, images[:-1]]
    calls = [_describe_tensors(opened, batch) for batch in batches]
    return list_layers(opened.model.graph, calls, [len(batch) for batch in batches])


def _describe_tensors(opened: _Opened, images: Array) -> dict[str, Tensor]:
    """Return the tensors of the model by name, with their shapes for a batch (N, H, W, C).

    Shapes that cannot be inferred are those of a call.
    """
    shape = opened.get_input_shape(images)
    tensors = infer_tensors(opened.model, shape)
    missing = list_uninferred(opened.model, tensors)
    if not missing:
        return tensors
    plain = PlainModel(opened.where, opened.model, missing, opened.fixed_batch, 1)
    values = plain.call(opened.convert(images))
    known = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    return infer_tensors(opened.model, shape, known)


def _list_steady(opened: _Opened, images: Array) -> list[str]:
    """Return tensors whose values are equal in two calls."""
    names = list(_list_layers(opened, images)[0])[-_MOST_SUGGESTED:]
    plain = PlainModel(opened.where, opened.model, names, opened.fixed_batch, 1)
    first, second = (plain.call(opened.convert(images)) for _ in range(2))
    return [name for name in names if agree([first[name]], [second[name]])]


def _find_axes(opened: _Opened, calls: _Calls) -> tuple[dict[str, int], list[str]]:
    """Return the channel axis of each layer, -1 for the last one, and notes."""
    image, values = opened.image.name, calls.values
    tensors = _describe_tensors(opened, calls.images)
    # onnxruntime has computed these.
    tensors |= {name: Tensor(name, value.dtype.name, value.shape) for name, value in values.items()}
    traced = trace_axes(opened.model, tensors, image, 1 if opened.channels_first else 3)
    order = list_tensors(opened.model.graph)

    def guess(name: str, rank: int) -> tuple[int, str]:
        for other in order[: order.index(name)][::-1]:
            tensor = tensors.get(other)
            if other in traced.axes and tensor and tensor.shape and len(tensor.shape) == rank:
                return traced.axes[other], f"as for {other} before it"
        return (1 if rank == 4 and opened.channels_first else rank - 1), "as is usual"

    known = {name: (traced.axes.get(name), True) for name in values}
    return describe_axes(values, known, guess)


# --- the encoder ---------------------------------------------------------------------------------


def _draft_encoder(opened: _Opened, outputs: tuple[Output, ...], calls: _Calls) -> Encoder:
    """Return the encoder without an engine."""
    spec = opened.spec
    made = make_encoder_graph(
        opened.model,
        opened.image,
        (spec.batch_size, *calls.images.shape[1:]),
        opened.channels_first,
        outputs,
        [value.ndim for value in calls.values.values()],
    )
    shape = (spec.batch_size, *opened.image_shape)
    folded = fold_preprocessing(spec, shape)
    architecture, content = folded.join_digests(made.architecture, made.content)
    prepare = load_preprocessing(spec)
    rescaling = find_rescaling(
        made.model, shape, opened.dtype, lambda images: np.asarray(prepare(images))
    )
    described = metadata.read(opened.model)
    cpu_only = (_CPU_ONLY,) if finds_gpu() and not has_cuda() else ()
    return Encoder(
        spec=spec,
        framework="onnx",
        image_shape=opened.image_shape,
        outputs=outputs,
        engine="onnxruntime",
        architecture=architecture,
        weights_digest=content,
        graph=made.model.SerializeToString(deterministic=True),
        input_name=made.input_name,
        output_names=made.output_names,
        weights=(),
        rescaling=described.apply(rescaling),
        preprocessing=folded.graph,
        notes=(
            *layout_notes(opened.channels_first, opened.image_shape),
            *described.notes,
            *cpu_only,
        ),
        warnings=folded.warnings,
        advice=described.advice,
    )


def _refuse_bfloat16(draft: Encoder) -> tuple[Encoder, list[str]]:
    raise InputError(
        "--precision bfloat16: onnxruntime computes an ONNX model in the precision that it was "
        "exported in; omit the option, or install OpenVINO: pip install 'ray_embed[openvino]'"
    )
