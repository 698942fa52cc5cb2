# SPDX-License-Identifier: Apache-2.0
"""Finds the records that kill or hang an actor: first by batches, then alone.

A shard's actor may have died of anything. So each of its records is tried, and one is set aside
only if it ends `max_attempts` fresh actors in a row while another record passes in each of them.
"""

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from ray_embed.config import RunConfig
from ray_embed.errors import RunError
from ray_embed.extractor import ShardResult
from ray_embed.plan import Shard
from ray_embed.session import ActorDiedError, Worker, result

CRASHES, HANGS = "crashes the process", "hangs"
_POLL_SECONDS = 0.5
# So many records, and none that passes, are no accident.
_ALL_FAILING = 3


def each_alone(
    workers: list[Worker], job: bytes, items: list[tuple[Shard, Any]], config: RunConfig
) -> Iterator[ShardResult]:
    """Extract shards without the records that end an actor; each worker does one at a time.

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

    def done(item: tuple[Shard, Any]) -> ShardResult:
        worker = free.get()
        try:
            return _Alone(worker, job, item, config, stop).extract()
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(len(workers))
    try:
        yield from threads.map(done, items)
    finally:
        stop.set()
        threads.shutdown(cancel_futures=True)


def once(
    worker: Worker, job: bytes, item: tuple[Shard, Any], config: RunConfig
) -> ShardResult | None:
    """Extract a shard in an actor that has nothing else to do; None where that ends it."""
    return _Alone(worker, job, item, config, threading.Event()).once()


class _Alone:
    """One shard, and the actor that has nothing else to do."""

    def __init__(
        self,
        worker: Worker,
        job: bytes,
        item: tuple[Shard, Any],
        config: RunConfig,
        stop: threading.Event,
    ) -> None:
        self._worker, self._job, self._stop = worker, job, stop
        self._shard, self._images = item
        self._attempts, self._timeout = config.max_attempts, config.shard_timeout
        self._good: range | None = None
        self._rejected: dict[int, str] = {}

    def extract(self) -> ShardResult:
        """Find the records to reject, and extract the others."""
        size = self._get_ready()
        for start in range(0, self._shard.records, size):
            batch = range(start, min(start + size, self._shard.records))
            if self._tried(batch):
                for at in batch:
                    self._judge(at)
        reason = None
        for _ in range(self._attempts):
            self._get_ready()
            found, reason = self._call("extract", self._images, self._rejected)
            if reason is None:
                return found  # type: ignore[no-any-return]
        raise RunError(
            f"shard {self._shard.number}: it {reason} {self._attempts} times with no other shard "
            "beside it, although each of its records alone does not; is there too little memory?"
        )

    def once(self) -> ShardResult | None:
        """Extract all records in one go; None where that ends the actor."""
        self._get_ready()
        found: ShardResult | None = self._call("extract", self._images)[0]
        return found

    def _judge(self, at: int) -> None:
        """Reject the record at this position if it, and nothing else, ends the actor."""
        reason = None
        for _ in range(self._attempts):
            self._get_ready()
            reason = self._tried(range(at, at + 1))
            if reason is None:
                return
        assert reason is not None  # noqa: S101 - there is at least one attempt
        self._rejected[at] = reason
        if self._good is None and len(self._rejected) >= _ALL_FAILING:
            raise RunError(
                f"shard {self._shard.number}: each of its first records {reason} when it is tried "
                "alone, so it is not for the records"
            )

    def _tried(self, positions: range) -> str | None:
        """Try some records, without keeping anything; gives the reason where they end the actor."""
        _, reason = self._call("attempt", self._images, positions.start, positions.stop)
        if reason is None:
            self._good = range(positions.start, positions.start + 1)
        return reason

    def _get_ready(self) -> int:
        """Wait for an actor that works, which a record shows that has passed before.

        Gives the number of images a batch.
        """
        for _ in range(self._attempts):
            actor = self._worker.actor
            try:
                size: int = result(self._awaited(actor.ready.remote(self._job), None))
            except ActorDiedError as error:
                died = error
                self._worker.renew(actor)
                continue
            if self._good is None or self._tried(self._good) is None:
                return size
            died = ActorDiedError("a record that has passed before does no more")
        raise RunError(f"actors die before they are ready: {died}") from died

    def _call(self, method: str, *arguments: Any) -> tuple[Any, str | None]:
        """Call the actor for this shard; gives the result, or how the actor ended."""
        actor = self._worker.actor
        reference = getattr(actor, method).remote(self._job, self._shard, *arguments)
        if self._awaited(reference, self._timeout) is None:
            self._worker.renew(actor)
            return None, HANGS
        try:
            return result(reference), None
        except ActorDiedError:
            self._worker.renew(actor)
            return None, CRASHES

    def _awaited(self, reference: Any, timeout: float | None) -> Any:
        """Wait for a call; gives None where it takes longer than `timeout`."""
        began = time.monotonic()
        while True:
            if ray.wait([reference], timeout=_POLL_SECONDS)[0]:
                return reference
            if self._stop.is_set():
                raise RunError("stopped")
            if timeout is not None and time.monotonic() - began > timeout:
                return None
