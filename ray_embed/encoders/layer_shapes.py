# SPDX-License-Identifier: Apache-2.0
"""List what ``--layer`` and ``--submodel`` accept, with the shapes of the outputs."""

from ray_embed.encoders.frameworks.base import Shapes
from ray_embed.encoders.frameworks.registry import use_framework
from ray_embed.encoders.spec import EncoderSpec


def list_layer_shapes(spec: EncoderSpec) -> Shapes:
    """Return the layers that ``--layer`` accepts with their output shapes; the batch is None.

    Raises:
        InputError: the model cannot be loaded or called.
    """
    return list_shapes(spec)[1]


def list_shapes(spec: EncoderSpec) -> tuple[Shapes, Shapes]:
    """Return the models that ``--submodel`` accepts, and the layers that ``--layer`` accepts.

    Returns:
        The output shapes of the models and of the layers, by name, with None for the batch. A model
        that is never called has an empty shape.

    Raises:
        InputError: the model cannot be loaded or called.
    """
    return use_framework(spec, lambda found, local_spec: found.list_shapes(spec, local_spec))
