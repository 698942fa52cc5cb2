# SPDX-License-Identifier: Apache-2.0
"""The registry of source types, and the detection of the type of a ``--source``."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs as pafs

from ray_embed.config import RunConfig, is_callable_reference, is_split_name, name_source
from ray_embed.core.uri import is_uri, join_uri, redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources import hugging_face_hub as hub
from ray_embed.sources import tfds
from ray_embed.sources.array_checks import get_wanted_labels
from ray_embed.sources.array_files import ArraySource
from ray_embed.sources.base import Source
from ray_embed.sources.container_files import (
    ContainerFiles,
    find_files,
    get_ending,
    is_pattern,
    list_names,
    match_pattern,
)
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.described_folder import (
    METADATA_FILES,
    DescribedFolder,
    open_described_folder,
)
from ray_embed.sources.file_content import recognize_file
from ray_embed.sources.files import locate_file
from ray_embed.sources.hdf5 import open_hdf5
from ray_embed.sources.image_folder import ImageFolder, open_folder
from ray_embed.sources.image_walk import IMAGE_ENDINGS, list_folders
from ray_embed.sources.label_vectors import VECTOR_TYPES
from ray_embed.sources.listing import Listing, open_listing, split_listing
from ray_embed.sources.npy import open_npy
from ray_embed.sources.npz import open_npz
from ray_embed.sources.parquet import open_parquet
from ray_embed.sources.saved_dataset import SPLITS, STATE, open_saved_dataset
from ray_embed.sources.split_names import sort_splits
from ray_embed.sources.tfrecord import open_tfrecord
from ray_embed.sources.webdataset import WebDataset, open_webdataset
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.retry import explain_error

# Opens a source, given its split, its path or URI, and the options.
Opener = Callable[[str, str, RunConfig], Source]
# Opens a source of one or more files, given its split, the files, and the options.
FilesOpener = Callable[[str, ContainerFiles, RunConfig], Source]

# Source types by file extension. To add a type, add a line here.
FORMS: dict[str, Opener] = {
    ".csv": open_listing,
    ".tsv": open_listing,
    ".jsonl": open_listing,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
    ".npy": open_npy,
    ".npz": open_npz,
}

# Endings of arrays, whose labels can be one-hot or multi-hot vectors.
ARRAYS = (".h5", ".hdf5", ".npy", ".npz")

# Source types that may have several files: a file, a folder of them, or a pattern.
CONTAINERS: dict[str, FilesOpener] = {
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
    tfds.FEATURES: tfds.open_prepared,
}

# The sources whose images are files of their own, and whose keys are the paths of these.
FILES = (DescribedFolder, ImageFolder, Listing)

# Named data sets of other libraries, by how their names begin (`DATA_SET_PREFIXES`).
PREFIXES: dict[str, Opener] = {tfds.PREFIX: tfds.open_named, hub.PREFIX: hub.open_hub_dataset}


def open_sources(config: RunConfig) -> list[Source]:
    """Open all sources of the configuration, in order.

    Raises:
        InputError: a source does not exist or has an unknown type, arguments are given for a source
            that is not a callable, no listing has the requested label column, a source cannot be
            split, or read page by page, as requested, or two splits have the same name.
    """
    sources = list(_open_folders(config) if config.splits_from_folders else _open_each(config))
    if config.splits_from_column is not None:
        sources = _split_by_column(sources[0], config.splits_from_column)
    if "label_column" in config.model_fields_set:
        _check_label_column(sources)
    _check_pages(sources, config)
    _check_is_used("--image-column", config.image_column, sources, FILES)
    _check_is_used("--key-column", config.key_column, sources, (*FILES, ArraySource, WebDataset))
    return sources


def _check_is_used(
    flag: str, value: str | None, sources: list[Source], others: tuple[type, ...]
) -> None:
    """Raise an error if an option is given, and all sources have a type that does not use it."""
    if value is not None and all(isinstance(source, others) for source in sources):
        raise InputError(
            f"{flag} {value}: no --source uses it; it is for Parquet files, datasets and others "
            "that hold images in named columns; leave it out (--path-column names the paths of a "
            "listing)"
        )


def select_datasets(sources: Sequence[Source]) -> list[Dataset]:
    """Return the sequential sources, which need a dataset reader."""
    return [source for source in sources if isinstance(source, Dataset)]


def _check_pages(sources: list[Source], config: RunConfig) -> None:
    """Raise an error if pages are wanted of a source that is not a folder of images."""
    for source in sources:
        if config.pages == "all" and not isinstance(source, ImageFolder):
            raise InputError(
                f"--source {redact_uri(source.location)}: not a folder of images, which --pages "
                "all needs"
            )


def _check_label_column(sources: list[Source]) -> None:
    """Raise an error if none of the listings has the requested label column."""
    infos = [source.info for source in sources if source.info is not None]
    listings = [info for info in infos if info.has_label_column is not None]
    if listings and not any(info.has_label_column for info in listings):
        raise InputError(listings[0].unlabeled)


def _open_folders(config: RunConfig) -> list[Source]:
    """Open each folder directly in the source as a split."""
    ((_, named),) = config.sources.items()
    where = f"--source {redact_uri(str(named))}"
    flag = "--splits-from-folders"
    if not isinstance(named, str) or _inspect(named)[0] is not pafs.FileType.Directory:
        raise InputError(f"{where}: not a folder, as {flag} needs")
    names = list_folders(named)
    if not names:
        raise InputError(f"{where}: no subfolders, which {flag} makes splits")
    for name in names:
        if not is_split_name(name):
            raise InputError(
                f"{where}: the folder {name!r} cannot name a split; use letters, digits, _ and -"
            )
    for name in sorted(set(list_names(named)).difference(names)):
        if name in METADATA_FILES:
            raise InputError(
                f"{where}: {name} is not read with {flag}; put one in the folder of each split, or "
                f"give it as --source with --path-column file_name and --splits-from-column"
            )
        if name.lower().endswith(IMAGE_ENDINGS):
            raise InputError(f"{where}: {name} is in no split; move it to a subfolder")
    return [_open(name, join_uri(named, name), config) for name in sort_splits(names)]


def _open_each(config: RunConfig) -> Iterator[Source]:
    """Open each source as a split, or as several if it is a data set of which none is named."""
    names = set()
    for given, named in config.sources.items():
        for source in _open_splits(given, named, config):
            if source.split in names:
                raise InputError(
                    f"--source {named}: its split {source.split!r} has the name of another split; "
                    f"name the splits, such as --source {source.split}={named}"
                )
            names.add(source.split)
            yield source


def _open_splits(given: str, named: Any, config: RunConfig) -> Sequence[Source]:
    is_data_set = isinstance(named, str) and named.startswith(hub.PREFIX)
    # Arguments are refused when the source is opened.
    if is_data_set and given == name_source(named) and given not in config.source_kwargs:
        _refuse_vectors(given, named, config)
        return hub.open_all_splits(named, config)
    return [_open(given, named, config)]


def _split_by_column(source: Source, column: str) -> list[Source]:
    if not isinstance(source, Listing):
        raise InputError(
            f"--source {redact_uri(source.location)}: not a listing, which --splits-from-column "
            "needs: a .csv, .tsv, .jsonl or .parquet file of paths"
        )
    return [*split_listing(source, column)]


def _open(split: str, named: Any, config: RunConfig) -> Source:
    arguments = config.source_kwargs.get(split, {})
    if not isinstance(named, str) or is_callable_reference(named):
        return Dataset(
            split,
            named,
            arguments,
            image_column=config.image_column,
            label_column=get_wanted_labels(config),
            key_column=config.key_column,
            label_type=config.label_type,
        )
    if arguments:
        raise InputError(
            f"--source-kwargs for {split!r}: the source {redact_uri(named)} is not a callable; "
            "remove these arguments, or use a module:callable source"
        )
    _refuse_vectors(split, named, config)
    for prefix, opener in PREFIXES.items():
        if named.startswith(prefix):
            return opener(split, named, config)
    if is_pattern(named):
        return _open_pattern(split, named, config)
    type_, location = _inspect(named)
    if type_ is pafs.FileType.Directory:
        return _open_folder(split, location, config)
    return _open_file(split, location, config, exists=type_ is not pafs.FileType.NotFound)


def _refuse_vectors(split: str, named: str, config: RunConfig) -> None:
    """Raise an error if labels are to be vectors, but the source cannot have such labels."""
    if config.label_type in VECTOR_TYPES and get_ending(_get_path(named)) not in ARRAYS:
        raise InputError(
            f"--source {split}={redact_uri(named)}: --label-type {config.label_type} is for arrays "
            f"({', '.join(ARRAYS)}) and datasets, whose labels can be vectors; leave the option out"
        )


def _open_pattern(split: str, pattern: str, config: RunConfig) -> Source:
    files = match_pattern(pattern)
    # The ending may be part of what the wildcards stand for.
    ending = get_ending(files.names[0])
    if ending not in CONTAINERS:
        raise InputError(
            f"--source {redact_uri(pattern)}: patterns are for {', '.join(CONTAINERS)} files, and "
            f"not for {ending or 'files without an ending'}"
        )
    return CONTAINERS[ending](split, files, config)


def _open_folder(split: str, folder: str, config: RunConfig) -> Source:
    """Open a folder, by the files directly in it; images come first."""
    names = {*MARKERS, *METADATA_FILES}
    found = {name if name in names else get_ending(name) for name in list_names(folder)}
    if not found.intersection(IMAGE_ENDINGS):
        for name, opener in MARKERS.items():
            if name in found:
                return opener(split, folder, config)
        for ending, open_files in CONTAINERS.items():
            if ending in found:
                endings = [name for name, other in CONTAINERS.items() if other is open_files]
                return open_files(split, find_files(folder, endings), config)
    for name in METADATA_FILES:
        if name in found:
            return open_described_folder(split, folder, name, config)
    return open_folder(split, folder, config)


def _open_file(split: str, named: str, config: RunConfig, *, exists: bool) -> Source:
    *others, last = [*CONTAINERS, *FORMS]
    advice = (
        f"expected a folder of images, a {', '.join(others)} or {last} file, or module:callable"
    )
    if not exists:
        raise InputError(f"--source {redact_uri(named)}: no such file or folder; {advice}")
    path = _get_path(named)
    ending = get_ending(path)
    if ending == ".gz" and (inner := get_ending(path[:-3])) in CONTAINERS:
        # It is refused with the reason by what would open it.
        ending = inner
    if ending not in CONTAINERS and ending not in FORMS:
        ending = _recognize(named) or ending
    if ending in CONTAINERS:
        return CONTAINERS[ending](split, find_files(named, ()), config)
    if ending not in FORMS:
        raise InputError(f"--source {redact_uri(named)}: unsupported file type; {advice}")
    return FORMS[ending](split, named, config)


def _recognize(named: str) -> str | None:
    try:
        return recognize_file(locate_file(named))
    except OSError as error:
        raise InputError(
            f"--source {redact_uri(named)}: cannot be read: {explain_error(error)}"
        ) from error


def _get_path(named: str) -> str:
    return urlsplit(named).path if is_uri(named) else named


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
