# SPDX-License-Identifier: Apache-2.0
"""Read and write the parts of a run folder.

Parts are written atomically. A shard is finished when its features part exists; there is no other
record of progress.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.core.arrays import Array, Matrix, as_column, as_matrix
from ray_embed.core.threads import open_ordered_map
from ray_embed.errors import DamagedError, StorageError, get_first_line
from ray_embed.storage import layout
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.retry import explain_error, is_storage_error

Result = TypeVar("Result")

_PART = re.compile(r"part-(\d{8,18})\.parquet")
# Number of parts to read in parallel from an object store. Only little is read from each.
_PARALLEL_READS = 32
# A sample shows few thumbnails of each part, so they can be read a few at a time.
_THUMBNAIL_GROUP_ROWS = 32
# Reading a part takes three times its size in memory, so large parts are read in row batches.
_LARGE_COLUMN_BYTES, _READ_BUFFER_BYTES, _BATCH_BYTES = 64 << 20, 1 << 20, 8 << 20

REJECT_SCHEMA = pa.schema(
    [("index", pa.int64()), ("key", pa.string()), ("split", pa.string()), ("reason", pa.string())]
)
THUMBNAIL_SCHEMA = pa.schema([("index", pa.int64()), ("png", pa.binary())])


@dataclass(frozen=True)
class Owner:
    """The fingerprints that tie parts to a run: that of features and rejects, and that of
    thumbnails, which runs of other encoders over the same records share."""

    features: str
    thumbnails: str


@dataclass(frozen=True)
class Part:
    """The features, rejects and thumbnails of a shard."""

    number: int
    features: pa.Table
    rejects: pa.Table
    thumbnails: pa.Table


def part_name(kind: str, number: int) -> str:
    """Return the path of a part, relative to the run folder."""
    return f"{kind}/part-{number:08d}.parquet"


def list_part_numbers(folder: Folder, kind: str = layout.FEATURES) -> Iterator[int]:
    """Yield the numbers of the existing parts, in order."""
    matches = (_PART.fullmatch(name) for name in folder.list_names(kind))
    # An array needs only 8 bytes per part.
    numbers = np.fromiter((int(match[1]) for match in matches if match), np.int64)
    numbers.sort()
    yield from map(int, numbers)


class FinishedShards:
    """A snapshot of the finished shards, stored as one bit per shard.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._bits = bytearray()
        self.count = 0
        for number in list_part_numbers(folder):
            self._bits.extend(bytes(max(0, number // 8 + 1 - len(self._bits))))
            self._bits[number // 8] |= 1 << number % 8
            self.count += 1

    def __iter__(self) -> Iterator[int]:
        return (number for number in range(8 * len(self._bits)) if number in self)

    def __contains__(self, number: int) -> bool:
        return number // 8 < len(self._bits) and bool(self._bits[number // 8] >> number % 8 & 1)


def map_parts(
    folder: Folder, read: Callable[[int], Result], numbers: Iterable[int]
) -> Iterator[Result]:
    """Yield the result of `read` for each part, in order.

    On object stores, parts are read in parallel.
    """
    if folder.is_local:
        yield from map(read, numbers)
        return
    with open_ordered_map(_PARALLEL_READS, _PARALLEL_READS) as map_ordered:
        yield from map_ordered(read, numbers)


def count_rejects(folder: Folder, done: FinishedShards | None = None) -> dict[str, int]:
    """Count the rejects of the finished shards by reason, the most common reason first.

    Args:
        folder: the run folder.
        done: the finished shards, if already known.

    Raises:
        DamagedError: a part is damaged.
    """
    done = done or FinishedShards(folder)
    reasons: Counter[str] = Counter()
    # Skip rejects of unfinished shards, which a killed attempt may have left behind.
    numbers = (number for number in list_part_numbers(folder, layout.REJECTS) if number in done)
    read = partial(read_part, folder, layout.REJECTS, columns=["reason"])
    for rejects in map_parts(folder, read, numbers):
        reasons.update(rejects["reason"].to_pylist())
    return dict(reasons.most_common())


def write_part(
    folder: Folder, part: Part, owner: Owner, planned: int, siblings: Iterable[Folder] = ()
) -> None:
    """Write the parts of a shard, features last, replacing those of a killed attempt.

    Args:
        folder: the run folder.
        part: the parts.
        owner: the fingerprints to write into them.
        planned: the number of planned records of the shard.
        siblings: other run folders. If one of them has the same thumbnails, these are linked.
    """
    footer = {
        "ray_embed.shard": str(part.number),
        "ray_embed.planned": str(planned),
        "ray_embed.rejected": str(part.rejects.num_rows),
    }

    def encode(table: pa.Table, fingerprint: str, group_rows: int | None = None) -> bytes:
        entries = {"ray_embed.fingerprint": fingerprint, **footer}
        return encode_part(table.replace_schema_metadata(entries), group_rows)

    thumbnails = encode(part.thumbnails, owner.thumbnails, _THUMBNAIL_GROUP_ROWS)
    _write_or_link(folder, part_name(layout.THUMBNAILS, part.number), thumbnails, siblings)
    rejects = part_name(layout.REJECTS, part.number)
    if part.rejects.num_rows:
        folder.write(rejects, encode(part.rejects, owner.features))
    else:
        folder.delete(rejects)
    features = part_name(layout.FEATURES, part.number)
    folder.write(features, encode(part.features, owner.features))


def _write_or_link(folder: Folder, name: str, content: bytes, siblings: Iterable[Folder]) -> None:
    """Write a file, or link it to the file of a sibling that has the same content."""
    for sibling in siblings if folder.is_local else ():
        if sibling.is_local and sibling.exists(name) and sibling.read(name) == content:
            folder.link(sibling, name)
            return
    folder.write(name, content)


def encode_part(table: pa.Table, group_rows: int | None = None) -> bytes:
    """Serialize a part. Equal tables give equal bytes.

    Args:
        table: the rows.
        group_rows: the number of rows per row group; None for one group.
    """
    text = [field.name for field in table.schema if pa.types.is_string(field.type)]
    sink = pa.BufferOutputStream()
    # Compress only the thumbnails, because features hardly compress. Write statistics only where
    # they are useful, and dictionaries only for text.
    pq.write_table(
        table,
        sink,
        row_group_size=group_rows or max(1, table.num_rows),
        compression={"png": "zstd"},
        use_dictionary=text,
        write_statistics=["index", *text],
        write_page_checksum=True,
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def get_group_rows(part: pq.ParquetFile) -> int | None:
    """Return the number of rows per row group of an open part, or None if it has one group."""
    metadata = part.metadata
    return metadata.row_group(0).num_rows if metadata.num_row_groups > 1 else None


def read_part_with(
    folder: Folder, kind: str, number: int, read: Callable[[pq.ParquetFile], Result]
) -> Result:
    """Open a part with checksum verification, and return the result of `read`.

    Raises:
        DamagedError: the part is damaged.
        StorageError: the part cannot be read.
    """
    name = part_name(kind, number)
    path = folder.display_path(name)
    # On object stores, fetch all columns in one request.
    options = {"page_checksum_verification": True, "pre_buffer": not folder.is_local}

    def read_stream(stream: pa.NativeFile) -> Result:
        buffered = folder.is_local and stream.size() > _LARGE_COLUMN_BYTES
        return read(
            pq.ParquetFile(stream, **options, buffer_size=_READ_BUFFER_BYTES if buffered else 0)
        )

    with _convert_errors(path, number):
        return folder.read_with(name, read_stream)


@contextlib.contextmanager
def _convert_errors(path: str, number: int) -> Iterator[None]:
    """Convert errors into StorageError or DamagedError with the name of the part.

    Raises:
        DamagedError: the part is damaged.
        StorageError: the part cannot be read.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, OSError) and is_storage_error(error):
            raise StorageError(f"{path}: cannot be read: {explain_error(error)}") from error
        raise DamagedError(f"{path}: damaged: {get_first_line(error)}", number) from error


@dataclass(frozen=True, kw_only=True)
class Footer:
    """The footer of a part. Missing numbers are -1."""

    rows: int
    fingerprint: str | None
    shard: int
    planned: int
    rejected: int
    columns: tuple[tuple[str, pa.DataType], ...]


def read_footer(folder: Folder, number: int) -> Footer:
    """Read the footer of a features part.

    Raises:
        DamagedError: the part is damaged.
        StorageError: the part cannot be read.
    """
    return read_part_with(folder, layout.FEATURES, number, parse_footer)


def parse_footer(part: pq.ParquetFile) -> Footer:
    """Return the footer of an open part."""
    metadata = part.metadata
    entries = {
        key.decode("utf-8", "replace").removeprefix("ray_embed."): value.decode("utf-8", "replace")
        for key, value in (metadata.metadata or {}).items()
        if key.startswith(b"ray_embed.")
    }

    def read_number(name: str) -> int:
        text = entries.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else -1

    columns = tuple((field.name, field.type) for field in part.schema_arrow)
    return Footer(
        rows=metadata.num_rows,
        fingerprint=entries.get("fingerprint"),
        shard=read_number("shard"),
        planned=read_number("planned"),
        rejected=read_number("rejected"),
        columns=columns,
    )


def read_footer_and_columns(
    folder: Folder, number: int, columns: list[str]
) -> tuple[Footer, pa.Table | None]:
    """Read the footer of a features part and, if `columns` is not empty, these columns, opening the
    file only once.

    Raises:
        DamagedError: the part is damaged.
        StorageError: the part cannot be read.
    """
    return read_part_with(
        folder,
        layout.FEATURES,
        number,
        lambda part: (parse_footer(part), _read_columns(part, columns) if columns else None),
    )


def check_owner(name: str, footer: Footer, number: int, fingerprint: str) -> None:
    """Check that a part belongs to this run and shard.

    Raises:
        DamagedError: the part belongs to another run or shard.
    """
    if (footer.fingerprint, footer.shard) != (fingerprint, number):
        raise DamagedError(f"{name}: the part belongs to another run or shard", number)


def read_part(
    folder: Folder,
    kind: str,
    number: int,
    columns: list[str] | None = None,
    fingerprint: str | None = None,
) -> pa.Table:
    """Read one part.

    Args:
        folder: the run folder.
        kind: the folder of the part, such as `features`.
        number: the number of the shard.
        columns: the columns to read; None for all.
        fingerprint: the fingerprint that the part must have; None to skip the check.

    Raises:
        DamagedError: the part is damaged, or belongs to another run or shard.
        StorageError: the part cannot be read.
    """

    def read(part: pq.ParquetFile) -> pa.Table:
        if fingerprint is not None:
            name = folder.display_path(part_name(kind, number))
            check_owner(name, parse_footer(part), number, fingerprint)
        return _read_columns(part, columns)

    return read_part_with(folder, kind, number, read)


def read_thumbnails(
    folder: Folder, number: int, rows: Array | None, fingerprint: str
) -> list[bytes]:
    """Read thumbnails of a part as PNG, and little more than these.

    Args:
        folder: the run folder.
        number: the number of the shard.
        rows: the ascending rows to read, (n,) int64; None for all.
        fingerprint: the fingerprint that the part must have.

    Raises:
        DamagedError: the part is damaged, or belongs to another shard or other records.
        StorageError: the part cannot be read.
    """

    def read(part: pq.ParquetFile) -> list[bytes]:
        name = folder.display_path(part_name(layout.THUMBNAILS, number))
        check_owner(name, parse_footer(part), number, fingerprint)
        wanted = np.arange(part.metadata.num_rows) if rows is None else rows
        pngs: list[bytes] = read_rows(part, wanted, ["png"])["png"].to_pylist()
        return pngs

    return read_part_with(folder, layout.THUMBNAILS, number, read)


def read_rows(part: pq.ParquetFile, rows: Array, columns: list[str]) -> pa.Table:
    """Read some rows of an open part, and only the row groups that have them.

    Args:
        part: the part.
        rows: the ascending rows, (n,) int64.
        columns: the columns to read.
    """
    groups = [part.metadata.row_group(at).num_rows for at in range(part.metadata.num_row_groups)]
    ends = np.cumsum(groups, dtype=np.int64)
    having = np.searchsorted(ends, rows, side="right")
    needed = np.unique(having)
    table = part.read_row_groups(needed.tolist(), columns, use_threads=False)
    # The positions of the first rows of the needed groups, in the part and in the table.
    sizes = np.array(groups, np.int64)[needed]
    skipped = (ends[needed] - sizes) - (np.cumsum(sizes) - sizes)
    return table.take(pa.array(rows - skipped[np.searchsorted(needed, having)], pa.int64()))


def read_feature_batches(
    folder: Folder, number: int, column: str, fingerprint: str
) -> Iterator[Matrix]:
    """Yield the features of a part in batches of rows, (n, D) float32.

    On object stores, the part is read at once, so that failed requests can be retried.

    Raises:
        DamagedError: the part is damaged, or belongs to another run or shard.
        StorageError: the part cannot be read.
    """
    if not folder.is_local:
        yield as_matrix(read_part(folder, layout.FEATURES, number, [column], fingerprint)[column])
        return
    path = folder.display_path(part_name(layout.FEATURES, number))
    with (
        _convert_errors(path, number),
        folder.filesystem.open_input_file(
            folder.join(part_name(layout.FEATURES, number))
        ) as stream,
        pq.ParquetFile(
            stream,
            page_checksum_verification=True,
            pre_buffer=False,
            buffer_size=_READ_BUFFER_BYTES,
        ) as part,
    ):
        check_owner(path, parse_footer(part), number, fingerprint)
        # Raises if the column is missing; `iter_batches` would ignore it.
        dimension = part.schema_arrow.field(column).type.list_size
        yield from _read_batches(part, column, dimension)


def _read_batches(part: pq.ParquetFile, column: str, dimension: int) -> Iterator[Matrix]:
    rows = max(1, _BATCH_BYTES // (4 * dimension))
    for batch in part.iter_batches(rows, columns=[column], use_threads=False):
        yield as_matrix(pa.chunked_array([batch.column(0)]))


def _read_columns(part: pq.ParquetFile, columns: list[str] | None) -> pa.Table:
    wanted = part.schema_arrow.names if columns is None else columns
    large = [name for name in wanted if _is_large(part, name)]
    if large:
        table = part.read([name for name in wanted if name not in large], use_threads=False)
        for name in large:
            table = table.append_column(
                part.schema_arrow.field(name), _read_large_column(part, name)
            )
        return table.select(wanted)
    # The columns are small, so threads do not pay off.
    table = part.read(columns, use_threads=False)
    # Raises if a column is missing; `read` would ignore it.
    return table if columns is None else table.select(columns)


def _is_large(part: pq.ParquetFile, name: str) -> bool:
    index = part.schema_arrow.get_field_index(name)
    kind = part.schema_arrow.field(index).type if index >= 0 else None
    if kind is None or not pa.types.is_fixed_size_list(kind):
        return False
    return bool(4 * kind.list_size * part.metadata.num_rows > _LARGE_COLUMN_BYTES)


def _read_large_column(part: pq.ParquetFile, name: str) -> pa.FixedSizeListArray:
    """Read a feature column without an extra copy."""
    dimension = part.schema_arrow.field(name).type.list_size
    values = np.empty((part.metadata.num_rows, dimension), np.float32)
    start = 0
    for rows in _read_batches(part, name, dimension):
        values[start : start + len(rows)] = rows
        start += len(rows)
    return as_column(values)


def list_feature_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the feature columns."""
    return [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
