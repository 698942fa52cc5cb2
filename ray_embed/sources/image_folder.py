# SPDX-License-Identifier: Apache-2.0
"""A folder of images, labeled by first-level subfolder, on a local disk or an object store.

With ``--pages all``, each page of a TIFF file is a record.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.keys import make_key
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.images.formats import tiff
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.container_files import list_names
from ray_embed.sources.file_images import FileReader
from ray_embed.sources.files import File, locate_file, open_file, resolve_path
from ray_embed.sources.image_walk import (
    IMAGE_ENDINGS,
    TIFF_ENDINGS,
    Entry,
    describe_skipped,
    walk_images,
)
from ray_embed.sources.split_names import get_aliases
from ray_embed.storage.retry import explain_error

_RECORDS_PER_BATCH = 4096


@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder, a path or URI, sorted by relative path in code-point order.

    `has_pages` is whether each page of a TIFF file is a record.
    """

    split: str
    location: str
    info: SourceInfo
    has_pages: bool = False

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the records of all images.

        Raises:
            InputError: a folder cannot be listed.
        """
        images = walk_images(self.location, skipped)
        while entries := list(islice(images, _RECORDS_PER_BATCH)):
            if self.has_pages:
                yield from self._list_pages(entries)
            else:
                yield _make_records(entries)

    def reader(self) -> FileReader:
        """Return the reader for the image files."""
        return FileReader(self.location, self.has_pages)

    def _list_pages(self, entries: Sequence[Entry]) -> Iterator[pa.RecordBatch]:
        """Yield the records of the pages of some images, file by file."""
        folder = locate_file(self.location)
        for entry in entries:
            path, _ = entry
            count = 1
            if path.lower().endswith(TIFF_ENDINGS):
                count = _count_pages(resolve_path(folder, os.fsencode(path)))
            records = _make_records([entry] * count)
            pages = pa.array(range(count), pa.int64())
            if count > 1:
                keys = [f"{key}#{page}" for page, key in enumerate(records["key"].to_pylist())]
                records = records.set_column(0, "key", pa.array(keys, pa.string()))
            yield records.append_column("page", pages)


def open_folder(split: str, root: str | Path, config: RunConfig | None = None) -> ImageFolder:
    """Open a folder, a path or URI, as a source.

    Raises:
        InputError: the folder contains no images or cannot be listed.
    """
    location = str(root)
    where = redact_uri(location)
    skipped: Counter[str] = Counter()
    # Stop at the first image, so that a large folder is neither listed completely nor sorted.
    if next(walk_images(location, skipped, sort=False), None) is None:
        found = describe_skipped(skipped)
        raise InputError(
            f"--source {where}: no images in this folder ({found or 'it is empty'}); supported "
            f"extensions are {' '.join(IMAGE_ENDINGS)}"
        )
    splits = sorted(name for name in list_names(location) if get_aliases(name))
    note = (
        f"{where}: the first folders are the labels, but {', '.join(splits)} look like splits; "
        "--splits-from-folders makes them splits"
    )
    notes = (note,) if len(splits) > 1 else ()
    info = SourceInfo(label_type=pa.string(), notes=notes)
    has_pages = config is not None and config.pages == "all"
    if has_pages:
        tiff.check_installed()
    return ImageFolder(split, location, info, has_pages)


def _count_pages(file: File) -> int:
    """Return the number of pages of a TIFF file; 1 if the file is damaged, which rejects it."""
    try:
        with open_file(file) as stream:
            return max(1, tiff.count_pages(stream))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {explain_error(error)}") from error
    except Exception:
        return 1


def get_folder_label(path: str | bytes) -> str | None:
    """Return the label of a relative path: its first folder, or None if there is none."""
    first, slash, _ = os.fsdecode(path).partition("/")
    return make_key(first) if slash else None


def _make_records(images: Sequence[Entry]) -> pa.RecordBatch:
    paths = [path for path, _ in images]
    return pa.record_batch(
        {
            "key": pa.array([make_key(path) for path in paths], pa.string()),
            "label": pa.array([get_folder_label(path) for path in paths], pa.string()),
            "path": pa.array([os.fsencode(path) for path in paths], pa.binary()),
            "size": pa.array([size for _, (size, _) in images], pa.int64()),
            "mtime": pa.array([time for _, (_, time) in images], pa.int64()),
        }
    )
