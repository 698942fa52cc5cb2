# SPDX-License-Identifier: Apache-2.0
"""Parquet files with encoded images in a column, as Hugging Face and Ray Data write them.

Planning reads the footers and the columns of keys, labels and metadata; the images are read in the
actors.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_embed.config import RunConfig
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, get_first_line
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.container_files import ContainerFiles
from ray_embed.sources.files import File, SizeAndTime, open_file
from ray_embed.sources.image_columns import (
    Columns,
    check_columns,
    describe_source,
    find_columns,
    get_wanted_columns,
    make_records,
    may_hold_images,
)
from ray_embed.sources.listing import Listing, make_listing
from ray_embed.sources.listing_format import find_path_columns, refuse_duplicates
from ray_embed.sources.listing_rows import ListingRows, read_first_texts
from ray_embed.sources.packed_images import PackedReader, Place
from ray_embed.storage.retry import explain_error

_RECORDS_PER_BATCH = 8192
_IMAGES_PER_READ = 64
# Shards follow the row groups, unless these are tiny or huge.
_MIN_SHARD, _MAX_SHARD = 128, 2048
_MAX_ROW_GROUP = 8192


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """The rows of Parquet files: the files by name, and in each the rows in their order."""

    split: str
    files: ContainerFiles
    columns: Columns
    info: SourceInfo

    @property
    def location(self) -> str:
        """The folder of the files."""
        return self.files.folder

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows.

        Raises:
            InputError: a file cannot be read, or its columns differ from those of the first file.
        """
        for name, file, stat in self.files.locate():
            with _open_parquet(file) as parquet:
                check_columns(
                    parquet.schema_arrow, self.columns, str(file), first=self.files.names[0]
                )
                yield from self._read_rows(parquet, name, stat)

    def _read_rows(
        self, parquet: pq.ParquetFile, name: str, stat: SizeAndTime
    ) -> Iterator[pa.RecordBatch]:
        columns = self.columns
        paths = f"{columns.image}.path" if columns.is_struct and columns.key is None else None
        wanted = [columns.key, paths, columns.label, *columns.extras]
        read = [column for column in wanted if column is not None]
        start = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            batches = (
                parquet.iter_batches(_RECORDS_PER_BATCH, row_groups=[group], columns=read)
                if read
                else _make_empty_batches(rows)
            )
            for batch in batches:
                count = batch.num_rows
                yield make_records(
                    batch,
                    columns,
                    self.info.label_type,
                    name,
                    stat,
                    start=start,
                    positions=pa.array(range(start, start + count), pa.int64()),
                    lengths=pa.nulls(count, pa.int64()),
                )
                start += count

    def reader(self) -> PackedReader:
        """Return what opens the images."""
        return PackedReader(
            self.location, functools.partial(read_images, column=self.columns.content)
        )


def open_parquet(split: str, files: ContainerFiles, config: RunConfig) -> ParquetSource | Listing:
    """Open Parquet files as a source: their images, or the files that they list.

    Raises:
        InputError: a file is not Parquet, there is no column with images or paths, or one that was
            asked for is missing.
    """
    first = files.first
    with _open_parquet(first) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    refuse_duplicates(schema.names, str(first))
    if config.image_column is None and not any(may_hold_images(field.type) for field in schema):
        rows = _make_listing_rows(files, schema)
        texts = read_first_texts(rows)
        if config.path_column in schema.names or find_path_columns(schema.names, texts):
            return make_listing(split, rows, config, config.path_column)
    columns = find_columns(schema, str(first), get_wanted_columns(config))
    _check_has_bytes(metadata, columns, str(first))
    info = describe_source(schema, columns, config, files.named, str(first))
    notes = (*files.notes, *info.notes)
    largest = max(groups, default=0)
    if largest > _MAX_ROW_GROUP:
        notes += (
            f"{redact_uri(files.named)}: its row groups have up to {largest:,} rows, and each is "
            "read once per shard; it is faster to write it with row_group_size=1000",
        )
    return ParquetSource(
        split=split,
        files=files,
        columns=columns,
        info=replace(info, shard_size=_choose_shard_size(groups), notes=notes),
    )


def _make_listing_rows(files: ContainerFiles, schema: pa.Schema) -> ListingRows:
    """Return the rows of Parquet files that are a listing: they have paths, and no images."""
    return ListingRows(
        name=redact_uri(files.named),
        folder=files.folder,
        schema=schema,
        read=functools.partial(_read_columns, files, schema),
        notes=files.notes,
    )


def _read_columns(
    files: ContainerFiles, schema: pa.Schema, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for _, file, _ in files.locate():
        with _open_parquet(file) as parquet:
            if not parquet.schema_arrow.equals(schema):
                raise InputError(
                    f"{file}: its columns ({', '.join(parquet.schema_arrow.names)}) or their types "
                    f"differ from those of {files.names[0]}; give such files as another --source"
                )
            yield from parquet.iter_batches(_RECORDS_PER_BATCH, columns=columns)


def read_images(file: File, places: Sequence[Place], *, column: str) -> Iterator[bytes | None]:
    """Yield the encoded images of some rows of a Parquet file.

    Raises:
        OSError: the file cannot be read.
        pa.ArrowException: the file is damaged.
    """
    with open_file(file) as stream, pq.ParquetFile(stream) as parquet:
        start = 0
        rows = [place.position for place in places]
        for group in range(parquet.num_row_groups):
            stop = start + parquet.metadata.row_group(group).num_rows
            wanted = [row for row in rows if start <= row < stop]
            if wanted:
                yield from _read_group(parquet, group, [row - start for row in wanted], column)
            start = stop


def _read_group(
    parquet: pq.ParquetFile, group: int, rows: list[int], column: str
) -> Iterator[bytes | None]:
    """Yield the images at ascending rows of a row group; a few of them are in memory at a time."""
    start = taken = 0
    for batch in parquet.iter_batches(_IMAGES_PER_READ, row_groups=[group], columns=[column]):
        images = batch.column(0)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        while taken < len(rows) and rows[taken] < start + batch.num_rows:
            yield images[rows[taken] - start].as_py()
            taken += 1
        start += batch.num_rows
        if taken == len(rows):
            return


@contextlib.contextmanager
def _open_parquet(file: File) -> Iterator[pq.ParquetFile]:
    try:
        with open_file(file) as stream, pq.ParquetFile(stream) as parquet:
            yield parquet
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"{file}: cannot be read as Parquet: {get_first_line(error)}; is the file complete?"
        ) from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {explain_error(error)}") from error


def _check_has_bytes(metadata: pq.FileMetaData, columns: Columns, where: str) -> None:
    """Refuse a file whose image structs have paths only, as far as its footer tells.

    Raises:
        InputError: no row has the bytes of an image.
    """
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            if chunk.path_in_schema == columns.content:
                counts = chunk.statistics and chunk.statistics.null_count
                if counts is None or counts < row_group.num_rows:
                    return
    if metadata.num_rows:
        raise InputError(
            f"{where}: the column {columns.image!r} has no bytes of images, perhaps only their "
            "paths; write it with the bytes (in Hugging Face datasets, to_parquet embeds files "
            "that exist), or give a listing: a .csv file with the columns path and label"
        )


def _choose_shard_size(groups: Sequence[int]) -> int | None:
    """Return whole row groups of nearly the usual size; None if the groups do not allow that."""
    sizes = set(groups[:-1]) or set(groups)
    if len(sizes) != 1:
        return None
    (rows,) = sizes
    if not 0 < rows <= _MAX_SHARD:
        return None
    return rows if rows >= _MIN_SHARD else rows * max(1, 512 // rows)


def _make_empty_batches(rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches without columns, for files from which planning needs only the row count."""
    for start in range(0, rows, _RECORDS_PER_BATCH):
        count = min(_RECORDS_PER_BATCH, rows - start)
        yield pa.record_batch({"": pa.nulls(count)})
