# SPDX-License-Identifier: Apache-2.0
"""The parts of a run folder, which appear whole or not at all.

A shard is done if and only if its features part is there; nothing else records progress.
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

from ray_embed.core.arrays import Matrix, as_column, as_matrix
from ray_embed.core.threads import open_ordered_map
from ray_embed.errors import DamagedError, StorageError, get_first_line
from ray_embed.storage import layout
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.retry import explain_error, is_storage_error

Result = TypeVar("Result")

# Made of the features, and anew whenever they are merged.
_PART = re.compile(r"part-(\d{8,18})\.parquet")
# Footers and the like, which are small, of parts on an object store.
_AT_ONCE = 32
# Reading a whole part takes three times its bytes, which of a large one are many: it is read
# through a buffer, some rows at a time.
_LARGE, _BUFFER, _BATCH_BYTES = 64 << 20, 1 << 20, 8 << 20

REJECT_SCHEMA = pa.schema(
    [("index", pa.int64()), ("key", pa.string()), ("split", pa.string()), ("reason", pa.string())]
)
THUMBNAIL_SCHEMA = pa.schema([("index", pa.int64()), ("png", pa.binary())])


@dataclass(frozen=True)
class Part:
    """What a shard gave: the rows of its features, of its rejects, and of its thumbnails."""

    number: int
    features: pa.Table
    rejects: pa.Table
    thumbnails: pa.Table


def part_name(kind: str, number: int) -> str:
    """Name the part of a shard, relative to the run folder."""
    return f"{kind}/part-{number:08d}.parquet"


def list_part_numbers(folder: Folder, kind: str = layout.FEATURES) -> Iterator[int]:
    """Give the numbers of the parts that are there, in order."""
    matches = (_PART.fullmatch(name) for name in folder.list_names(kind))
    # Eight bytes a part, not a list of objects.
    numbers = np.fromiter((int(match[1]) for match in matches if match), np.int64)
    numbers.sort()
    yield from map(int, numbers)


class FinishedShards:
    """Which shards have their part, read once; a bit a shard.

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
    """Give what `read` makes of each part, in order: many at a time where requests take long."""
    if folder.is_local:
        yield from map(read, numbers)
        return
    with open_ordered_map(_AT_ONCE, _AT_ONCE) as mapped:
        yield from mapped(read, numbers)


def count_rejects(folder: Folder, done: FinishedShards | None = None) -> dict[str, int]:
    """Count the rejects of the shards that are done, the commonest reason first.

    Args:
        folder: the run folder.
        done: its shards that are done, where they are known already.

    Raises:
        DamagedError: a part is not what was written.
    """
    done = done or FinishedShards(folder)
    reasons: Counter[str] = Counter()
    # A killed try may have left rejects without features: its shard is done again.
    numbers = (number for number in list_part_numbers(folder, layout.REJECTS) if number in done)
    read = partial(read_part, folder, layout.REJECTS, columns=["reason"])
    for rejects in map_parts(folder, read, numbers):
        reasons.update(rejects["reason"].to_pylist())
    return dict(reasons.most_common())


def write_part(folder: Folder, part: Part, fingerprint: str, planned: int) -> None:
    """Write the parts of one shard, its features last; what a killed try left is replaced."""
    footer = {
        "ray_embed.fingerprint": fingerprint,
        "ray_embed.shard": str(part.number),
        "ray_embed.planned": str(planned),
        "ray_embed.rejected": str(part.rejects.num_rows),
    }
    for kind, table in (
        (layout.THUMBNAILS, part.thumbnails),
        (layout.REJECTS, part.rejects),
        (layout.FEATURES, part.features),
    ):
        name = part_name(kind, part.number)
        if kind == layout.REJECTS and not table.num_rows:
            folder.delete(name)
        else:
            folder.write(name, encode_part(table.replace_schema_metadata(footer)))


def encode_part(table: pa.Table) -> bytes:
    """Give a part's bytes; the same table gives the same ones."""
    text = [field.name for field in table.schema if pa.types.is_string(field.type)]
    sink = pa.BufferOutputStream()
    # Floats of features hardly compress, thumbnails do; statistics of both serve nobody; text
    # repeats.
    pq.write_table(
        table,
        sink,
        compression={"png": "zstd"},
        use_dictionary=text,
        write_statistics=["index", *text],
        write_page_checksum=True,
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_part_with(
    folder: Folder, kind: str, number: int, read: Callable[[pq.ParquetFile], Result]
) -> Result:
    """Open a part, and give what is read of it; that fails where pages lack their checksums.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    name = part_name(kind, number)
    path = folder.display_path(name)
    # Where each request takes long, what is read together is asked for together.
    options = {"page_checksum_verification": True, "pre_buffer": not folder.is_local}

    def opened(stream: pa.NativeFile) -> Result:
        buffered = folder.is_local and stream.size() > _LARGE
        return read(pq.ParquetFile(stream, **options, buffer_size=_BUFFER if buffered else 0))

    with _explain_errors(path, number):
        return folder.read_with(name, opened)


@contextlib.contextmanager
def _explain_errors(path: str, number: int) -> Iterator[None]:
    """Let errors of reading a part name it.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, OSError) and is_storage_error(error):
            raise StorageError(f"{path}: cannot be read: {explain_error(error)}") from error
        raise DamagedError(f"{path}: damaged: {get_first_line(error)}", number) from error


@dataclass(frozen=True)
class Footer:
    """What a features part says of itself; its numbers are -1 where it says none."""

    rows: int
    fingerprint: str | None
    shard: int
    planned: int
    rejected: int
    columns: tuple[tuple[str, pa.DataType], ...]


def read_footer(folder: Folder, number: int) -> Footer:
    """Read what a features part says of itself.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    return read_part_with(folder, layout.FEATURES, number, parse_footer)


def parse_footer(part: pq.ParquetFile) -> Footer:
    """Read what an open part says of itself."""
    metadata = part.metadata
    ours = {
        key.decode("utf-8", "replace").removeprefix("ray_embed."): value.decode("utf-8", "replace")
        for key, value in (metadata.metadata or {}).items()
        if key.startswith(b"ray_embed.")
    }

    def number(name: str) -> int:
        text = ours.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else -1

    columns = tuple((field.name, field.type) for field in part.schema_arrow)
    return Footer(
        metadata.num_rows,
        ours.get("fingerprint"),
        number("shard"),
        number("planned"),
        number("rejected"),
        columns,
    )


def read_footer_and_columns(
    folder: Folder, number: int, columns: list[str]
) -> tuple[Footer, pa.Table | None]:
    """Read what `about` does, and some columns if any are named, opening the part once.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    return read_part_with(
        folder,
        layout.FEATURES,
        number,
        lambda part: (parse_footer(part), _read_columns(part, columns) if columns else None),
    )


def check_owner(name: str, about: Footer, number: int, fingerprint: str) -> None:
    """Compare whose a part says it is with whose it must be.

    Raises:
        DamagedError: it is of another run or shard.
    """
    if (about.fingerprint, about.shard) != (fingerprint, number):
        raise DamagedError(f"{name}: it is of another run or shard", number)


def read_part(
    folder: Folder,
    kind: str,
    number: int,
    columns: list[str] | None = None,
    fingerprint: str | None = None,
) -> pa.Table:
    """Read one part, or some columns of it; where a fingerprint is given, only one of its run.

    Raises:
        DamagedError: it is not what was written, or of another run or shard.
        StorageError: it cannot be read.
    """

    def read(part: pq.ParquetFile) -> pa.Table:
        if fingerprint is not None:
            name = folder.display_path(part_name(kind, number))
            check_owner(name, parse_footer(part), number, fingerprint)
        return _read_columns(part, columns)

    return read_part_with(folder, kind, number, read)


def read_feature_batches(
    folder: Folder, number: int, column: str, fingerprint: str
) -> Iterator[Matrix]:
    """Read the features (n, D) of a part of the run, some rows at a time.

    A local part is never in memory as a whole, others are, as a failed request is repeated.

    Raises:
        DamagedError: it is not what was written, or of another run or shard.
        StorageError: it cannot be read.
    """
    if not folder.is_local:
        yield as_matrix(read_part(folder, layout.FEATURES, number, [column], fingerprint)[column])
        return
    path = folder.display_path(part_name(layout.FEATURES, number))
    with (
        _explain_errors(path, number),
        folder.filesystem.open_input_file(
            folder.join(part_name(layout.FEATURES, number))
        ) as stream,
        pq.ParquetFile(
            stream, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER
        ) as part,
    ):
        check_owner(path, parse_footer(part), number, fingerprint)
        # Reading leaves out a column that is not there.
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
    # Parts are small: handing columns to threads takes longer than reading them.
    table = part.read(columns, use_threads=False)
    # Reading leaves out a column that is not there.
    return table if columns is None else table.select(columns)


def _is_large(part: pq.ParquetFile, name: str) -> bool:
    at = part.schema_arrow.get_field_index(name)
    kind = part.schema_arrow.field(at).type if at >= 0 else None
    if kind is None or not pa.types.is_fixed_size_list(kind):
        return False
    return bool(4 * kind.list_size * part.metadata.num_rows > _LARGE)


def _read_large_column(part: pq.ParquetFile, name: str) -> pa.FixedSizeListArray:
    """Read a column of features into memory once."""
    dimension = part.schema_arrow.field(name).type.list_size
    values = np.empty((part.metadata.num_rows, dimension), np.float32)
    start = 0
    for rows in _read_batches(part, name, dimension):
        values[start : start + len(rows)] = rows
        start += len(rows)
    return as_column(values)


def list_feature_columns(schema: pa.Schema) -> list[str]:
    """Name the columns of a part that hold features."""
    return [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
