# SPDX-License-Identifier: Apache-2.0
"""Check how an encoder's tensors lie: its images' layout, its outputs' batch and channel axes."""

from dataclasses import replace
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders import model_loading
from ray_embed.encoders.channel_axes import Channels, signature_axes, tracking
from ray_embed.encoders.graph import run_recorded
from ray_embed.encoders.keras_compat import is_positional
from ray_embed.encoders.layers import batch_fault, selectable
from ray_embed.encoders.model_loading import Loaded
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError

# Of the largest feature; rounding moves them by less, also in half precision.
_ROUNDING = 5e-2


def with_variables(loaded: Loaded, spec: EncoderSpec, images: Any) -> Loaded:
    """Call a model that has no inputs yet, which makes its variables; find its layout by that.

    The layers of a functional model are there. A subclassed one says nothing of its input: if it
    fails on (N, H, W, C), or its first convolution has its channels elsewhere, (N, C, H, W) is
    tried.

    Args:
        loaded: the model.
        spec: where it is from; its files are on this machine.
        images: (N, H, W, C).

    Returns:
        The model, loaded again if it takes (N, C, H, W).

    Raises:
        InputError: it takes (N, C, H, W), and its variables were made for another layout.
        Exception: what the model raises for (N, H, W, C), if it takes neither.
    """
    if getattr(loaded.model, "inputs", None):
        return loaded
    failure, mismatch = _try_call(loaded, images)
    if loaded.model is None or loaded.channels_first or not (failure or mismatch):
        other = None
    else:
        other = model_loading.load(replace(spec, channels_first=True))
        if _try_call(other, images) == (None, ""):
            return other
    if failure:
        raise failure
    if other is not None and other.model is loaded.model:
        raise InputError(
            f"--model {spec.model_name}: {mismatch}, so it takes (N, C, H, W); call it once on "
            "such a batch before you hand it over, so that its variables fit"
        )
    return loaded


def _try_call(loaded: Loaded, images: Any) -> tuple[Exception | None, str]:
    """Call a model; return its error, and how its channels do not match the images'."""
    with tracking(images) as channels:
        try:
            loaded.call(channels.images)
        except Exception as error:
            return error, channels.mismatch
    return None, channels.mismatch


def fixed_batch(loaded: Loaded) -> int | None:
    """Return the batch size that the model's input fixes, None if it takes any.

    Ask before the first call, which sets the size of a Sequential model without an input.
    """
    if loaded.signature is not None:
        inputs = list(loaded.signature.structured_input_signature[1].values())
    else:
        inputs = (is_positional(loaded.model) and getattr(loaded.model, "inputs", None)) or []
    sizes = [tensor.shape[0] for tensor in inputs if tensor.shape is not None and len(tensor.shape)]
    return next((size for size in sizes if size is not None), None)


def check_batch_axis(
    loaded: Loaded,
    spec: EncoderSpec,
    images: Any,
    values: dict[str, Any],
    fewer: dict[str, Any],
) -> None:
    """Refuse a layer whose first axis is not the batch.

    Args:
        loaded: the model.
        spec: names the layers.
        images: the batch that it was called with.
        values: what the layers gave.
        fewer: what they gave for one image less; empty if the model takes one batch size.

    Raises:
        InputError: there is one; names the axis.
    """
    sizes = (len(images), len(images) - 1)
    for name in values:
        shapes = [tuple(each[name].shape) for each in (values, fewer) if name in each]
        fault = batch_fault(shapes, sizes[: len(shapes)])
        if fault is None:
            continue
        where = f"--layer {name}" if spec.layers else f"--model {spec.model_name}, its output"
        recorded = selectable(run_recorded(loaded, images)[1], len(images))
        others = [path for path in recorded if path != name]
        raise InputError(
            f"{where}: {fault}; features need one row an image: take another layer with --layer: "
            f"{', '.join(others[:-11:-1]) or 'none was found'}"
        )


def check_independent(spec: EncoderSpec, plain: list[Array], fewer: list[Array]) -> None:
    """Refuse features that change with the other images of the batch.

    Raises:
        InputError: they do, by more than rounding can explain.
    """
    for whole, part in zip(plain, fewer, strict=True):
        count = min(len(whole), len(part))
        largest = np.nanmax(np.abs(whole), initial=0.0)
        apart = np.abs(part[:count] - whole[:count])
        if np.any(apart > _ROUNDING * largest):
            raise InputError(
                f"--model {spec.model_name}: the features of an image change with the other images "
                "of its batch (a reshape that mixes them, or statistics of the batch); take "
                "another layer with --layer"
            )


def channel_axes(
    loaded: Loaded, values: dict[str, Any], channels: Channels
) -> tuple[dict[str, int], list[str]]:
    """Return each value's channel axis, -1 for the last, and notes on those that are not the last.

    Args:
        loaded: the model.
        values: what the layers gave, by name.
        channels: the channel axes of that call.
    """
    known = {
        name: (channels.axis(value), channels.channels_first) for name, value in values.items()
    }
    if loaded.signature is not None and any(value.shape.rank > 2 for value in values.values()):
        names = sorted(loaded.signature.structured_outputs)
        found = signature_axes(loaded.signature, loaded.channels_first)
        known = dict(zip(names, found, strict=True))
    axes, notes = {}, []
    for name, value in values.items():
        shape = ("N", *map(str, value.shape[1:]))
        last = len(shape) - 1
        axis, is_mixed = known.get(name, (None, False))
        where = f"layer {name}, of shape ({', '.join(shape)}): "
        if last < 2:
            axis = last
        elif axis is None and is_mixed:
            axis = channels.assumed(len(shape))
            notes.append(
                f"{where}where its channels are cannot be known; axis {axis} was taken, as of the "
                "nearest layer before it"
            )
        elif axis not in (None, last):
            notes.append(
                f"{where}its channels are axis {axis} (channels_first), and it is pooled over the "
                "other axes"
            )
        axes[name] = -1 if axis in (None, last) else axis
    return axes, notes


def layout_notes(loaded: Loaded, shape: tuple[int, int, int]) -> list[str]:
    """Say that images of `shape`, (H, W, C), are transposed, if they are."""
    if not loaded.channels_first:
        return []
    height, width, channels = shape
    return [
        f"the encoder takes (N, {channels}, {height}, {width}), channels first: images are "
        "transposed to that"
    ]
