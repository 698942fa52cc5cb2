# SPDX-License-Identifier: Apache-2.0
"""Hand out the shards that are left to extract, one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from ray_embed.extraction.dataset_reader import DatasetReader
from ray_embed.extraction.messages import Item
from ray_embed.planning import Shard, SplitPlan

# How many finished shards to remember. At least one should hold a record that was not rejected.
_MAX_FINISHED = 3


class WorkQueue:
    """The shards that some run has no part of yet, in order. Taking one never waits for a source.

    `records` holds the number of records of each split that was read to its end, by its ordinal.
    `finished` holds some finished shards. `is_over` is True once all shards have been taken.

    Args:
        splits: the splits of the plan.
        readers: the readers of the sequential splits, by name.
        outs: the run folders.
        find_runs: takes the number of a shard, and returns the positions of the runs that lack its
            part.
        skip: called with the number of records of each shard that no run lacks.
    """

    def __init__(
        self,
        splits: Sequence[SplitPlan],
        readers: Mapping[str, DatasetReader],
        outs: Sequence[str],
        find_runs: Callable[[int], tuple[int, ...]],
        skip: Callable[[int], None],
    ) -> None:
        self._splits, self._readers, self._outs = splits, readers, outs
        self._find_runs, self._skip = find_runs, skip
        self.records: dict[int, int] = {}
        self.finished: list[Item] = []
        self.is_over = False
        self._reading: DatasetReader | None = None
        self._items = self._iterate_items()

    def take(self) -> Item | None:
        """Return the next shard, or None if its source has not been read that far or none is left.

        Raises:
            RayEmbedError: the source failed.
        """
        try:
            return None if self.is_over else next(self._items)
        except StopIteration:
            self.is_over = True
            return None

    def remember(self, item: Item) -> None:
        """Remember a finished shard, unless enough are already remembered."""
        if len(self.finished) < _MAX_FINISHED:
            self.finished.append(item)

    def wait(self, seconds: float) -> None:
        """Wait until the next shard may have been read, for at most `seconds`."""
        if self._reading is not None:
            self._reading.wait(seconds)

    def check_timeout(self, since: float) -> None:
        """Report a source that has kept all actors waiting since `since`; see `DatasetReader`."""
        if self._reading is not None:
            self._reading.check_timeout(since)

    def _iterate_items(self) -> Iterator[Item | None]:
        number = index = 0
        for split in self._splits:
            # The actors read a dataset of known length themselves.
            if (reader := self._readers.get(split.name)) and split.records is None:
                yield from self._read_shards(reader, split, number, index)
            else:
                yield from self._list_shards(split, number, index)
            records = self.records[split.ordinal]
            number += -(-records // split.shard_size)
            index += records

    def _list_shards(self, split: SplitPlan, number: int, index: int) -> Iterator[Item]:
        total = split.records or 0
        for local, position in enumerate(range(0, total, split.shard_size)):
            records = min(split.shard_size, total - position)
            shard = Shard(
                number=number + local,
                split=split,
                local=local,
                index=index + position,
                records=records,
            )
            if runs := self._find_runs(shard.number):
                yield Item(shard, runs=runs)
            else:
                self._skip(records)
                self.remember(Item(shard))
        self.records[split.ordinal] = total

    def _read_shards(
        self, reader: DatasetReader, split: SplitPlan, number: int, index: int
    ) -> Iterator[Item | None]:
        local = position = 0
        self._reading = reader
        for delivered in reader.read_shards(
            self._outs, split, lambda local: not self._find_runs(number + local)
        ):
            if delivered is None:
                yield None
                continue
            records = delivered.records
            if runs := self._find_runs(number + local):
                shard = Shard(
                    number=number + local,
                    split=split,
                    local=local,
                    index=index + position,
                    records=records,
                )
                yield Item(shard, delivered.images, runs)
            else:
                self._skip(records)
            local += 1
            position += records
        self._reading = None
        self.records[split.ordinal] = position
