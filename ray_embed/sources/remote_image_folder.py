# SPDX-License-Identifier: Apache-2.0
"""Folders of images on an object store.

Like local folders, but subfolders are listed in parallel, and all names of a folder are kept in
memory.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ClassVar

import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.threads import OrderedMap, open_ordered_map
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.file_images import FileReader
from ray_embed.sources.files import SizeAndTime
from ray_embed.sources.image_folder import (
    RECORDS_PER_BATCH,
    explain_no_image,
    find_skip_reason,
    make_records,
)
from ray_embed.storage.filesystem import Folder

_MAX_REQUESTS = 8
# A name (folders end with "/"), and the size and modification time.
_Entry = tuple[str, SizeAndTime]


@dataclass(frozen=True)
class RemoteImageFolder:
    """The images below a remote folder, sorted by relative path in code-point order."""

    info: ClassVar[SourceInfo] = SourceInfo(label_type=pa.string())
    split: str
    location: str

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the images.

        Raises:
            InputError: a folder cannot be listed.
        """
        with open_ordered_map(_MAX_REQUESTS) as map_ordered:
            try:
                root = Folder.open(self.location)
                files = _walk(root, _list_folder(root, ""), skipped, map_ordered)
                while entries := list(islice(files, RECORDS_PER_BATCH)):
                    paths, stats = zip(*entries, strict=True)
                    yield make_records(list(paths), list(stats))
            except StorageError as error:
                raise InputError(f"--source {redact_uri(self.location)}: {error}") from error

    def reader(self) -> FileReader:
        """Return what opens the files."""
        return FileReader(self.location)


def open_remote_folder(split: str, uri: str, config: RunConfig | None = None) -> RemoteImageFolder:
    """Open a remote folder as a source.

    Raises:
        InputError: the folder contains no images or cannot be listed.
    """
    source = RemoteImageFolder(split, uri)
    if next(source.records(Counter()), None) is None:
        raise explain_no_image(redact_uri(uri))
    return source


def _walk(
    root: Folder,
    entries: list[_Entry],
    skipped: Counter[str],
    map_ordered: OrderedMap,
    folder: str = "",
) -> Iterator[_Entry]:
    """Yield the images sorted by relative path. Subfolders are listed ahead of time."""
    wanted = []
    for entry in entries:
        if reason := find_skip_reason(entry[0]):
            skipped[reason] += 1
        else:
            wanted.append(entry)
    subfolders = (folder + name for name, _ in wanted if name.endswith("/"))
    listings = map_ordered(partial(_list_folder, root), subfolders)
    for name, stat in wanted:
        if name.endswith("/"):
            yield from _walk(root, next(listings), skipped, map_ordered, folder + name)
        else:
            yield folder + name, stat


def _list_folder(root: Folder, folder: str) -> list[_Entry]:
    """List a folder, sorted so that the full paths below it are in order."""
    return sorted(
        (info.base_name, (info.size, info.mtime_ns))
        if info.is_file
        else (f"{info.base_name}/", (None, None))
        for info in root.list_infos(folder)
    )
