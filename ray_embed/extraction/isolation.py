# SPDX-License-Identifier: Apache-2.0
"""Find the records that kill or hang an actor: first by batches, then alone.

A shard's actor may have died for any reason. So each of its records is tried, and one is rejected
only if it ends `max_attempts` fresh actors in a row while another record passes in each of them.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray

from ray_embed.config import RunConfig
from ray_embed.errors import RunError
from ray_embed.extraction.messages import Item, Job, Ready, ShardResult
from ray_embed.runtime import nodes
from ray_embed.runtime.actors import ActorDiedError, Worker, check_node, get_result
from ray_embed.runtime.nodes import Loss

CRASHES, HANGS = "crashes the process", "hangs"
_POLL_SECONDS = 0.5
# An actor may wait for capacity this long before another one has to give up its own.
_CAPACITY_SECONDS = 10.0
# If this many records fail and none passes, the records are not the reason.
_ALL_FAILING = 3


def isolate_records(
    workers: list[Worker],
    job: Job,
    items: list[Item],
    config: RunConfig,
    others: list[Item],
) -> Iterator[ShardResult]:
    """Extract shards without the records that end an actor; each worker does one at a time.

    An actor without capacity, because its node is gone, gets that of one with nothing to do.

    Args:
        workers: the extractors.
        job: what all shards have in common.
        items: the shards, each with a reference to its images if a source delivered them.
        config: the limits.
        others: shards that were done, for records that pass if a shard has none.

    Raises:
        RayEmbedError: as :meth:`Extractor.extract` raises; a shard ends its actor although none of
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

    def extract(item: Item) -> ShardResult:
        worker = free.get()
        try:
            return _Isolation(worker, job, item, config, stop, free_capacity).extract(others)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(len(workers))
    try:
        yield from threads.map(extract, items)
    finally:
        stop.set()
        threads.shutdown(cancel_futures=True)


def extract_alone(
    workers: list[Worker], job: Job, item: Item, config: RunConfig
) -> ShardResult | None:
    """Extract a shard in an actor that has nothing else to do; return None if that ends it.

    Args:
        workers: the extractors, none of which has anything to do.
        job, item, config: see :func:`isolate_records`.
    """
    idle = workers[1:]

    def free_capacity() -> None:
        if idle:
            idle.pop().dismiss()

    return _Isolation(
        workers[0], job, item, config, threading.Event(), free_capacity
    ).extract_at_once()


@dataclass(frozen=True)
class _Batch:
    """Some records of a shard, by their positions in it."""

    item: Item
    positions: range


class _Isolation:
    """One shard, and an actor that has nothing else to do."""

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
        # The actor that has the job.
        self._ready_actor: Any = None
        self._stop, self._free_capacity = stop, free_capacity
        self._item = item
        self._shard = item.shard
        self._attempts, self._timeout = config.max_attempts, config.shard_timeout
        self._passing: _Batch | None = None
        self._rejected: dict[int, str] = {}

    def extract(self, others: list[Item]) -> ShardResult:
        """Find the records to reject, and extract the others."""
        size = self._get_ready()
        suspects: list[int] = []
        for start in range(0, self._shard.records, size):
            batch = range(start, min(start + size, self._shard.records))
            if self._try_records(_Batch(self._item, batch)):
                for position in batch:
                    # Until one passes, anything may be the reason: these are tried again then.
                    if self._try_record(position) and self._passing is None:
                        suspects.append(position)
                        self._check_passing(len(suspects))
        if suspects and self._passing is None:
            self._find_passing(others, size)
        for position in suspects:
            del self._rejected[position]
            self._try_record(position)
        reason = None
        for _ in range(self._attempts):
            self._get_ready()
            shard_result, reason = self._call("extract", self._item, self._rejected)
            if reason is None:
                return shard_result  # type: ignore[no-any-return]
        raise RunError(
            f"shard {self._shard.number}: it {reason} {self._attempts} times with no other shard "
            "beside it, although each of its records alone does not; is there too little memory?"
        )

    def extract_at_once(self) -> ShardResult | None:
        """Extract all records at once; return None if that ends the actor."""
        self._get_ready()
        shard_result: ShardResult | None = self._call("extract", self._item)[0]
        return shard_result

    def _try_record(self, position: int) -> bool:
        """Reject the record at a position if it ends every actor; return whether it does."""
        reason = None
        for _ in range(self._attempts):
            self._get_ready()
            reason = self._try_records(_Batch(self._item, range(position, position + 1)))
            if reason is None:
                return False
        assert reason is not None  # noqa: S101 - there is at least one attempt
        self._rejected[position] = reason
        return True

    def _check_passing(self, failed: int) -> None:
        if failed >= _ALL_FAILING:
            reasons = " or ".join(sorted(set(self._rejected.values())))
            raise RunError(
                f"shard {self._shard.number}: each of its first records {reasons} when it is tried "
                "alone, so the records are not the reason"
            )

    def _find_passing(self, others: list[Item], size: int) -> None:
        """Find records of other shards that pass, as none of this one does."""
        for item in others:
            self._get_ready()
            self._try_records(_Batch(item, range(min(size, item.shard.records))))
            if self._passing is not None:
                return
        if self._item.images is not None:
            # It reads no storage, so that a blank image passes is enough.
            return
        raise RunError(
            f"shard {self._shard.number}: none of its records can be extracted, and no other is "
            "known that can, so the records may not be the reason"
        )

    def _try_records(self, batch: _Batch) -> str | None:
        """Try some records without writing anything; return the reason if they end the actor."""
        positions = batch.positions
        encoded, reason = self._call("try_records", batch.item, positions.start, positions.stop)
        if encoded:
            self._passing = batch
        return reason

    def _get_ready(self) -> int:
        """Wait for an actor that works, which a record that passed before shows.

        Returns:
            The number of images a batch.
        """
        for _ in range(self._attempts):
            size = self._await_ready()
            if self._passing is None or self._try_records(self._passing) is None:
                return size
        raise RunError(
            "actors die before they are ready: a record that passed before no longer does"
        )

    def _await_ready(self) -> int:
        tries = 0
        while True:
            actor = self._worker.actor
            reference = actor.ready.remote(self._job)
            try:
                while self._wait_for(reference, _CAPACITY_SECONDS) is None:
                    if not nodes.is_placed(actor):
                        self._free_capacity()
                ready: Ready = get_result(reference)
            except ActorDiedError as error:
                tries += error.loss is Loss.PROCESS
                if tries >= self._attempts:
                    raise RunError(f"actors die before they are ready: {error}") from error
                self._worker.restart(actor)
                continue
            self._worker.node, self._ready_actor = ready.node, actor
            return ready.batch_size

    def _call(self, method: str, item: Item, *arguments: Any) -> tuple[Any, str | None]:
        """Call the actor for a shard; return the result, or how the actor ended."""
        while True:
            if self._worker.actor is not self._ready_actor:
                # The time of its start does not count as time of the call.
                self._await_ready()
            actor = self._worker.actor
            reference = getattr(actor, method).remote(item.shard, item.images, *arguments)
            if self._wait_for(reference, self._timeout) is None:
                self._worker.restart(actor)
                return None, HANGS
            try:
                return get_result(reference), None
            except ActorDiedError as error:
                self._worker.restart(actor)
                if error.loss is not Loss.PREEMPTED:
                    return None, CRASHES

    def _wait_for(self, reference: Any, timeout: float | None) -> Any:
        """Wait for a call; return None if it takes longer than `timeout`."""
        began = time.monotonic()
        while True:
            if ray.wait([reference], timeout=_POLL_SECONDS)[0]:
                return reference
            if self._stop.is_set():
                raise RunError("stopped")
            check_node()
            if timeout is not None and time.monotonic() - began > timeout:
                return None
