# SPDX-License-Identifier: Apache-2.0
"""Walks a streamed source once a run: its plan rows to the run folder, its images to the actors.

The user's code may take long, or hang. So it runs in an actor or on a thread of its own, and who
waits for it can do other things meanwhile.
"""

import contextlib
import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ray

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.core.console import Reminder
from ray_embed.encoders.tensorflow_setup import start_tensorflow
from ray_embed.errors import InputError, RunError
from ray_embed.planning import SplitPlan
from ray_embed.runtime import nodes
from ray_embed.runtime.actors import check_node, get_result
from ray_embed.runtime.session import Session
from ray_embed.sources.dataset import StreamInfo, StreamReader
from ray_embed.sources.open import Source, Streamed
from ray_embed.storage.filesystem import Folder

_POLL_SECONDS = 1.0
# A source may be silent for so long before that is said.
_PATIENCE = 30.0
# The user's code that is under way at the end of a run gets so long to come to its own end.
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class Walked:
    """A shard that was walked: its number of records, and a reference to its images, if wanted."""

    records: int
    images: Any


class Reader:
    """The one reader of a streamed source.

    Args:
        source: the stream.
        limit: the number of records after which it ends; None for all.
        folder: to import the user's modules from; None in the process that holds the dataset.
    """

    def __init__(self, source: Streamed, limit: int | None, folder: str | None) -> None:
        if folder is not None:
            # The user's pipeline decides about its own threads.
            start_tensorflow(None, folder)
        self._source, self._limit = source, limit
        self._length_before: int | None = None
        self._begun = False
        self.is_closed = False

    @cached_property
    def _reader(self) -> StreamReader:
        # Opened by the first call: what a constructor raises does not arrive as itself.
        return StreamReader(self._source, self._limit)

    def ready(self) -> None:
        """Return once all is imported that takes long."""
        import tensorflow  # noqa: F401

    def describe(self) -> StreamInfo:
        """Give label type and image shape.

        Raises:
            InputError: the callable cannot be found, or gives no records.
        """
        return self._reader.describe()

    def next(self, out: str, split: SplitPlan, local: int, done: bool) -> Walked | None:
        """Walk the shard number `local`; None after the last one.

        Its plan rows are written before it is encoded; where they were written before, they are
        compared. Images of a shard that is done are not handed on.

        Raises:
            InputError: the dataset does not repeat what it gave before.
            RunError: the dataset failed.
        """
        folder = Folder.open(out)
        start = local * split.shard_size
        if local == 0 and self._begun:
            # Walked once more, for what turned out damaged.
            del self._reader
        self._begun = True
        shard = self._reader.next_shard(split.shard_size)
        if self.is_closed:
            # The run has ended meanwhile, and the folder may be another's now.
            return None
        if local == 0:
            self._length_before = planning.load(folder).splits[split.ordinal].records
        if shard is None:
            if folder.exists(split.file_of(local)):
                raise _not_repeatable(split, f"ends before record {start}")
            return None
        if self._length_before is not None and start >= self._length_before:
            raise _not_repeatable(split, f"goes on after record {self._length_before - 1}")
        differs = planning.write_streamed(folder, split, local, shard.rows)
        if differs is not None:
            raise _not_repeatable(split, f"gives another record {start + differs}")
        if done:
            return Walked(shard.rows.num_rows, None)
        same_shape = len({image.shape for image in shard.images}) == 1
        images: Any = np.stack(shard.images) if same_shape else shard.images
        return Walked(shard.rows.num_rows, ray.put(images))


def _not_repeatable(split: SplitPlan, how: str) -> InputError:
    return InputError(
        f"--source {split.split}={split.root}: the dataset {how}, unlike when the run was "
        "started, so it is not repeatable: shuffled without a seed? Make it give the same "
        "records in the same order, or start anew with --overwrite"
    )


class _ActorReader:
    """A reader in an actor, which reads one shard ahead."""

    reads_ahead = True

    def __init__(self, source: Streamed, limit: int | None, session: Session) -> None:
        # There is one; another node may be taken away.
        options = {"num_cpus": 0, "scheduling_strategy": nodes.schedule_on_this_node()}
        name = f"reader-{source.split}"
        self._actor = session.start(name, Reader, source, limit, session.folder, **options)

    def start(self, method: str, *arguments: Any) -> Any:
        return getattr(self._actor, method).remote(*arguments)

    def wait(self, call: Any, seconds: float) -> bool:
        """Wait for a call, at most for so many seconds; return whether it has ended."""
        return bool(ray.wait([call], timeout=seconds)[0])

    def result(self, call: Any) -> Any:
        return get_result(call)

    def close(self) -> None:
        """Leave it to the session to end the actor."""


class _ThreadReader:
    """A reader on one thread of this process, for a dataset object in hand."""

    # The memory is that of the user's process.
    reads_ahead = False

    def __init__(self, source: Streamed, limit: int | None) -> None:
        self._reader = Reader(source, limit, None)
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        # Nothing can end the user's code; as a daemon it does not keep the process from ending.
        self._thread = threading.Thread(
            target=self._work, name=f"reader-{source.split}", daemon=True
        )
        self._thread.start()

    def start(self, method: str, *arguments: Any) -> Future[Any]:
        call: Future[Any] = Future()
        self._calls.put((call, functools.partial(getattr(self._reader, method), *arguments)))
        return call

    def wait(self, call: Future[Any], seconds: float) -> bool:
        """Wait for a call, at most for so many seconds; return whether it has ended."""
        return bool(futures.wait([call], seconds).done)

    def result(self, call: Future[Any]) -> Any:
        return call.result()

    def close(self) -> None:
        """End the thread; one that hangs in the user's code ends with that, and writes nothing."""
        self._reader.is_closed = True
        self._calls.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        for call, function in iter(self._calls.get, None):
            try:
                call.set_result(function())
            except BaseException as error:
                call.set_exception(error)


class Walk:
    """A streamed source that is read beside the process's other work.

    Args:
        source: the stream.
        limit: the number of records after which it ends; None for all.
        timeout: the seconds without a shard after which it counts as hanging; None for never.
        session: where its actor runs; a dataset object in hand is read on a thread instead.
    """

    def __init__(
        self, source: Streamed, limit: int | None, timeout: float | None, session: Session
    ) -> None:
        self._where = f"--source {source.split}={source.name}"
        self._timeout = timeout
        self._reader: _ActorReader | _ThreadReader
        if isinstance(source.source, str):
            self._reader = _ActorReader(source, limit, session)
        else:
            self._reader = _ThreadReader(source, limit)
        self._call: Any = None
        self._position = 0
        self._heard = 0.0
        self._silent_since, self._reminder = 0.0, Reminder()

    def describe(self) -> StreamInfo:
        """Return label type and image shape; waits for the first record.

        Raises:
            InputError: the callable cannot be found, or gives no records.
            RunError: the first record does not come.
        """
        # This takes time that is not the source's.
        self._call = self._reader.start("ready")
        while not self.wait(_POLL_SECONDS):
            check_node()
        self._reader.result(self._call)
        self._call = self._reader.start("describe")
        began = time.monotonic()
        while not self.wait(_POLL_SECONDS):
            check_node()
            self.check_silence(began)
        info: StreamInfo = self._reader.result(self._call)
        return info

    def shards(
        self, out: str, split: SplitPlan, is_done: Callable[[int], bool]
    ) -> Iterator[Walked | None]:
        """Yield the shards in order, and None whenever the next one is not there yet.

        An actor reads one ahead.

        Args:
            out: the run folder.
            split: the plan of this source.
            is_done: whether the shard number `local` of the split needs no images.
        """

        def start(local: int) -> Any:
            return self._reader.start("next", out, split, local, is_done(local))

        ahead = None
        self._position = 0
        for local in itertools.count():
            self._call = ahead or start(local)
            self._heard = time.monotonic()
            while not self.wait(0):
                yield None
            walked: Walked | None = self._reader.result(self._call)
            if walked is None:
                return
            self._position += walked.records
            ahead = start(local + 1) if self._reader.reads_ahead else None
            yield walked

    def wait(self, seconds: float) -> bool:
        """Wait for what is being read, at most for so many seconds; return whether it is there."""
        return self._reader.wait(self._call, seconds)

    def check_silence(self, since: float) -> None:
        """Report that the source gives nothing: on a line now and then, at last by an error.

        Args:
            since: from when on, by `time.monotonic`, there was nothing to do but to wait for it.

        Raises:
            RunError: it has given nothing for longer than the timeout.
        """
        since = max(since, self._heard)
        if since != self._silent_since:
            self._silent_since, self._reminder = since, Reminder(_PATIENCE)
        if self.wait(0):
            return
        seconds = time.monotonic() - since
        if self._timeout is not None and seconds > self._timeout:
            raise RunError(
                f"{self._where}: the dataset has given no shard for {self._timeout:g} s "
                f"(--shard-timeout) while all actors waited for it, {self._so_far()}; find out "
                "what it waits for there (a download, a lock, another process), or give a larger "
                "--shard-timeout"
            )
        if self._reminder.is_due():
            self._reminder.say(
                f"waiting for {self._where}: the dataset has given no shard for {seconds:.0f} s, "
                f"{self._so_far()}"
            )

    def close(self) -> None:
        """End the reading."""
        self._reader.close()

    def _so_far(self) -> str:
        given = self._position
        return f"after its first {given} records" if given else "not even its first"


@contextlib.contextmanager
def open_walks(
    config: RunConfig, sources: list[Source], session: Session
) -> Iterator[dict[str, Walk]]:
    """Start the readers of the streamed sources, by split; they end with the context."""
    walks = {
        source.split: Walk(source, config.limit, config.shard_timeout, session)
        for source in sources
        if isinstance(source, Streamed)
    }
    try:
        yield walks
    finally:
        for walk in walks.values():
            walk.close()
