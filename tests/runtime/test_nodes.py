# SPDX-License-Identifier: Apache-2.0
"""What is known of this machine before Ray has started."""

import pytest

from ray_embed.runtime import nodes, ray_private


@pytest.mark.parametrize(("count", "expected"), [(0, False), (2, True)])
def test_machine_may_have_the_gpus_that_ray_finds(monkeypatch, count, expected):
    monkeypatch.setattr(ray_private, "count_gpus", lambda: count)
    assert nodes.may_have_gpus() is expected


def test_machine_may_have_gpus_if_ray_cannot_tell(monkeypatch):
    monkeypatch.delattr(ray_private, "count_gpus")
    assert nodes.may_have_gpus()
