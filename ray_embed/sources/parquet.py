# SPDX-License-Identifier: Apache-2.0
"""Parquet files with encoded images in a column, as Hugging Face and Ray Data write them.

The image column is binary, or a struct of `bytes` and `path` (the `Image` feature of Hugging Face
datasets, https://huggingface.co/docs/datasets/image_load). Planning reads the footers and the
columns of keys, labels and metadata; the images are read in the actors.
"""

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_embed.config import RunConfig
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, get_first_line
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.container_files import ContainerFiles, find_files
from ray_embed.sources.files import File, SizeAndTime, open_file
from ray_embed.sources.label_schema import RESERVED_COLUMNS, find_label_type
from ray_embed.sources.packed_images import PackedReader, Place
from ray_embed.storage.retry import explain_error

ENDINGS = (".parquet",)
_RECORDS_PER_BATCH = 8192
_IMAGES_PER_READ = 64
# Shards follow the row groups, unless these are tiny or huge.
_MIN_SHARD, _MAX_SHARD = 128, 2048
_MAX_ROW_GROUP = 8192


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns are for; `class_names` are those of integer labels, if the schema has them.

    `key` and `label` are None where there is no such column.
    """

    image: str
    is_struct: bool
    key: str | None
    label: str | None
    extras: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def content(self) -> str:
        """The path of the column of encoded images."""
        return f"{self.image}.bytes" if self.is_struct else self.image


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
                if find_columns(parquet.schema_arrow, str(file), self.columns) != self.columns:
                    raise InputError(
                        f"{file}: its columns ({_describe_schema(parquet.schema_arrow)}) differ "
                        f"from those of {self.files.names[0]}; give such files as another --source"
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
                yield self._make_records(batch, name, start, stat)
                start += batch.num_rows

    def _make_records(
        self, batch: pa.RecordBatch, name: str, start: int, stat: SizeAndTime
    ) -> pa.RecordBatch:
        count = batch.num_rows
        size, mtime = stat
        label = self.columns.label
        labels = pa.nulls(count) if label is None else batch[label]
        return pa.record_batch(
            {
                "key": self._make_keys(batch, name, start),
                "label": convert_labels(labels, self.columns.class_names, self.info.label_type),
                **{extra: _to_text(batch[extra]) for extra in self.columns.extras},
                "path": pa.repeat(pa.scalar(name.encode(), pa.binary()), count),
                "size": pa.repeat(pa.scalar(size, pa.int64()), count),
                "mtime": pa.repeat(pa.scalar(mtime, pa.int64()), count),
                "position": pa.array(range(start, start + count), pa.int64()),
                "length": pa.nulls(count, pa.int64()),
            }
        )

    def _make_keys(self, batch: pa.RecordBatch, name: str, start: int) -> pa.Array:
        """Return the keys: the key column, else the paths of the images, else file and row."""
        rows = pa.array([f"{name}#{start + i}" for i in range(batch.num_rows)], pa.string())
        if self.columns.key is not None:
            return pc.coalesce(_to_text(batch[self.columns.key]), rows)
        if not self.columns.is_struct:
            return rows
        return pc.coalesce(_to_text(pc.struct_field(batch[self.columns.image], "path")), rows)

    def reader(self) -> PackedReader:
        """Return what opens the images."""
        return PackedReader(
            self.location, functools.partial(read_images, column=self.columns.content)
        )


def open_parquet(split: str, named: str, config: RunConfig) -> ParquetSource:
    """Open a Parquet file, a folder of them or a pattern as a source.

    Raises:
        InputError: a file is not Parquet, there is no column with images, or one that was asked
            for is missing.
    """
    files = find_files(named, ENDINGS)
    wanted = Columns(
        image=config.image_column or "",
        is_struct=False,
        key=config.key_column,
        label=config.label_column,
        extras=(),
        class_names=(),
    )
    notes: list[str] = []
    _, first, _ = files.locate()[0]
    with _open_parquet(first) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    columns = find_columns(schema, str(first), wanted)
    _check_has_bytes(metadata, columns, str(first))
    name = redact_uri(named)
    if columns.label is None:
        notes.append(
            f"{name}: no column {config.label_column!r}, so the records are unlabeled; the columns "
            f"are {_describe_schema(schema)}; select the label column with --label-column"
        )
    largest = max(groups, default=0)
    if largest > _MAX_ROW_GROUP:
        notes.append(
            f"{name}: its row groups have up to {largest:,} rows, and each is read once per shard; "
            "it is faster to write it with row_group_size=1000"
        )
    return ParquetSource(
        split=split,
        files=files,
        columns=columns,
        info=SourceInfo(
            label_type=_find_label_type(schema, columns, str(first)),
            extras=columns.extras,
            has_label_column=columns.label is not None,
            shard_size=_choose_shard_size(groups),
            notes=tuple(notes),
        ),
    )


def find_columns(schema: pa.Schema, where: str, wanted: Columns) -> Columns:
    """Find out what each column is for.

    Args:
        schema: the columns, with the metadata of Hugging Face if it has some.
        where: the file, for the message.
        wanted: `image` (empty to choose it), `key` and `label` as asked for.

    Raises:
        InputError: there is no column with images, or no key column of the name given.
    """
    features = _read_features(schema)
    image = wanted.image or _choose_image_column(schema, features, where)
    if image not in schema.names:
        raise InputError(
            f"{where}: no column {image!r} for --image-column; the columns are "
            f"{_describe_schema(schema)}"
        )
    type_ = schema.field(image).type
    is_struct = pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0
    if not is_struct and not _is_binary(type_):
        raise _explain_no_bytes(image, type_, where)
    if wanted.key is not None and wanted.key not in schema.names:
        raise InputError(
            f"{where}: no column {wanted.key!r} for --key-column; the columns are "
            f"{_describe_schema(schema)}"
        )
    label = wanted.label if wanted.label in schema.names else None
    others = [name for name in schema.names if name not in (image, wanted.key, label)]
    extras = tuple(name for name in others if _is_scalar(schema.field(name).type))
    for name in extras:
        if name in RESERVED_COLUMNS or name == "feature" or name.startswith("feature_"):
            raise InputError(f"{where}: the column name {name!r} is reserved; rename the column")
    names = features.get(label or "", {}).get("names") or ()
    return Columns(
        image=image,
        is_struct=is_struct,
        key=wanted.key,
        label=label,
        extras=extras,
        class_names=tuple(names),
    )


def convert_labels(labels: pa.Array, names: Sequence[str], target: pa.DataType) -> pa.Array:
    """Return labels as the label type of the source; class numbers become the names of classes.

    Args:
        labels: the labels as they are stored.
        names: the class names of whole numbers; empty if there are none.
        target: the label type.
    """
    if names:
        # Hugging Face writes -1 for a record without a label.
        known = pc.if_else(pc.greater_equal(labels, 0), labels, pa.scalar(None, labels.type))
        return pa.array(list(names), pa.string()).take(known.cast(pa.int64()))
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    return labels.cast(target)


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


def _read_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features that Hugging Face datasets keeps in the schema's metadata."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return {}
    try:
        features = json.loads(content)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in features.items() if isinstance(value, dict)}


def _choose_image_column(schema: pa.Schema, features: dict[str, dict[str, Any]], where: str) -> str:
    declared = [name for name, value in features.items() if value.get("_type") == "Image"]
    binary = [field.name for field in schema if _may_hold_images(field.type)]
    for names in (declared, [name for name in binary if name == "image"], binary):
        if len(names) == 1:
            return names[0]
        if names:
            raise InputError(
                f"{where}: several columns may hold the images: {', '.join(names)}; choose one "
                "with --image-column"
            )
    for name in ("image", "img", "url", "path", "file_name"):
        if name in schema.names:
            raise _explain_no_bytes(name, schema.field(name).type, where)
    raise InputError(
        f"{where}: no column with encoded images; the columns are {_describe_schema(schema)}"
    )


def _explain_no_bytes(name: str, type_: pa.DataType, where: str) -> InputError:
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return InputError(
            f"{where}: the column {name!r} has text, such as paths or URLs, and not the bytes of "
            f"images; download what it names, and give a listing: a .csv file with the columns "
            "path and label"
        )
    return InputError(
        f"{where}: the column {name!r} has the type {type_}; encoded images (JPEG, PNG, …) are "
        "binary, or a struct with a field bytes"
    )


def _find_label_type(schema: pa.Schema, columns: Columns, where: str) -> pa.DataType:
    if columns.label is None:
        return pa.null()
    if columns.class_names:
        return pa.string()
    type_ = schema.field(columns.label).type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return find_label_type(type_, f"{where}: column {columns.label!r}")


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


def _to_text(values: pa.Array) -> pa.Array:
    """Return scalar values as text; a dictionary is decoded."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.string())


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _may_hold_images(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        index = type_.get_field_index("bytes")
        return index >= 0 and _is_binary(type_.field(index).type)
    return _is_binary(type_)


def _is_scalar(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return not (pa.types.is_nested(type_) or _is_binary(type_) or pa.types.is_null(type_))


def _describe_schema(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
