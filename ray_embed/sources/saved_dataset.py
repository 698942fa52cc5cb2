# SPDX-License-Identifier: Apache-2.0
"""Folders written by `save_to_disk` of Hugging Face datasets, read with pyarrow alone.

A folder has Arrow stream files, which ``state.json`` lists, or a folder per split, which
``dataset_dict.json`` lists. Planning reads the small columns and finds where in the file the bytes
of each image are. The actors read these bytes.

Planning maps local files into memory, so that it costs nothing to skip the images. A stream can
only be read from its beginning to its end, so planning reads files on a store once, whole.
"""

import contextlib
import json
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_embed.config import RunConfig
from ray_embed.core.uri import join_uri, redact_uri
from ray_embed.errors import InputError, get_first_line
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.container_files import ContainerFiles
from ray_embed.sources.files import File, SizeAndTime, locate_file, open_file
from ray_embed.sources.image_columns import (
    Columns,
    check_columns,
    describe_source,
    find_columns,
    get_wanted_columns,
    make_records,
)
from ray_embed.sources.packed_images import PackedReader, read_ranges
from ray_embed.sources.split_names import find_split
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.retry import explain_error, is_storage_error

# The file that every saved dataset has, and the one of several splits.
STATE, SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True, kw_only=True)
class SavedDataset:
    """The rows of a saved dataset: the files as ``state.json`` lists them, the rows in order."""

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
            InputError: a file cannot be read, its columns differ from those of the first file, or
                its images are in other files.
        """
        for name, file, stat in self.files.locate():
            with _open_stream(file) as stream:
                check_columns(stream.schema, self.columns, str(file), first=self.files.names[0])
                yield from self._read_rows(stream, name, stat)

    def _read_rows(
        self, stream: "_Stream", name: str, stat: SizeAndTime
    ) -> Iterator[pa.RecordBatch]:
        start = 0
        for batch, message, position in stream.read_batches():
            images = _Images.of(batch[self.columns.image])
            images.check_embedded(stream.file, start)
            yield make_records(
                batch,
                self.columns,
                self.info.label_type,
                name,
                stat,
                start=start,
                positions=pa.array(position + images.find_offsets(stream.file, message.body)),
                lengths=images.lengths,
            )
            start += batch.num_rows

    def reader(self) -> PackedReader:
        """Return what opens the images."""
        return PackedReader(self.location, read_ranges)


def open_saved_dataset(split: str, named: str, config: RunConfig) -> SavedDataset:
    """Open a folder written by `save_to_disk` as a source.

    Raises:
        InputError: a file is missing or damaged, there is no such split, there is no column with
            images, or one that was asked for is missing.
    """
    folder, notes = _choose_folder(split, named)
    files = ContainerFiles(named, folder, _list_data_files(folder))
    return open_files(split, files, config, notes)


def open_files(
    split: str, files: ContainerFiles, config: RunConfig, notes: tuple[str, ...]
) -> SavedDataset:
    """Open Arrow stream files as a source.

    Args:
        split: the name of the split.
        files: the files, in the order of the rows.
        config: the options.
        notes: messages for the user.

    Raises:
        InputError: a file is damaged, there is no column with images, or one that was asked for is
            missing.
    """
    first = files.first
    with _open_stream(first) as stream:
        schema = stream.schema
    columns = find_columns(schema, str(first), get_wanted_columns(config))
    info = describe_source(schema, columns, config, files.named, str(first))
    return SavedDataset(
        split=split,
        files=files,
        columns=columns,
        info=replace(info, notes=(*notes, *info.notes)),
    )


def has_external_images(files: ContainerFiles, config: RunConfig) -> bool:
    """Return whether the first images of Arrow stream files are in other files.

    Raises:
        InputError: the first file is damaged, or has no column with images.
    """
    first = files.first
    with _open_stream(first) as stream:
        columns = find_columns(stream.schema, str(first), get_wanted_columns(config))
        for batch, _, _ in stream.read_batches():
            return bool(_Images.of(batch[columns.image]).are_external.true_count)
        return False


def _choose_folder(split: str, named: str) -> tuple[str, tuple[str, ...]]:
    """Return the folder of a split, and notes for the user."""
    if not Folder.open(named).exists(SPLITS):
        return named, ()
    where = redact_uri(named)
    names = _read_json(locate_file(join_uri(named, SPLITS))).get("splits")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{where}: {SPLITS} lists no splits; save the dataset again")
    chosen = find_split(names, split)
    if chosen is not None:
        return join_uri(named, chosen), ()
    if len(names) > 1:
        raise InputError(
            f"{where}: no split {split!r}; the dataset has {', '.join(names)}: name one of them, "
            f"such as --source {names[0]}={where}"
        )
    return join_uri(named, names[0]), (f"{where}: {names[0]!r} is used, the only split there is",)


def _list_data_files(folder: str) -> tuple[str, ...]:
    """Return the names of the Arrow files of a saved dataset, in order."""
    file = locate_file(join_uri(folder, STATE))
    state = _read_json(file)
    if state.get("_indices_data_files") or state.get("_indices_mapping"):
        raise InputError(
            f"{file}: the rows are chosen and ordered by a list of indices; save the dataset "
            "without it: dataset.flatten_indices().save_to_disk(folder)"
        )
    try:
        names = tuple(str(item["filename"]) for item in state["_data_files"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{file}: does not list data files as `save_to_disk` of datasets does; save the "
            "dataset again"
        ) from error
    if not names:
        raise InputError(f"{file}: lists no data files, so the dataset is empty")
    return names


def _read_json(file: File) -> dict[str, Any]:
    try:
        with open_file(file) as stream:
            content = json.loads(stream.read())
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read: {explain_error(error)}; was the folder copied whole?"
        ) from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a JSON object")
    return content


@dataclass(frozen=True)
class _Stream:
    """An open Arrow stream, read as far as its schema."""

    file: File
    opened: pa.NativeFile
    messages: pa.ipc.MessageReader
    schema: pa.Schema

    def read_batches(self) -> Iterator[tuple[pa.RecordBatch, pa.ipc.Message, int]]:
        """Yield each record batch, its message, and the position of the message's body.

        Raises:
            InputError: a column is encoded with a dictionary.
        """
        for message in self.messages:
            if message.type != "record batch":
                raise InputError(
                    f"{self.file}: a column is encoded with a dictionary, which datasets does not "
                    "write; load the dataset and save it again with `save_to_disk`"
                )
            batch = pa.ipc.read_record_batch(message, self.schema)
            if batch.num_rows:
                yield batch, message, self.opened.tell() - message.body.size


@contextlib.contextmanager
def _open_stream(file: File) -> Iterator[_Stream]:
    try:
        with open_file(file) as opened:
            # Buffers keep the map open, so it is not closed here.
            mapped = opened if file.is_remote else _map_file(opened)
            messages = pa.ipc.MessageReader.open_stream(mapped)
            schema = pa.ipc.read_schema(messages.read_next_message())
            yield _Stream(file, mapped, messages, schema)
    except (pa.ArrowException, StopIteration, OSError) as error:
        if isinstance(error, OSError) and (error.errno or is_storage_error(error)):
            raise InputError(f"{file}: cannot be read: {explain_error(error)}") from error
        raise InputError(
            f"{file}: cannot be read as an Arrow stream: {get_first_line(error) or 'it is empty'}; "
            "is the file complete?"
        ) from error


def _map_file(opened: Any) -> pa.NativeFile:
    # An empty file cannot be mapped.
    is_empty = not opened.read(1)
    content = b"" if is_empty else mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.BufferReader(pa.py_buffer(content))


@dataclass(frozen=True)
class _Images:
    """The encoded images of a record batch: their bytes, and their paths if there are any."""

    contents: pa.Array
    is_present: pa.Array
    paths: pa.Array | None

    @classmethod
    def of(cls, column: pa.Array) -> "_Images":
        """Return the images of a column, which is binary or a struct."""
        if not pa.types.is_struct(column.type):
            return cls(column, column.is_valid(), None)
        is_present = pc.struct_field(column, "bytes").is_valid()
        has_paths = column.type.get_field_index("path") >= 0
        paths = pc.struct_field(column, "path") if has_paths else None
        return cls(column.field("bytes"), is_present, paths)

    @property
    def _bounds(self) -> np.ndarray[Any, Any]:
        """The offsets in the buffer of bytes, of one more than there are images."""
        is_large = pa.types.is_large_binary(self.contents.type)
        offsets = np.frombuffer(self.contents.buffers()[1], np.int64 if is_large else np.int32)
        return offsets[self.contents.offset :][: len(self.contents) + 1].astype(np.int64)

    @property
    def lengths(self) -> pa.Array:
        """The lengths of the images in bytes; null for a row without an image."""
        lengths = pa.array(np.diff(self._bounds))
        return pc.if_else(self.is_present, lengths, pa.scalar(None, pa.int64()))

    def find_offsets(self, file: File, body: pa.Buffer) -> np.ndarray[Any, Any]:
        """Return the offset of each image in the body of its message, (n,) int64.

        Raises:
            InputError: the body is compressed, so that the images are not in it.
        """
        _, offsets, values = self.contents.buffers()
        # Without any bytes, there may be no buffer of them.
        buffer = values if values is not None and values.size else offsets
        start = buffer.address - body.address
        if not 0 <= start <= body.size - buffer.size:
            raise InputError(
                f"{file}: its record batches are compressed, so that images cannot be read one by "
                "one; load the dataset and save it again with `save_to_disk`"
            )
        offsets_in_body: np.ndarray[Any, Any] = start + self._bounds[:-1]
        return offsets_in_body

    @property
    def are_external(self) -> pa.Array:
        """Whether each image has only the path of another file."""
        if self.paths is None:
            return pa.repeat(False, len(self.contents))
        return pc.and_(pc.invert(self.is_present), self.paths.is_valid())

    def check_embedded(self, file: File, start: int) -> None:
        """Check that the images are in the file.

        Args:
            file: the file, for the message.
            start: the row of the first image.

        Raises:
            InputError: a row has only the path of another file.
        """
        row = pc.index(self.are_external, True).as_py()
        if self.paths is not None and row >= 0:
            raise InputError(
                f"{file}: row {start + row} has the path {self.paths[row].as_py()!r}, and not the "
                "bytes of an image; embed the images where these files are: "
                "datasets.load_from_disk(folder).save_to_disk(new_folder), with a current datasets"
            )
