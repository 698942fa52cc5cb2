# SPDX-License-Identifier: Apache-2.0
"""Check that a layer's output has one row per image, independent of the other images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders.features import run_recorded
from ray_embed.encoders.keras_compat import is_positional
from ray_embed.encoders.layers import selectable_layers
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError

# Relative to the largest feature. Rounding errors are smaller, even in half precision.
_ROUNDING = 5e-2


def fixed_batch_size(loaded: LoadedModel) -> int | None:
    """Return the batch size that the model's input is fixed to, or None if it accepts any.

    Call this before the model's first call, which fixes the size of a Sequential model without an
    input.
    """
    if loaded.signature is not None:
        inputs = list(loaded.signature.structured_input_signature[1].values())
    else:
        inputs = (is_positional(loaded.model) and getattr(loaded.model, "inputs", None)) or []
    sizes = [tensor.shape[0] for tensor in inputs if tensor.shape is not None and len(tensor.shape)]
    return next((size for size in sizes if size is not None), None)


def check_batch_axis(
    spec: EncoderSpec,
    count: int,
    values: dict[str, Any],
    fewer: dict[str, Any],
    list_others: Callable[[], list[str]],
) -> None:
    """Refuse a layer whose first axis is not the batch.

    Args:
        spec: the request, which names the layers.
        count: the number of images that the model was called with.
        values: the outputs of the layers.
        fewer: the outputs for one image fewer, or an empty dict if the batch size is fixed.
        list_others: returns the layers whose first axis is the batch.

    Raises:
        InputError: the first axis of a layer is not the batch; the message names the axis.
    """
    sizes = (count, count - 1)
    for name in values:
        shapes = [tuple(call[name].shape) for call in (values, fewer) if name in call]
        fault = find_batch_fault(shapes, sizes[: len(shapes)])
        if fault is None:
            continue
        where = f"--layer {name}" if spec.layers else f"--model {spec.model_name}, its output"
        others = [path for path in list_others() if path != name]
        raise InputError(
            f"{where}: {fault}; features need one row per image: take another layer with --layer: "
            f"{', '.join(others[:-11:-1]) or 'none was found'}"
        )


def list_row_layers(loaded: LoadedModel, images: Any) -> list[str]:
    """Return the layers of a model that have one row per image."""
    return list(selectable_layers(run_recorded(loaded, images)[1], len(images)))


def check_independent(spec: EncoderSpec, features: list[Array], fewer: list[Array]) -> None:
    """Refuse features that depend on the other images of the batch.

    Args:
        spec: the request, which names the model.
        features: the features of a batch, per output.
        fewer: the features of the same batch without its last image.

    Raises:
        InputError: the features differ by more than rounding can explain.
    """
    for whole, part in zip(features, fewer, strict=True):
        count = min(len(whole), len(part))
        largest = np.nanmax(np.abs(whole), initial=0.0)
        difference = np.abs(part[:count] - whole[:count])
        if np.any(difference > _ROUNDING * largest):
            raise InputError(
                f"--model {spec.model_name}: the features of an image change with the other images "
                "of its batch (a reshape that mixes them, or statistics of the batch); take "
                "another layer with --layer"
            )


def find_batch_fault(shapes: Sequence[Sequence[int]], sizes: Sequence[int]) -> str | None:
    """Return why the first axis of an output is not the batch, or None if it is.

    Args:
        shapes: the shapes of the output in calls with batches of different sizes.
        sizes: the sizes of the batches.
    """
    calls = ", ".join(
        f"{tuple(shape)} for {size} images" for shape, size in zip(shapes, sizes, strict=True)
    )
    if len({len(shape) for shape in shapes}) > 1:
        return f"its rank changes with the batch: {calls}"
    lengths = [[shape[axis] for shape in shapes] for axis in range(len(shapes[0]))]
    sizes = list(sizes)
    if lengths[0] == sizes:
        changing = [axis for axis, length in enumerate(lengths) if axis and len(set(length)) > 1]
        if changing:
            return f"the length of its axis {changing[0]} changes with the batch: {calls}"
        return None
    if sizes in lengths:
        return f"its batch is axis {lengths.index(sizes)}, not axis 0: {calls}"
    return f"{_describe_first_axis(lengths[0], sizes)}: {calls}"


def _describe_first_axis(lengths: list[int], sizes: list[int]) -> str:
    if len(sizes) > 1 and len(set(lengths)) == 1:
        return f"its axis 0 is always {lengths[0]} long, as for position embeddings"
    ratios = {length / size for length, size in zip(lengths, sizes, strict=True)}
    if len(sizes) > 1 and len(ratios) == 1 and (ratio := ratios.pop()).is_integer():
        return f"its axis 0 is the batch times {int(ratio)}, as for attention in windows"
    return "its axis 0 is not the batch"
