# SPDX-License-Identifier: Apache-2.0
"""A folder tree of images on an object store: as a local one, but folders are listed in parallel.

The names in one folder are in memory together, as the store lists them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ClassVar

import pyarrow as pa

from ray_embed.core.threads import OrderedMap, open_ordered_map
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.file_images import FileReader
from ray_embed.sources.files import SizeAndTime
from ray_embed.sources.image_folder import BATCH, explain_no_image, find_skip_reason, make_records
from ray_embed.storage.filesystem import Folder

_MAX_REQUESTS = 8
# A name, which ends in "/" if it is a folder's, and its size and time.
_Entry = tuple[str, SizeAndTime]


@dataclass(frozen=True)
class RemoteImageFolder:
    """The images below a folder of an object store, by relative path in code-point order."""

    kind: ClassVar[str] = "files"
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
                while entries := list(islice(files, BATCH)):
                    paths, stats = zip(*entries, strict=True)
                    yield make_records(list(paths), list(stats))
            except StorageError as error:
                raise InputError(f"--source {redact_uri(self.location)}: {error}") from error

    def reader(self) -> FileReader:
        """Return what opens the files."""
        return FileReader(self.location)


def open_remote_folder(split: str, uri: str) -> RemoteImageFolder:
    """Open a folder tree on an object store as a source of image files.

    Raises:
        InputError: there is no image in it, or it cannot be listed.
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
    """Yield the images by relative path; folders are listed before it is their turn."""
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
    """List a folder in the order of the whole paths below it."""
    return sorted(
        (info.base_name, (info.size, info.mtime_ns))
        if info.is_file
        else (f"{info.base_name}/", (None, None))
        for info in root.list_infos(folder)
    )
