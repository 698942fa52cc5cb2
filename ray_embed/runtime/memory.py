# SPDX-License-Identifier: Apache-2.0
"""How many encoders fit into the memory of an actor."""

from collections.abc import Sequence

from ray_embed.runtime.nodes import Node
from ray_embed.runtime.resources import Resources

# An engine holds its weights several times: as the graph, converted, and laid out for computing.
_TIMES_WEIGHTS = 5
# The outputs of layers are larger than the images (tests/benchmarks/encoder_memory.py).
_TIMES_IMAGES = 16
# What an engine needs whatever its encoder.
_ENGINE_BYTES = 32 << 20
# The rest is for images, Ray's object store, and everything else on the machine.
_SHARE = 0.5


def estimate_bytes(weights: int, images: int) -> int:
    """Return the memory of an engine in bytes.

    Args:
        weights: the bytes of its weights.
        images: the bytes of a batch of images, in float32.
    """
    return _ENGINE_BYTES + _TIMES_WEIGHTS * weights + _TIMES_IMAGES * images


def get_memory_for_encoders(nodes: Sequence[Node], each: Resources) -> int | None:
    """Return the bytes that every actor has for encoders, or None if no node says.

    Args:
        nodes: the nodes of the cluster.
        each: the resources of an actor.
    """
    shares = [
        int(_SHARE * node.memory / count)
        for node in nodes
        if node.memory and (count := each.count_on([node]))
    ]
    return min(shares, default=None)


def split_into_passes(sizes: Sequence[int], available: int | None) -> list[list[int]]:
    """Divide encoders, given their memory in bytes, so that those of a pass fit together.

    Returns:
        The positions of the encoders of each pass, in order. A pass has at least one.
    """
    passes: list[list[int]] = []
    used = 0
    for position, size in enumerate(sizes):
        if not passes or (available is not None and used + size > available):
            passes.append([])
            used = 0
        passes[-1].append(position)
        used += size
    return passes
