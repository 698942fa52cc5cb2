# SPDX-License-Identifier: Apache-2.0
"""The run folder: its parts, which appear whole or not at all, and ``run.json``.

A shard is done if and only if its features part is there; nothing else records progress.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.ahead import mapping
from ray_embed.errors import DamagedError, InputError, StorageError, first_line
from ray_embed.filesystem import TEMPORARY, Folder
from ray_embed.matrix import as_column, as_matrix
from ray_embed.plan import Plan
from ray_embed.retrying import explained, of_storage

Result = TypeVar("Result")

RUN = "run.json"
FEATURES, REJECTS, THUMBNAILS = "features", "rejects", "thumbnails"
_PART = re.compile(r"part-(\d{8,18})\.parquet")
_WRITER = re.compile(r"parquet-cpp-arrow version \d+\.\d+\.\d+[\w.+-]*")
# Written first of all, so that a folder is known as ours whenever the writing stops.
_FORMAT = 1
# Footers and the like, which are small, of parts on an object store.
_AT_ONCE = 32

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


def part_numbers(folder: Folder, kind: str = FEATURES) -> Iterator[int]:
    """Give the numbers of the parts that are there, in order."""
    matches = (_PART.fullmatch(name) for name in folder.names(kind))
    # Eight bytes a part, not a list of objects.
    numbers = np.fromiter((int(match[1]) for match in matches if match), np.int64)
    numbers.sort()
    yield from map(int, numbers)


class Done:
    """Which shards have their part, read once; a bit a shard.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._bits = bytearray()
        self.count = 0
        for number in part_numbers(folder):
            self._bits.extend(bytes(max(0, number // 8 + 1 - len(self._bits))))
            self._bits[number // 8] |= 1 << number % 8
            self.count += 1

    def __contains__(self, number: int) -> bool:
        return number // 8 < len(self._bits) and bool(self._bits[number // 8] >> number % 8 & 1)


def each(folder: Folder, read: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Result]:
    """Give what `read` makes of each part, in order: many at a time where requests take long."""
    if folder.is_local:
        yield from map(read, numbers)
        return
    with mapping(_AT_ONCE, _AT_ONCE) as mapped:
        yield from mapped(read, numbers)


def rejects_by_reason(folder: Folder, done: Done | None = None) -> dict[str, int]:
    """Count the rejects of the shards that are done, the commonest reason first.

    Args:
        folder: the run folder.
        done: its shards that are done, where they are known already.

    Raises:
        DamagedError: a part is not what was written.
    """
    done = done or Done(folder)
    reasons: Counter[str] = Counter()
    # A killed try may have left rejects without features: its shard is done again.
    numbers = (number for number in part_numbers(folder, REJECTS) if number in done)
    read = partial(read_part, folder, REJECTS, columns=["reason"])
    for rejects in each(folder, read, numbers):
        reasons.update(rejects["reason"].to_pylist())
    return dict(reasons.most_common())


def commit(folder: Folder, part: Part, fingerprint: str, planned: int) -> None:
    """Write the parts of one shard, its features last; what a killed try left is replaced."""
    footer = {
        "ray_embed.fingerprint": fingerprint,
        "ray_embed.shard": str(part.number),
        "ray_embed.planned": str(planned),
        "ray_embed.rejected": str(part.rejects.num_rows),
    }
    for kind, table in (
        (THUMBNAILS, part.thumbnails),
        (REJECTS, part.rejects),
        (FEATURES, part.features),
    ):
        name = part_name(kind, part.number)
        if kind == REJECTS and not table.num_rows:
            folder.delete(name)
        else:
            folder.write(name, _encoded(table.replace_schema_metadata(footer)))


def _encoded(table: pa.Table) -> bytes:
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


def read_run(folder: Folder) -> dict[str, Any] | None:
    """Read ``run.json``; None where the folder is not there or empty.

    Raises:
        InputError: the folder holds something else.
    """
    if not folder.exists(RUN):
        if any(name != TEMPORARY for name in folder.names()):
            raise InputError(
                f"{folder.shown()}: it holds something that is no run folder (no {RUN}); "
                "give another --out"
            )
        return None
    run = _marked(folder)
    if run is None:
        raise InputError(
            f"{folder.shown(RUN)}: it is no description of a run: of another program, or edited; "
            "give another --out"
        )
    if run["ray_embed"].get("format") != _FORMAT:
        raise InputError(
            f"{folder.shown(RUN)}: written by another version of ray_embed; give another --out, or "
            "--overwrite to start anew"
        )
    content = {name: value for name, value in run.items() if name != "ray_embed"}
    if run["ray_embed"].get("checksum") != checksum(content):
        raise InputError(
            f"{folder.shown(RUN)}: it is not what was written: damaged, or edited; restore it, or "
            "--overwrite to start anew"
        )
    return run


def clear(folder: Folder) -> None:
    """Delete what a run folder holds, what marks it as one last of all."""
    names = [name for name in folder.names() if name != TEMPORARY]
    for name in sorted(names, key=RUN.__eq__):
        folder.delete(name)


def is_run(folder: Folder) -> bool:
    """Whether the folder is one of ours, of whatever version: only then it is ever deleted."""
    return folder.exists(RUN) and _marked(folder) is not None


def _marked(folder: Folder) -> dict[str, Any] | None:
    """Read ``run.json`` if it has our mark."""
    try:
        run = json.loads(folder.read(RUN))
    except ValueError:
        return None
    return run if isinstance(run, dict) and isinstance(run.get("ray_embed"), dict) else None


def write_run(folder: Folder, content: dict[str, Any], version: str) -> None:
    """Write ``run.json``, marked as ours.

    Raises:
        StorageError: nothing can be written there.
    """
    about = {"version": version, "format": _FORMAT, "checksum": checksum(content)}
    marked = {"ray_embed": about, **content}
    # All else can be made again from it.
    folder.write(RUN, json.dumps(marked, indent=1).encode(), durable=True)


def checksum(content: dict[str, Any]) -> str:
    """Give the checksum of plain data, as it is in a JSON file that is edited by nobody."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _with_part(
    folder: Folder, kind: str, number: int, read: Callable[[pq.ParquetFile], Result]
) -> Result:
    """Open a part, and give what is read of it; that fails where pages lack their checksums.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    name = part_name(kind, number)
    path = folder.shown(name)
    # Where each request takes long, what is read together is asked for together.
    options = {"page_checksum_verification": True, "pre_buffer": not folder.is_local}
    try:
        return folder.read_with(name, lambda stream: read(pq.ParquetFile(stream, **options)))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, OSError) and of_storage(error):
            raise StorageError(f"{path}: cannot be read: {explained(error)}") from error
        raise DamagedError(f"{path}: damaged: {first_line(error)}", number) from error


@dataclass(frozen=True)
class About:
    """What a features part says of itself; its numbers are -1 where it says none."""

    rows: int
    fingerprint: str | None
    shard: int
    planned: int
    rejected: int
    columns: tuple[tuple[str, pa.DataType], ...]


def about(folder: Folder, number: int) -> About:
    """Read what a features part says of itself.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    return _with_part(folder, FEATURES, number, _about)


def _about(part: pq.ParquetFile) -> About:
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
    return About(
        metadata.num_rows,
        ours.get("fingerprint"),
        number("shard"),
        number("planned"),
        number("rejected"),
        columns,
    )


def survey(folder: Folder, number: int, columns: list[str]) -> tuple[About, pa.Table | None]:
    """Read what `about` does, and some columns if any are named, opening the part once.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    return _with_part(
        folder,
        FEATURES,
        number,
        lambda part: (_about(part), _columns(part, columns) if columns else None),
    )


@dataclass(frozen=True)
class Expected:
    """What all features parts of a run have in common: the fingerprint, and names and types.

    `shards` is how many there may be, None where that is not known yet.
    """

    fingerprint: str
    columns: tuple[tuple[str, pa.DataType], ...]
    shards: int | None

    @classmethod
    def of(cls, run: dict[str, Any], plan: Plan) -> "Expected":
        """Make it of a run's description and its plan."""
        features = [
            (output["column"], pa.list_(pa.float32(), output["dimension"]))
            for output in run["encoder"]["outputs"]
        ]
        columns = (*((field.name, field.type) for field in plan.schema()), *features)
        return cls(run["fingerprint"], columns, plan.shards)


def check(folder: Folder, number: int, expected: Expected) -> None:
    """Read all parts of a shard.

    Raises:
        DamagedError: one of them is not what was written, or of another shard or run.
    """
    about, found = _with_part(folder, FEATURES, number, lambda part: (_about(part), part.read()))
    check_about(folder, number, about, expected)
    pictured = read_part(folder, THUMBNAILS, number, ["index"], expected.fingerprint)
    if pictured["index"].to_pylist() != found["index"].to_pylist():
        name = folder.shown(part_name(THUMBNAILS, number))
        raise DamagedError(f"{name}: it is of other records", number)
    if about.rejected:
        read_part(folder, REJECTS, number)


def check_about(folder: Folder, number: int, about: "About", expected: Expected) -> None:
    """Compare what a features part says of itself with what it must be.

    No checksum covers that, so a flipped bit could rename a column.

    Raises:
        DamagedError: the part is of another shard or run, or of none, or its rejects are not all
            there.
    """
    name = folder.shown(part_name(FEATURES, number))
    if expected.shards is not None and number >= expected.shards:
        raise DamagedError(f"{name}: no such shard was planned", number)
    _check_owner(name, about, number, expected.fingerprint)
    if about.planned != about.rows + about.rejected or about.columns != expected.columns:
        raise DamagedError(f"{name}: damaged: its rows or columns are not those planned", number)
    if about.rejected:
        name = folder.shown(part_name(REJECTS, number))
        rejects = _with_part(folder, REJECTS, number, _about)
        _check_owner(name, rejects, number, expected.fingerprint)
        if rejects.rows != about.rejected:
            raise DamagedError(f"{name}: its rows are not those rejected", number)


def check_footers(folder: Folder, expected: Expected) -> None:
    """Compare what all features parts say of themselves with what they must be.

    Raises:
        DamagedError: as :func:`check_about` raises.
    """

    def check_footer(number: int) -> None:
        check_about(folder, number, about(folder, number), expected)

    for _ in each(folder, check_footer, part_numbers(folder)):
        pass


def _check_owner(name: str, about: "About", number: int, fingerprint: str) -> None:
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
            name = folder.shown(part_name(kind, number))
            _check_owner(name, _about(part), number, fingerprint)
        return _columns(part, columns)

    return _with_part(folder, kind, number, read)


def _columns(part: pq.ParquetFile, columns: list[str] | None) -> pa.Table:
    # Parts are small: handing columns to threads takes longer than reading them.
    table = part.read(columns, use_threads=False)
    # Reading leaves out a column that is not there.
    return table if columns is None else table.select(columns)


def is_as_written(folder: Folder, kind: str, number: int) -> bool:
    """Whether a part is, byte for byte, what writing its content again gives.

    Only the version of pyarrow that wrote it can say that; of others' parts it is taken as given.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    content, writer = _with_part(
        folder, kind, number, lambda part: (part.read(), part.metadata.created_by)
    )
    for column in feature_columns(content.schema):
        # Parquet has its own name for the items of a list, which reading keeps.
        values = as_column(as_matrix(content[column]))
        content = content.set_column(content.column_names.index(column), column, values)
    again = _encoded(content)
    ours = pq.read_metadata(pa.BufferReader(again)).created_by
    if writer != ours and _WRITER.fullmatch(writer):
        return True
    return again == folder.read(part_name(kind, number))


def feature_columns(schema: pa.Schema) -> list[str]:
    """Name the columns of a part that hold features."""
    return [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
