# SPDX-License-Identifier: Apache-2.0
"""The registry of source types, and the detection of the type of a ``--source``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs as pafs

from ray_embed.config import RunConfig, is_callable_reference
from ray_embed.core.uri import is_uri, redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.array_checks import get_wanted_labels
from ray_embed.sources.base import Source
from ray_embed.sources.container_files import find_files, get_ending, is_pattern, list_names
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.hdf5 import open_hdf5
from ray_embed.sources.image_folder import IMAGE_ENDINGS, open_folder
from ray_embed.sources.listing import open_listing
from ray_embed.sources.npy import open_npy
from ray_embed.sources.npz import open_npz
from ray_embed.sources.parquet import open_parquet
from ray_embed.sources.remote_image_folder import open_remote_folder
from ray_embed.sources.saved_dataset import SPLITS, STATE, open_saved_dataset
from ray_embed.sources.tfds import FEATURES, PREFIX, open_named, open_prepared
from ray_embed.sources.tfrecord import open_tfrecord
from ray_embed.sources.webdataset import open_webdataset
from ray_embed.storage.filesystem import Folder

# Opens a source, given its split, its path, URI or object, and the options.
Opener = Callable[[str, Any, RunConfig], Source]

# Source types by file extension. To add a type, add a line here.
FORMS: dict[str, Opener] = {
    ".csv": open_listing,
    ".tsv": open_listing,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
    ".npy": open_npy,
    ".npz": open_npz,
    ".parquet": open_parquet,
    ".tar": open_webdataset,
    ".tfrec": open_tfrecord,
    ".tfrecord": open_tfrecord,
    ".tfrecords": open_tfrecord,
}

# Source types of folders, by the files directly in them. Other folders are folders of images.
FOLDERS: dict[str, Opener] = {
    ".parquet": open_parquet,
    ".tar": open_webdataset,
    ".tfrec": open_tfrecord,
    ".tfrecord": open_tfrecord,
    ".tfrecords": open_tfrecord,
}

# Source types of folders, by the name of a file directly in them.
MARKERS: dict[str, Opener] = {
    SPLITS: open_saved_dataset,
    STATE: open_saved_dataset,
    FEATURES: open_prepared,
}

# Named data sets of other libraries, by how their names begin (`DATA_SET_PREFIXES`).
PREFIXES: dict[str, Opener] = {PREFIX: open_named}


def open_sources(config: RunConfig) -> list[Source]:
    """Open all sources of the configuration, in order.

    Raises:
        InputError: a source does not exist or has an unknown type, arguments are given for a source
            that is not a callable, or no listing has the requested label column.
    """
    sources = [_open(split, named, config) for split, named in config.sources.items()]
    if "label_column" in config.model_fields_set:
        _check_label_column(sources)
    return sources


def select_datasets(sources: Sequence[Source]) -> list[Dataset]:
    """Return the sequential sources, which need a dataset reader."""
    return [source for source in sources if isinstance(source, Dataset)]


def _check_label_column(sources: list[Source]) -> None:
    """Raise an error if none of the listings has the requested label column."""
    infos = [source.info for source in sources if source.info is not None]
    listings = [info for info in infos if info.has_label_column is not None]
    if listings and not any(info.has_label_column for info in listings):
        raise InputError(listings[0].unlabeled)


def _open(split: str, named: Any, config: RunConfig) -> Source:
    arguments = config.source_kwargs.get(split, {})
    if not isinstance(named, str) or is_callable_reference(named):
        return Dataset(split, named, arguments, config.image_column, get_wanted_labels(config))
    if arguments:
        raise InputError(
            f"--source-kwargs for {split!r}: the source {redact_uri(named)} is not a callable; "
            "remove these arguments, or use a module:callable source"
        )
    opener, location = _find_opener(named)
    return opener(split, location, config)


def _find_opener(named: str) -> tuple[Opener, str]:
    """Return what opens a source, and its location; the URI of a local file becomes its path.

    Raises:
        InputError: the source does not exist, has an unknown type, or its storage does not respond.
    """
    for prefix, opener in PREFIXES.items():
        if named.startswith(prefix):
            return opener, named
    *others, last = FORMS
    advice = (
        f"expected a folder of images, a {', '.join(others)} or {last} file, or module:callable"
    )
    if is_pattern(named):
        # The ending may be part of what the wildcards stand for.
        ending = get_ending(find_files(named, ()).names[0])
        if ending not in FOLDERS:
            raise InputError(
                f"--source {redact_uri(named)}: patterns are for {', '.join(FOLDERS)} files, and "
                f"not for {ending or 'files without an ending'}"
            )
        return FOLDERS[ending], named
    path = urlsplit(named).path if is_uri(named) else named
    ending = get_ending(path)
    if ending == ".gz" and (inner := get_ending(path[:-3])) in FOLDERS:
        # It is refused with the reason by what would open it.
        ending = inner
    type_, uri = _inspect(named)
    if type_ is pafs.FileType.NotFound:
        raise InputError(f"--source {redact_uri(uri)}: no such file or folder; {advice}")
    if type_ is pafs.FileType.Directory:
        return _find_folder_opener(uri), uri
    if ending not in FORMS:
        raise InputError(f"--source {redact_uri(uri)}: unsupported file type; {advice}")
    return FORMS[ending], uri


def _find_folder_opener(uri: str) -> Opener:
    """Return what opens a folder, by the files directly in it; images come first."""
    found = {name if name in MARKERS else get_ending(name) for name in list_names(uri)}
    if not found.intersection(IMAGE_ENDINGS):
        for name, opener in (MARKERS | FOLDERS).items():
            if name in found:
                return opener
    return open_remote_folder if is_uri(uri) else open_folder


def _inspect(uri: str) -> tuple[pafs.FileType, str]:
    """Return the file type of a URI, and the URI (or the path if it is local).

    Raises:
        InputError: the storage does not respond or denies access.
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
