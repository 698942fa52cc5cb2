# SPDX-License-Identifier: Apache-2.0
"""How many encoders are held at once."""

import pytest

from ray_embed.runtime.memory import (
    estimate_bytes,
    get_memory_for_encoders,
    split_into_passes,
)
from ray_embed.runtime.nodes import Node
from ray_embed.runtime.resources import Resources


@pytest.mark.parametrize(
    ("sizes", "available", "passes"),
    [
        ([], 10, []),
        ([3, 3, 3], None, [[0, 1, 2]]),
        ([3, 3, 3], 9, [[0, 1, 2]]),
        ([3, 3, 3], 8, [[0, 1], [2]]),
        # One that is too large is tried nevertheless.
        ([20, 3, 20, 20], 10, [[0], [1], [2], [3]]),
    ],
)
def test_encoders_of_a_pass_fit_together(sizes, available, passes):
    assert split_into_passes(sizes, available) == passes


def test_memory_is_that_of_the_smallest_share():
    nodes = [Node("a", 8, 0, memory=80), Node("b", 2, 0, memory=60), Node("c", 1, 0, memory=1)]
    assert get_memory_for_encoders(nodes, Resources(2, 0)) == 10
    assert get_memory_for_encoders([Node("a", 8, 0)], Resources(2, 0)) is None


def test_memory_of_an_encoder_grows_with_its_weights_and_its_images():
    small = estimate_bytes(weights=10, images=10)
    assert estimate_bytes(weights=20, images=10) > small
    assert estimate_bytes(weights=10, images=20) > small
