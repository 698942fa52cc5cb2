# SPDX-License-Identifier: Apache-2.0
"""Read a dataset once per run.

Its plan rows are written to the run folder, and its images are sent to the actors. The user's code
may be slow or hang, so it runs in an actor or a background thread and never blocks the driver.
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

import ray

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.core.console import Reminder
from ray_embed.encoders.tensorflow_setup import start_tensorflow
from ray_embed.errors import RunError
from ray_embed.extraction.plan_rows import explain_not_repeatable, record_rows
from ray_embed.planning import SplitPlan
from ray_embed.runtime import nodes
from ray_embed.runtime.actors import check_raylet, get_result
from ray_embed.runtime.session import RunSession
from ray_embed.sources.base import Source, SourceInfo
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.dataset_records import RecordReader
from ray_embed.sources.indexed_records import open_records
from ray_embed.sources.open import select_datasets
from ray_embed.storage.filesystem import Folder

_POLL_SECONDS = 1.0
# Seconds to wait for a dataset before printing a message.
_FIRST_MESSAGE_SECONDS = 30.0
# Seconds to wait for the user's code to return when the run ends.
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class DeliveredShard:
    """A shard read from a dataset: its number of records, and a reference to its images if any.

    These are the parts of a `DatasetShard`.
    """

    records: int
    images: Any


class ShardReader:
    """Reads the shards of a dataset. Runs in an actor or a thread.

    Args:
        source: the dataset.
        limit: the number of records after which it ends; None for all.
        folder: the folder to import the user's modules from, or None if the dataset is an object in
            this process.
    """

    def __init__(self, source: Dataset, limit: int | None, folder: str | None) -> None:
        if folder is not None:
            # Leave the number of threads to the user's pipeline.
            start_tensorflow(None, folder)
        self._source, self._limit = source, limit
        self._lengths_before: list[int] = []
        self._is_started = False
        self.is_closed = False

    @cached_property
    def _reader(self) -> RecordReader:
        return RecordReader(self._source, self._limit)

    def load_tensorflow(self) -> None:
        """Import TensorFlow, so that its import time is not attributed to the dataset."""
        import tensorflow  # noqa: F401

    def describe(self) -> SourceInfo:
        """Open the dataset, and return its label type and image shape.

        If actors can read it by the positions of its records, also return its length and probes.

        Raises:
            InputError: the callable cannot be found, or yields no records.
        """
        records = open_records(self._source, self._limit)
        if isinstance(records, RecordReader):
            self._reader = records
        return records.describe()

    def read_shard(
        self, outs: Sequence[str], split: SplitPlan, local: int, done: bool
    ) -> DeliveredShard | None:
        """Read shard number `local`, or return None after the last one.

        Its plan rows are written to each run folder, or compared if they already exist, before it
        is encoded. If the shard is already done, its images are not sent.

        Raises:
            InputError: the dataset yields other records than before.
            RunError: the dataset failed.
        """
        folders = [Folder.open(out) for out in outs]
        start = local * split.shard_size
        if local == 0 and self._is_started:
            # Start over, because a damaged shard must be extracted again.
            del self._reader
        self._is_started = True
        shard = self._reader.read_shard(split.shard_size)
        if self.is_closed:
            # The run has ended, and the folder may now belong to another run.
            return None
        if local == 0:
            lengths = [planning.load(folder).splits[split.ordinal].records for folder in folders]
            self._lengths_before = [length for length in lengths if length is not None]
        if shard is None:
            if any(folder.exists(split.file_of(local)) for folder in folders):
                raise explain_not_repeatable(split, f"now ends before record {start}")
            return None
        if self._lengths_before and start >= min(self._lengths_before):
            raise explain_not_repeatable(
                split, f"now continues after record {min(self._lengths_before) - 1}"
            )
        for folder in folders:
            record_rows(folder, split, local, shard)
        if done:
            return DeliveredShard(shard.rows.num_rows, None)
        return DeliveredShard(shard.rows.num_rows, ray.put(shard.parts))


class _ActorReader:
    """A shard reader that runs in an actor and reads one shard ahead."""

    reads_ahead = True

    def __init__(self, source: Dataset, limit: int | None, session: RunSession) -> None:
        # Run on this node, because other nodes may be removed.
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
        """Do nothing, because the session stops the actor."""


class _ThreadReader:
    """A shard reader that runs in a thread of this process, for dataset objects."""

    # Reading ahead would use memory in the user's process.
    reads_ahead = False

    def __init__(self, source: Dataset, limit: int | None) -> None:
        self._reader = ShardReader(source, limit, None)
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        # The user's code cannot be interrupted, so use a daemon thread that does not block exit.
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
        """Stop the thread.

        If it hangs in the user's code, it stops once that returns, without writing anything.
        """
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
    """Reads a dataset in the background.

    Args:
        source: the dataset.
        limit: the number of records after which it ends; None for all.
        timeout: the number of seconds without a shard after which the dataset is considered to
            hang, or None.
        session: the session in which to start the actor (dataset objects are read in a thread
            instead).
    """

    def __init__(
        self, source: Dataset, limit: int | None, timeout: float | None, session: RunSession
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
        """Wait for the first record, and return the label type and image shape.

        Raises:
            InputError: the callable cannot be found, or yields no records.
            RunError: the dataset timed out before the first record.
        """
        # Do not count the import time of TensorFlow.
        self._call = self._reader.start("load_tensorflow")
        while not self.wait(_POLL_SECONDS):
            check_raylet()
        self._reader.get_result(self._call)
        self._call = self._reader.start("describe")
        began = time.monotonic()
        while not self.wait(_POLL_SECONDS):
            check_raylet()
            self.check_timeout(began)
        info: SourceInfo = self._reader.get_result(self._call)
        return info

    def read_shards(
        self, outs: Sequence[str], split: SplitPlan, is_done: Callable[[int], bool]
    ) -> Iterator[DeliveredShard | None]:
        """Yield the shards in order, or None while the next shard is not available yet.

        Actors read one shard ahead.

        Args:
            outs: the run folders.
            split: the plan of this source.
            is_done: function that returns whether shard number `local` is done, so that its images
                are not needed.
        """

        def start(local: int) -> Any:
            return self._reader.start("read_shard", outs, split, local, is_done(local))

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
        """Wait up to `seconds` for the next shard, and return whether it is available."""
        return self._reader.wait(self._call, seconds)

    def check_timeout(self, since: float) -> None:
        """Report that the dataset yields nothing: print a message from time to time, and raise an
        error after the timeout.

        Args:
            since: the time (`time.monotonic`) at which all actors became idle.

        Raises:
            RunError: the dataset has yielded nothing for longer than the timeout.
        """
        since = max(since, self._last_shard_time)
        if since != self._silent_since:
            self._silent_since, self._reminder = since, Reminder(_FIRST_MESSAGE_SECONDS)
        if self.wait(0):
            return
        seconds = time.monotonic() - since
        if self._timeout is not None and seconds > self._timeout:
            raise RunError(
                f"{self._where}: the dataset yielded no shard for {self._timeout:g} s "
                f"(--shard-timeout) while all actors were idle, {self._describe_progress()}; check "
                "what it is waiting for (a download, a lock, another process), or increase "
                "--shard-timeout"
            )
        if self._reminder.is_due():
            self._reminder.say(
                f"waiting for {self._where}: the dataset has yielded no shard for {seconds:.0f} s, "
                f"{self._describe_progress()}"
            )

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _describe_progress(self) -> str:
        count = self._position
        return f"after its first {count} records" if count else "not even the first record"


@contextlib.contextmanager
def open_dataset_readers(
    config: RunConfig, sources: Sequence[Source], session: RunSession
) -> Iterator[dict[str, DatasetReader]]:
    """Start a reader for each dataset, and yield the readers by split. They are closed on exit."""
    readers = {
        source.split: DatasetReader(source, config.limit, config.shard_timeout, session)
        for source in select_datasets(sources)
    }
    try:
        yield readers
    finally:
        for reader in readers.values():
            reader.close()
