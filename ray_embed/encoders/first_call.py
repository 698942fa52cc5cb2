# SPDX-License-Identifier: Apache-2.0
"""Call a model for the first time, which creates its variables and shows its image layout."""

from dataclasses import replace
from typing import Any

from ray_embed.encoders import model_loading
from ray_embed.encoders.channel_axes import track_channels
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError


def create_variables(loaded: LoadedModel, spec: EncoderSpec, images: Any) -> LoadedModel:
    """Call a model that has no inputs yet, and determine whether it takes (N, C, H, W).

    A functional model already has its variables and its layout. A subclassed model does not
    declare its input. If it fails on (N, H, W, C), or if its first convolution expects the channels
    in another axis, (N, C, H, W) is tried.

    Args:
        loaded: the model.
        spec: what the model was loaded from; its files must be on this machine.
        images: (N, H, W, C).

    Returns:
        The model, loaded again if it takes (N, C, H, W).

    Raises:
        InputError: the model takes (N, C, H, W), but its variables were created for another layout.
        Exception: whatever the model raises for (N, H, W, C), if it takes neither layout.
    """
    if getattr(loaded.model, "inputs", None):
        return loaded
    failure, mismatch = _try_call(loaded, images)
    other = None
    if loaded.model is not None and not loaded.channels_first and (failure or mismatch):
        other = model_loading.load_model(replace(spec, channels_first=True))
        if _try_call(other, images) == (None, ""):
            return other
    if failure:
        raise failure
    if other is not None and other.model is loaded.model:
        raise InputError(
            f"--model {spec.model_name}: {mismatch}, so it takes (N, C, H, W); call it once on "
            "such a batch before you pass it on, so that its variables fit"
        )
    return loaded


def _try_call(loaded: LoadedModel, images: Any) -> tuple[Exception | None, str]:
    """Call a model; return its error, and how its channel axis differs from that of the images."""
    with track_channels(images) as channels:
        try:
            loaded.call(channels.images)
        except Exception as error:
            return error, channels.mismatch
    return None, channels.mismatch
