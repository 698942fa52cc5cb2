# SPDX-License-Identifier: Apache-2.0
"""From sources to the plan: their records are cut into shards and written, a split at a time.

Boundaries follow from the sources and the shard size alone, never from who does the work.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed import labels
from ray_embed.filesystem import Folder
from ray_embed.plan.digest import Digest
from ray_embed.plan.outline import Plan, SplitPlan
from ray_embed.sources import Listed, Source, Streamed
from ray_embed.sources.stream import StreamInfo

_SHARDS_A_FILE = 256
_RECORDS = 512
_ARRAY_BYTES = 64 << 20


def _shard_size_of(source: Source, info: StreamInfo | None, asked: int | None, batch: int) -> int:
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
        size = _shard_size_of(source, streams.get(source.split), shard_size, batch_size)
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
    digest = Digest((source.image_shape, source.image_dtype, source.content))
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
                writer = pq.ParquetWriter(
                    path, table.schema, filesystem=target.filesystem, write_page_checksum=True
                )
            assert writer is not None  # noqa: S101 - the first shard opens a file
            writer.write_table(table, row_group_size=size)
            digest.update(table.drop_columns(["path", "mtime"]))
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
