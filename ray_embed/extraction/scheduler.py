# SPDX-License-Identifier: Apache-2.0
"""Who does which shard, and what becomes of those whose actor dies.

A shard whose actor dies is tried again, by any actor. One that has cost its tries is put off until
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
from ray_embed.extraction.work_queue import WorkQueue
from ray_embed.extraction.worker import Item, Ready, ShardResult
from ray_embed.runtime import nodes
from ray_embed.runtime.actors import ActorDiedError, Worker, check_node, get_result
from ray_embed.runtime.nodes import Loss
from ray_embed.runtime.session import SHARDS_PER_ACTOR

_POLL_SECONDS = 1.0
_LOOK_SECONDS = 3.0
# Results may wait so long for a source that actors wait for.
_MOMENT_SECONDS = 0.05
# So many shards, and none that was done, are no accident.
_ALL_FAILING = 3


@dataclass(frozen=True)
class _Call:
    """A call under way: `item` is None where it waits for the actor to get ready."""

    worker: Worker
    actor: Any
    item: Item | None


def extract_all(
    workers: list[Worker],
    job: bytes,
    work: WorkQueue,
    config: RunConfig,
    begun: bool = False,
    look: Callable[[int], list[Worker]] | None = None,
) -> Iterator[ShardResult]:
    """Give the shards to the actors as they get free; yields results in order of completion.

    Workers that wait for room get shards once they have found it; the end does not wait for them.
    Those on nodes that are to be taken away get none, and are started anew elsewhere.

    Args:
        workers: the extractors.
        job: what all shards have in common, a pickled Job.
        work: the shards, each with a reference to its images where they are streamed.
        config: the limits.
        begun: whether earlier runs have done any.
        look: called every few seconds with how many shards are done; gives the extractors there
            are then.

    Raises:
        RayEmbedError: as :meth:`Extractor.extract` raises; actors cannot start; the first shards
            have all failed; a source failed, or has hung.
    """
    board = _Board(workers, job, work, config, begun)
    while True:
        board.give_out()
        if not board.working:
            if board.all_fail and board.anybody_free:
                yield board.one_alone()
                continue
            if not board.all_fail and not board.is_work_left():
                break
        for reference in board.wait():
            if found := board.take(reference):
                yield found
        board.check_source()
        board.kill_hanging()
        board.look(look)
    yield from isolation.each_alone(board.ready_workers, job, board.given_up, config, work.finished)


class _Board:
    """What is under way, and what has to be done again."""

    def __init__(
        self,
        workers: list[Worker],
        job: bytes,
        work: WorkQueue,
        config: RunConfig,
        any_done: bool,
    ) -> None:
        self._job, self._work, self._config = job, work, config
        self._any_done = any_done
        self.calls: dict[Any, _Call] = {}
        self.given_up: list[Item] = []
        self._again: deque[Item] = deque()
        self._tries = Counter[int]()
        self._done = 0
        self._workers: list[Worker] = []
        self._free: deque[Worker] = deque()
        self._under_way = Counter[Worker]()
        self._progress: dict[Worker, float] = {}
        self._draining: frozenset[str] = frozenset()
        self._failed_starts = 0
        self._last: ActorDiedError | None = None
        self._looked_for_hanging = self._looked = self._checked_node = time.monotonic()
        self._paused_until = 0.0
        self._idle_since: float | None = None
        self._add(workers)

    @property
    def working(self) -> bool:
        """Whether a shard is under way."""
        return self._under_way.total() > 0

    @property
    def anybody_free(self) -> bool:
        """Whether an extractor is there that has nothing to do."""
        return bool(self._free)

    @property
    def ready_workers(self) -> list[Worker]:
        """The extractors that are there, or all where none is."""
        return [worker for worker in self._workers if worker.node] or self._workers

    def is_work_left(self) -> bool:
        """Whether there is, or may come, a shard that nobody has begun."""
        # Where an actor is free, there was none to give out.
        if not self._again and not self._free and (item := self._work.take()):
            self._again.append(item)
        return bool(self._again) or not self._work.is_over

    def wait(self) -> Iterable[Any]:
        """Wait for calls to end, or for the source where actors wait for it; return the calls."""
        calls = list(self.calls)
        if self._needs_source():
            self._work.wait(_MOMENT_SECONDS)
            # All of them, as shards may come far more seldom than calls end.
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
        """Whether the next shard of the source is wanted now."""
        wanted = bool(self._free) or not self.working
        return wanted and not (self._again or self._is_held or self._work.is_over)

    def check_source(self) -> None:
        """Report a source that gives nothing while all actors wait for it.

        Raises:
            RunError: it has done so for longer than the timeout of a shard.
        """
        if self.working or not self._free or not self._needs_source():
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = time.monotonic()
        self._work.check_silence(self._idle_since)

    def look(self, look: Callable[[int], list[Worker]] | None) -> None:
        """Take in extractors that are new, and clear nodes that are to be taken away."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if look is not None:
            self._add(look(self._done))
        self._draining = nodes.draining_nodes()
        for worker in self._workers:
            self._leave(worker)

    def _add(self, workers: list[Worker]) -> None:
        for worker in workers[len(self._workers) :]:
            self._workers.append(worker)
            self._get_ready(worker)

    def _leave(self, worker: Worker) -> None:
        """Give a worker nothing more if its node is to be taken away; start it anew when idle."""
        if worker.node not in self._draining:
            return
        self._take_off(worker)
        if not self._under_way[worker]:
            self._renew(worker)

    def _take_off(self, worker: Worker) -> None:
        self._free = deque(other for other in self._free if other is not worker)

    def _renew(self, worker: Worker) -> None:
        self._take_off(worker)
        worker.restart(worker.actor)
        self._get_ready(worker)

    def give_out(self) -> None:
        """Give shards to whoever is free; none while all have failed."""
        while (
            not self._is_held
            and self._free
            and (item := self._again.popleft() if self._again else self._work.take())
        ):
            worker = self._free.popleft()
            if not self._under_way[worker]:
                self._progress[worker] = time.monotonic()
            self._under_way[worker] += 1
            reference = worker.actor.extract.remote(self._job, *item)
            self.calls[reference] = _Call(worker, worker.actor, item)

    @property
    def _is_held(self) -> bool:
        """Whether no shard is to be given out for now."""
        return self.all_fail or time.monotonic() < self._paused_until

    @property
    def all_fail(self) -> bool:
        """Whether the first shards have each cost their tries, and none was done."""
        return not self._any_done and len(self.given_up) >= _ALL_FAILING

    def one_alone(self) -> ShardResult:
        """Extract one of the shards given up, whose actors may have died of those beside them.

        Raises:
            RunError: each of them ends its actor alone too, so it is not for them.
        """
        for item in self.given_up:
            found = isolation.once(self.ready_workers, self._job, item, self._config)
            if found is not None:
                self.given_up.remove(item)
                self._note_done(item, found)
                return found
        raise RunError(
            f"the first {len(self.given_up)} shards have each cost {self._config.max_attempts} "
            f"actors, and one more alone, and none was done; the last one: {self._last}"
        ) from self._last

    def take(self, reference: Any) -> ShardResult | None:
        """Take the result of a call that has ended; None where it gave no shard."""
        call = self.calls.pop(reference)
        try:
            found = get_result(reference)
        except ActorDiedError as error:
            self._died(call, error)
            return None
        except StorageError as error:
            self._ended(call)
            self._try_again(call.item, error)
            # What is full or does not answer may recover; what is under way goes on meanwhile.
            self._paused_until = time.monotonic() + _POLL_SECONDS
            return None
        if call.item is None:
            self._note_ready(call.worker, found)
            return None
        self._ended(call)
        self._note_done(call.item, found)
        return found  # type: ignore[no-any-return]

    def _note_ready(self, worker: Worker, found: Ready) -> None:
        self._failed_starts = 0
        worker.node = found.node
        self._free.extend([worker] * SHARDS_PER_ACTOR)
        self._leave(worker)

    def _note_done(self, item: Item, found: ShardResult) -> None:
        self._any_done = True
        self._done += 1
        if found.rows:
            self._work.remember(item)

    def kill_hanging(self) -> None:
        """Kill actors that have finished nothing for too long; their calls end with that.

        One with a call that has ended is none of them, however long ago that was taken last.
        """
        now, timeout = time.monotonic(), self._config.shard_timeout
        if timeout is None or now - self._looked_for_hanging < _POLL_SECONDS:
            return
        self._looked_for_hanging = now
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

    def _ended(self, call: _Call) -> None:
        self._under_way[call.worker] -= 1
        self._progress[call.worker] = time.monotonic()
        if call.actor is call.worker.actor:
            self._free.append(call.worker)
            self._leave(call.worker)

    def _died(self, call: _Call, error: ActorDiedError) -> None:
        worker = call.worker
        if call.item is None and error.loss is Loss.PROCESS:
            self._failed_starts += 1
            if self._failed_starts >= self._config.max_attempts:
                raise RunError(f"actors die before they are ready: {error}") from error
        if worker.actor is call.actor:
            # The first of its calls that says so.
            self._renew(worker)
        if call.item is not None:
            self._under_way[worker] -= 1
            self._try_again(call.item, error)

    def _try_again(self, item: Item | None, error: ActorDiedError | StorageError) -> None:
        if item is None:
            raise error
        shard = item[0].number
        if isinstance(error, ActorDiedError) and error.loss is Loss.PREEMPTED:
            self._again.append(item)
            return
        self._tries[shard] += 1
        if self._tries[shard] < self._config.max_attempts:
            self._again.append(item)
            return
        if isinstance(error, StorageError):
            raise error
        self.given_up.append(item)
        self._last = error
