# SPDX-License-Identifier: Apache-2.0
"""Find the records that crash or hang an actor: first in batches, then one by one.

An actor may die for many reasons, so a record is rejected only if it kills `max_attempts` fresh
actors in a row, each of which has successfully processed another record.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import ray

from ray_embed.config import RunConfig
from ray_embed.core.console import Reminder
from ray_embed.errors import RunError
from ray_embed.extraction.messages import Item, Job, Ready, ShardResult
from ray_embed.runtime import capacity, nodes
from ray_embed.runtime.actors import ActorDiedError, Worker, check_raylet, get_result
from ray_embed.runtime.nodes import DeathCause

CRASHES, HANGS = "crashes the process", "hangs"
_POLL_SECONDS = 0.5
# Seconds an actor waits for resources before an idle actor is stopped to free some.
_CAPACITY_SECONDS = 10.0
# If this many records fail and none succeeds, the records are not the cause.
_MAX_INITIAL_FAILURES = 3


def isolate_records(
    workers: list[Worker],
    job: Job,
    items: list[Item],
    config: RunConfig,
    finished_shards: list[Item],
) -> Iterator[list[ShardResult]]:
    """Extract shards, rejecting the records that kill an actor.

    Each run is extracted on its own, because a record may kill one encoder and not another. Each
    worker processes one shard at a time. If an actor has no resources because its node is
    gone, an idle actor is stopped to free some.

    Args:
        workers: the extractors.
        job: the settings shared by all shards.
        items: the shards, with a reference to their images for sequential sources.
        config: the run configuration, for its limits.
        finished_shards: finished shards, whose records can serve as known-good records.

    Raises:
        RayEmbedError: see :meth:`Extractor.extract`; or a shard kills its actor although none of
            its records does.
    """
    if not items:
        return
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    stop = threading.Event()

    def free_capacity() -> None:
        with contextlib.suppress(queue.Empty):
            free.get_nowait().dismiss()

    def extract(item: Item) -> list[ShardResult]:
        worker = free.get()
        try:
            return _ShardIsolator(worker, job, item, config, stop, free_capacity).extract(
                finished_shards
            )
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(len(workers))
    try:
        yield from threads.map(
            extract, [replace(item, runs=(run,)) for item in items for run in item.runs]
        )
    finally:
        stop.set()
        threads.shutdown(cancel_futures=True)


def extract_alone(
    workers: list[Worker], job: Job, item: Item, config: RunConfig
) -> list[ShardResult] | None:
    """Extract a shard in an otherwise idle actor. Return None if the actor dies.

    Args:
        workers: the idle extractors.
        job, item, config: see :func:`isolate_records`.
    """
    idle = workers[1:]

    def free_capacity() -> None:
        if idle:
            idle.pop().dismiss()

    return _ShardIsolator(
        workers[0], job, item, config, threading.Event(), free_capacity
    ).extract_at_once()


@dataclass(frozen=True)
class _Batch:
    """A range of records of a shard."""

    item: Item
    positions: range


class _ShardIsolator:
    """Isolates the bad records of one shard, using one otherwise idle actor."""

    def __init__(
        self,
        worker: Worker,
        job: Job,
        item: Item,
        config: RunConfig,
        stop: threading.Event,
        free_capacity: Callable[[], None],
    ) -> None:
        self._worker, self._job = worker, job
        # The actor that has loaded the job.
        self._ready_actor: Any = None
        self._stop, self._free_capacity = stop, free_capacity
        self._item = item
        self._shard = item.shard
        self._attempts, self._timeout = config.max_attempts, config.shard_timeout
        self._known_good: _Batch | None = None
        self._rejected: dict[int, str] = {}

    def extract(self, finished_shards: list[Item]) -> list[ShardResult]:
        """Find and reject the bad records, and extract the others."""
        size = self._restart_until_working()
        suspects: list[int] = []
        for start in range(0, self._shard.records, size):
            batch = range(start, min(start + size, self._shard.records))
            if self._try_records(_Batch(self._item, batch)):
                for position in batch:
                    # Until one record succeeds, the cause is unknown, so retry these records later.
                    if self._try_record(position) and self._known_good is None:
                        suspects.append(position)
                        self._raise_if_all_fail(len(suspects))
        if suspects and self._known_good is None:
            self._find_known_good(finished_shards, size)
        for position in suspects:
            del self._rejected[position]
            self._try_record(position)
        reason = None
        for _ in range(self._attempts):
            self._restart_until_working()
            results, reason = self._call("extract", self._item, self._rejected)
            if reason is None:
                return results  # type: ignore[no-any-return]
        raise RunError(
            f"shard {self._shard.number}: it {reason} {self._attempts} times when extracted alone, "
            "although none of its records does so individually; is there enough memory?"
        )

    def extract_at_once(self) -> list[ShardResult] | None:
        """Extract the whole shard, or return None if the actor dies."""
        self._restart_until_working()
        results: list[ShardResult] | None = self._call("extract", self._item)[0]
        return results

    def _try_record(self, position: int) -> bool:
        """Try one record, and reject it if it kills every actor. Return whether it was rejected."""
        reason = None
        for _ in range(self._attempts):
            self._restart_until_working()
            reason = self._try_records(_Batch(self._item, range(position, position + 1)))
            if reason is None:
                return False
        assert reason is not None  # noqa: S101 - there is at least one attempt
        self._rejected[position] = reason
        return True

    def _raise_if_all_fail(self, failed: int) -> None:
        if failed >= _MAX_INITIAL_FAILURES:
            reasons = " or ".join(sorted(set(self._rejected.values())))
            raise RunError(
                f"shard {self._shard.number}: each of its first records {reasons} when tried "
                "alone, so the records are probably not the cause"
            )

    def _find_known_good(self, finished_shards: list[Item], size: int) -> None:
        """Find a known-good record in another shard, because no record of this shard succeeds."""
        for item in finished_shards:
            self._restart_until_working()
            known = replace(item, runs=self._item.runs)
            self._try_records(_Batch(known, range(min(size, item.shard.records))))
            if self._known_good is not None:
                return
        if self._item.images is not None:
            # The images are in memory, so a successful blank image (`ready`) is enough.
            return
        raise RunError(
            f"shard {self._shard.number}: none of its records can be extracted, and there is no "
            "known-good record to compare with, so the cause may lie elsewhere"
        )

    def _try_records(self, batch: _Batch) -> str | None:
        """Try some records without writing. Return the reason if they kill the actor."""
        positions = batch.positions
        encoded, reason = self._call("try_records", batch.item, positions.start, positions.stop)
        if encoded:
            self._known_good = batch
        return reason

    def _restart_until_working(self) -> int:
        """Wait for an actor that is known to work, by processing a known-good record.

        Returns:
            The batch size.
        """
        for _ in range(self._attempts):
            size = self._wait_for_actor()
            if self._known_good is None or self._try_records(self._known_good) is None:
                return size
        raise RunError("actors fail: a record that succeeded before now fails")

    def _wait_for_actor(self) -> int:
        tries, reminder = 0, Reminder()
        while True:
            actor = self._worker.actor
            reference = actor.ready.remote(self._job)
            try:
                while self._wait_for(reference, _CAPACITY_SECONDS) is None:
                    if not nodes.is_placed(actor):
                        self._free_capacity()
                        if reminder.is_due():
                            reminder.say(self._describe_waiting())
                ready: Ready = get_result(reference)
            except ActorDiedError as error:
                tries += error.cause is DeathCause.PROCESS
                if tries >= self._attempts:
                    raise RunError(f"actors die during startup: {error}") from error
                self._worker.restart(actor)
                continue
            self._worker.node, self._ready_actor = ready.node, actor
            return ready.batch_size

    def _describe_waiting(self) -> str:
        return (
            f"waiting for room: an actor is to isolate records of shard {self._shard.number}, and "
            f"the cluster has {capacity.describe_nodes(nodes.list_nodes())}"
        )

    def _call(self, method: str, item: Item, *arguments: Any) -> tuple[Any, str | None]:
        """Call a method of the actor. Return the result, or the reason why the actor failed."""
        while True:
            if self._worker.actor is not self._ready_actor:
                # Do not count the startup time as call time.
                self._wait_for_actor()
            actor = self._worker.actor
            reference = getattr(actor, method).remote(
                item.shard, item.images, item.runs, *arguments
            )
            if self._wait_for(reference, self._timeout) is None:
                self._worker.restart(actor)
                return None, HANGS
            try:
                return get_result(reference), None
            except ActorDiedError as error:
                self._worker.restart(actor)
                if error.cause is not DeathCause.PREEMPTED:
                    return None, CRASHES

    def _wait_for(self, reference: Any, timeout: float | None) -> Any:
        """Wait for a call. Return None after `timeout` seconds."""
        began = time.monotonic()
        while True:
            if ray.wait([reference], timeout=_POLL_SECONDS)[0]:
                return reference
            if self._stop.is_set():
                raise RunError("stopped")
            check_raylet()
            if timeout is not None and time.monotonic() - began > timeout:
                return None
