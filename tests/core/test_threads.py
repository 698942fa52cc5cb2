# SPDX-License-Identifier: Apache-2.0
"""Working ahead on threads: results in order, a bounded number of items under way."""

import threading
import time

import pytest

from ray_embed.core.threads import mapping


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_whatever_takes_longest(threads):
    def slow(item):
        time.sleep(0.01 * (item % 3 == 0))
        return item * item

    with mapping(threads) as mapped:
        assert list(mapped(slow, range(30))) == [item * item for item in range(30)]


def test_one_may_be_fed_by_another():
    with mapping(2) as mapped:
        first = mapped(lambda item: item + 1, range(20))
        assert list(mapped(str, first)) == [str(item) for item in range(1, 21)]


def test_only_some_items_are_taken_ahead_of_what_is_used():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    with mapping(2) as mapped:
        results = mapped(lambda item: item, items())
        for used in range(1, 50):
            next(results)
            assert len(taken) <= used + 2


def test_an_error_comes_out_and_what_has_not_begun_is_dropped():
    done = []
    lock = threading.Lock()

    def fail(item):
        if item == 3:
            raise ValueError("three")
        with lock:
            done.append(item)
        return item

    with pytest.raises(ValueError, match="three"), mapping(2) as mapped:
        list(mapped(fail, range(1000)))
    assert len(done) < 10
