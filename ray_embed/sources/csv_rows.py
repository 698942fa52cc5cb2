# SPDX-License-Identifier: Apache-2.0
"""The rows of a listing in CSV or TSV."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.csv

from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.sources.listing_format import (
    DELIMITER_NAMES,
    SAMPLE_BYTES,
    check_encoding,
    find_delimiter,
    refuse_duplicates,
    refuse_missing_header,
)
from ray_embed.sources.listing_rows import ListingRows, find_folder
from ray_embed.storage.filesystem import locate
from ray_embed.storage.retry import explain_error


def open_csv(uri: str, path_column: str) -> ListingRows:
    """Open a CSV or TSV file. All columns are text, and their cells are read as bytes.

    Args:
        uri: the path or URI of the file.
        path_column: a column that it should have, by which the delimiter is recognized.

    Raises:
        InputError: the file cannot be parsed, is not UTF-8, has no header, or two columns have the
            same name.
    """
    name = redact_uri(uri)
    sample = _read_sample(uri)
    check_encoding(sample, name)
    expected = "\t" if name.lower().endswith(".tsv") else ","
    delimiter = find_delimiter(sample, expected, path_column)
    with _open_csv(uri, delimiter, ()) as reader:
        header: list[str] = reader.schema.names
    refuse_missing_header(header, name)
    refuse_duplicates(header, name)
    found = f"{name}: columns are separated by {DELIMITER_NAMES[delimiter]}"
    return ListingRows(
        name=name,
        folder=find_folder(uri),
        schema=pa.schema([(column, pa.string()) for column in header]),
        read=partial(_read_columns, uri, delimiter),
        notes=() if delimiter == expected else (found,),
    )


def _read_columns(uri: str, delimiter: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _open_csv(uri, delimiter, columns) as reader:
        yield from (batch for batch in reader if batch.num_rows)


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


@contextlib.contextmanager
def _open_csv(
    uri: str, delimiter: str, columns: Sequence[str]
) -> Iterator[pyarrow.csv.CSVStreamingReader]:
    """Open a file to read some columns, or all of them if none are named."""
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
                    column_types={column: pa.binary() for column in columns},
                    include_columns=columns,
                    strings_can_be_null=False,
                ),
            ) as reader,
        ):
            yield reader
    except (pa.ArrowInvalid, OSError) as error:
        reason = explain_error(error) if isinstance(error, OSError) else error
        raise InputError(f"{redact_uri(uri)}: cannot be read as a listing: {reason}") from error
