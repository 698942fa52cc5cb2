# SPDX-License-Identifier: Apache-2.0
"""The shards that are left to extract, handed out one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from ray_embed.extraction.dataset_reader import Walk
from ray_embed.extraction.worker import Item
from ray_embed.planning import Shard, SplitPlan

# The number of finished shards to remember, one of which holds a record that passes.
_REMEMBERED = 3


class WorkQueue:
    """The shards that have no part yet, in order. Taking one never waits for a source.

    `records` holds the number of records of each split that was read to its end, by its ordinal;
    `finished` some shards that are done; `is_over` tells that the last shard was taken.

    Args:
        splits: the splits of the plan.
        walks: the readers of the streamed splits, by name.
        out: the run folder.
        is_done: whether a shard has its part, by its number.
        skip: called with the number of records of each shard that has its part.
    """

    def __init__(
        self,
        splits: Sequence[SplitPlan],
        walks: Mapping[str, Walk],
        out: str,
        is_done: Callable[[int], bool],
        skip: Callable[[int], None],
    ) -> None:
        self._splits, self._walks, self._out = splits, walks, out
        self._is_done, self._skip = is_done, skip
        self.records: dict[int, int] = {}
        self.finished: list[Item] = []
        self.is_over = False
        self._reading: Walk | None = None
        self._items = self._missing()

    def take(self) -> Item | None:
        """Return the next shard; None if the source has not given it yet, or at the end.

        Raises:
            RayEmbedError: the source failed.
        """
        try:
            return None if self.is_over else next(self._items)
        except StopIteration:
            self.is_over = True
            return None

    def remember(self, item: Item) -> None:
        """Remember a shard that is done, of which some are enough."""
        if len(self.finished) < _REMEMBERED:
            self.finished.append(item)

    def wait(self, seconds: float) -> None:
        """Wait until the source may give the next shard, at most for so many seconds."""
        if self._reading is not None:
            self._reading.wait(seconds)

    def check_silence(self, since: float) -> None:
        """Report a source that has kept all actors waiting since then; see `Walk`."""
        if self._reading is not None:
            self._reading.check_silence(since)

    def _missing(self) -> Iterator[Item | None]:
        number = index = 0
        for split in self._splits:
            missing = self._streamed if split.kind == "stream" else self._listed
            yield from missing(split, number, index)
            records = self.records[split.ordinal]
            number += -(-records // split.shard_size)
            index += records

    def _listed(self, split: SplitPlan, number: int, index: int) -> Iterator[Item]:
        total = split.records or 0
        for local, position in enumerate(range(0, total, split.shard_size)):
            records = min(split.shard_size, total - position)
            shard = Shard(number + local, split, local, index + position, position, records)
            if self._is_done(shard.number):
                self._skip(records)
                self.remember((shard, None))
            else:
                yield shard, None
        self.records[split.ordinal] = total

    def _streamed(self, split: SplitPlan, number: int, index: int) -> Iterator[Item | None]:
        local = position = 0
        self._reading = self._walks[split.split]
        for walked in self._reading.shards(
            self._out, split, lambda local: self._is_done(number + local)
        ):
            if walked is None:
                yield None
                continue
            if self._is_done(number + local):
                self._skip(walked.records)
            else:
                at = (local, index + position, position, walked.records)
                yield Shard(number + local, split, *at), walked.images
            local += 1
            position += walked.records
        self._reading = None
        self.records[split.ordinal] = position
