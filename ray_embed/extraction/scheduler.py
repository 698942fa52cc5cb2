# SPDX-License-Identifier: Apache-2.0
"""Assign shards to actors, and try those again whose actor dies.

A shard whose actor dies is tried again, by any actor. One that has used up its tries waits until
all others are done; then its records are tried alone, see :mod:`ray_embed.extraction.isolation`.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from ray_embed.config import RunConfig
from ray_embed.errors import RunError, StorageError
from ray_embed.extraction import isolation
from ray_embed.extraction.messages import Item, Job, Ready, ShardResult
from ray_embed.extraction.work_queue import WorkQueue
from ray_embed.runtime import nodes
from ray_embed.runtime.actors import ActorDiedError, Worker, check_node, get_result
from ray_embed.runtime.nodes import Loss
from ray_embed.runtime.session import SHARDS_PER_ACTOR

_POLL_SECONDS = 1.0
_REFRESH_SECONDS = 3.0
# Results may wait this long for a source that actors wait for.
_MOMENT_SECONDS = 0.05
# If this many shards fail before any is done, the run ends.
_ALL_FAILING = 3


@dataclass(frozen=True)
class _Call:
    """A running call: `item` is None if it waits for the actor to get ready."""

    worker: Worker
    actor: Any
    item: Item | None


def extract_all(
    workers: list[Worker],
    job: Job,
    work: WorkQueue,
    config: RunConfig,
    any_done: bool = False,
    list_workers: Callable[[int], list[Worker]] | None = None,
) -> Iterator[ShardResult]:
    """Assign the shards to the actors as they get free; yield results in order of completion.

    Workers that wait for capacity get shards once they have it; the end does not wait for them.
    Those on draining nodes get none, and are started again elsewhere.

    Args:
        workers: the extractors.
        job: what all shards have in common.
        work: the shards, each with a reference to its images if a source delivered them.
        config: the limits.
        any_done: whether earlier runs have done any.
        list_workers: called every few seconds with the number of shards done; returns the
            extractors that exist then.

    Raises:
        RayEmbedError: as :meth:`Extractor.extract` raises; actors cannot start; the first shards
            have all failed; a source failed, or has hung.
    """
    board = _Board(workers, job, work, config, any_done)
    while True:
        board.start_shards()
        if not board.is_working:
            if board.all_fail and board.has_free_worker:
                yield board.extract_failed_shard()
                continue
            if not board.all_fail and not board.is_work_left():
                break
        for reference in board.wait():
            if shard_result := board.take_result(reference):
                yield shard_result
        board.check_source()
        board.kill_hanging()
        board.refresh(list_workers)
    yield from isolation.isolate_records(
        board.ready_workers, job, board.given_up, config, work.finished
    )


class _Board:
    """The running calls, and the shards to be tried again."""

    def __init__(
        self,
        workers: list[Worker],
        job: Job,
        work: WorkQueue,
        config: RunConfig,
        any_done: bool,
    ) -> None:
        self._job, self._work, self._config = job, work, config
        self._any_done = any_done
        self.calls: dict[Any, _Call] = {}
        self.given_up: list[Item] = []
        self._retries: deque[Item] = deque()
        self._tries = Counter[int]()
        self._done = 0
        self._workers: list[Worker] = []
        self._free: deque[Worker] = deque()
        self._running = Counter[Worker]()
        self._progress: dict[Worker, float] = {}
        self._draining: frozenset[str] = frozenset()
        self._failed_starts = 0
        self._last: ActorDiedError | None = None
        self._checked_hanging = self._refreshed = self._checked_node = time.monotonic()
        self._paused_until = 0.0
        self._idle_since: float | None = None
        self._add_workers(workers)

    @property
    def is_working(self) -> bool:
        """Whether a shard is under way."""
        return self._running.total() > 0

    @property
    def has_free_worker(self) -> bool:
        """Whether an extractor has nothing to do."""
        return bool(self._free)

    @property
    def ready_workers(self) -> list[Worker]:
        """The extractors that have started, or all if none has."""
        return [worker for worker in self._workers if worker.node] or self._workers

    def is_work_left(self) -> bool:
        """Return whether a shard has not been started, or may still come."""
        # If an actor is free, there was no shard to start.
        if not self._retries and not self._free and (item := self._work.take()):
            self._retries.append(item)
        return bool(self._retries) or not self._work.is_over

    def wait(self) -> Iterable[Any]:
        """Wait for calls to end, or for the source if actors wait for it; return the calls."""
        calls = list(self.calls)
        if self._needs_source():
            self._work.wait(_MOMENT_SECONDS)
            # All of them: calls may end far more often than shards come.
            done = ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []
        elif calls:
            done = ray.wait(calls, timeout=_POLL_SECONDS)[0]
        else:
            time.sleep(_POLL_SECONDS)
            done = []
        now = time.monotonic()
        if not done and now - self._checked_node >= _POLL_SECONDS:
            self._checked_node = now
            check_node()
        return done

    def _needs_source(self) -> bool:
        """Return whether the next shard of the source is wanted now."""
        wanted = bool(self._free) or not self.is_working
        return wanted and not (self._retries or self._is_paused or self._work.is_over)

    def check_source(self) -> None:
        """Report a source that yields nothing while all actors wait for it.

        Raises:
            RunError: it has done so for longer than the timeout of a shard.
        """
        if self.is_working or not self._free or not self._needs_source():
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = time.monotonic()
        self._work.check_silence(self._idle_since)

    def refresh(self, list_workers: Callable[[int], list[Worker]] | None) -> None:
        """Add new extractors, and move those on draining nodes."""
        now = time.monotonic()
        if now - self._refreshed < _REFRESH_SECONDS:
            return
        self._refreshed = now
        if list_workers is not None:
            self._add_workers(list_workers(self._done))
        self._draining = nodes.draining_nodes()
        for worker in self._workers:
            self._leave_draining_node(worker)

    def _add_workers(self, workers: list[Worker]) -> None:
        for worker in workers[len(self._workers) :]:
            self._workers.append(worker)
            self._get_ready(worker)

    def _leave_draining_node(self, worker: Worker) -> None:
        """Assign no shards to a worker on a draining node; start it elsewhere once it is idle."""
        if worker.node not in self._draining:
            return
        self._remove_free(worker)
        if not self._running[worker]:
            self._restart_worker(worker)

    def _remove_free(self, worker: Worker) -> None:
        self._free = deque(other for other in self._free if other is not worker)

    def _restart_worker(self, worker: Worker) -> None:
        self._remove_free(worker)
        worker.restart(worker.actor)
        self._get_ready(worker)

    def start_shards(self) -> None:
        """Assign shards to free workers; none while all have failed."""
        while (
            not self._is_paused
            and self._free
            and (item := self._retries.popleft() if self._retries else self._work.take())
        ):
            worker = self._free.popleft()
            if not self._running[worker]:
                self._progress[worker] = time.monotonic()
            self._running[worker] += 1
            reference = worker.actor.extract.remote(item.shard, item.images)
            self.calls[reference] = _Call(worker, worker.actor, item)

    @property
    def _is_paused(self) -> bool:
        """Whether no shard is to be started for now."""
        return self.all_fail or time.monotonic() < self._paused_until

    @property
    def all_fail(self) -> bool:
        """Whether the first shards have used up their tries, and none was done."""
        return not self._any_done and len(self.given_up) >= _ALL_FAILING

    def extract_failed_shard(self) -> ShardResult:
        """Extract a shard given up in an actor of its own: another shard may have ended its actors.

        Raises:
            RunError: each of them ends such an actor, too.
        """
        for item in self.given_up:
            shard_result = isolation.extract_alone(
                self.ready_workers, self._job, item, self._config
            )
            if shard_result is not None:
                self.given_up.remove(item)
                self._note_done(item, shard_result)
                return shard_result
        raise RunError(
            f"the first {len(self.given_up)} shards have each cost {self._config.max_attempts} "
            f"actors, and one more alone, and none was done; the last one: {self._last}"
        ) from self._last

    def take_result(self, reference: Any) -> ShardResult | None:
        """Return the result of a call that has ended; None if it did no shard."""
        call = self.calls.pop(reference)
        try:
            outcome = get_result(reference)
        except ActorDiedError as error:
            self._handle_death(call, error)
            return None
        except StorageError as error:
            self._finish_call(call)
            self._try_again(call.item, error)
            # A storage that is full or does not answer may recover; running calls go on meanwhile.
            self._paused_until = time.monotonic() + _POLL_SECONDS
            return None
        if call.item is None:
            self._note_ready(call.worker, outcome)
            return None
        self._finish_call(call)
        self._note_done(call.item, outcome)
        return outcome  # type: ignore[no-any-return]

    def _note_ready(self, worker: Worker, ready: Ready) -> None:
        self._failed_starts = 0
        worker.node = ready.node
        self._free.extend([worker] * SHARDS_PER_ACTOR)
        self._leave_draining_node(worker)

    def _note_done(self, item: Item, shard_result: ShardResult) -> None:
        self._any_done = True
        self._done += 1
        if shard_result.rows:
            self._work.remember(item)

    def kill_hanging(self) -> None:
        """Kill actors that have finished nothing for too long, which ends their calls.

        An actor with a call that has ended is not killed, however long ago a result was taken.
        """
        now, timeout = time.monotonic(), self._config.shard_timeout
        if timeout is None or now - self._checked_hanging < _POLL_SECONDS:
            return
        self._checked_hanging = now
        late = {
            reference: call.worker
            for reference, call in self.calls.items()
            if call.item
            and call.actor is call.worker.actor
            and now - self._progress[call.worker] > timeout
        }
        if not late:
            return
        ended, _ = ray.wait(list(late), num_returns=len(late), timeout=0)
        for worker in set(late.values()) - {late[reference] for reference in ended}:
            ray.kill(worker.actor)
            self._progress[worker] = now

    def _get_ready(self, worker: Worker) -> None:
        self.calls[worker.actor.ready.remote(self._job)] = _Call(worker, worker.actor, None)

    def _finish_call(self, call: _Call) -> None:
        self._running[call.worker] -= 1
        self._progress[call.worker] = time.monotonic()
        if call.actor is call.worker.actor:
            self._free.append(call.worker)
            self._leave_draining_node(call.worker)

    def _handle_death(self, call: _Call, error: ActorDiedError) -> None:
        worker = call.worker
        if call.item is None and error.loss is Loss.PROCESS:
            self._failed_starts += 1
            if self._failed_starts >= self._config.max_attempts:
                raise RunError(f"actors die before they are ready: {error}") from error
        if worker.actor is call.actor:
            # This is the first of its calls to report that.
            self._restart_worker(worker)
        if call.item is not None:
            self._running[worker] -= 1
            self._try_again(call.item, error)

    def _try_again(self, item: Item | None, error: ActorDiedError | StorageError) -> None:
        if item is None:
            raise error
        shard = item.shard.number
        if isinstance(error, ActorDiedError) and error.loss is Loss.PREEMPTED:
            self._retries.append(item)
            return
        self._tries[shard] += 1
        if self._tries[shard] < self._config.max_attempts:
            self._retries.append(item)
            return
        if isinstance(error, StorageError):
            raise error
        self.given_up.append(item)
        self._last = error
