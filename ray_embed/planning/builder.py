# SPDX-License-Identifier: Apache-2.0
"""From sources to the plan: their records are cut into shards and written, a split at a time.

Boundaries follow from the sources and the shard size alone, never from who does the work.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.options import SHARD_RECORDS
from ray_embed.planning.digest import Digest
from ray_embed.planning.plan import Plan, SplitPlan
from ray_embed.sources import label_schema
from ray_embed.sources.dataset import StreamInfo
from ray_embed.sources.label_schema import LabelCounts
from ray_embed.sources.missing_files import none_there
from ray_embed.sources.open import Listed, Source, Streamed
from ray_embed.storage.filesystem import Folder

_SHARDS_A_FILE = 256
_ARRAY_BYTES = 64 << 20


def _shard_size_of(source: Source, info: StreamInfo | None, asked: int | None, batch: int) -> int:
    """Give the number of records a shard: as asked, else a default, fewer for large arrays.

    Depends on the source and the batch size alone, so that boundaries are always the same.
    """
    shape = info.image_shape if info else getattr(source, "image_shape", None)
    if asked or shape is None:
        return asked or SHARD_RECORDS
    image_bytes = shape[0] * shape[1] * shape[2] * 4
    return max(batch, min(SHARD_RECORDS, _ARRAY_BYTES // image_bytes // batch * batch))


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
        InputError: a source cannot be listed, is empty, or none of its files is there.
    """
    splits = []
    counts: dict[str, LabelCounts] = {}
    notes: list[str] = []
    for ordinal, source in enumerate(sources):
        size = _shard_size_of(source, streams.get(source.split), shard_size, batch_size)
        if isinstance(source, Streamed):
            info = streams[source.split]
            splits.append(_stream_plan(ordinal, source, info, size))
            notes += [f"{source.split}: {note}" for note in info.notes]
        else:
            counts[source.split] = LabelCounts()
            split = _write_listed(ordinal, source, target, size, limit, counts[source.split])
            splits.append(split)
            notes += [f"{source.split}: {note}" for note in source.notes]
            notes += _label_notes(source, split, counts[source.split])
    label_type = label_schema.common_type(pa.type_for_alias(split.label_type) for split in splits)
    extras = [pa.schema([(name, pa.string()) for name in split.extras]) for split in splits]
    names = tuple(column.name for column in label_schema.union(extras))
    alike = label_schema.look_alikes({split: count.counts for split, count in counts.items()})
    notes += [f"warning: {note}" for note in alike]
    return Plan(tuple(splits), str(label_type), names, tuple(notes))


def _label_notes(source: Listed, split: SplitPlan, counts: LabelCounts) -> list[str]:
    notes = [f"{source.split}: {note}" for note in counts.notes()]
    if source.has_label_column and counts.nulls:
        notes.append(
            f"{source.split}: {counts.nulls:,} of {split.records:,} records have an empty label "
            "cell, so no label"
        )
    return notes


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
    ordinal: int,
    source: Listed,
    target: Folder,
    size: int,
    limit: int | None,
    counts: LabelCounts,
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
    digest = Digest((source.image_shape, source.image_dtype, source.content))
    records = missing = 0
    first: bytes | None = None
    writer: pq.ParquetWriter | None = None
    try:
        for number, table in enumerate(_shards_of(source.records(skipped), size, limit)):
            if number % _SHARDS_A_FILE == 0:
                if writer:
                    writer.close()
                path = target.join(split.file_of(number))
                target.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
                writer = pq.ParquetWriter(
                    path, table.schema, filesystem=target.filesystem, write_page_checksum=True
                )
            assert writer is not None  # noqa: S101 - the first shard opens a file
            writer.write_table(table, row_group_size=size)
            digest.update(table.drop_columns(["path", "mtime"]))
            records += table.num_rows
            missing += table["size"].null_count
            first = table["path"][0].as_py() if first is None else first
            counts.add(table["label"])
    finally:
        if writer:
            writer.close()
    if missing == records and first is not None and source.has_label_column is not None:
        raise none_there(records, first, source.location, source.split)
    return replace(
        split,
        records=records,
        digest=digest.hexdigest(),
        skipped=dict(skipped),
        label_type=split.label_type if counts.nulls < records else str(pa.null()),
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
