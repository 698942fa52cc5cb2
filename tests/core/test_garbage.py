# SPDX-License-Identifier: Apache-2.0
"""The garbage collector is paused, and then never looks at what was created meanwhile."""

import gc

import pytest

from ray_embed.core.garbage import pause_garbage_collection


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()
    gc.enable()


def test_collector_is_paused_within_the_context_only():
    with pause_garbage_collection():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    tracked = {id(each) for each in gc.get_objects()}
    assert not tracked & {id(each) for each in kept}


def test_collector_resumes_after_an_error():
    with pytest.raises(ImportError), pause_garbage_collection():
        raise ImportError
    assert gc.isenabled()


def test_collector_that_is_off_stays_off():
    gc.disable()
    with pause_garbage_collection():
        pass
    assert not gc.isenabled()
