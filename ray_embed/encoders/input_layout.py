# SPDX-License-Identifier: Apache-2.0
"""Determine the shape of the images that a model takes, and whether channels come first."""

from collections.abc import Sequence
from typing import Any

from ray_embed.encoders.loaded_model import LoadedModel, Sides
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.submodels import nested_models
from ray_embed.errors import InputError

# The image shape for thumbnails if encoders decode files themselves: a bit larger than needed.
_SHAPE_FOR_THUMBNAILS = (128, 128, 3)
# Layers that leave the axes of the images as they are.
_KEEP_AXES = {
    "InputLayer",
    "Rescaling",
    "Normalization",
    "Activation",
    "ReLU",
    "Dropout",
    "GaussianNoise",
    "Identity",
}

Shape = tuple[int | None, ...]


def image_shape(loaded: LoadedModel, spec: EncoderSpec) -> tuple[int, int, int]:
    """Return (H, W, C) of the images that the encoder takes.

    Raises:
        InputError: nothing fixes the size, or ``--image-size`` differs from the model's size.
    """
    if loaded.takes_bytes:
        _refuse_pixel_options(spec)
        return _SHAPE_FOR_THUMBNAILS
    return choose_image_shape(loaded.input_shape, spec)


def choose_image_shape(sides: Sides, spec: EncoderSpec) -> tuple[int, int, int]:
    """Return (H, W, C) of the images for an input that fixes some of these, or None.

    Raises:
        InputError: nothing fixes the size, or ``--image-size`` differs from the model's size.
    """
    height, width, channels = sides
    if spec.image_size:
        if any(a not in (None, b) for a, b in zip((height, width), spec.image_size, strict=True)):
            raise InputError(
                f"--image-size {spec.image_size[0]},{spec.image_size[1]}: the model "
                f"{spec.model_name} takes {height},{width} only; omit the option"
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


def _refuse_pixel_options(spec: EncoderSpec) -> None:
    options = {
        "--image-size": spec.image_size,
        "--preprocess": spec.preprocess,
        "--engine openvino": spec.engine == "openvino" or None,
    }
    for option, value in options.items():
        if value is not None:
            raise InputError(
                f"{option}: --model {spec.model_name} takes the bytes of image files and decodes "
                "them in its own TensorFlow graph; omit the option, or export a model that "
                "takes images (N, H, W, C)"
            )


def model_input_layout(model: Any, spec: EncoderSpec) -> tuple[Sides, bool]:
    """Return (H, W, C) as far as a Keras model fixes it, and whether the model takes (N, C, H, W).

    Raises:
        InputError: the model does not take one batch of images.
    """
    # A subclassed model has no inputs before its first call, and no fixed ones after it.
    functional = bool(getattr(model, "_is_graph_network", False)) or _is_keras_3_functional(model)
    inputs = getattr(model, "inputs", None) if functional else None
    if not inputs:
        return _built_layout(model, spec)
    if len(inputs) > 1:
        names = ", ".join(f"{i.name.split(':')[0]} {tuple(i.shape)}" for i in inputs)
        fix = _suggest_submodels(model, spec) or "wrap it in a model of one input"
        raise InputError(
            f"--model {spec.model_name}: it has several inputs ({names}); an encoder takes one "
            f"batch of images: {fix}"
        )
    shape = tuple(inputs[0].shape)
    fix = "" if len(shape) == 4 else _suggest_submodels(model, spec)
    return layout_of_shape(shape, spec, model.layers, fix)


def layout_of_shape(
    shape: Shape, spec: EncoderSpec, layers: Sequence[Any] = (), fix: str = ""
) -> tuple[Sides, bool]:
    """Return (H, W, C) of an input's shape, and whether it is (N, C, H, W).

    Args:
        shape: the shape of the input.
        spec: the request, which may fix the layout.
        layers: the layers behind the input, as far as they are known.
        fix: the suggestion for an error about the rank.

    Raises:
        InputError: the shape cannot be a batch of images.
    """
    if len(shape) != 4:
        raise InputError(
            f"--model {spec.model_name}: its input has the shape {shape}; "
            f"images (N, H, W, C) or (N, C, H, W) are needed{fix and f': {fix}'}"
        )
    channels_first = spec.channels_first
    if channels_first is None:
        data_format = _first_data_format(layers)
        channels_first = (
            looks_channels_first(shape) if data_format is None else data_format == "channels_first"
        )
    if channels_first:
        return (shape[2], shape[3], shape[1]), True
    return (shape[1], shape[2], shape[3]), False


def looks_channels_first(shape: Sequence[int | None]) -> bool:
    """Return whether a shape looks like (N, C, H, W): 1, 3 or 4 channels before larger sides."""
    if len(shape) != 4 or shape[1] not in (1, 3, 4):
        return False
    return all(side is None or side > 4 for side in shape[2:])


def _built_layout(model: Any, spec: EncoderSpec) -> tuple[Sides, bool]:
    """Return the layout of a subclassed model, judging by the shape that it was built with."""
    shape = _built_shape(model)
    if spec.channels_first or (spec.channels_first is None and looks_channels_first(shape)):
        return (None, None, shape[1] if len(shape) == 4 else None), True
    return (None, None, None), False


def _built_shape(model: Any) -> Shape:
    """Return the input shape that a subclassed model was built with, or an empty tuple."""
    built = getattr(model, "_build_shapes_dict", None) or {}
    shape = next(iter(built.values()), None) or getattr(model, "_build_input_shape", None)
    try:
        return tuple(shape or ())
    except (TypeError, ValueError):  # a TensorShape of unknown rank
        return ()


def _is_keras_3_functional(model: Any) -> bool:
    # In Keras 3, a Sequential model has `inputs` once it is built; a Functional model always does.
    return any(cls.__name__ in ("Functional", "Sequential") for cls in type(model).__mro__)


def _suggest_submodels(model: Any, spec: EncoderSpec) -> str:
    """Name the models inside `model` that take one batch of images, or return an empty string."""
    prefix = f"{spec.submodel}." if spec.submodel else ""
    paths = [
        prefix + nested.path
        for nested in nested_models(model)
        if [len(image.shape) for image in getattr(nested.model, "inputs", None) or ()] == [4]
    ]
    return f"name the model inside that does with --submodel: {', '.join(paths)}" if paths else ""


def _first_data_format(layers: Sequence[Any]) -> str | None:
    """Return the `data_format` of the first layer that has one, if no earlier layer moves axes."""
    for layer in layers:
        if type(layer).__name__ in _KEEP_AXES:
            continue
        if inner := getattr(layer, "layers", None):
            return _first_data_format(inner)
        data_format = getattr(layer, "data_format", None)
        has_kernel = hasattr(layer, "kernel_size")
        return data_format if isinstance(data_format, str) and has_kernel else None
    return None
