# SPDX-License-Identifier: Apache-2.0
"""Finds the records that kill or hang an actor: first by batches, then alone.

A shard's actor may have died of anything. So each of its records is tried, and one is set aside
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
from ray_embed.extraction.worker import Item, Ready, ShardResult
from ray_embed.runtime import nodes
from ray_embed.runtime.actors import ActorDiedError, Worker, check_node, get_result
from ray_embed.runtime.nodes import Loss

CRASHES, HANGS = "crashes the process", "hangs"
_POLL_SECONDS = 0.5
# So long an actor may wait for room before another one has to make it.
_ROOM_SECONDS = 10.0
# So many records, and none that passes, are no accident.
_ALL_FAILING = 3


def each_alone(
    workers: list[Worker],
    job: bytes,
    items: list[Item],
    config: RunConfig,
    others: list[Item],
) -> Iterator[ShardResult]:
    """Extract shards without the records that end an actor; each worker does one at a time.

    An actor that finds no room, as its node has gone, gets that of one with nothing to do.

    Args:
        workers: the extractors.
        job: what all shards have in common, a pickled Job.
        items: the shards, each with a reference to its images where they are streamed.
        config: the limits.
        others: shards that were done, for records that pass where a shard has none.

    Raises:
        RayEmbedError: as :meth:`Extractor.extract` raises; a shard ends its actor although no
            record of it does.
    """
    if not items:
        return
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    stop = threading.Event()

    def make_room() -> None:
        with contextlib.suppress(queue.Empty):
            free.get_nowait().dismiss()

    def done(item: Item) -> ShardResult:
        worker = free.get()
        try:
            return _Alone(worker, job, item, config, stop, make_room).extract(others)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(len(workers))
    try:
        yield from threads.map(done, items)
    finally:
        stop.set()
        threads.shutdown(cancel_futures=True)


def once(workers: list[Worker], job: bytes, item: Item, config: RunConfig) -> ShardResult | None:
    """Extract a shard in an actor that has nothing else to do; None where that ends it.

    Args:
        workers: the extractors, none of which has anything to do.
        job, item, config: as of :func:`each_alone`.
    """
    idle = workers[1:]

    def make_room() -> None:
        if idle:
            idle.pop().dismiss()

    return _Alone(workers[0], job, item, config, threading.Event(), make_room).once()


@dataclass(frozen=True)
class _Batch:
    """Some records of a shard, by their positions in it."""

    item: Item
    positions: range


class _Alone:
    """One shard, and the actor that has nothing else to do."""

    def __init__(
        self,
        worker: Worker,
        job: bytes,
        item: Item,
        config: RunConfig,
        stop: threading.Event,
        make_room: Callable[[], None],
    ) -> None:
        self._worker, self._job = worker, job
        self._stop, self._make_room = stop, make_room
        self._item = item
        self._shard = item[0]
        self._attempts, self._timeout = config.max_attempts, config.shard_timeout
        self._good: _Batch | None = None
        self._rejected: dict[int, str] = {}

    def extract(self, others: list[Item]) -> ShardResult:
        """Find the records to reject, and extract the others."""
        size = self._get_ready()
        suspects: list[int] = []
        for start in range(0, self._shard.records, size):
            batch = range(start, min(start + size, self._shard.records))
            if self._tried(_Batch(self._item, batch)):
                for at in batch:
                    # Until one passes, it may be for anything: those are tried again then.
                    if self._judge(at) and self._good is None:
                        suspects.append(at)
                        self._check_passing(len(suspects))
        if suspects and self._good is None:
            self._find_good(others, size)
        for at in suspects:
            del self._rejected[at]
            self._judge(at)
        reason = None
        for _ in range(self._attempts):
            self._get_ready()
            found, reason = self._call("extract", *self._item, self._rejected)
            if reason is None:
                return found  # type: ignore[no-any-return]
        raise RunError(
            f"shard {self._shard.number}: it {reason} {self._attempts} times with no other shard "
            "beside it, although each of its records alone does not; is there too little memory?"
        )

    def once(self) -> ShardResult | None:
        """Extract all records in one go; None where that ends the actor."""
        self._get_ready()
        found: ShardResult | None = self._call("extract", *self._item)[0]
        return found

    def _judge(self, at: int) -> bool:
        """Reject the record at this position if it ends the actor each time; whether it does."""
        reason = None
        for _ in range(self._attempts):
            self._get_ready()
            reason = self._tried(_Batch(self._item, range(at, at + 1)))
            if reason is None:
                return False
        assert reason is not None  # noqa: S101 - there is at least one attempt
        self._rejected[at] = reason
        return True

    def _check_passing(self, failed: int) -> None:
        if failed >= _ALL_FAILING:
            reasons = " or ".join(sorted(set(self._rejected.values())))
            raise RunError(
                f"shard {self._shard.number}: each of its first records {reasons} when it is tried "
                "alone, so it is not for the records"
            )

    def _find_good(self, others: list[Item], size: int) -> None:
        """Find records of other shards that pass, as none of this one does."""
        for item in others:
            if item[1] is None and item[0].split.kind == "stream":
                # Its images are gone.
                continue
            self._get_ready()
            self._tried(_Batch(item, range(min(size, item[0].records))))
            if self._good is not None:
                return
        if self._shard.split.kind == "stream":
            # That a blank image passes has to do; nothing of the storage is read for these.
            return
        raise RunError(
            f"shard {self._shard.number}: none of its records can be extracted, and no other is "
            "known that can, so it may not be for the records"
        )

    def _tried(self, batch: _Batch) -> str | None:
        """Try some records, without keeping anything; gives the reason where they end the actor."""
        positions = batch.positions
        encoded, reason = self._call("attempt", *batch.item, positions.start, positions.stop)
        if encoded:
            self._good = batch
        return reason

    def _get_ready(self) -> int:
        """Wait for an actor that works, which a record shows that has passed before.

        Gives the number of images a batch.
        """
        for _ in range(self._attempts):
            size = self._await_ready()
            if self._good is None or self._tried(self._good) is None:
                return size
        raise RunError("actors die before they are ready: a record that has passed does no more")

    def _await_ready(self) -> int:
        tries = 0
        while True:
            actor = self._worker.actor
            reference = actor.ready.remote(self._job)
            try:
                while self._awaited(reference, _ROOM_SECONDS) is None:
                    if not nodes.is_placed(actor):
                        self._make_room()
                found: Ready = get_result(reference)
            except ActorDiedError as error:
                tries += error.loss is Loss.PROCESS
                if tries >= self._attempts:
                    raise RunError(f"actors die before they are ready: {error}") from error
                self._worker.restart(actor)
                continue
            self._worker.node = found.node
            return found.batch_size

    def _call(self, method: str, *arguments: Any) -> tuple[Any, str | None]:
        """Call the actor for a shard; gives the result, or how the actor ended."""
        while True:
            actor = self._worker.actor
            reference = getattr(actor, method).remote(self._job, *arguments)
            if self._awaited(reference, self._timeout) is None:
                self._worker.restart(actor)
                return None, HANGS
            try:
                return get_result(reference), None
            except ActorDiedError as error:
                self._worker.restart(actor)
                if error.loss is not Loss.PREEMPTED:
                    return None, CRASHES
            # Its start is not to count as time of the call.
            self._await_ready()

    def _awaited(self, reference: Any, timeout: float | None) -> Any:
        """Wait for a call; gives None where it takes longer than `timeout`."""
        began = time.monotonic()
        while True:
            if ray.wait([reference], timeout=_POLL_SECONDS)[0]:
                return reference
            if self._stop.is_set():
                raise RunError("stopped")
            check_node()
            if timeout is not None and time.monotonic() - began > timeout:
                return None
