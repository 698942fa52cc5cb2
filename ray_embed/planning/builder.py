# SPDX-License-Identifier: Apache-2.0
"""Build the plan: divide the records of each source into shards and write them, one split at a
time.

Shard boundaries depend only on the sources and the shard size, never on the actors.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.core.arrays import Array
from ray_embed.core.uri import redact_uri
from ray_embed.options import DEFAULT_SHARD_SIZE
from ray_embed.planning.digest import Digest
from ray_embed.planning.plan import Plan, SplitPlan
from ray_embed.sources import label_schema
from ray_embed.sources.base import Source, SourceInfo, explain_no_records
from ray_embed.sources.label_lists import LABEL_LIST
from ray_embed.sources.label_schema import LabelCounts
from ray_embed.sources.missing_files import explain_all_missing
from ray_embed.storage.filesystem import Folder

_SHARDS_PER_FILE = 256
_MAX_SHARD_BYTES = 64 << 20
_KEYS_COMPARED = 1_000_000


def make_plan(
    sources: Sequence[Source],
    infos: Mapping[str, SourceInfo],
    target: Folder,
    *,
    shard_size: int | None,
    batch_size: int,
    limit: int | None,
) -> Plan:
    """Write the planned records to `target`. Records of sequential sources are added during the
    run.

    Args:
        sources: the sources, in the order of the splits.
        infos: the properties of the sequential sources, by split.
        target: the folder to write the records to.
        shard_size: the number of records per shard; None to choose automatically.
        batch_size: the number of images per batch.
        limit: the maximum number of records per source; None for all.

    Raises:
        InputError: a source cannot be listed or is empty, or none of its files exists.
    """
    splits: list[SplitPlan] = []
    counts: dict[str, LabelCounts] = {}
    notes: list[str] = []
    for ordinal, source in enumerate(sources):
        info = source.info or infos[source.split]
        size = shard_size or _choose_shard_size(info, batch_size)
        split = plan_split(ordinal, source, info, size)
        notes += [f"{split.name}: {note}" for note in info.messages]
        skipped: Counter[str] = Counter()
        batches = source.records(skipped)
        if batches is not None:
            written = _write_records(split, info, batches, target, limit)
            if not written.records:
                raise explain_no_records(source)
            if written.are_all_missing and info.has_label_column is not None:
                raise explain_all_missing(
                    written.records, written.first_path, source.location, source.split
                )
            split = _complete_split(split, written, skipped)
            counts[split.name] = written.labels
            notes += _describe_labels(split, info, written.labels)
            if repeats := written.repeats:
                notes.append(
                    f"{split.name}: {repeats:,} of {written.records:,} records have the key of an "
                    "earlier record, so `ray-embed compare` leaves them out; give each record its "
                    "own key (--key-column selects other keys)"
                )
        splits.append(split)
    look_alikes = label_schema.describe_look_alikes(
        {name: seen.counts for name, seen in counts.items()}
    )
    notes += [f"warning: {note}" for note in look_alikes]
    label_type = label_schema.find_common_type(
        label_schema.parse_type(split.label_type) for split in splits
    )
    notes += _describe_lists(splits, label_type)
    extras = dict.fromkeys(name for split in splits for name in split.extras)
    return Plan(tuple(splits), str(label_type), tuple(extras), tuple(notes))


def plan_split(ordinal: int, source: Source, info: SourceInfo, shard_size: int) -> SplitPlan:
    """Return the plan of a split whose records have not been read yet."""
    return SplitPlan(
        ordinal=ordinal,
        name=source.split,
        root=redact_uri(source.location),
        label_type=str(info.label_type),
        extras=info.extras,
        shard_size=shard_size,
        # Sequential sources are planned one shard at a time.
        shards_per_file=_SHARDS_PER_FILE if source.info else 1,
        records=info.records,
        image_shape=info.image_shape,
        image_dtype=info.image_dtype,
    )


def _choose_shard_size(info: SourceInfo, batch_size: int) -> int:
    """Return the number of records per shard, which is smaller for large arrays.

    It depends only on the source and the batch size, so that shard boundaries are reproducible.
    """
    if info.shard_size is not None:
        return info.shard_size
    if info.image_shape is None:
        return DEFAULT_SHARD_SIZE
    height, width, channels = info.image_shape
    fitting = _MAX_SHARD_BYTES // (height * width * channels * 4)
    return max(batch_size, min(DEFAULT_SHARD_SIZE, fitting // batch_size * batch_size))


@dataclass
class _SplitStatistics:
    """Statistics of the written records of a split.

    `missing` is the number of records without a file, and `keys` are the hashes of the keys of the
    first records; those of all would take too much memory.
    """

    digest: Digest
    labels: LabelCounts = field(default_factory=LabelCounts)
    records: int = 0
    missing: int = 0
    first_path: bytes = b""
    keys: list[Array] = field(default_factory=list)

    def add(self, table: pa.Table) -> None:
        """Add the records of a shard."""
        self.digest.update(table.drop_columns(["path", "mtime"]))
        if not self.records:
            self.first_path = table["path"][0].as_py() or b""
        self.records += table.num_rows
        self.missing += table["size"].null_count
        self.labels.add(table["label"])
        if self.records <= _KEYS_COMPARED:
            hashes = map(hash, table["key"].to_pylist())
            self.keys.append(np.fromiter(hashes, np.int64, table.num_rows))

    @property
    def repeats(self) -> int:
        """The number of records, of those compared, that have the key of an earlier record."""
        keys = np.concatenate([np.empty(0, np.int64), *self.keys])
        return len(keys) - len(np.unique(keys))

    @property
    def are_all_missing(self) -> bool:
        """Whether there are records, but no files."""
        return self.records > 0 and self.missing == self.records


def _write_records(
    split: SplitPlan,
    info: SourceInfo,
    batches: Iterator[pa.RecordBatch],
    target: Folder,
    limit: int | None,
) -> _SplitStatistics:
    """Write the records of a split to Parquet, with one row group per shard."""
    written = _SplitStatistics(Digest((info.image_shape, info.image_dtype, info.checksum)))
    writer: pq.ParquetWriter | None = None
    try:
        for number, table in enumerate(_cut_shards(batches, split.shard_size, limit)):
            if number % split.shards_per_file == 0:
                if writer:
                    writer.close()
                path = target.join(split.file_of(number))
                target.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
                writer = pq.ParquetWriter(
                    path, table.schema, filesystem=target.filesystem, write_page_checksum=True
                )
            assert writer is not None  # noqa: S101 - the first shard opens a file
            writer.write_table(table, row_group_size=split.shard_size)
            written.add(table)
    finally:
        if writer:
            writer.close()
    return written


def _complete_split(
    split: SplitPlan, written: _SplitStatistics, skipped: Mapping[str, int]
) -> SplitPlan:
    has_labels = written.labels.nulls < written.records
    return replace(
        split,
        records=written.records,
        digest=written.digest.hexdigest(),
        skipped=dict(skipped),
        label_type=split.label_type if has_labels else str(pa.null()),
    )


def _describe_labels(split: SplitPlan, info: SourceInfo, labels: LabelCounts) -> list[str]:
    notes = [f"{split.name}: {note}" for note in labels.notes()]
    if info.has_label_column and labels.nulls:
        empty = "empty list of labels" if info.label_type == LABEL_LIST else "empty label cell"
        notes.append(
            f"{split.name}: {labels.nulls:,} of {split.records:,} records have an {empty} and are "
            "unlabeled"
        )
    return notes


def _describe_lists(splits: Sequence[SplitPlan], label_type: pa.DataType) -> Iterator[str]:
    """Yield a note if labels are lists, and one if the single labels of other splits become so."""
    if label_type != LABEL_LIST:
        return
    lists = [split.name for split in splits if split.label_type == str(LABEL_LIST)]
    single = [
        split.name for split in splits if split.label_type not in (str(LABEL_LIST), str(pa.null()))
    ]
    yield f"the labels of {' and '.join(lists)} are lists, so a record can have several"
    if single:
        yield f"the single labels of {' and '.join(single)} become lists of one label"


def _cut_shards(
    batches: Iterator[pa.RecordBatch], size: int, limit: int | None
) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    rows = taken = 0
    for batch in batches:
        if limit is not None:
            batch = batch.slice(0, limit - taken)
        taken += batch.num_rows
        pending.append(batch)
        rows += batch.num_rows
        while rows >= size:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, size).combine_chunks()
            pending, rows = table.slice(size).to_batches(), rows - size
        if taken == limit:
            break
    if rows:
        yield pa.Table.from_batches(pending).combine_chunks()
