# SPDX-License-Identifier: Apache-2.0
"""Who does which shard: as many at once as the actors take, each once, and none for ever."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.errors import InputError, RunError, StorageError
from ray_embed.extraction import dataset_reader, isolation, scheduler
from ray_embed.extraction.dataset_reader import DatasetReader
from ray_embed.extraction.messages import Ready, ShardResult
from ray_embed.extraction.work_queue import WorkQueue
from ray_embed.planning import Plan, SplitPlan
from ray_embed.runtime.actors import Worker
from ray_embed.sources.dataset import Dataset
from ray_embed.storage.filesystem import Folder

SPLIT = SplitPlan(
    ordinal=0,
    name="valid",
    root="/none",
    label_type="string",
    extras=(),
    shard_size=4,
    shards_per_file=256,
)
STREAM = replace(SPLIT, shards_per_file=1)


class Stub:
    """An extractor that does what the job says, and nothing else."""

    def __init__(self, start=""):
        if start == "raises":
            raise ImportError("no TensorFlow here")
        if start == "dies":
            os._exit(1)

    def ready(self, job):
        self.job = job
        if job.decode().split("\n")[1] == "never ready":
            os._exit(1)
        return Ready(2, ray.get_runtime_context().get_node_id())

    def try_records(self, shard, images, runs, start, stop):
        folder, what, number = self.job.decode().split("\n")
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

    def extract(self, shard, images=None, runs=(0,), rejected=None):
        folder, what, number = self.job.decode().split("\n")
        tried = Path(folder) / f"{shard.number}-{os.getpid()}-{time.monotonic_ns()}"
        tried.touch()
        times = len(list(tried.parent.glob(f"{shard.number}-*")))
        if what == "all die" or (what == "all have poison" and not rejected):
            os._exit(1)
        if shard.number == int(number):
            if what == "hang" and times == 1:
                time.sleep(600)
            if what == "slow":
                time.sleep(3.5)
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
        result = ShardResult(
            number=shard.number,
            split=shard.split.name,
            rows=rows,
            rejects=rejects,
            brightest=255,
            turned=0,
            reduced=0,
            passed_over=0,
            is_uniform=False,
            values=None,
            finished=time.time(),
        )
        return [result]


def workers_of(count, start=""):
    # The actors cannot import the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    kind = ray.remote(Stub).options(num_cpus=0, max_concurrency=2)
    return [Worker(lambda: kind.remote(start)) for _ in range(count)]


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    for module, seconds in ((scheduler, 0.2), (isolation, 0.1), (dataset_reader, 0.2)):
        monkeypatch.setattr(module, "_POLL_SECONDS", seconds)


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


def queue_of(*splits, readers=None, out=""):
    return WorkQueue(splits, readers or {}, [out], lambda number: (0,), lambda records: None)


def shards(count):
    return queue_of(replace(SPLIT, records=4 * count))


def extract_all(*arguments, **options):
    """Yield the results of the only run."""
    for (result,) in scheduler.extract_all(*arguments, **options):
        yield result


def extracted(workers, job, count, **limits):
    found = extract_all(workers, job, shards(count), config(**limits))
    return sorted(found, key=lambda one: one.number)


def test_each_shard_is_done_once(workers, tmp_path):
    found = extracted(workers, job(tmp_path), 100)
    assert [result.number for result in found] == list(range(100))
    assert len(list(tmp_path.iterdir())) == 100


def test_no_more_is_taken_than_two_shards_an_actor(workers, tmp_path):
    taken = []
    work = shards(50)
    take = work.take

    def counted():
        if item := take():
            taken.append(item)
        return item

    work.take = counted
    for done, _ in enumerate(extract_all(workers, job(tmp_path), work, config()), 1):
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


def test_waiting_for_room_while_records_are_isolated_is_said(
    workers, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(isolation, "_CAPACITY_SECONDS", 0.1)
    monkeypatch.setattr(isolation.nodes, "is_placed", lambda actor: False)
    found = extracted(workers, job(tmp_path, "poison", 3), 20)
    assert found[3].rejects == {"crashes the process": 1}
    said = capsys.readouterr().err
    assert "waiting for room: an actor is to isolate records of shard 3" in said
    assert "the cluster has 1 node" in said


@pytest.mark.slow
def test_going_on_with_nothing_but_poisoned_shards(workers, tmp_path):
    given = job(tmp_path, "all have poison")
    found = extract_all(workers, given, shards(4), config(), any_done=True)
    assert [(result.rows, result.rejects) for result in found] == [
        (3, {"crashes the process": 1})
    ] * 4


def test_a_record_that_is_tried_before_any_passes_is_tried_again(workers, tmp_path):
    found = extracted(workers, job(tmp_path, "heals", 3), 8)
    assert [result.rows for result in found] == [4] * 8
    assert not any(result.rejects for result in found)


@pytest.mark.slow
def test_a_lone_record_is_compared_with_those_of_other_shards(workers, tmp_path):
    work = queue_of(replace(SPLIT, records=17))
    found = list(extract_all(workers, job(tmp_path, "lone poison", 4), work, config()))
    assert [result.rejects for result in found if result.number == 4] == [
        {"crashes the process": 1}
    ]
    lone = queue_of(replace(SPLIT, records=1))
    with pytest.raises(RunError, match="shard 0: none of its records can be extracted"):
        list(extract_all(workers, job(tmp_path, "lone poison", 0), lone, config()))


def test_a_shard_that_ends_actors_without_a_record_that_does_is_named(workers, tmp_path):
    with pytest.raises(
        RunError, match="shard 3: it crashes the process 2 times when extracted alone"
    ):
        extracted(workers, job(tmp_path, "die", 3), 20)


def test_the_first_shards_all_failing_end_the_run(workers, tmp_path):
    with pytest.raises(RunError, match=r"the first \d shards each killed 2 actors"):
        extracted(workers, job(tmp_path, "all die"), 1000)
    assert len({path.name.split("-")[0] for path in tmp_path.iterdir()}) <= 8


def test_storage_is_tried_again_and_not_for_ever(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_POLL_SECONDS", 0.1)
    assert len(extracted(workers, job(tmp_path, "full once", 3), 20)) == 20
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(StorageError, match="No space left"):
        extracted(workers, job(tmp_path, "full", 3), 20)
    assert len(list(tmp_path.glob("3-*"))) == 2


@pytest.mark.parametrize(
    ("start", "what", "said"),
    [
        ("raises", "", "an actor failed to start.*no TensorFlow here"),
        ("dies", "", "actors die during startup"),
        ("", "never ready", "actors die during startup"),
    ],
)
def test_actors_that_cannot_start_end_the_run(ray_session, tmp_path, start, what, said):
    with pytest.raises(RunError, match=f"(?s){said}"):
        extracted(workers_of(1, start), job(tmp_path, what), 20)


def test_an_actor_whose_results_nobody_took_is_not_killed(workers, tmp_path):
    found, actors = [], [worker.actor for worker in workers]
    for result in extract_all(workers, job(tmp_path), shards(20), config(shard_timeout=1.5)):
        if not found:
            time.sleep(4)
        found.append(result.number)
    assert sorted(found) == list(range(20))
    assert [worker.actor for worker in workers] == actors
    # They all still answer.
    ray.get([actor.ready.remote(job(tmp_path)) for actor in actors])


def test_storage_that_fails_does_not_keep_results_waiting(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_POLL_SECONDS", 5.0)
    given = job(tmp_path, "full once", 0)
    found = extract_all(workers[:1], given, shards(2), config())
    taken = {result.number: time.time() for result in found}
    began = {path.name[0]: path.stat().st_mtime for path in sorted(tmp_path.iterdir())}
    assert taken[1] - began["1"] < 4
    # It is tried again only after a while.
    assert taken[0] - taken[1] > 1


# Sources that are slow or hang


class Slow:
    """Records in hand, before some of which something is called."""

    def __init__(self, count, before):
        self.count, self.before = count, before

    def __iter__(self):
        for position in range(self.count):
            self.before.get(position, lambda: None)()
            yield np.full((2, 2, 3), position, np.uint8), position


def streamed(workers, job, tmp_path, source, **limits):
    """Extract an iterable in hand, in shards of 4 records; gives the numbers as they come."""
    given = config(**limits)
    folder = Folder.open(str(tmp_path / "run"))
    planning.save(folder, Plan((STREAM,), "int64", ()))
    reading = DatasetReader(Dataset("valid", source, {}), None, given.shard_timeout, None)
    try:
        reading.describe()
        work = queue_of(STREAM, readers={"valid": reading}, out=folder.path)
        for result in extract_all(workers, job, work, given):
            yield result.number
        assert work.records == {0: source.count}
    finally:
        reading.close()


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "reader-valid"]


def tries_in(folder):
    return sorted(int(path.name.split("-")[0]) for path in folder.iterdir())


def test_a_source_may_sleep_for_longer_than_the_timeout_while_shards_are_extracted(
    workers, tmp_path
):
    tried = tmp_path / "tried"
    tried.mkdir()
    # For about half of the time a shard is under way.
    source, actors = Slow(16, {4: lambda: time.sleep(7)}), [worker.actor for worker in workers]
    found = streamed(workers, job(tried, "slow", 0), tmp_path, source, shard_timeout=6)
    assert sorted(found) == [0, 1, 2, 3]
    assert tries_in(tried) == [0, 1, 2, 3]
    assert [worker.actor for worker in workers] == actors
    assert not readers()


def test_a_source_that_hangs_is_named(workers, tmp_path):
    hangs, tried = threading.Event(), tmp_path / "tried"
    tried.mkdir()
    found = []
    with pytest.raises(RunError) as raised:
        for number in streamed(
            workers, job(tried), tmp_path, Slow(16, {9: hangs.wait}), shard_timeout=2
        ):
            found.append(number)
    for token in ("--source valid=Slow", "no shard for 2 s", "first 8 records", "--shard-timeout"):
        assert token in str(raised.value)
    assert sorted(found) == [0, 1]
    before = sorted((tmp_path / "run" / "plan").rglob("part-*"))
    assert len(before) == 2
    # What hung goes on some time, and must not write into a folder that may be another's.
    (thread,) = readers()
    hangs.set()
    thread.join(10)
    assert not readers()
    assert sorted((tmp_path / "run" / "plan").rglob("part-*")) == before
    assert sorted(streamed(workers, job(tried), tmp_path, Slow(16, {}))) == [0, 1, 2, 3]


def test_a_source_that_hangs_at_its_first_record_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_reader, "_POLL_SECONDS", 0.1)
    hangs = threading.Event()
    with pytest.raises(RunError, match=r"valid=Slow: .* no shard for 0.5 s .* not even the first"):
        next(streamed([], b"", tmp_path, Slow(4, {0: hangs.wait}), shard_timeout=0.5))
    hangs.set()


def test_waiting_for_a_source_is_said(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset_reader, "_FIRST_MESSAGE_SECONDS", 0.5)
    source = Slow(8, {4: lambda: time.sleep(2)})
    assert sorted(streamed(workers, job(tmp_path), tmp_path, source)) == [0, 1]
    said = capsys.readouterr().err
    assert said.count("waiting for --source valid=Slow: the dataset has yielded no shard") == 1
    assert "after its first 4 records" in said


def test_errors_of_a_source_arrive_as_themselves(workers, tmp_path):
    def fail():
        raise OSError("the disk is gone")

    with pytest.raises(RunError, match=r"raised an error at element 6.*the disk is gone"):
        list(streamed(workers, job(tmp_path), tmp_path, Slow(16, {6: fail})))
    assert not readers()


def test_a_draining_node_is_seen_while_the_source_is_silent(workers, tmp_path, monkeypatch):
    seen, old = threading.Event(), [worker.actor for worker in workers]

    def draining():
        # Once, as the actors that are started again have the same node; not before both run there.
        if seen.is_set() or not tries_in(tried) or not all(worker.node for worker in workers):
            return frozenset()
        seen.set()
        return frozenset({ray.get_runtime_context().get_node_id()})

    tried = tmp_path / "tried"
    tried.mkdir()
    monkeypatch.setattr(scheduler.nodes, "get_draining_nodes", draining)
    monkeypatch.setattr(scheduler, "_REFRESH_SECONDS", 0.2)
    waited = []
    source = Slow(16, {4: lambda: waited.append(seen.wait(20))})
    assert sorted(streamed(workers, job(tried), tmp_path, source)) == [0, 1, 2, 3]
    assert waited == [True]
    assert all(worker.actor not in old for worker in workers)


def test_an_interrupt_is_prompt_while_a_source_hangs(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_reader, "_CLOSE_SECONDS", 0.1)
    hangs = threading.Event()
    timer = threading.Timer(3, signal.raise_signal, [signal.SIGINT])

    def hang():
        timer.start()
        hangs.wait()

    with pytest.raises(KeyboardInterrupt):
        list(streamed(workers, job(tmp_path), tmp_path, Slow(16, {8: hang})))
    (thread,) = readers()
    hangs.set()
    thread.join(10)
    assert not readers()
