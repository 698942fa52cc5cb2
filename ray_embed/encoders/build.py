# SPDX-License-Identifier: Apache-2.0
"""Builds the encoder once a run: loads it, checks it, and chooses the engine."""

import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.core.console import say
from ray_embed.encoders import engines, legacy_keras, model_loading, pooling
from ray_embed.encoders.channel_axes import tracking
from ray_embed.encoders.encoded_images import encoded_noise
from ray_embed.encoders.graph import (
    Features,
    fold,
    function_of,
    layer_values,
    preprocessing,
    run_recorded,
)
from ray_embed.encoders.keras_compat import keras_family
from ray_embed.encoders.layers import batch_fault, selectable
from ray_embed.encoders.local_copies import at_hand
from ray_embed.encoders.model_loading import Loaded
from ray_embed.encoders.outer_models import describe_input_inside
from ray_embed.encoders.rescaling import Rescaling
from ray_embed.encoders.spec import GRAPH_ENGINES, Encoder, EncoderSpec, Output
from ray_embed.encoders.submodels import nested_models
from ray_embed.encoders.tensor_layout import (
    channel_axes,
    check_batch_axis,
    check_independent,
    fixed_batch,
    layout_notes,
    with_variables,
)
from ray_embed.encoders.weights.random_init import give_random_weights
from ray_embed.errors import InputError, RayEmbedError
from ray_embed.options import RANDOM

Shape = tuple[int | None, ...]

# Guarantee for float32: |f - g| <= RELATIVE·|g| + ABSOLUTE·max|g|. tests/benchmarks/batch_sizes.py
# shows why: trained encoders in float32 are up to 6e-6·max|g| from float64, by Keras and by engines
# alike. A plain Keras call of one image moves trained ones by 1e-6, random ones by 1.3e-5.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-5
# bfloat16 keeps 8 bits of each number, and errors add up over the layers.
_BFLOAT16 = 5e-2
# Of an encoder that takes the bytes of files: a little more than thumbnails need.
_SHAPE_FOR_THUMBNAILS = (128, 128, 3)
# What TensorFlow's operations say on a CPU that lacks their channels-first form.
_NHWC_ONLY = re.compile(r"only support(s|ed)? (the |for )?(NHWC|channels_last)", re.IGNORECASE)
# Images that tell the axes of a layer's output, whose shape must not be a chance; then one less.
_FEW = 3
# Of images that a layer flips or not, so many are the same in another call once in 2 ** _PROBE.
_PROBE = 8
# The sides of the noise that smooth images are interpolated from.
_COARSE = 4


def build(spec: EncoderSpec, threads: int = 1, kept: tuple[Array, ...] | None = None) -> Encoder:
    """Build the encoder: load, give weights, check, trace, and choose the engine.

    Args:
        spec: what is asked.
        threads: for engines with threads of their own.
        kept: the weights of an earlier start of the same run, for a model that a callable builds
            without `--weights`, so that random initial weights stay the same.

    Raises:
        InputError: the model, its weights, a layer or the pooling does not fit, or two calls on
            the same images differ.
    """
    import keras

    if spec.model is not None and keras.config.backend() != "tensorflow":
        raise InputError(
            f"Keras is set to the backend {keras.config.backend()!r}; set KERAS_BACKEND=tensorflow"
        )
    with legacy_keras.advised(), at_hand(spec) as here:
        loaded = model_loading.load(here)
        shape = image_shape(loaded, spec)
        fixed = fixed_batch(loaded)
        prepared = _preprocessed(spec, _probe_images(loaded, spec, shape, fixed or _FEW))
        _check_cast(spec, prepared, loaded.dtype)
        with _explained(spec, prepared):
            loaded = with_variables(loaded, here, prepared)
        if here.weights == RANDOM:
            with _explained(spec, prepared):
                images = model_loading.arranged(prepared, loaded.channels_first)
                give_random_weights(loaded, here, images)
        else:
            model_loading.give_weights(loaded, here, prepared)
    # Those who load it again have to give it the same layout.
    spec = replace(spec, channels_first=loaded.channels_first or spec.channels_first)
    if kept is not None:
        model_loading.set_weights(loaded, kept)
    with _explained(spec, prepared), tracking(prepared) as channels:
        values = layer_values(loaded, spec, channels.images, channels.watch)
    with _explained(spec, prepared):
        fewer = layer_values(loaded, spec, prepared[:-1]) if fixed is None else {}
    check_batch_axis(loaded, spec, prepared, values, fewer)
    axes, notes = channel_axes(loaded, values, channels)
    outputs = _outputs(spec, values, axes)
    encode = function_of(loaded, spec, outputs)
    weights = model_loading.get_weights(loaded)
    draft = Encoder(
        spec,
        shape,
        outputs,
        "plain",
        "",
        _weights_digest(weights),
        None,
        "",
        (),
        weights,
    )
    draft, warnings = _folded(draft, encode, loaded.dtype)
    draft = _with_layer_names(draft, loaded)
    levels = draft.rescaling.expects_levels
    probe = _probe_images(loaded, spec, shape, min(_PROBE, spec.batch_size), levels)
    plain = [np.asarray(value) for value in encode(probe)]
    _check_deterministic(loaded, spec, encode, plain, probe)
    if fewer:
        check_independent(spec, _pooled(values, outputs), _pooled(fewer, outputs))
    notes = [*_notes(loaded, shape), *layout_notes(loaded, shape), *notes]
    draft = replace(draft, warnings=tuple(warnings), notes=tuple(notes))
    return _choose_engine(draft, loaded, encode, plain, probe, threads)


def _notes(loaded: Loaded, shape: tuple[int, int, int]) -> tuple[str, ...]:
    if loaded.outer is None or loaded.model is None:
        return loaded.notes
    height, width, channels = shape
    given = (channels, height, width) if loaded.channels_first else shape
    note = describe_input_inside(loaded.model, (loaded.outer, *loaded.between), given)
    return (*loaded.notes, note) if note else loaded.notes


def layer_shapes(spec: EncoderSpec) -> dict[str, Shape]:
    """Give the layers that `--layer` accepts with their output shapes, the batch as None.

    Raises:
        InputError: the model cannot be loaded or called.
    """
    return shapes_inside(spec)[1]


def shapes_inside(spec: EncoderSpec) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Give the models inside that `--submodel` accepts, and the layers that `--layer` accepts.

    Returns:
        The output shapes of both by name, the batch as None. A model that is not called has an
        empty shape.

    Raises:
        InputError: the model cannot be loaded or called.
    """
    with legacy_keras.advised(), at_hand(spec) as here:
        loaded = model_loading.load(here)
        for note in loaded.notes:
            say(note)
        fixed = fixed_batch(loaded)
        images = _probe_images(loaded, spec, image_shape(loaded, spec), fixed or _FEW)
        prepared = _preprocessed(spec, images)
        with _explained(spec, prepared):
            loaded = with_variables(loaded, here, prepared)
    batches = [prepared] if fixed else [prepared, prepared[:-1]]
    with _explained(spec, prepared):
        recorded = [run_recorded(loaded, batch)[1] for batch in batches]
    start = f"{spec.submodel}." if spec.submodel else ""
    models = {
        start + one.path: next(map(_output_shape, recorded[0].get(one.layer, [])), ())
        for one in nested_models(loaded.model)
    }
    calls = [selectable(one) for one in recorded]
    sizes = [len(batch) for batch in batches]
    return models, {
        path: _output_shape(value)
        for path, value in calls[0].items()
        if all(path in call for call in calls)
        and not batch_fault([call[path].shape for call in calls], sizes)
    }


def _output_shape(value: Any) -> Shape:
    shape = getattr(value, "shape", None)
    return () if shape is None else (None, *tuple(shape)[1:])


def image_shape(loaded: Loaded, spec: EncoderSpec) -> tuple[int, int, int]:
    """Give (H, W, C) of the images the model gets.

    Raises:
        InputError: the model leaves the size open and nothing else gives it, or `--image-size` is
            not the model's.
    """
    if loaded.takes_bytes:
        _refuse_options_for_pixels(spec)
        return _SHAPE_FOR_THUMBNAILS
    height, width, channels = loaded.input_shape
    if spec.image_size:
        if any(a not in (None, b) for a, b in zip((height, width), spec.image_size, strict=True)):
            raise InputError(
                f"--image-size {spec.image_size[0]},{spec.image_size[1]}: the model "
                f"{spec.model_name} takes {height},{width} only; leave the option away"
            )
        height, width = spec.image_size
    if spec.image_shape:
        height, width = height or spec.image_shape[0], width or spec.image_shape[1]
        channels = channels or spec.image_shape[2]
    if height is None or width is None:
        raise InputError(
            f"--model {spec.model_name}: it has no fixed input size; give --image-size H,W"
        )
    return height, width, channels or 3


def _refuse_options_for_pixels(spec: EncoderSpec) -> None:
    given = {
        "--image-size": spec.image_size,
        "--preprocess": spec.preprocess,
        "--engine openvino": spec.engine == "openvino" or None,
    }
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"{option}: --model {spec.model_name} takes the bytes of image files, and decodes "
                "them in its own TensorFlow graph; leave the option away, or export a model that "
                "takes images (N, H, W, C)"
            )


def _probe_images(
    loaded: Loaded,
    spec: EncoderSpec,
    shape: tuple[int, int, int],
    count: int,
    levels: bool = False,
) -> Array:
    """Make noise, as the encoder takes it: the contents of files, or pixels; see :func:`_noise`."""
    if loaded.takes_bytes:
        return encoded_noise(count)
    return _noise(count, shape, levels or spec.preprocess is not None)


def _noise(count: int, shape: tuple[int, int, int], levels: bool) -> Array:
    """Make images from 0 to 1, or of `levels` from 0 to 255, as a user's preprocessing gets.

    Every second image is smooth, as photographs mostly are: kernels that cancel out there leave
    small features, whose rounding errors are large beside them.
    """
    height, width, channels = shape
    random = np.random.default_rng(0)
    images = random.random((count, *shape), np.float32)
    coarse = random.random((count // 2, _COARSE, _COARSE, channels), np.float32)
    between = (_linear_weights(height), _linear_weights(width))
    images[1::2] = np.einsum("hi,wj,nijc->nhwc", *between, coarse)
    return images * np.float32(255) if levels else images


def _linear_weights(size: int) -> Array:
    """Return (size, _COARSE) float32 weights that interpolate `_COARSE` values linearly."""
    places = np.linspace(0, _COARSE - 1, size, dtype=np.float32)
    distances = np.abs(places[:, None] - np.arange(_COARSE, dtype=np.float32))
    weights: Array = np.maximum(0, 1 - distances)
    return weights


def _check_cast(spec: EncoderSpec, prepared: Any, dtype: str) -> None:
    """Refuse a preprocessing whose values an encoder that takes integers could not hold."""
    if spec.preprocess is None or "int" not in dtype:
        return
    low, high = float(np.min(prepared)), float(np.max(prepared))
    if high <= 2 or ("uint" in dtype and low < -1):
        raise InputError(
            f"--preprocess {spec.preprocess}: it gives values from {low:.3g} to {high:.3g}, but "
            f"the input of {spec.model_name} is of type {dtype}, which would lose them; leave the "
            "option away, as the encoder takes pixels from 0 to 255"
        )


def _preprocessed(spec: EncoderSpec, images: Array) -> Any:
    try:
        return preprocessing(spec)(images)
    except RayEmbedError:
        raise
    except Exception as error:
        raise InputError(
            f"--preprocess {spec.preprocess}: it fails on a float32 batch {images.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _explained(spec: EncoderSpec, images: Any) -> Iterator[None]:
    """Let an error of the model's call name the model and the images.

    Raises:
        InputError: instead of it.
    """
    try:
        yield
    except RayEmbedError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        text = " ".join(lines)
        hint = "check --image-size, --submodel and --model-kwargs"
        if _NHWC_ONLY.search(text):
            hint = (
                "TensorFlow runs layers with data_format='channels_first' on this CPU only with "
                "oneDNN: unset TF_ENABLE_ONEDNN_OPTS if it is 0, use a GPU, or build the model "
                "with data_format='channels_last' (the weights are the same)"
            )
        raise InputError(
            f"--model {spec.model_name}: it fails on a batch of images {tuple(images.shape)}: "
            f"{text[:800]}\n{hint}"
        ) from error


def _outputs(spec: EncoderSpec, values: dict[str, Any], axes: dict[str, int]) -> tuple[Output, ...]:
    """Return what is known of each layer asked for."""
    outputs = []
    for name, value in values.items():
        how = pooling.resolve(spec.pool, name, (None, *value.shape[1:].as_list()))
        column = "feature" if len(values) == 1 else f"feature_{name.replace('/', '.')}"
        dimension = int(pooling.pool(value[:1], how, axes[name]).shape[-1])
        outputs.append(Output(name, column, how, dimension, axes[name]))
    return tuple(outputs)


def _pooled(values: dict[str, Any], outputs: tuple[Output, ...]) -> list[Array]:
    return [
        np.asarray(pooling.pool(value, output.pool, output.channel_axis))
        for value, output in zip(values.values(), outputs, strict=True)
    ]


def _check_deterministic(
    loaded: Loaded,
    spec: EncoderSpec,
    encode: Callable[[Any], Features],
    plain: list[Array],
    probe: Array,
) -> None:
    # A batch may be smaller; then it is asked for more often.
    calls = ([np.asarray(value) for value in encode(probe)] for _ in range(0, _PROBE, len(probe)))
    if all(agree(again, plain, spec.precision) for again in calls):
        return
    images = preprocessing(spec)(probe)
    first, second = (selectable(run_recorded(loaded, images)[1], len(probe)) for _ in range(2))
    steady = [
        path
        for path, value in first.items()
        if path in second and agree([np.asarray(value)], [np.asarray(second[path])], spec.precision)
    ]
    raise InputError(
        f"--model {spec.model_name}: two calls on the same images give different features (a "
        "sampling layer, or dropout that stays on?); take a layer that is always the same with "
        f"--layer: {', '.join(steady[:-11:-1]) or 'none was found'}"
    )


def agree(found: list[Array], expected: list[Array], precision: str = "float32") -> bool:
    """Whether features agree with those of the plain call, within the guarantee."""
    for f, g in zip(found, expected, strict=True):
        largest = np.nanmax(np.abs(g), initial=0.0)
        bound = _RELATIVE * np.abs(g) + _ABSOLUTE * largest
        if precision == "bfloat16":
            bound = bound + _BFLOAT16 * largest
        # Not a number in both is agreement: such rows are set aside later.
        if not np.all((np.abs(f - g) <= bound) | ~np.isfinite(g)):
            return False
    return True


def _choose_engine(
    draft: Encoder,
    loaded: Loaded,
    encode: Callable[[Any], Features],
    plain: list[Array],
    probe: Array,
    threads: int,
) -> Encoder:
    """Give the encoder with the first engine whose features agree with those of the plain call."""
    with contextlib.ExitStack() as stack:
        lower = functools.partial(stack.enter_context, model_loading.computing_in_bfloat16(loaded))
        return _first_that_agrees(draft, lower, encode, plain, probe, threads)


def _first_that_agrees(
    draft: Encoder,
    lower: Callable[[], None],
    encode: Callable[[Any], Features],
    plain: list[Array],
    probe: Array,
    threads: int,
) -> Encoder:
    import tensorflow as tf

    spec = draft.spec
    warnings = list(draft.warnings)
    batch = engines.blank_batch(draft, spec.batch_size)
    batch[: len(probe)] = probe
    lowered = spec.precision == "float32"
    gpu = bool(tf.config.list_physical_devices("GPU"))
    names = engines.candidates(spec.engine, gpu)
    if draft.takes_bytes:
        # Decoding is TensorFlow's alone.
        names = tuple(name for name in names if name not in ("openvino", "xla"))
    for name in names:
        if name != "openvino" and not lowered:
            # OpenVINO lowers the precision itself; a graph for TensorFlow must say so.
            lower()
            in_lower, more = _folded(draft, encode, draft.rescaling.dtype)
            draft = replace(in_lower, rescaling=draft.rescaling)
            warnings, lowered = warnings + more, True
        encoder = replace(draft, engine=name)
        if name in GRAPH_ENGINES and draft.graph is None:
            continue
        if name in ("function", "plain"):
            encoder = replace(encoder, graph=None)
            if not _can_be_loaded_again(spec):
                break
        try:
            found = [rows[: len(probe)] for rows in engines.open_engine(encoder, threads)(batch)]
        except Exception as error:
            warnings.append(f"engine {name}: fails ({type(error).__name__}: {str(error)[:200]})")
            continue
        if agree(found, plain, spec.precision):
            return replace(encoder, spec=_by_name(spec), warnings=tuple(warnings))
        warnings.append(f"engine {name}: its features differ from those of the plain call")
    mend = ""
    if not _can_be_loaded_again(spec):
        mend = "; give model and preprocessing as 'module:callable': each process makes them anew"
    raise InputError(
        f"--engine {spec.engine}: no engine gives the features of the plain call; "
        f"{'; '.join(warnings) or 'none could be used'}{mend}"
    )


def _folded(
    draft: Encoder, encode: Callable[[Any], Features], dtype: str
) -> tuple[Encoder, list[str]]:
    """Give the encoder with its graph, where it can be folded into one, and why it cannot.

    Where it cannot, only the type of its input, `dtype`, tells what pixels it expects.
    """
    try:
        shape = () if dtype == "string" else draft.image_shape
        folded = fold(encode, (draft.spec.batch_size, *shape), dtype)
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        rescaling = Rescaling(dtype=dtype, expects_levels="int" in dtype)
        draft = replace(draft, graph=None, architecture=_model_digest(draft), rescaling=rescaling)
        return draft, [f"the model cannot be folded into a graph ({reason[0][:200]})"]
    return (
        replace(
            draft,
            graph=folded.graph,
            input_name=folded.input_name,
            output_names=folded.output_names,
            architecture=folded.architecture,
            # All that it computes with, also what is no weight by Keras' account.
            weights_digest=folded.content,
            rescaling=folded.rescaling,
            advice=folded.advice,
        ),
        [],
    )


def _with_layer_names(draft: Encoder, loaded: Loaded) -> Encoder:
    """Name the layers that rescale as the model does: Keras 3 numbers the scopes of its graph."""
    if keras_family(loaded.model) != "keras":
        return draft
    names = {layer.name for layer in loaded.model._flatten_layers()}
    unnumbered = ((scope, scope.rpartition("_")[0]) for scope in draft.rescaling.layers)
    layers = tuple(name if name in names else scope for scope, name in unnumbered)
    return replace(draft, rescaling=replace(draft.rescaling, layers=layers))


def _can_be_loaded_again(spec: EncoderSpec) -> bool:
    return isinstance(spec.model, str) and (
        spec.preprocess is None or isinstance(spec.preprocess, str)
    )


def _by_name(spec: EncoderSpec) -> EncoderSpec:
    """Leave a model and preprocessing in hand away: the graph has them in it.

    Other processes need not be able to make them, nor to receive their weights twice.
    """
    preprocess = None if callable(spec.preprocess) else spec.preprocess
    return replace(spec, model=spec.model_name, preprocess=preprocess)


def _model_digest(draft: Encoder) -> str:
    outputs = [(o.layer, o.pool, o.dimension) for o in draft.outputs]
    shapes = [(value.shape, str(value.dtype)) for value in draft.weights]
    return hashlib.sha256(repr((draft.spec.model_name, outputs, shapes)).encode()).hexdigest()


def _weights_digest(weights: tuple[Array, ...]) -> str:
    digest = hashlib.sha256()
    for value in weights:
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
