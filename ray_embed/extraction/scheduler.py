# SPDX-License-Identifier: Apache-2.0
"""Assign shards to actors, and retry shards whose actor dies.

A retried shard can go to any actor. A shard that has used up its attempts is set aside until all
others are finished; then its bad records are isolated (see :mod:`ray_embed.extraction.isolation`).
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
from ray_embed.runtime.actors import ActorDiedError, Worker, check_raylet, get_result
from ray_embed.runtime.nodes import DeathCause
from ray_embed.runtime.session import SHARDS_PER_ACTOR

_POLL_SECONDS = 1.0
_REFRESH_SECONDS = 3.0
# Seconds to wait for the source while actors are idle, before results are collected again.
_SOURCE_WAIT_SECONDS = 0.05
# If this many shards fail before any has finished, the run stops.
_MAX_INITIAL_FAILURES = 3


@dataclass(frozen=True)
class _Call:
    """A running remote call. `item` is None for a call to `ready`."""

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
) -> Iterator[list[ShardResult]]:
    """Assign shards to idle actors, and yield the results of each in order of completion.

    Actors that wait for resources get shards once they have started; the run does not wait for them
    at the end. Actors on draining nodes get no shards and are restarted elsewhere.

    Args:
        workers: the extractors.
        job: the settings shared by all shards.
        work: the queue of shards, with a reference to their images for sequential sources.
        config: the run configuration, for its limits.
        any_done: whether an earlier run has already finished a shard.
        list_workers: called every few seconds with the number of finished shards; returns the
            current extractors.

    Raises:
        RayEmbedError: see :meth:`Extractor.extract`; or actors cannot start, the first shards have
            all failed, or a source has failed or timed out.
    """
    board = _Scheduler(workers, job, work, config, any_done)
    while True:
        board.start_shards()
        if not board.is_working:
            if board.have_all_failed and board.has_free_worker:
                yield board.extract_failed_shard()
                continue
            if not board.have_all_failed and not board.is_work_left():
                break
        for reference in board.wait():
            if results := board.handle_finished_call(reference):
                yield results
        board.check_source()
        board.kill_hung_actors()
        board.refresh(list_workers)
    yield from isolation.isolate_records(
        board.ready_workers, job, board.failed_tasks, config, work.finished
    )


class _Scheduler:
    """The scheduling state: running calls, idle workers, and shards to retry."""

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
        self.failed_tasks: list[Item] = []
        self._retries: deque[Item] = deque()
        self._tries = Counter[int]()
        self._done = 0
        self._workers: list[Worker] = []
        self._idle_slots: deque[Worker] = deque()
        self._running_calls = Counter[Worker]()
        self._last_progress: dict[Worker, float] = {}
        self._draining: frozenset[str] = frozenset()
        self._failed_starts = 0
        self._last_error: ActorDiedError | None = None
        self._checked_hanging = self._refreshed = self._checked_node = time.monotonic()
        self._paused_until = 0.0
        self._idle_since: float | None = None
        self._add_workers(workers)

    @property
    def is_working(self) -> bool:
        """Whether any shard is being processed."""
        return self._running_calls.total() > 0

    @property
    def has_free_worker(self) -> bool:
        """Whether any extractor is idle."""
        return bool(self._idle_slots)

    @property
    def ready_workers(self) -> list[Worker]:
        """The started extractors, or all extractors if none has started."""
        return [worker for worker in self._workers if worker.node] or self._workers

    def is_work_left(self) -> bool:
        """Return whether shards are left to start, or may still arrive."""
        # If an actor is idle, `start_shards` found no shard.
        if not self._retries and not self._idle_slots and (item := self._work.take()):
            self._retries.append(item)
        return bool(self._retries) or not self._work.is_over

    def wait(self) -> Iterable[Any]:
        """Wait for calls to finish, or for the source if actors are idle.

        Return the finished calls.
        """
        calls = list(self.calls)
        if self._needs_source():
            self._work.wait(_SOURCE_WAIT_SECONDS)
            # Fetch all finished calls, because calls may finish faster than shards arrive.
            done = ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []
        elif calls:
            done = ray.wait(calls, timeout=_POLL_SECONDS)[0]
        else:
            time.sleep(_POLL_SECONDS)
            done = []
        now = time.monotonic()
        if not done and now - self._checked_node >= _POLL_SECONDS:
            self._checked_node = now
            check_raylet()
        return done

    def _needs_source(self) -> bool:
        """Return whether the next shard of the source is needed now."""
        wanted = bool(self._idle_slots) or not self.is_working
        return wanted and not (self._retries or self._is_paused or self._work.is_over)

    def check_source(self) -> None:
        """Report a source that yields nothing while all actors are idle.

        Raises:
            RunError: the source has exceeded the shard timeout.
        """
        if self.is_working or not self._idle_slots or not self._needs_source():
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = time.monotonic()
        self._work.check_timeout(self._idle_since)

    def refresh(self, list_workers: Callable[[int], list[Worker]] | None) -> None:
        """Add new extractors, and restart those on draining nodes elsewhere."""
        now = time.monotonic()
        if now - self._refreshed < _REFRESH_SECONDS:
            return
        self._refreshed = now
        if list_workers is not None:
            self._add_workers(list_workers(self._done))
        self._draining = nodes.get_draining_nodes()
        for worker in self._workers:
            self._leave_draining_node(worker)

    def _add_workers(self, workers: list[Worker]) -> None:
        for worker in workers[len(self._workers) :]:
            self._workers.append(worker)
            self._get_ready(worker)

    def _leave_draining_node(self, worker: Worker) -> None:
        """Stop assigning shards to a worker on a draining node; restart it elsewhere once idle."""
        if worker.node not in self._draining:
            return
        self._remove_free(worker)
        if not self._running_calls[worker]:
            self._restart_worker(worker)

    def _remove_free(self, worker: Worker) -> None:
        self._idle_slots = deque(other for other in self._idle_slots if other is not worker)

    def _restart_worker(self, worker: Worker) -> None:
        self._remove_free(worker)
        worker.restart(worker.actor)
        self._get_ready(worker)

    def start_shards(self) -> None:
        """Assign shards to idle workers, unless scheduling is paused."""
        while (
            not self._is_paused
            and self._idle_slots
            and (item := self._retries.popleft() if self._retries else self._work.take())
        ):
            worker = self._idle_slots.popleft()
            if not self._running_calls[worker]:
                self._last_progress[worker] = time.monotonic()
            self._running_calls[worker] += 1
            reference = worker.actor.extract.remote(item.shard, item.images, item.runs)
            self.calls[reference] = _Call(worker, worker.actor, item)

    @property
    def _is_paused(self) -> bool:
        """Whether scheduling is paused."""
        return self.have_all_failed or time.monotonic() < self._paused_until

    @property
    def have_all_failed(self) -> bool:
        """Whether the first shards have used up their attempts and none has finished."""
        return not self._any_done and len(self.failed_tasks) >= _MAX_INITIAL_FAILURES

    def extract_failed_shard(self) -> list[ShardResult]:
        """Extract one of the given-up shards alone in an actor, because another shard may have
        killed its actors.

        Raises: RunError: every given-up shard kills its actor even when extracted alone.
        """
        for item in self.failed_tasks:
            results = isolation.extract_alone(self.ready_workers, self._job, item, self._config)
            if results is not None:
                self.failed_tasks.remove(item)
                self._note_done(item, results)
                return results
        raise RunError(
            f"the first {len(self.failed_tasks)} shards each killed {self._config.max_attempts} "
            f"actors, and one more when extracted alone; last error: {self._last_error}"
        ) from self._last_error

    def handle_finished_call(self, reference: Any) -> list[ShardResult] | None:
        """Return the results of a finished call, or None if it has none."""
        call = self.calls.pop(reference)
        try:
            outcome = get_result(reference)
        except ActorDiedError as error:
            self._handle_death(call, error)
            return None
        except StorageError as error:
            self._finish_call(call)
            self._try_again(call.item, error)
            # A full or unresponsive storage may recover. Running calls continue meanwhile.
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
        self._idle_slots.extend([worker] * SHARDS_PER_ACTOR)
        self._leave_draining_node(worker)

    def _note_done(self, item: Item, results: list[ShardResult]) -> None:
        self._any_done = True
        self._done += 1
        if all(result.rows for result in results):
            self._work.remember(item)

    def kill_hung_actors(self) -> None:
        """Kill actors that have not finished a call within the timeout.

        Actors with a finished but not yet collected call are spared.
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
            and now - self._last_progress[call.worker] > timeout
        }
        if not late:
            return
        ended, _ = ray.wait(list(late), num_returns=len(late), timeout=0)
        for worker in set(late.values()) - {late[reference] for reference in ended}:
            ray.kill(worker.actor)
            self._last_progress[worker] = now

    def _get_ready(self, worker: Worker) -> None:
        self.calls[worker.actor.ready.remote(self._job)] = _Call(worker, worker.actor, None)

    def _finish_call(self, call: _Call) -> None:
        self._running_calls[call.worker] -= 1
        self._last_progress[call.worker] = time.monotonic()
        if call.actor is call.worker.actor:
            self._idle_slots.append(call.worker)
            self._leave_draining_node(call.worker)

    def _handle_death(self, call: _Call, error: ActorDiedError) -> None:
        worker = call.worker
        if call.item is None and error.cause is DeathCause.PROCESS:
            self._failed_starts += 1
            if self._failed_starts >= self._config.max_attempts:
                raise RunError(f"actors die during startup: {error}") from error
        if worker.actor is call.actor:
            # The first call of this actor that reports its death.
            self._restart_worker(worker)
        if call.item is not None:
            self._running_calls[worker] -= 1
            self._try_again(call.item, error)

    def _try_again(self, item: Item | None, error: ActorDiedError | StorageError) -> None:
        if item is None:
            raise error
        shard = item.shard.number
        if isinstance(error, ActorDiedError) and error.cause is DeathCause.PREEMPTED:
            self._retries.append(item)
            return
        self._tries[shard] += 1
        if self._tries[shard] < self._config.max_attempts:
            self._retries.append(item)
            return
        if isinstance(error, StorageError):
            raise error
        self.failed_tasks.append(item)
        self._last_error = error
