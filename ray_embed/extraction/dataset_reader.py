# SPDX-License-Identifier: Apache-2.0
"""Read a dataset once per run: its plan rows go to the run folder, its images to the actors.

The user's code may take long, or hang. So it runs in an actor or on a thread of its own, and the
driver can do other things while it waits.
"""

import contextlib
import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from ray_embed.sources.base import Source, SourceInfo
from ray_embed.sources.dataset import Dataset, RecordReader
from ray_embed.sources.open import select_datasets
from ray_embed.storage.filesystem import Folder

_POLL_SECONDS = 1.0
# A dataset may be silent for this long before a line says so.
_PATIENCE = 30.0
# The user's code that is running at the end of a run gets this long to end by itself.
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class DeliveredShard:
    """A shard that was read: its number of records, and a reference to its images, if wanted."""

    records: int
    images: Any


class ShardReader:
    """Reads the shards of one dataset, in its own process or thread.

    Args:
        source: the dataset.
        limit: the number of records after which it ends; None for all.
        folder: the folder to import the user's modules from; None in the process that holds the
            dataset.
    """

    def __init__(self, source: Dataset, limit: int | None, folder: str | None) -> None:
        if folder is not None:
            # The user's pipeline decides about its own threads.
            start_tensorflow(None, folder)
        self._source, self._limit = source, limit
        self._length_before: int | None = None
        self._has_begun = False
        self.is_closed = False

    @cached_property
    def _reader(self) -> RecordReader:
        # Opened by the first call: an error of a constructor would arrive as another one.
        return RecordReader(self._source, self._limit)

    def load_tensorflow(self) -> None:
        """Import what takes long, so that its time does not count as the dataset's."""
        import tensorflow  # noqa: F401

    def describe(self) -> SourceInfo:
        """Return label type and image shape.

        Raises:
            InputError: the callable cannot be found, or yields no records.
        """
        return self._reader.describe()

    def read_shard(
        self, out: str, split: SplitPlan, local: int, done: bool
    ) -> DeliveredShard | None:
        """Read the shard number `local`; return None after the last one.

        Its plan rows are written before it is encoded, or compared if they were written before. The
        images of a shard that is done are not delivered.

        Raises:
            InputError: the dataset does not repeat what it yielded before.
            RunError: the dataset failed.
        """
        folder = Folder.open(out)
        start = local * split.shard_size
        if local == 0 and self._has_begun:
            # Read once more, for a shard that turned out damaged.
            del self._reader
        self._has_begun = True
        shard = self._reader.read_shard(split.shard_size)
        if self.is_closed:
            # The run has ended, and the folder may belong to another run now.
            return None
        if local == 0:
            self._length_before = planning.load(folder).splits[split.ordinal].records
        if shard is None:
            if folder.exists(split.file_of(local)):
                raise _explain_not_repeatable(split, f"ends before record {start}")
            return None
        if self._length_before is not None and start >= self._length_before:
            raise _explain_not_repeatable(split, f"goes on after record {self._length_before - 1}")
        differs = planning.write_shard(folder, split, local, shard.rows)
        if differs is not None:
            raise _explain_not_repeatable(split, f"yields another record {start + differs}")
        if done:
            return DeliveredShard(shard.rows.num_rows, None)
        same_shape = len({image.shape for image in shard.images}) == 1
        images: Any = np.stack(shard.images) if same_shape else shard.images
        return DeliveredShard(shard.rows.num_rows, ray.put(images))


def _explain_not_repeatable(split: SplitPlan, how: str) -> InputError:
    return InputError(
        f"--source {split.split}={split.root}: the dataset {how}, unlike when the run was "
        "started, so it is not repeatable: shuffled without a seed? Make it yield the same "
        "records in the same order, or start again with --overwrite"
    )


class _ActorReader:
    """A shard reader in an actor, which reads one shard ahead."""

    reads_ahead = True

    def __init__(self, source: Dataset, limit: int | None, session: Session) -> None:
        # On this node: others may be taken away.
        options = {"num_cpus": 0, "scheduling_strategy": nodes.schedule_on_this_node()}
        name = f"reader-{source.split}"
        self._actor = session.start(name, ShardReader, source, limit, session.folder, **options)

    def start(self, method: str, *arguments: Any) -> Any:
        return getattr(self._actor, method).remote(*arguments)

    def wait(self, call: Any, seconds: float) -> bool:
        """Wait for a call, at most this many seconds; return whether it has ended."""
        return bool(ray.wait([call], timeout=seconds)[0])

    def get_result(self, call: Any) -> Any:
        return get_result(call)

    def close(self) -> None:
        """Do nothing: the session ends the actor."""


class _ThreadReader:
    """A shard reader on one thread of this process, for a dataset object in hand."""

    # The images would fill the memory of the user's process.
    reads_ahead = False

    def __init__(self, source: Dataset, limit: int | None) -> None:
        self._reader = ShardReader(source, limit, None)
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        # Nothing can end the user's code; as a daemon it does not keep the process from ending.
        self._thread = threading.Thread(
            target=self._process_calls, name=f"reader-{source.split}", daemon=True
        )
        self._thread.start()

    def start(self, method: str, *arguments: Any) -> Future[Any]:
        call: Future[Any] = Future()
        self._calls.put((call, functools.partial(getattr(self._reader, method), *arguments)))
        return call

    def wait(self, call: Future[Any], seconds: float) -> bool:
        """Wait for a call, at most this many seconds; return whether it has ended."""
        return bool(futures.wait([call], seconds).done)

    def get_result(self, call: Future[Any]) -> Any:
        return call.result()

    def close(self) -> None:
        """End the thread; one that hangs in the user's code ends with that, and writes nothing."""
        self._reader.is_closed = True
        self._calls.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _process_calls(self) -> None:
        for call, function in iter(self._calls.get, None):
            try:
                call.set_result(function())
            except BaseException as error:
                call.set_exception(error)


class DatasetReader:
    """Reads a dataset in the background, while the driver does other things.

    Args:
        source: the dataset.
        limit: the number of records after which it ends; None for all.
        timeout: the seconds without a shard after which it counts as hanging; None for never.
        session: the session that runs its actor; a dataset object in hand is read on a thread.
    """

    def __init__(
        self, source: Dataset, limit: int | None, timeout: float | None, session: Session
    ) -> None:
        self._where = source.where
        self._timeout = timeout
        self._reader: _ActorReader | _ThreadReader
        if isinstance(source.source, str):
            self._reader = _ActorReader(source, limit, session)
        else:
            self._reader = _ThreadReader(source, limit)
        self._call: Any = None
        self._position = 0
        self._last_shard_time = 0.0
        self._silent_since, self._reminder = 0.0, Reminder()

    def describe(self) -> SourceInfo:
        """Return label type and image shape; waits for the first record.

        Raises:
            InputError: the callable cannot be found, or yields no records.
            RunError: the first record does not come.
        """
        # This time is not the dataset's.
        self._call = self._reader.start("load_tensorflow")
        while not self.wait(_POLL_SECONDS):
            check_node()
        self._reader.get_result(self._call)
        self._call = self._reader.start("describe")
        began = time.monotonic()
        while not self.wait(_POLL_SECONDS):
            check_node()
            self.check_silence(began)
        info: SourceInfo = self._reader.get_result(self._call)
        return info

    def read_shards(
        self, out: str, split: SplitPlan, is_done: Callable[[int], bool]
    ) -> Iterator[DeliveredShard | None]:
        """Yield the shards in order, and None whenever the next one has not been read yet.

        An actor reads one ahead.

        Args:
            out: the run folder.
            split: the plan of this source.
            is_done: returns whether the shard number `local` of the split needs no images.
        """

        def start(local: int) -> Any:
            return self._reader.start("read_shard", out, split, local, is_done(local))

        next_call = None
        self._position = 0
        for local in itertools.count():
            self._call = next_call or start(local)
            self._last_shard_time = time.monotonic()
            while not self.wait(0):
                yield None
            shard: DeliveredShard | None = self._reader.get_result(self._call)
            if shard is None:
                return
            self._position += shard.records
            next_call = start(local + 1) if self._reader.reads_ahead else None
            yield shard

    def wait(self, seconds: float) -> bool:
        """Wait for the next shard, at most this many seconds; return whether it has been read."""
        return self._reader.wait(self._call, seconds)

    def check_silence(self, since: float) -> None:
        """Report that the dataset yields nothing: on a line now and then, finally by an error.

        Args:
            since: the time, by `time.monotonic`, since which there is nothing to do but to wait.

        Raises:
            RunError: it has yielded nothing for longer than the timeout.
        """
        since = max(since, self._last_shard_time)
        if since != self._silent_since:
            self._silent_since, self._reminder = since, Reminder(_PATIENCE)
        if self.wait(0):
            return
        seconds = time.monotonic() - since
        if self._timeout is not None and seconds > self._timeout:
            raise RunError(
                f"{self._where}: the dataset has given no shard for {self._timeout:g} s "
                f"(--shard-timeout) while all actors waited for it, {self._describe_progress()}; "
                "find out what it waits for (a download, a lock, another process), or give a "
                "larger --shard-timeout"
            )
        if self._reminder.is_due():
            self._reminder.say(
                f"waiting for {self._where}: the dataset has given no shard for {seconds:.0f} s, "
                f"{self._describe_progress()}"
            )

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _describe_progress(self) -> str:
        count = self._position
        return f"after its first {count} records" if count else "not even its first"


@contextlib.contextmanager
def open_dataset_readers(
    config: RunConfig, sources: Sequence[Source], session: Session
) -> Iterator[dict[str, DatasetReader]]:
    """Start the readers of the datasets, by split; they end with the context."""
    readers = {
        source.split: DatasetReader(source, config.limit, config.shard_timeout, session)
        for source in select_datasets(sources)
    }
    try:
        yield readers
    finally:
        for reader in readers.values():
            reader.close()
