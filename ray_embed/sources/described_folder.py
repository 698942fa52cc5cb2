# SPDX-License-Identifier: Apache-2.0
"""A folder of images with a file of metadata, as Hugging Face's ImageFolder has it.

``metadata.csv`` or ``metadata.jsonl`` lists the images in the column ``file_name``, and as in
Hugging Face datasets, its rows are the records.
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.uri import join_uri
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.external_sort import sort_names
from ray_embed.sources.file_images import FileReader
from ray_embed.sources.image_folder import ImageFolder, open_folder
from ray_embed.sources.image_walk import walk_images
from ray_embed.sources.listing import Listing, make_listing, open_rows
from ray_embed.sources.listing_rows import read_numbered, read_paths

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_PATH_COLUMN = "file_name"
_NAMES_HELD = 100_000


@dataclass(frozen=True)
class DescribedFolder:
    """The images that a file of metadata in their folder lists, in its order."""

    listing: Listing
    name: str

    @property
    def split(self) -> str:
        """The name of the split."""
        return self.listing.split

    @property
    def location(self) -> str:
        """The folder."""
        return self.listing.location

    @property
    def info(self) -> SourceInfo:
        """The properties of the listing."""
        return self.listing.info

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows as records, and count the images that have no row.

        Raises:
            InputError: a row has no path or an invalid label, or a folder cannot be listed.
        """
        yield from self.listing.records(skipped)
        images = (path for path, _ in walk_images(self.location, skipped))
        without = _count_others(images, sort_names(self._list_paths(), _NAMES_HELD))
        # The file of metadata was not passed over.
        ending = posixpath.splitext(self.name)[1]
        skipped.update({f"images without a row in {self.name}": without, ending: -1})
        skipped += Counter()

    def reader(self) -> FileReader:
        """Return what opens the files."""
        return self.listing.reader()

    def _list_paths(self) -> Iterator[str]:
        for numbers, batch in read_numbered(self.listing.rows, [_PATH_COLUMN]):
            for path in read_paths(batch[_PATH_COLUMN], numbers, self.listing.rows.name):
                yield posixpath.normpath(os.fsdecode(path))


def open_described_folder(
    split: str, folder: str, name: str, config: RunConfig
) -> DescribedFolder | ImageFolder:
    """Open a folder with a file of metadata as a source.

    The label is the label column, or else the first folder of a path.

    Args:
        split: the name of the split.
        folder: the folder, a path or URI.
        name: the name of the file of metadata.
        config: the options.

    Raises:
        InputError: the metadata cannot be read, or (nearly) all images that it lists are missing.
    """
    rows = open_rows(join_uri(folder, name), _PATH_COLUMN)
    if _PATH_COLUMN not in rows.schema.names:
        images = open_folder(split, folder, config)
        note = f"{rows.name}: not used, because it has no column {_PATH_COLUMN!r}"
        return replace(images, info=replace(images.info, notes=(*images.info.notes, note)))
    listing = make_listing(split, rows, config, _PATH_COLUMN, has_folder_labels=True)
    note = f"{rows.name}: its rows are the records"
    info = replace(listing.info, notes=(*listing.info.notes, note))
    return DescribedFolder(replace(listing, info=info), name)


def _count_others(names: Iterator[str], known: Iterator[str]) -> int:
    """Return how many names are not among the known ones; both are sorted."""
    count = 0
    candidate = next(known, None)
    for name in names:
        while candidate is not None and candidate < name:
            candidate = next(known, None)
        count += candidate != name
    return count
