# SPDX-License-Identifier: Apache-2.0
"""The plan: which record is which row of which shard, kept as Parquet.

The records of each split lie in ``plan/<ordinal>-<split>/part-*.parquet``, a row group a shard, so
that an actor reads only its shard's rows. Boundaries follow from the sources and the shard size
alone, never from who does the work.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed import labels
from ray_embed.filesystem import Folder
from ray_embed.sources import Listed, Source, Streamed
from ray_embed.sources.stream import StreamInfo

PLAN = "plan/plan.json"
_SHARDS_A_FILE = 256
_RECORDS = 512
_ARRAY_BYTES = 64 << 20


@dataclass(frozen=True)
class SplitPlan:
    """One split of the plan; `records` and `shards` are None until a stream has been walked."""

    ordinal: int
    split: str
    kind: str
    root: str
    label_type: str
    extras: tuple[str, ...]
    shard_size: int
    shards_a_file: int
    records: int | None = None
    digest: str | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    image_shape: tuple[int, int, int] | None = None
    image_dtype: str = "uint8"

    @property
    def shards(self) -> int | None:
        """The number of shards; None until it is known."""
        return None if self.records is None else -(-self.records // self.shard_size)

    def file_of(self, shard: int) -> str:
        """Name the plan file that holds the shard number `shard` of this split."""
        return (
            f"plan/{self.ordinal:02d}-{self.split}/part-{shard // self.shards_a_file:08d}.parquet"
        )


@dataclass(frozen=True)
class Plan:
    """The splits in order, and the columns that all parts share."""

    splits: tuple[SplitPlan, ...]
    label_type: str
    extras: tuple[str, ...]

    @property
    def records(self) -> int | None:
        """The number of records; None while the length of a stream is unknown."""
        return _total([split.records for split in self.splits])

    @property
    def shards(self) -> int | None:
        """The number of shards; None while the length of a stream is unknown."""
        return _total([split.shards for split in self.splits])

    def schema(self) -> pa.Schema:
        """Give the columns of a part before its features."""
        return labels.record_schema(
            pa.type_for_alias(self.label_type), [pa.field(e, pa.string()) for e in self.extras]
        )

    def with_records(self, ordinal: int, records: int) -> "Plan":
        """Give the plan with the length of a stream filled in."""
        splits = [
            replace(split, records=records) if split.ordinal == ordinal else split
            for split in self.splits
        ]
        return replace(self, splits=tuple(splits))


@dataclass(frozen=True)
class Shard:
    """Consecutive records of one split.

    `number` counts over all splits and names the part, `local` within the split; `index` is the
    position of the first record among all records, `position` within its split.
    """

    number: int
    split: SplitPlan
    local: int
    index: int
    position: int


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def shard_size_of(source: Source, info: StreamInfo | None, asked: int | None, batch: int) -> int:
    """Give the number of records a shard: as asked, else 512, fewer where images lie in memory.

    Depends on the source and the batch size alone, so that boundaries are always the same.
    """
    shape = info.image_shape if info else getattr(source, "image_shape", None)
    if asked or shape is None:
        return asked or _RECORDS
    image_bytes = shape[0] * shape[1] * shape[2] * 4
    return max(batch, min(_RECORDS, _ARRAY_BYTES // image_bytes // batch * batch))


def make_plan(
    sources: list[Source],
    streams: dict[str, StreamInfo],
    target: Folder,
    *,
    shard_size: int | None,
    batch_size: int,
    limit: int | None,
) -> Plan:
    """Write the plan of all listed sources below `target`; streams are planned while walked.

    Raises:
        InputError: a source cannot be listed or is empty.
    """
    splits = []
    for ordinal, source in enumerate(sources):
        size = shard_size_of(source, streams.get(source.split), shard_size, batch_size)
        if isinstance(source, Streamed):
            splits.append(_stream_plan(ordinal, source, streams[source.split], size))
        else:
            splits.append(_write_listed(ordinal, source, target, size, limit))
    label_type = labels.common_type(pa.type_for_alias(split.label_type) for split in splits)
    extras = [pa.schema([(name, pa.string()) for name in split.extras]) for split in splits]
    names = tuple(column.name for column in labels.union(extras))
    return Plan(tuple(splits), str(label_type), names)


def _stream_plan(ordinal: int, source: Streamed, info: StreamInfo, size: int) -> SplitPlan:
    return SplitPlan(
        ordinal,
        source.split,
        "stream",
        source.name,
        str(info.label_type),
        (),
        size,
        shards_a_file=1,
        image_shape=info.image_shape,
        image_dtype=info.image_dtype,
    )


def _write_listed(
    ordinal: int, source: Listed, target: Folder, size: int, limit: int | None
) -> SplitPlan:
    split = SplitPlan(
        ordinal,
        source.split,
        source.kind,
        source.root,
        str(source.label_type),
        tuple(source.extras.names),
        size,
        _SHARDS_A_FILE,
        image_shape=source.image_shape,
        image_dtype=source.image_dtype,
    )
    skipped: Counter[str] = Counter()
    images = (source.image_shape, source.image_dtype, source.content)
    digest = hashlib.sha256(repr(images).encode())
    records = 0
    labelled = False
    writer: pq.ParquetWriter | None = None
    try:
        for number, table in enumerate(_shards_of(source.records(skipped), size, limit)):
            if number % _SHARDS_A_FILE == 0:
                if writer:
                    writer.close()
                path = target.join(split.file_of(number))
                target.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
                writer = pq.ParquetWriter(path, table.schema, filesystem=target.filesystem)
            assert writer is not None  # noqa: S101 - the first shard opens a file
            writer.write_table(table, row_group_size=size)
            digest.update(_content(table.drop_columns(["path", "mtime"])))
            records += table.num_rows
            labelled = labelled or table["label"].null_count < table.num_rows
    finally:
        if writer:
            writer.close()
    return replace(
        split,
        records=records,
        digest=digest.hexdigest(),
        skipped=dict(skipped),
        label_type=split.label_type if labelled else str(pa.null()),
    )


def _shards_of(
    batches: Iterator[pa.RecordBatch], size: int, limit: int | None
) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = taken = 0
    for batch in batches:
        if limit is not None:
            batch = batch.slice(0, limit - taken)
        taken += batch.num_rows
        waiting.append(batch)
        rows += batch.num_rows
        while rows >= size:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, size).combine_chunks()
            waiting, rows = table.slice(size).to_batches(), rows - size
        if taken == limit:
            break
    if rows:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _content(table: pa.Table) -> bytes:
    return json.dumps(table.to_pydict(), separators=(",", ":")).encode()


def write_streamed(folder: Folder, split: SplitPlan, local: int, rows: pa.Table) -> int | None:
    """Keep the plan rows of a streamed shard, or compare them with those kept before.

    Returns:
        The position within the shard of the first record that differs from the kept plan, or
        None where all is the same.
    """
    name = split.file_of(local)
    if not folder.exists(name):
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        folder.write(name, sink.getvalue().to_pybytes())
        return None
    kept = pq.read_table(folder.join(name), filesystem=folder.filesystem)
    if kept.equals(rows):
        return None
    pairs = zip(kept.to_pylist(), rows.to_pylist(), strict=False)
    differing = (at for at, (before, now) in enumerate(pairs) if _changed(before, now))
    if kept.num_rows == rows.num_rows:
        return next(differing, None)
    return next(differing, min(kept.num_rows, rows.num_rows))


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the columns in which two plan rows differ; NaN is the same as NaN."""
    return [
        name
        for name, was in before.items()
        if was != now.get(name) and (was == was or now.get(name) == now.get(name))
    ]


def read_shard(folder: Folder, split: SplitPlan, local: int) -> pa.Table:
    """Read the plan rows of the shard number `local` of a split."""
    with folder.filesystem.open_input_file(folder.join(split.file_of(local))) as stream:
        return pq.ParquetFile(stream).read_row_group(local % split.shards_a_file)


def copy_records(plan: Plan, source: Folder, target: Folder) -> None:
    """Copy the planned records of all listed splits to another folder."""
    for split in plan.splits:
        number = 0
        while source.exists(name := split.file_of(number)):
            target.write(name, source.read(name))
            number += split.shards_a_file


def record_columns(plan: Plan, shard: Shard, rows: pa.Table) -> pa.Table:
    """Give the columns of a part before its features, for all planned rows of a shard."""
    schema = plan.schema()
    count = rows.num_rows
    columns: dict[str, Any] = {
        "index": pa.array(range(shard.index, shard.index + count), pa.int64()),
        "key": rows["key"],
        "label": labels.cast(rows["label"].combine_chunks(), schema.field("label").type),
        "split": pa.array([shard.split.split] * count, pa.string()),
    }
    for name in plan.extras:
        columns[name] = rows[name] if name in rows.column_names else pa.nulls(count, pa.string())
    return pa.table(columns, schema=schema)


def to_json(plan: Plan) -> dict[str, Any]:
    """Give the plan's outline as plain data."""
    return asdict(plan)


def save(folder: Folder, plan: Plan) -> None:
    """Write the plan's outline to the run folder; it is there only once its records are."""
    folder.write(PLAN, json.dumps(to_json(plan), indent=1).encode())


def load(folder: Folder) -> Plan:
    """Read the outline of the plan of a run folder."""
    data = json.loads(folder.read(PLAN))
    splits = [
        SplitPlan(
            **split
            | {
                "extras": tuple(split["extras"]),
                "image_shape": tuple(split["image_shape"]) if split["image_shape"] else None,
            }
        )
        for split in data["splits"]
    ]
    return Plan(tuple(splits), data["label_type"], tuple(data["extras"]))


def first_difference(kept: Folder, fresh: Folder, before: SplitPlan, now: SplitPlan) -> str:
    """Say where two plans of a listed split part ways: the first key that differs, and how."""
    images = [(split.image_shape, split.image_dtype) for split in (before, now)]
    if images[0] != images[1]:
        return f"its images were {images[0]} and are now {images[1]}"
    for local in range(max(before.shards or 0, now.shards or 0)):
        rows = [
            read_shard(folder, split, local) if local < (split.shards or 0) else None
            for folder, split in ((kept, before), (fresh, now))
        ]
        old, new = ([] if table is None else table.to_pylist() for table in rows)
        for was, found in zip(old, new, strict=False):
            changed = [name for name in _changed(was, found) if name not in ("mtime", "path")]
            if was["key"] != found["key"]:
                return f"{was['key']!r} was planned where there is now {found['key']!r}"
            if changed:
                name = changed[0]
                return f"{was['key']!r}: {name} was {was[name]!r} and is now {found.get(name)!r}"
        if len(old) != len(new):
            longer, word = (old, "is gone") if len(old) > len(new) else (new, "has been added")
            return f"{longer[min(len(old), len(new))]['key']!r} {word}"
    return "the order of its records"
