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
from ray_embed.errors import InputError, RunError, StorageError
from ray_embed.extractor import Ready, ShardResult
from ray_embed.plan import Shard, SplitPlan
from ray_embed.workers import Worker

SPLIT = SplitPlan(0, "valid", "files", "/none", "string", (), 4, 256, records=4000)


class Stub:
    """An extractor that does what the job says, and nothing else."""

    def __init__(self, start=""):
        if start == "raises":
            raise ImportError("no TensorFlow here")
        if start == "dies":
            os._exit(1)

    def ready(self, job):
        if job.decode().split("\n")[1] == "never ready":
            os._exit(1)
        return Ready(2, ray.get_runtime_context().get_node_id())

    def attempt(self, job, shard, images, start, stop):
        folder, what, number = job.decode().split("\n")
        if what == "all have poison" and start <= 2 < stop:
            os._exit(1)
        if shard.number == int(number):
            healed = Path(folder) / "healed"
            if what == "poison" and start <= 2 < stop:
                os._exit(1)
            if what == "lone poison":
                os._exit(1)
            if what == "heals" and start == 1:
                healed.touch()
            if what == "heals" and not healed.exists():
                os._exit(1)
        return stop - start

    def extract(self, job, shard, images=None, rejected=None):
        folder, what, number = job.decode().split("\n")
        tried = Path(folder) / f"{shard.number}-{os.getpid()}-{time.monotonic_ns()}"
        tried.touch()
        times = len(list(tried.parent.glob(f"{shard.number}-*")))
        if what == "all die" or (what == "all have poison" and not rejected):
            os._exit(1)
        if shard.number == int(number):
            if what == "hang" and times == 1:
                time.sleep(600)
            if what == "fail":
                raise InputError("a planned file is gone")
            if what == "full" or (what == "full once" and times == 1):
                raise StorageError("run: cannot be written: No space left on device")
            if what == "die" or (what in ("poison", "lone poison") and not rejected):
                os._exit(1)
            if what == "heals" and not (Path(folder) / "healed").exists():
                os._exit(1)
            if what == "die twice" and times <= 2:
                os._exit(1)
        reasons = list((rejected or {}).values())
        rows = shard.records - len(reasons)
        rejects = dict.fromkeys(reasons, 1)
        return ShardResult(shard.number, shard.split.split, rows, rejects, 255, time.time())


def workers_of(count, start=""):
    # The actors cannot import the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    kind = ray.remote(Stub).options(num_cpus=0, max_concurrency=2)
    return [Worker(lambda: kind.remote(start)) for _ in range(count)]


@pytest.fixture
def workers(ray_session):
    started = workers_of(2)
    yield started
    for worker in started:
        ray.kill(worker.actor)


def job(tmp_path, what="", number=-1):
    return f"{tmp_path}\n{what}\n{number}".encode()


def config(**limits):
    given = {"max_attempts": 2} | limits
    return RunConfig(sources={"valid": "/none"}, model="none:none", **given)


def shards(count):
    return (
        (Shard(number, SPLIT, number, 4 * number, 4 * number, 4), None) for number in range(count)
    )


def extracted(workers, job, count, **limits):
    found = schedule.extract_all(workers, job, shards(count), config(**limits))
    return sorted(found, key=lambda one: one.number)


def test_each_shard_is_done_once(workers, tmp_path):
    found = extracted(workers, job(tmp_path), 100)
    assert [result.number for result in found] == list(range(100))
    assert len(list(tmp_path.iterdir())) == 100


def test_no_more_is_taken_than_two_shards_an_actor(workers, tmp_path):
    taken = []
    work = (taken.append(item) or item for item in shards(50))
    for done, _ in enumerate(schedule.extract_all(workers, job(tmp_path), work, config()), 1):
        # The next one is taken only after this one is handed on.
        assert len(taken) - (done - 1) <= 4
    assert len(taken) == 50


def test_a_shard_that_hangs_is_done_by_another_process(workers, tmp_path):
    found = extracted(workers, job(tmp_path, "hang", 5), 20, shard_timeout=2)
    assert [result.number for result in found] == list(range(20))
    assert len({path.name.split("-")[1] for path in tmp_path.glob("5-*")}) == 2


def test_errors_arrive_as_themselves(workers, tmp_path):
    with pytest.raises(InputError, match="a planned file is gone"):
        extracted(workers, job(tmp_path, "fail", 7), 20)


def test_an_actor_that_dies_is_started_anew(workers, tmp_path):
    found = extracted(workers, job(tmp_path, "die twice", 3), 20, max_attempts=3)
    assert [result.number for result in found] == list(range(20))
    assert all(result.rows == 4 for result in found)


def test_a_record_that_ends_actors_is_set_aside(workers, tmp_path):
    found = extracted(workers, job(tmp_path, "poison", 3), 20)
    assert [result.number for result in found] == list(range(20))
    assert [result.rows for result in found] == [4, 4, 4, 3, *[4] * 16]
    assert found[3].rejects == {"crashes the process": 1}


@pytest.mark.slow
def test_going_on_with_nothing_but_poisoned_shards(workers, tmp_path):
    given = job(tmp_path, "all have poison")
    found = schedule.extract_all(workers, given, shards(4), config(), begun=True)
    assert [(result.rows, result.rejects) for result in found] == [
        (3, {"crashes the process": 1})
    ] * 4


def test_a_record_that_is_tried_before_any_passes_is_tried_again(workers, tmp_path):
    found = extracted(workers, job(tmp_path, "heals", 3), 8)
    assert [result.rows for result in found] == [4] * 8
    assert not any(result.rejects for result in found)


@pytest.mark.slow
def test_a_lone_record_is_compared_with_those_of_other_shards(workers, tmp_path):
    lone = [(Shard(9, SPLIT, 9, 36, 36, 1), None)]
    work = [*shards(4), *lone]
    given = job(tmp_path, "lone poison", 9)
    found = list(schedule.extract_all(workers, given, iter(work), config()))
    assert [result.rejects for result in found if result.number == 9] == [
        {"crashes the process": 1}
    ]
    with pytest.raises(RunError, match="shard 9: none of its records can be extracted"):
        list(schedule.extract_all(workers, given, iter(lone), config()))


def test_a_shard_that_ends_actors_without_a_record_that_does_is_named(workers, tmp_path):
    with pytest.raises(RunError, match="shard 3: it crashes the process 2 times with no other"):
        extracted(workers, job(tmp_path, "die", 3), 20)


def test_the_first_shards_all_failing_end_the_run(workers, tmp_path):
    with pytest.raises(RunError, match=r"the first \d shards have each cost 2 actors"):
        extracted(workers, job(tmp_path, "all die"), 1000)
    assert len({path.name.split("-")[0] for path in tmp_path.iterdir()}) <= 8


def test_storage_is_tried_again_and_not_for_ever(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "_POLL_SECONDS", 0.1)
    assert len(extracted(workers, job(tmp_path, "full once", 3), 20)) == 20
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(StorageError, match="No space left"):
        extracted(workers, job(tmp_path, "full", 3), 20)
    assert len(list(tmp_path.glob("3-*"))) == 2


@pytest.mark.parametrize(
    ("start", "what", "said"),
    [
        ("raises", "", "an actor cannot start.*no TensorFlow here"),
        ("dies", "", "actors die before they are ready"),
        ("", "never ready", "actors die before they are ready"),
    ],
)
def test_actors_that_cannot_start_end_the_run(ray_session, tmp_path, start, what, said):
    with pytest.raises(RunError, match=f"(?s){said}"):
        extracted(workers_of(1, start), job(tmp_path, what), 20)
