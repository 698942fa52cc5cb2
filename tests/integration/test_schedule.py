# SPDX-License-Identifier: Apache-2.0
"""Who does which shard: as many at once as the actors take, each once, and none for ever."""

import os
import sys
import time
from pathlib import Path

import pytest
import ray

from ray_embed import schedule
from ray_embed.config import RunConfig
from ray_embed.errors import InputError, RunError
from ray_embed.extractor import ShardResult
from ray_embed.plan import Shard, SplitPlan

SPLIT = SplitPlan(0, "valid", "files", "/none", "string", (), 4, 256, records=4000)


class Stub:
    """An extractor that does what the job says, and nothing else."""

    def extract(self, job, shard, images=None):
        folder, what, number = job.decode().split("\n")
        tried = Path(folder) / f"{shard.number}-{os.getpid()}"
        tried.touch()
        if shard.number == int(number):
            first = len(list(tried.parent.glob(f"{shard.number}-*"))) == 1
            if what == "hang" and first:
                time.sleep(600)
            if what == "fail":
                raise InputError("a planned file is gone")
            if what == "die":
                os._exit(1)
        return ShardResult(shard.number, 4, {}, time.time())


@pytest.fixture
def actors(ray_session):
    # The actors cannot import the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    kind = ray.remote(Stub).options(
        num_cpus=0, max_concurrency=2, max_restarts=-1, max_task_retries=1
    )
    started = [kind.remote() for _ in range(2)]
    ray.get([actor.__ray_ready__.remote() for actor in started])
    yield started
    for actor in started:
        ray.kill(actor)


def job(tmp_path, what="", number=-1):
    return f"{tmp_path}\n{what}\n{number}".encode()


def config(**limits):
    return RunConfig(sources={"valid": "/none"}, model="none:none", max_attempts=2, **limits)


def shards(count):
    return ((Shard(number, SPLIT, number, 4 * number, 4 * number), None) for number in range(count))


def test_each_shard_is_done_once(actors, tmp_path):
    found = list(schedule.extract_all(actors, job(tmp_path), shards(100), config()))
    assert sorted(result.number for result in found) == list(range(100))
    assert len(list(tmp_path.iterdir())) == 100


def test_no_more_is_taken_than_two_shards_an_actor(actors, tmp_path):
    taken = []
    work = (taken.append(item) or item for item in shards(50))
    for done, _ in enumerate(schedule.extract_all(actors, job(tmp_path), work, config()), 1):
        # The next one is taken only after this one is handed on.
        assert len(taken) - (done - 1) <= 4
    assert len(taken) == 50


def test_a_shard_that_hangs_is_done_by_another_process(actors, tmp_path):
    limits = config(shard_timeout=2)
    found = list(schedule.extract_all(actors, job(tmp_path, "hang", 5), shards(20), limits))
    assert sorted(result.number for result in found) == list(range(20))
    assert len(list(tmp_path.glob("5-*"))) == 2


def test_errors_arrive_as_themselves(actors, tmp_path):
    with pytest.raises(InputError, match="a planned file is gone"):
        list(schedule.extract_all(actors, job(tmp_path, "fail", 7), shards(20), config()))


def test_a_shard_that_kills_its_actor_is_named(actors, tmp_path):
    with pytest.raises(RunError, match=r"shard \d+: the actor died 2 times"):
        list(schedule.extract_all(actors, job(tmp_path, "die", 3), shards(20), config()))
