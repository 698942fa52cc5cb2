# SPDX-License-Identifier: Apache-2.0
"""Listings: one path and one label per row. Other columns become metadata."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_embed.config import RunConfig, is_split_name
from ray_embed.core.keys import make_key
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.csv_rows import open_csv
from ray_embed.sources.file_images import FileReader
from ray_embed.sources.files import locate_file, resolve_path, stat_files
from ray_embed.sources.image_columns import convert_labels, is_scalar, read_class_names
from ray_embed.sources.image_folder import get_folder_label
from ray_embed.sources.json_rows import open_json
from ray_embed.sources.label_lists import is_list
from ray_embed.sources.label_schema import find_label_type, is_reserved
from ray_embed.sources.listing_format import explain_columns
from ray_embed.sources.listing_rows import (
    ListingRows,
    read_first_texts,
    read_numbered,
    read_paths,
    read_texts,
)
from ray_embed.sources.missing_files import check_files
from ray_embed.sources.split_names import sort_splits

_LABEL_TYPES = {"text": pa.string(), "int": pa.int64(), "float": pa.float64()}
_MAX_SPLITS = 100


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The rows of a listing, in file order.

    If `label_column` is None, the records are unlabeled, or the first folder of each path is the
    label (`has_folder_labels`). `class_names` are those of integer labels. `label_type` is
    ``text``, ``int`` or ``float``. If `keep_empty` is set, empty cells are text labels. If
    `split_column` is set, only the rows with the name of the split in this column are records.
    """

    split: str
    rows: ListingRows
    path_column: str
    label_column: str | None
    has_folder_labels: bool
    class_names: tuple[str, ...]
    label_type: str
    keep_empty: bool
    split_column: str | None
    info: SourceInfo

    @property
    def location(self) -> str:
        """The base folder for relative paths."""
        return self.rows.folder

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows as records.

        Raises:
            InputError: a row has no path or an invalid label; the message names the row.
        """
        folder = locate_file(self.location)
        used = (self.path_column, self.label_column, self.split_column)
        columns = [name for name in (*used, *self.info.extras) if name is not None]
        for numbers, batch in self._read_split(list(dict.fromkeys(columns))):
            paths = read_paths(batch[self.path_column], numbers, self.rows.name)
            stats = stat_files([resolve_path(folder, path) for path in paths])
            yield pa.record_batch(
                {
                    "key": pa.array([make_key(path) for path in paths], pa.string()),
                    "label": self._make_labels(batch, numbers, paths),
                    **{
                        name: read_texts(batch, name, numbers, self.rows.name)
                        for name in self.info.extras
                    },
                    "path": pa.array(paths, pa.binary()),
                    "size": pa.array([size for size, _ in stats], pa.int64()),
                    "mtime": pa.array([time for _, time in stats], pa.int64()),
                }
            )

    def reader(self) -> FileReader:
        """Return what opens the files."""
        return FileReader(self.location)

    def _read_split(self, columns: list[str]) -> Iterator[tuple[Sequence[int], pa.RecordBatch]]:
        """Yield the rows of the split, with their numbers in the listing."""
        for numbers, batch in read_numbered(self.rows, columns):
            if self.split_column is not None:
                splits = read_texts(batch, self.split_column, numbers, self.rows.name)
                chosen = np.flatnonzero(pc.equal(splits, self.split).to_numpy(False)).tolist()
                numbers = [numbers[i] for i in chosen]
                batch = batch.take(pa.array(chosen, pa.int64()))
            if batch.num_rows:
                yield numbers, batch

    def _make_labels(
        self, batch: pa.RecordBatch, numbers: Sequence[int], paths: list[bytes]
    ) -> pa.Array:
        target = self.info.label_type
        if self.label_column is None:
            if self.has_folder_labels:
                return pa.array([get_folder_label(path) for path in paths], target)
            return pa.nulls(batch.num_rows, target)
        type_ = _get_value_type(self.rows.schema.field(self.label_column))
        if pa.types.is_string(type_) or pa.types.is_large_string(type_):
            texts = read_texts(batch, self.label_column, numbers, self.rows.name)
            return self._parse_labels(texts, numbers)
        try:
            labels = batch[self.label_column]
            return convert_labels(labels, self.class_names, target, self.rows.name)
        except (pa.ArrowInvalid, pa.ArrowIndexError) as error:
            raise InputError(
                f"{self.rows.name}: the labels in the column {self.label_column!r} cannot be read "
                f"as {self.label_type}: {error}; omit --label-type"
            ) from error

    def _parse_labels(self, labels: pa.Array, numbers: Sequence[int]) -> pa.Array:
        if self.label_type == "text":
            if self.keep_empty:
                return labels
            return pc.if_else(pc.equal(labels, ""), pa.scalar(None, pa.string()), labels)
        parse = _parse_int64 if self.label_type == "int" else float
        values: list[int | float | None] = []
        for number, text in zip(numbers, labels.to_pylist(), strict=True):
            try:
                values.append(parse(text) if text and text.strip() else None)
            except ValueError as error:
                raise InputError(
                    f"{self.rows.name}: row {number} has the label {text!r}, which is not a valid "
                    f"{self.label_type}; fix it, or omit --label-type to read labels as text"
                ) from error
        return pa.array(values, self.info.label_type)


def open_listing(split: str, uri: str, config: RunConfig) -> Listing:
    """Open a CSV, TSV or JSON Lines file as a listing. See :func:`make_listing`."""
    return make_listing(split, open_rows(uri, config.path_column), config, config.path_column)


def open_rows(uri: str, path_column: str) -> ListingRows:
    """Open a CSV, TSV or JSON Lines file, a path or URI.

    Raises:
        InputError: the file cannot be read or is malformed.
    """
    is_json = redact_uri(uri).lower().endswith(".jsonl")
    return open_json(uri) if is_json else open_csv(uri, path_column)


def make_listing(
    split: str,
    rows: ListingRows,
    config: RunConfig,
    path_column: str,
    *,
    has_folder_labels: bool = False,
) -> Listing:
    """Make a source of the rows of a listing.

    Relative paths are resolved against its folder; paths can also be URIs or absolute local paths.
    Labels have the type of the column, which is text in CSV. Without a label column, the records
    are unlabeled.

    Args:
        split: the name of the split.
        rows: the rows.
        config: the options.
        path_column: the column of paths.
        has_folder_labels: whether the first folder of a path is the label if there is no label
            column.

    Raises:
        InputError: there is no path column or no row, an extra column has a reserved name, or
            (nearly) all files are missing.
    """
    header = rows.schema.names
    if path_column not in header:
        raise explain_columns(header, read_first_texts(rows), rows.name, path_column)
    if config.splits_from_column not in (None, *header):
        raise InputError(
            f"{rows.name}: no column {config.splits_from_column!r} for --splits-from-column; the "
            f"columns are {', '.join(header)}"
        )
    for name in (path_column, config.splits_from_column):
        if name is not None and not is_scalar(field := rows.schema.field(name)):
            raise InputError(f"{rows.name}: the column {name!r} has {field.type} and not text")
    label_column = config.label_column if config.label_column in header else None
    class_names: tuple[str, ...] = ()
    unlabeled = ""
    if label_column is not None:
        class_names = read_class_names(rows.schema, label_column)
    else:
        unlabeled = _explain_no_labels(header, rows.name, config.label_column, has_folder_labels)
    used = (path_column, label_column, config.splits_from_column)
    extras = [field.name for field in rows.schema if field.name not in used and is_scalar(field)]
    _check_reserved_columns(extras, rows.name)
    listing = Listing(
        split=split,
        rows=rows,
        path_column=path_column,
        label_column=label_column,
        has_folder_labels=has_folder_labels,
        class_names=class_names,
        label_type=config.label_type,
        keep_empty=config.empty_label == "keep",
        split_column=None,
        info=SourceInfo(
            label_type=_choose_label_type(rows, label_column, class_names, config.label_type),
            extras=tuple(extras),
            has_label_column=label_column is not None,
            notes=rows.notes,
            unlabeled=unlabeled,
        ),
    )
    first = next(listing.records(Counter()), None)
    if first is None:
        raise InputError(f"{rows.name}: the listing has no rows; it must have one row per image")
    is_there = first["size"].is_valid().to_pylist()
    check_files(first["path"].to_pylist(), is_there, listing.location, rows.name)
    return listing


def split_listing(listing: Listing, column: str) -> list[Listing]:
    """Return one source for each value of a column, which names the split of each row.

    Raises:
        InputError: a value is missing or cannot be the name of a split, or there are too many.
    """
    name = listing.rows.name
    counts: Counter[str | None] = Counter()
    for numbers, batch in read_numbered(listing.rows, [column]):
        texts = read_texts(batch, column, numbers, name).to_pylist()
        for number, text in zip(numbers, texts, strict=True):
            if not is_split_name(text or ""):
                raise InputError(
                    f"{name}: row {number} has {text!r} in the column {column!r}, which cannot "
                    "name a split: use letters, digits, _ and -, or remove the row"
                )
        counts.update(texts)
        if len(counts) > _MAX_SPLITS:
            raise InputError(
                f"{name}: the column {column!r} has more than {_MAX_SPLITS} different values; "
                "--splits-from-column takes the column that says train, valid or test"
            )
    splits = sort_splits(str(split) for split in counts)
    listed = ", ".join(f"{split} ({counts[split]:,})" for split in splits)
    note = f"{name}: the splits are {listed}, from the column {column!r}"
    sources = [replace(listing, split=split, split_column=column) for split in splits]
    info = replace(listing.info, notes=(note, *listing.info.notes))
    return [replace(sources[0], info=info), *sources[1:]]


def _choose_label_type(
    rows: ListingRows, column: str | None, class_names: Sequence[str], label_type: str
) -> pa.DataType:
    if column is None:
        return _LABEL_TYPES[label_type]
    type_ = _get_value_type(rows.schema.field(column))
    if is_list(type_):
        if label_type != "text":
            raise InputError(
                f"{rows.name}: the column {column!r} has lists of labels, and not {label_type}; "
                "omit --label-type"
            )
    elif class_names:
        return pa.string()
    elif label_type != "text":
        return _LABEL_TYPES[label_type]
    return find_label_type(type_, f"{rows.name}: column {column!r}")


def _get_value_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_dictionary(field.type) else field.type


def _explain_no_labels(
    header: list[str], name: str, label_column: str, has_folder_labels: bool
) -> str:
    """Return the note for a listing without a label column.

    Raises:
        InputError: another column has almost the same name as the label column.
    """
    columns = f"the columns are {', '.join(header)}; select the label column with --label-column"
    for column in header:
        if column.strip().casefold() in (label_column.casefold(), f"{label_column.casefold()}s"):
            raise InputError(f"{name}: no column {label_column!r}; {columns} {column!r}")
    effect = (
        "so the labels are the first folders"
        if has_folder_labels
        else ("so the records are unlabeled")
    )
    return f"{name}: no column {label_column!r}, {effect}; {columns}"


def _check_reserved_columns(extras: list[str], where: str) -> None:
    """Reject extra columns with reserved names.

    Raises:
        InputError: a column has a reserved name.
    """
    for name in extras:
        if is_reserved(name):
            other = ", or use --splits-from-column split" if name == "split" else ""
            raise InputError(
                f"{where}: the column name {name!r} is reserved; rename the column{other}"
            )


def _parse_int64(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError("value does not fit in 64 bits")
    return value
