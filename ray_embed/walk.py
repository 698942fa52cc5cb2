# SPDX-License-Identifier: Apache-2.0
"""Walks a streamed source once a run: its plan rows to the run folder, its images to the actors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ray

from ray_embed import nodes, plan
from ray_embed.errors import InputError
from ray_embed.filesystem import Folder
from ray_embed.plan import SplitPlan
from ray_embed.session import Session
from ray_embed.sources import Streamed
from ray_embed.sources.stream import StreamInfo, StreamReader
from ray_embed.starting import start_tensorflow
from ray_embed.workers import result


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

    @cached_property
    def _reader(self) -> StreamReader:
        # Opened by the first call: what a constructor raises does not arrive as itself.
        return StreamReader(self._source, self._limit)

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
        folder = Folder.at(out)
        start = local * split.shard_size
        if local == 0 and self._begun:
            # Walked once more, for what turned out damaged.
            del self._reader
        self._begun = True
        shard = self._reader.next_shard(split.shard_size)
        if local == 0:
            self._length_before = plan.load(folder).splits[split.ordinal].records
        if shard is None:
            if folder.exists(split.file_of(local)):
                raise _not_repeatable(split, f"ends before record {start}")
            return None
        if self._length_before is not None and start >= self._length_before:
            raise _not_repeatable(split, f"goes on after record {self._length_before - 1}")
        differs = plan.write_streamed(folder, split, local, shard.rows)
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


class Walk:
    """A reader, in an actor of its own, or here for a dataset object in hand."""

    def __init__(self, source: Streamed, limit: int | None, session: Session) -> None:
        self._remote = isinstance(source.source, str)
        if self._remote:
            # There is one; another node may be taken away.
            options = {"num_cpus": 0, "scheduling_strategy": nodes.on_this_one()}
            name = f"reader-{source.split}"
            self._reader = session.start(name, Reader, source, limit, session.folder, **options)
        else:
            self._reader = Reader(source, limit, None)

    def describe(self) -> StreamInfo:
        """Give label type and image shape; waits for the first record.

        Raises:
            InputError: the callable cannot be found, or gives no records.
        """
        told = result(self._reader.describe.remote()) if self._remote else self._reader.describe()
        info: StreamInfo = told
        return info

    def shards(
        self, out: str, split: SplitPlan, is_done: Callable[[int], bool]
    ) -> Iterator[Walked]:
        """Walk the shards in order; an actor reads one ahead.

        Args:
            out: the run folder.
            split: the plan of this source.
            is_done: whether the shard number `local` of the split needs no images.
        """
        if not self._remote:
            local = 0
            while walked := self._reader.next(out, split, local, is_done(local)):
                yield walked
                local += 1
            return
        ahead = self._reader.next.remote(out, split, 0, is_done(0))
        local = 0
        while walked := result(ahead):
            local += 1
            ahead = self._reader.next.remote(out, split, local, is_done(local))
            yield walked
