# SPDX-License-Identifier: Apache-2.0
"""Read the records of a dataset by their positions, in the actors.

Each actor opens the dataset itself. It must have the same records at the same positions wherever
it is opened: an actor compares a few of them with those of the process that planned the run.
"""

import threading
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from ray_embed.errors import InputError, RayEmbedError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.dataset import Dataset, DeliveredImageReader
from ray_embed.sources.dataset_objects import (
    OpenedDataset,
    is_in_memory,
    is_sequence,
    open_dataset,
)
from ray_embed.sources.dataset_records import RecordReader
from ray_embed.sources.dataset_shards import (
    DatasetShard,
    ShardMaker,
    explain_failure,
    inspect_elements,
    make_parser,
)
from ray_embed.sources.elements import Records

# An augmentation with a probability of one half could leave two records as they are.
_PROBES = 8
# Objects of users are not made for several threads.
_READING = threading.Lock()


def open_records(source: Dataset, limit: int | None) -> "RecordReader | IndexedRecords":
    """Open a dataset, to be read by the positions of its records if possible, or else in order.

    Raises:
        InputError: it cannot be opened, is empty, or its first record is invalid.
        RunError: the dataset raised an error.
    """
    opened = open_dataset(source)
    if is_sequence(opened.content) and not is_in_memory(opened.content):
        return IndexedRecords(source, limit, opened)
    return RecordReader(source, limit, opened)


def choose_probes(count: int) -> list[int]:
    """Return the positions of the records by which a dataset is recognized, evenly spread."""
    return sorted({at * (count - 1) // (_PROBES - 1) for at in range(_PROBES)})


class IndexedRecords:
    """The records of an open dataset with ``__len__`` and ``__getitem__``.

    An item is a record or a batch. All batches have as many records as the first one, except for
    the last one.

    Raises:
        InputError: the dataset is empty, or its first or last record is invalid.
        RunError: the dataset raised an error.
    """

    def __init__(self, source: Dataset, limit: int | None, opened: OpenedDataset) -> None:
        self._where, self._content = source.where, opened.content
        self._parser = make_parser(source, opened)
        try:
            self._items = len(self._content)
        except Exception as error:
            raise InputError(f"{self._where}: its length is unknown: {error}") from error
        inspected = inspect_elements(map(self._read_item, range(self._items)), limit)
        if not inspected or not inspected[0]:
            raise InputError(f"{self._where}: the dataset is empty")
        self._size = len(inspected[0])
        last = self._read_item(self._items - 1)
        self._check_size(last, self._items - 1)
        count = (self._items - 1) * self._size + len(last)
        self.count = count if limit is None else min(count, limit)
        self._shards = ShardMaker(source, opened, self._parser, inspected)

    def describe(self) -> SourceInfo:
        """Return the properties of the dataset, with its length and its probes."""
        return replace(self._shards.describe(), records=self.count, probes=self.read_probes())

    def read_probes(self) -> pa.Table:
        """Return the plan rows of a few records, see :func:`choose_probes`."""
        positions = choose_probes(self.count)
        return pa.concat_tables([self.read(at, at + 1).rows for at in positions])

    def read(self, start: int, stop: int) -> DatasetShard:
        """Read the records from `start` to `stop`.

        Raises:
            InputError: an image or label has the wrong type or shape, or a batch has another size.
            RunError: the dataset raised an error; the message names the item.
        """
        parts = []
        for item in range(start // self._size, -(-stop // self._size)):
            records, offset = self._read_item(item), item * self._size
            self._check_size(records, item)
            parts.append(records.slice(max(0, start - offset), stop - offset))
        return self._shards.make(parts, start)

    def _check_size(self, records: Records, item: int) -> None:
        is_last = item == self._items - 1
        if len(records) > self._size or (len(records) < self._size and not is_last):
            raise InputError(
                f"{self._where}: batch {item} has {len(records)} records, but the first one has "
                f"{self._size}; give batches of one size, or yield them from a generator function"
            )

    def _read_item(self, item: int) -> Records:
        try:
            element = self._content[item]
        except RayEmbedError:
            raise
        except Exception as error:
            raise explain_failure(self._where, item, error) from error
        return self._parser.parse(element, item)


@dataclass(frozen=True)
class IndexedReader(DeliveredImageReader):
    """Opens a dataset in an actor, and reads the records of its shards there.

    `records` and `probes` are those of the process that planned the run.
    """

    source: Dataset
    limit: int | None
    records: int
    probes: pa.Table

    def read(self, start: int, count: int) -> DatasetShard:
        """Read `count` records from position `start`.

        Raises:
            InputError: the dataset is not the same as where the run was planned, or a record is
                invalid.
            RunError: the dataset raised an error.
        """
        with _READING:
            return self._opened.read(start, start + count)

    @cached_property
    def _opened(self) -> IndexedRecords:
        opened = open_records(self.source, self.limit)
        if (
            not isinstance(opened, IndexedRecords)
            or opened.count != self.records
            or repr(opened.read_probes().to_pylist()) != repr(self.probes.to_pylist())
        ):
            raise InputError(
                f"{self.where}: the dataset gives other records in an actor than where the run was "
                "planned. It must have the same records at the same positions wherever it is "
                "opened (is it shuffled or augmented without a fixed seed, or are files missing?)"
            )
        return opened
