# SPDX-License-Identifier: Apache-2.0
"""The ordered map on threads, and BLAS limited to one thread."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import scipy.linalg  # noqa: F401 - brings its own BLAS
from threadpoolctl import threadpool_info, threadpool_limits

from ray_embed.core.threads import limit_blas_to_one_thread, open_ordered_map


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_whatever_takes_longest(threads):
    def square(item):
        time.sleep(0.01 * (item % 3 == 0))
        return item * item

    with open_ordered_map(threads) as ordered_map:
        assert list(ordered_map(square, range(30))) == [item * item for item in range(30)]


def test_one_map_can_feed_another():
    with open_ordered_map(2) as ordered_map:
        increased = ordered_map(lambda item: item + 1, range(20))
        assert list(ordered_map(str, increased)) == [str(item) for item in range(1, 21)]


def test_the_map_runs_a_bounded_number_of_items_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    with open_ordered_map(2) as ordered_map:
        results = ordered_map(lambda item: item, items())
        for used in range(1, 50):
            next(results)
            assert len(taken) <= used + 2


def test_an_error_is_raised_and_drops_the_items_not_started():
    done = []
    lock = threading.Lock()

    def fail(item):
        if item == 3:
            raise ValueError("three")
        with lock:
            done.append(item)
        return item

    with (
        pytest.raises(ValueError, match="three"),
        open_ordered_map(2) as ordered_map,
    ):
        list(ordered_map(fail, range(1000)))
    assert len(done) < 10


@pytest.fixture
def two_blas_threads():
    """Let products use two threads, even where the machine has one processor."""
    with threadpool_limits(2, "blas"):
        yield


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def limited_blas_threads():
    with limit_blas_to_one_thread():
        return blas_threads()


@pytest.mark.usefixtures("two_blas_threads")
def test_the_blas_limit_holds_in_any_thread_and_is_lifted():
    with ThreadPoolExecutor(1) as worker:
        for _ in range(2):
            assert limited_blas_threads() == {1}
            assert blas_threads() == {2}
            assert worker.submit(limited_blas_threads).result() == {1}
            assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_the_last_thread_to_leave_lifts_the_blas_limit():
    inside, leave = threading.Event(), threading.Event()

    def stay_inside():
        with limit_blas_to_one_thread():
            inside.set()
            leave.wait()

    with ThreadPoolExecutor(1) as worker:
        staying = worker.submit(stay_inside)
        inside.wait()
        counts = [blas_threads(), limited_blas_threads(), blas_threads()]
        leave.set()
        staying.result()
        assert counts == [{1}, {1}, {1}]
    assert blas_threads() == {2}
