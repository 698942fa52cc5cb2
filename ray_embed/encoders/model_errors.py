# SPDX-License-Identifier: Apache-2.0
"""Turn errors of a model's call into messages that name the model, the images, and a fix."""

import contextlib
from collections.abc import Iterator
from typing import Any

from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.errors import InputError, RayEmbedError


@contextlib.contextmanager
def explain_call_errors(loaded: LoadedModel, spec: EncoderSpec, images: Any) -> Iterator[None]:
    """Turn an error in the model's call into one that names the model, the images, and a fix.

    Raises:
        InputError: raised in place of any error that is not one of ray_embed's own.
    """
    try:
        yield
    except RayEmbedError:
        raise
    except Exception as error:
        raise InputError(
            f"--model {spec.model_name}: it fails on a batch of images {tuple(images.shape)}: "
            f"{quote_error(error)[:800]}\n{_suggest_fix(loaded)}"
        ) from error


def quote_error(error: Exception) -> str:
    """Return the text of an error on one line, or its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines or [type(error).__name__])


def _suggest_fix(loaded: LoadedModel) -> str:
    if loaded.takes_bytes:
        return (
            "its signature takes strings, which were taken for the contents of image files; choose "
            "another one with --signature, or export a model that takes images (N, H, W, C) with "
            "Keras' model.export(folder)"
        )
    fix = "check --image-size, --submodel and --model-kwargs"
    if not _has_channels_first_layer(loaded.model):
        return fix
    return (
        f"{fix}; on a CPU, TensorFlow runs layers with data_format='channels_first' only with "
        "oneDNN: set TF_ENABLE_ONEDNN_OPTS=1, use a GPU, or build the model with "
        "data_format='channels_last' (the weights are the same)"
    )


def _has_channels_first_layer(model: Any) -> bool:
    layers = [] if model is None else model._flatten_layers()
    return any(getattr(layer, "data_format", None) == "channels_first" for layer in layers)
