# SPDX-License-Identifier: Apache-2.0
"""Describe the outputs of an encoder: their columns, their pooling, and their dimensions."""

from typing import Any

from ray_embed.encoders import pooling
from ray_embed.encoders.spec import EncoderSpec, Output


def describe_outputs(
    spec: EncoderSpec, values: dict[str, Any], axes: dict[str, int]
) -> tuple[Output, ...]:
    """Return the outputs of an encoder.

    Args:
        spec: the request, which names the pooling.
        values: the outputs of the layers for a batch, by name.
        axes: their channel axes, -1 for the last one.

    Raises:
        InputError: an output cannot be pooled in this way.
    """
    outputs = []
    for name, value in values.items():
        how = pooling.resolve_pool(spec.pool, name, (None, *value.shape[1:]))
        outputs.append(
            Output(
                layer=name,
                column="feature" if len(values) == 1 else f"feature_{name.replace('/', '.')}",
                pool=how,
                dimension=pooling.count_features(value.shape, how, axes[name]),
                channel_axis=axes[name],
            )
        )
    return tuple(outputs)
