# SPDX-License-Identifier: Apache-2.0
"""A CSV or TSV listing: a path and a label a row, any other columns become metadata."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from ray_embed.config import RunConfig
from ray_embed.errors import InputError
from ray_embed.files import below, find, look_at
from ray_embed.filesystem import locate
from ray_embed.keys import key_of
from ray_embed.labels import OWN_COLUMNS
from ray_embed.retrying import explained
from ray_embed.sources import Listed
from ray_embed.uri import is_uri, parent, shown

_LABEL_TYPES = {"text": pa.string(), "int": pa.int64(), "float": pa.float64()}


def open_listing(split: str, uri: str, config: RunConfig) -> Listed:
    """Open a listing; relative paths in it start at its folder, labels are text unless asked.

    A path in it may also be a URI, or begin with ``/``: then it is a local one.

    Raises:
        InputError: its name is no text, it cannot be parsed, has no path or label column, has no
            rows, or an extra column is named as one of ours.
    """
    listing = _Listing(uri)
    path = listing.name
    header = _header(listing)
    for option, column in (
        ("--path-column", config.path_column),
        ("--label-column", config.label_column),
    ):
        if column not in header:
            raise InputError(
                f"{path}: no column {column!r}; its columns are {', '.join(header)}; "
                f"name the right one with {option}"
            )
    extras = [name for name in header if name not in (config.path_column, config.label_column)]
    reject_own_names(extras, path)
    listed = Listed(
        split,
        shown(listing.folder),
        "files",
        _LABEL_TYPES[config.label_type],
        lambda skipped: _records(listing, header, extras, config),
        pa.schema([(name, pa.string()) for name in extras]),
        location=listing.folder,
    )
    if next(listed.records(Counter()), None) is None:
        raise InputError(f"{path}: no rows; a listing has a row for each image")
    return listed


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

    @property
    def name(self) -> str:
        return shown(self.uri)

    @property
    def folder(self) -> str:
        """What the relative paths in it start at."""
        return parent(self.uri) if is_uri(self.uri) else str(Path(self.uri).parent)


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
                    delimiter="\t" if path.lower().endswith(".tsv") else ",",
                    newlines_in_values=True,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types, strings_can_be_null=False
                ),
            ) as reader,
        ):
            yield reader
    except (pa.ArrowInvalid, OSError) as error:
        why = explained(error) if isinstance(error, OSError) else error
        raise InputError(f"{listing.name}: cannot be read as a listing: {why}") from error


def _records(
    listing: _Listing, header: list[str], extras: list[str], config: RunConfig
) -> Iterator[pa.RecordBatch]:
    row = 0
    folder = find(listing.folder)
    # A file's name may be any bytes.
    types = {name: pa.string() for name in header} | {config.path_column: pa.binary()}
    with _parsed(listing, types) as reader:
        for batch in reader:
            if batch.num_rows:
                paths = batch[config.path_column].to_pylist()
                _reject_empty(paths, row, listing.name)
                stats = look_at([below(folder, name) for name in paths])
                yield pa.record_batch(
                    {
                        "key": pa.array([key_of(name) for name in paths], pa.string()),
                        "label": _labels(batch[config.label_column], row, listing.name, config),
                        **{name: batch[name] for name in extras},
                        "path": batch[config.path_column],
                        "size": pa.array([size for size, _ in stats], pa.int64()),
                        "mtime": pa.array([time for _, time in stats], pa.int64()),
                    }
                )
            row += batch.num_rows


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
        return labels
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
