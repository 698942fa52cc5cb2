# SPDX-License-Identifier: Apache-2.0
"""Read the records of a dataset in order, and cut them into shards."""

import itertools
from collections.abc import Iterator

from ray_embed.errors import InputError, RayEmbedError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.dataset_objects import OpenedDataset, open_dataset
from ray_embed.sources.dataset_shards import (
    DatasetShard,
    ShardMaker,
    explain_failure,
    inspect_elements,
    make_parser,
)
from ray_embed.sources.elements import Records

_END = object()


class RecordReader:
    """Reads the records of a dataset once, in order.

    Args:
        source: the dataset.
        limit: the maximum number of records, or None for all.
        opened: the dataset if it is open already.

    Raises:
        InputError: the callable is missing or returns another type, the dataset is empty, or an
            image or label has the wrong type or shape.
    """

    def __init__(
        self, source: Dataset, limit: int | None = None, opened: OpenedDataset | None = None
    ) -> None:
        self._where, self._limit = source.where, limit
        self._opened = opened or open_dataset(source)
        self._parser = make_parser(source, self._opened)
        elements = self._iterate_records()
        inspected = inspect_elements(elements, limit)
        if not inspected:
            raise InputError(f"{self._where}: the dataset is empty")
        self._shards = ShardMaker(source, self._opened, self._parser, inspected)
        self._elements = itertools.chain(inspected, elements)
        self._position = 0
        # The records of an element that are not read yet.
        self._pending: Records | None = None

    def describe(self) -> SourceInfo:
        """Return the label type, image shape and notes, based on the first record."""
        return self._shards.describe()

    def read_shard(self, size: int) -> DatasetShard | None:
        """Read the next shard of up to `size` records, or return None at the end.

        Raises:
            InputError: an image or label has the wrong type or shape, or the label type changes.
            RunError: the dataset raised an error; the message names the record.
        """
        start = self._position
        if self._limit is not None:
            size = min(size, self._limit - start)
        parts = list(self._take(size))
        if not parts:
            return None
        self._position += sum(map(len, parts))
        return self._shards.make(parts, start)

    def _take(self, count: int) -> Iterator[Records]:
        """Yield the next records, `count` of them in all."""
        while count:
            # No element is read before it is needed, because the next one may never come.
            records = self._pending or next(self._elements, None)
            if records is None:
                return
            taken = records.slice(0, count)
            self._pending = records.slice(len(taken), None)
            count -= len(taken)
            yield taken

    def _iterate_records(self) -> Iterator[Records]:
        """Yield the records of each element, which is a single record or a batch."""
        elements = iter(self._opened)
        for position in itertools.count():
            try:
                element = next(elements, _END)
            except RayEmbedError:
                raise
            except Exception as error:
                raise explain_failure(self._where, position, error) from error
            if element is _END:
                return
            records = self._parser.parse(element, position)
            if len(records):
                yield records
