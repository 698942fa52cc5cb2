# SPDX-License-Identifier: Apache-2.0
"""One thread a product, whichever thread asks for it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import scipy.linalg  # noqa: F401 - has a BLAS of its own
from threadpoolctl import threadpool_info, threadpool_limits

from ray_embed.core.blas import one_thread


def threads():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def limited():
    with one_thread():
        return threads()


@pytest.fixture(autouse=True)
def two():
    """Let products have two threads, though the machine has one processor."""
    with threadpool_limits(2, "blas"):
        yield


def test_the_limit_holds_in_any_thread_and_is_lifted():
    with ThreadPoolExecutor(1) as worker:
        for _ in range(2):
            assert limited() == {1}
            assert threads() == {2}
            assert worker.submit(limited).result() == {1}
            assert threads() == {2}


def test_the_last_thread_to_leave_lifts_the_limit():
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with one_thread():
            inside.set()
            leave.wait()

    with ThreadPoolExecutor(1) as worker:
        staying = worker.submit(stay)
        inside.wait()
        found = [threads(), limited(), threads()]
        leave.set()
        staying.result()
        assert found == [{1}, {1}, {1}]
    assert threads() == {2}
