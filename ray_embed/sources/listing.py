# SPDX-License-Identifier: Apache-2.0
"""A CSV or TSV listing: a path and a label a row, any other columns become metadata."""

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
from ray_embed.sources.files import below, find, look_at
from ray_embed.sources.label_schema import OWN_COLUMNS
from ray_embed.sources.listing_format import (
    NAMES,
    SAMPLE_BYTES,
    check_encoding,
    explain_columns,
    find_delimiter,
    not_utf8,
    sample_rows,
)
from ray_embed.sources.missing_files import check_files
from ray_embed.sources.open import Listed
from ray_embed.storage.filesystem import locate
from ray_embed.storage.retry import explain_error

_LABEL_TYPES = {"text": pa.string(), "int": pa.int64(), "float": pa.float64()}


def open_listing(split: str, uri: str, config: RunConfig) -> Listed:
    """Open a listing; relative paths in it start at its folder, labels are text unless asked.

    A path in it may also be a URI, or begin with ``/``: then it is a local one. Without a label
    column its records have no labels.

    Raises:
        InputError: its name is no text, it cannot be parsed, has no path column, has no
            rows, an extra column is named as one of ours, or its
            paths are written otherwise than the files lie.
    """
    sample = _sample(uri)
    path = redact_uri(uri)
    check_encoding(sample, path)
    expected = "\t" if path.lower().endswith(".tsv") else ","
    listing = _Listing(uri, find_delimiter(sample, expected, config.path_column))
    header = _header(listing)
    if config.path_column not in header:
        raise explain_columns(
            sample_rows(sample, listing.delimiter) or [header], path, config.path_column
        )
    has_labels = config.label_column in header
    notes = []
    if listing.delimiter != expected:
        notes.append(f"{path}: its columns are separated by {NAMES[listing.delimiter]}")
    if not has_labels:
        notes.append(_unlabelled(header, path, config.label_column))
    extras = [name for name in header if name not in (config.path_column, config.label_column)]
    reject_own_names(extras, path)
    listed = Listed(
        split,
        redact_uri(listing.folder),
        "files",
        _LABEL_TYPES[config.label_type],
        lambda skipped: _records(listing, header, extras, config),
        pa.schema([(name, pa.string()) for name in extras]),
        location=listing.folder,
        notes=tuple(notes),
        has_label_column=has_labels,
    )
    first = next(listed.records(Counter()), None)
    if first is None:
        raise InputError(f"{path}: no rows; a listing has a row for each image")
    are_there = first["size"].is_valid().to_pylist()
    check_files(first["path"].to_pylist(), are_there, listing.folder, path)
    return listed


def _unlabelled(header: list[str], path: str, wanted: str) -> str:
    """Say that a listing has no labels.

    Raises:
        InputError: there is a column of nearly the name of the label column.
    """
    columns = f"its columns are {', '.join(header)}; name the right one with --label-column"
    for name in header:
        if name.strip().casefold() in (wanted.casefold(), f"{wanted.casefold()}s"):
            raise InputError(f"{path}: no column {wanted!r}; {columns} {name!r}")
    return f"{path}: no column {wanted!r}, so its records have no labels; {columns}"


def _sample(uri: str) -> bytes:
    filesystem, path = locate(uri)
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            sample: bytes = stream.read(SAMPLE_BYTES)
            return sample
    except OSError as error:
        raise InputError(
            f"{redact_uri(uri)}: cannot be read as a listing: {explain_error(error)}"
        ) from error


def reject_own_names(extras: list[str], where: str) -> None:
    """Refuse extra columns whose names the parts already use.

    Raises:
        InputError: naming the first such column.
    """
    for name in extras:
        if name in OWN_COLUMNS or name == "feature" or name.startswith("feature_"):
            raise InputError(
                f"{where}: the column {name!r} has a name that ray_embed writes itself; rename it"
            )


@dataclass(frozen=True)
class _Listing:
    """A listing, by a local path or a URI."""

    uri: str
    delimiter: str

    @property
    def name(self) -> str:
        return redact_uri(self.uri)

    @property
    def folder(self) -> str:
        """What the relative paths in it start at."""
        return get_parent_uri(self.uri) if is_uri(self.uri) else str(Path(self.uri).parent)


def _header(listing: _Listing) -> list[str]:
    with _parsed(listing, {}) as reader:
        names: list[str] = reader.schema.names
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        raise InputError(f"{listing.name}: two columns are named {doubles[0]!r}; rename one")
    return names


@contextlib.contextmanager
def _parsed(
    listing: _Listing, types: dict[str, pa.DataType]
) -> Iterator[pyarrow.csv.CSVStreamingReader]:
    filesystem, path = locate(listing.uri)
    try:
        with (
            filesystem.open_input_stream(path, compression=None) as stream,
            pyarrow.csv.open_csv(
                stream,
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=listing.delimiter, newlines_in_values=True
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types, strings_can_be_null=False
                ),
            ) as reader,
        ):
            yield reader
    except (pa.ArrowInvalid, OSError) as error:
        why = explain_error(error) if isinstance(error, OSError) else error
        raise InputError(f"{listing.name}: cannot be read as a listing: {why}") from error


def _records(
    listing: _Listing, header: list[str], extras: list[str], config: RunConfig
) -> Iterator[pa.RecordBatch]:
    row = 0
    folder = find(listing.folder)
    # A file's name may be any bytes; other cells are checked one by one, to name the first wrong.
    types = {name: pa.binary() for name in header}
    with _parsed(listing, types) as reader:
        for batch in reader:
            if batch.num_rows:
                paths = batch[config.path_column].to_pylist()
                _reject_empty(paths, row, listing.name)
                stats = look_at([below(folder, name) for name in paths])
                texts = {
                    name: _as_text(batch[name], row, name, listing.name)
                    for name in header
                    if name != config.path_column
                }
                labels = pa.nulls(batch.num_rows, _LABEL_TYPES[config.label_type])
                if config.label_column in texts:
                    labels = _labels(texts[config.label_column], row, listing.name, config)
                yield pa.record_batch(
                    {
                        "key": pa.array([make_key(name) for name in paths], pa.string()),
                        "label": labels,
                        **{name: texts[name] for name in extras},
                        "path": batch[config.path_column],
                        "size": pa.array([size for size, _ in stats], pa.int64()),
                        "mtime": pa.array([time for _, time in stats], pa.int64()),
                    }
                )
            row += batch.num_rows


def _as_text(cells: pa.Array, row: int, column: str, listing: str) -> pa.Array:
    """Give cells (binary) as text.

    Raises:
        InputError: naming the first that is not UTF-8.
    """
    try:
        return cells.cast(pa.string())
    except pa.ArrowInvalid as error:
        for offset, cell in enumerate(cells.to_pylist()):
            try:
                cell.decode()
            except UnicodeDecodeError:
                raise not_utf8(listing, row + offset + 1, column, cell) from error
        raise


def _reject_empty(paths: list[bytes], row: int, listing: str) -> None:
    if b"" in paths:
        raise InputError(
            f"{listing}: row {row + paths.index(b'') + 1} has no path; give one, or drop the row"
        )


def _int64(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError("it does not fit into 64 bits")
    return value


def _labels(labels: pa.Array, row: int, path: str, config: RunConfig) -> pa.Array:
    if config.label_type == "text":
        if config.empty_label == "keep":
            return labels
        return pc.if_else(pc.equal(labels, ""), pa.scalar(None, pa.string()), labels)
    parse = _int64 if config.label_type == "int" else float
    values: list[int | float | None] = []
    for offset, text in enumerate(labels.to_pylist()):
        try:
            values.append(parse(text) if text.strip() else None)
        except ValueError as error:
            raise InputError(
                f"{path}: row {row + offset + 1} has the label {text!r}, which is no "
                f"{config.label_type}; mend it, or leave --label-type away to keep labels as text"
            ) from error
    return pa.array(values, _LABEL_TYPES[config.label_type])
