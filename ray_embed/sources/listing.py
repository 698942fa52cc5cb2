# SPDX-License-Identifier: Apache-2.0
"""CSV and TSV listings: one path and one label per row. Other columns become metadata."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ray_embed.config import RunConfig
from ray_embed.core.keys import make_key
from ray_embed.core.uri import get_parent_uri, is_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.file_images import FileReader
from ray_embed.sources.files import locate_file, resolve_path, stat_files
from ray_embed.sources.label_schema import is_reserved
from ray_embed.sources.listing_format import (
    DELIMITER_NAMES,
    SAMPLE_BYTES,
    check_encoding,
    explain_columns,
    explain_encoding,
    find_delimiter,
    read_rows,
)
from ray_embed.sources.missing_files import check_files
from ray_embed.storage.filesystem import locate
from ray_embed.storage.retry import explain_error

_LABEL_TYPES = {"text": pa.string(), "int": pa.int64(), "float": pa.float64()}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The rows of a listing, in file order.

    `label_type` is ``text``, ``int`` or ``float``. If `keep_empty` is set, empty cells are text
    labels. `header` contains all column names.
    """

    split: str
    uri: str
    delimiter: str
    header: tuple[str, ...]
    path_column: str
    label_column: str
    label_type: str
    keep_empty: bool
    info: SourceInfo

    @property
    def location(self) -> str:
        """The base folder for relative paths."""
        return _find_folder(self.uri)

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows as records.

        Raises: InputError: a row has no path or an invalid label; the message names the row.
        """
        row = 0
        folder = locate_file(self.location)
        # Read all cells as bytes: file names may be any bytes, and other cells are decoded one by
        # one so that an error can name the cell.
        types = {name: pa.binary() for name in self.header}
        with _open_csv(self.uri, self.delimiter, types) as reader:
            for batch in reader:
                if batch.num_rows:
                    paths = batch[self.path_column].to_pylist()
                    _check_paths(paths, row, self._name)
                    stats = stat_files([resolve_path(folder, path) for path in paths])
                    yield pa.record_batch(
                        {
                            "key": pa.array([make_key(path) for path in paths], pa.string()),
                            **self._decode_cells(batch, row),
                            "path": batch[self.path_column],
                            "size": pa.array([size for size, _ in stats], pa.int64()),
                            "mtime": pa.array([time for _, time in stats], pa.int64()),
                        }
                    )
                row += batch.num_rows

    def reader(self) -> FileReader:
        """Return what opens the files."""
        return FileReader(self.location)

    @property
    def _name(self) -> str:
        return redact_uri(self.uri)

    def _decode_cells(self, batch: pa.RecordBatch, row: int) -> dict[str, pa.Array]:
        """Return the labels and extra columns of a batch whose first row is number `row`."""
        texts = {
            name: _decode_text(batch[name], row, name, self._name)
            for name in self.header
            if name != self.path_column
        }
        labels = pa.nulls(batch.num_rows, self.info.label_type)
        if self.label_column in texts:
            labels = self._parse_labels(texts[self.label_column], row)
        return {"label": labels, **{name: texts[name] for name in self.info.extras}}

    def _parse_labels(self, labels: pa.Array, row: int) -> pa.Array:
        if self.label_type == "text":
            if self.keep_empty:
                return labels
            return pc.if_else(pc.equal(labels, ""), pa.scalar(None, pa.string()), labels)
        parse = _parse_int64 if self.label_type == "int" else float
        values: list[int | float | None] = []
        for offset, text in enumerate(labels.to_pylist()):
            try:
                values.append(parse(text) if text.strip() else None)
            except ValueError as error:
                raise InputError(
                    f"{self._name}: row {row + offset + 1} has the label {text!r}, which is not a "
                    f"valid {self.label_type}; fix it, or omit --label-type to read labels as text"
                ) from error
        return pa.array(values, self.info.label_type)


def open_listing(split: str, uri: str, config: RunConfig) -> Listing:
    """Open a listing.

    Relative paths are resolved against its folder; paths can also be URIs or absolute local paths.
    Labels are text by default. Without a label column, the records are unlabeled.

    Raises:
        InputError: the column names are not UTF-8, the listing cannot be parsed, it has no path
            column or no rows, an extra column has a reserved name, or (nearly) all files are
            missing.
    """
    sample = _read_sample(uri)
    name = redact_uri(uri)
    check_encoding(sample, name)
    expected = "\t" if name.lower().endswith(".tsv") else ","
    delimiter = find_delimiter(sample, expected, config.path_column)
    header = _read_header(uri, delimiter)
    if config.path_column not in header:
        raise explain_columns(read_rows(sample, delimiter) or [header], name, config.path_column)
    has_labels = config.label_column in header
    notes = []
    if delimiter != expected:
        notes.append(f"{name}: columns are separated by {DELIMITER_NAMES[delimiter]}")
    unlabeled = "" if has_labels else _explain_no_labels(header, name, config.label_column)
    extras = [
        column for column in header if column not in (config.path_column, config.label_column)
    ]
    _check_reserved_columns(extras, name)
    listing = Listing(
        split=split,
        uri=uri,
        delimiter=delimiter,
        header=tuple(header),
        path_column=config.path_column,
        label_column=config.label_column,
        label_type=config.label_type,
        keep_empty=config.empty_label == "keep",
        info=SourceInfo(
            label_type=_LABEL_TYPES[config.label_type],
            extras=tuple(extras),
            has_label_column=has_labels,
            notes=tuple(notes),
            unlabeled=unlabeled,
        ),
    )
    first = next(listing.records(Counter()), None)
    if first is None:
        raise InputError(f"{name}: the listing has no rows; it must have one row per image")
    is_there = first["size"].is_valid().to_pylist()
    check_files(first["path"].to_pylist(), is_there, listing.location, name)
    return listing


def _explain_no_labels(header: list[str], name: str, label_column: str) -> str:
    """Return the note for a listing without a label column.

    Raises:
        InputError: another column has almost the same name as the label column.
    """
    columns = f"the columns are {', '.join(header)}; select the label column with --label-column"
    for column in header:
        if column.strip().casefold() in (label_column.casefold(), f"{label_column.casefold()}s"):
            raise InputError(f"{name}: no column {label_column!r}; {columns} {column!r}")
    return f"{name}: no column {label_column!r}, so the records are unlabeled; {columns}"


def _read_sample(uri: str) -> bytes:
    filesystem, path = locate(uri)
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            sample: bytes = stream.read(SAMPLE_BYTES)
            return sample
    except OSError as error:
        raise InputError(
            f"{redact_uri(uri)}: cannot be read as a listing: {explain_error(error)}"
        ) from error


def _check_reserved_columns(extras: list[str], where: str) -> None:
    """Reject extra columns with reserved names.

    Raises:
        InputError: a column has a reserved name.
    """
    for name in extras:
        if is_reserved(name):
            raise InputError(f"{where}: the column name {name!r} is reserved; rename the column")


def _find_folder(uri: str) -> str:
    return get_parent_uri(uri) if is_uri(uri) else str(Path(uri).parent)


def _read_header(uri: str, delimiter: str) -> list[str]:
    with _open_csv(uri, delimiter, {}) as reader:
        names: list[str] = reader.schema.names
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise InputError(
            f"{redact_uri(uri)}: duplicate column {duplicates[0]!r}; rename one of them"
        )
    return names


@contextlib.contextmanager
def _open_csv(
    uri: str, delimiter: str, types: dict[str, pa.DataType]
) -> Iterator[pyarrow.csv.CSVStreamingReader]:
    filesystem, path = locate(uri)
    try:
        with (
            filesystem.open_input_stream(path, compression=None) as stream,
            pyarrow.csv.open_csv(
                stream,
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types, strings_can_be_null=False
                ),
            ) as reader,
        ):
            yield reader
    except (pa.ArrowInvalid, OSError) as error:
        reason = explain_error(error) if isinstance(error, OSError) else error
        raise InputError(f"{redact_uri(uri)}: cannot be read as a listing: {reason}") from error


def _decode_text(cells: pa.Array, row: int, column: str, listing: str) -> pa.Array:
    """Decode binary cells as UTF-8.

    Raises: InputError: a cell is not valid UTF-8; the message names it.
    """
    try:
        return cells.cast(pa.string())
    except pa.ArrowInvalid as error:
        for offset, cell in enumerate(cells.to_pylist()):
            try:
                cell.decode()
            except UnicodeDecodeError:
                raise explain_encoding(listing, row + offset + 1, column, cell) from error
        raise


def _check_paths(paths: list[bytes], row: int, listing: str) -> None:
    if b"" in paths:
        raise InputError(
            f"{listing}: row {row + paths.index(b'') + 1} has no path; add one or remove the row"
        )


def _parse_int64(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError("value does not fit in 64 bits")
    return value
