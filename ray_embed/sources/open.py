# SPDX-License-Identifier: Apache-2.0
"""Where records come from: one module a form, and here the choice between them.

A *listed* source knows its records beforehand (:class:`Listed`); a *streamed* one, a tf.data
dataset or a sequence, is known only by walking it (:class:`Streamed`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from ray_embed.config import RunConfig, is_callable_reference
from ray_embed.core.uri import is_uri, redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.storage.filesystem import Folder


@dataclass(frozen=True)
class Listed:
    """A source whose records are known beforehand.

    `records` yields Arrow batches with the columns `key`, `label`, the extras, `path` (binary,
    relative to `root`; null for arrays), `size` (bytes of its file; null where there is none) and
    `mtime` (ns), in the order of the records; it counts in its argument what it passes over.
    `content` is a checksum of images that all lie in one file; `location` is `root` as it opens,
    with what may not be shown of it; `notes` are lines for the user.
    `has_label_column` is whether a listing has one; None for other sources.
    """

    split: str
    root: str
    kind: Literal["files", "array"]
    label_type: pa.DataType
    records: Callable[[Counter[str]], Iterator[pa.RecordBatch]]
    extras: pa.Schema = field(default_factory=lambda: pa.schema([]))
    image_shape: tuple[int, int, int] | None = None
    image_dtype: str = "uint8"
    content: str = ""
    location: str = ""
    notes: tuple[str, ...] = ()
    has_label_column: bool | None = None


@dataclass(frozen=True)
class Streamed:
    """A source that is walked: ``module:callable``, a function, or a dataset object in hand."""

    split: str
    source: Any
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """Name the source as the run folder records it."""
        if isinstance(self.source, str):
            return self.source
        function = getattr(self.source, "__qualname__", None)
        return f"{self.source.__module__}:{function}" if function else type(self.source).__name__


Source = Listed | Streamed


def open_sources(config: RunConfig) -> list[Source]:
    """Open every source of the configuration, in order.

    Raises:
        InputError: a source that is not there, or is none of the forms, or a label column that was
            named and that no listing has.
    """
    sources = [_open(split, uri, config) for split, uri in config.sources.items()]
    for source in sources:
        if config.source_kwargs.get(source.split) and isinstance(source, Listed):
            raise InputError(
                f"--source-kwargs for {source.split!r}: its source {source.root} is no callable"
            )
    if "label_column" in config.model_fields_set:
        _check_label_column(sources)
    return sources


def _check_label_column(sources: list[Source]) -> None:
    """Refuse a label column that was named and that none of the listings has."""
    listings = [
        source
        for source in sources
        if isinstance(source, Listed) and source.has_label_column is not None
    ]
    if listings and not any(source.has_label_column for source in listings):
        raise InputError(listings[0].notes[-1])


def _open(split: str, uri: Any, config: RunConfig) -> Source:
    from ray_embed.sources import image_folder, listing, npz, remote_image_folder

    if not isinstance(uri, str) or is_callable_reference(uri):
        return Streamed(split, uri, config.source_kwargs.get(split, {}))
    kind, uri = _looked_at(uri)
    if kind is pafs.FileType.NotFound:
        raise InputError(
            f"--source {redact_uri(uri)}: no such file or folder; give a folder of images, a .csv, "
            ".tsv or .npz file, or module:callable"
        )
    if kind is pafs.FileType.Directory:
        return (
            remote_image_folder.open_objects(split, uri)
            if is_uri(uri)
            else image_folder.open_folder(split, uri)
        )
    match PurePosixPath(urlsplit(uri).path if is_uri(uri) else uri).suffix.lower():
        case ".csv" | ".tsv":
            return listing.open_listing(split, uri, config)
        case ".npz":
            return npz.open_arrays(split, uri)
    raise InputError(
        f"--source {redact_uri(uri)}: not a source; give a folder of images, a .csv, .tsv or .npz "
        "file, or module:callable"
    )


def _looked_at(uri: str) -> tuple[pafs.FileType, str]:
    """Say what a URI names; one of a local file is given as its path.

    Raises:
        InputError: where it is does not answer, or refuses to.
    """
    if not is_uri(uri):
        path = Path(uri).absolute()
        if not path.exists():
            return pafs.FileType.NotFound, uri
        return pafs.FileType.Directory if path.is_dir() else pafs.FileType.File, str(path)
    try:
        folder = Folder.open(uri)
        return folder.get_info().type, folder.path if folder.is_local else uri
    except (StorageError, InputError) as error:
        raise InputError(f"--source {error}") from error
