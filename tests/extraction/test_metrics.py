# SPDX-License-Identifier: Apache-2.0
"""How the time of an actor is counted whose threads compute and wait at once."""

from collections import Counter

import pytest

from ray_embed.extraction import metrics
from ray_embed.extraction.metrics import ActorMetrics


@pytest.fixture
def counted(monkeypatch):
    """What was counted, by name; Ray takes only what is above zero."""
    found = Counter()

    class Counted:
        def __init__(self, name, description, tag_keys):
            self.name = name
            assert description.endswith(".")
            assert tag_keys == ("actor",)

        def set_default_tags(self, tags):
            assert tags == {"actor": "none"}
            return self

        def inc(self, value):
            assert value > 0
            found[self.name] += value

    monkeypatch.setattr(metrics.metrics, "Counter", Counted)
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: False)
    return found


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_second_counts_once_and_as_computing_if_anything_computes(counted, clock):
    meter = ActorMetrics()
    clock(1)
    with meter.measure("waiting"):
        clock(2)
        with meter.measure("computing"):
            clock(4)
            with meter.measure("computing"):
                clock(8)
        clock(16)
    clock(32)
    assert not counted
    meter.report_shard(3, 1)
    assert counted == {
        "embed_computing_seconds": 12,
        "embed_waiting_seconds": 18,
        "embed_images": 3,
        "embed_rejects": 1,
    }


def test_time_is_reported_once_also_of_what_goes_on(counted, clock):
    meter = ActorMetrics()
    with meter.measure("computing"):
        clock(1)
        meter.report_shard(1, 0)
        clock(2)
    meter.report_shard(1, 0)
    meter.report_shard(0, 1)
    assert counted == {"embed_computing_seconds": 3, "embed_images": 2, "embed_rejects": 1}


def test_only_the_making_of_items_is_waited_for(counted, clock):
    def items():
        for number in range(3):
            clock(10)
            yield number
        clock(5)

    meter = ActorMetrics()
    for _ in meter.measure_waiting(items()):
        clock(1)
    meter.report_read(7)
    meter.report_read(0)
    meter.report_shard(0, 0)
    assert counted == {"embed_waiting_seconds": 35, "embed_read_bytes": 7}


def test_an_error_ends_the_waiting(counted, clock):
    def items():
        clock(1)
        yield 1
        clock(1)
        raise RuntimeError

    meter = ActorMetrics()
    with pytest.raises(RuntimeError):
        list(meter.measure_waiting(items()))
    clock(9)
    meter.report_shard(0, 0)
    assert counted == {"embed_waiting_seconds": 2}
