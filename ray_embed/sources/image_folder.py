# SPDX-License-Identifier: Apache-2.0
"""A local folder of images, labeled by first-level subfolder."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.keys import make_key
from ray_embed.errors import InputError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.external_sort import sort_names
from ray_embed.sources.file_images import FileReader
from ray_embed.sources.files import SizeAndTime, stat_local_file

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
RECORDS_PER_BATCH = 4096
_NAMES_HELD = 100_000


@dataclass(frozen=True)
class ImageFolder:
    """The images below a local folder, sorted by relative path in code-point order."""

    info: ClassVar[SourceInfo] = SourceInfo(label_type=pa.string())
    split: str
    location: str

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the records of all images.

        Raises: InputError: a folder cannot be listed.
        """
        prefix = os.path.join(self.location, "")
        files = _walk(self.location, skipped, lambda names: sort_names(names, _NAMES_HELD))
        while paths := list(islice(files, RECORDS_PER_BATCH)):
            yield make_records(paths, [stat_local_file(prefix + path) for path in paths])

    def reader(self) -> FileReader:
        """Return the reader for the image files."""
        return FileReader(self.location)


def open_folder(split: str, root: str | Path, config: RunConfig | None = None) -> ImageFolder:
    """Open a local folder as a source.

    Raises:
        InputError: the folder contains no images.
    """
    # Stop at the first image, so that a large folder is neither listed completely nor sorted.
    if next(_walk(str(root), Counter(), iter), None) is None:
        raise explain_no_image(str(root))
    return ImageFolder(split, str(root))


def make_records(paths: list[str], stats: list[SizeAndTime]) -> pa.RecordBatch:
    """Build records from relative paths. The first folder of each path is the label."""
    folders = (path.partition("/") for path in paths)
    sizes, times = zip(*stats, strict=True)
    return pa.record_batch(
        {
            "key": pa.array([make_key(path) for path in paths], pa.string()),
            "label": pa.array(
                [make_key(first) if slash else None for first, slash, _ in folders], pa.string()
            ),
            "path": pa.array([os.fsencode(path) for path in paths], pa.binary()),
            "size": pa.array(sizes, pa.int64()),
            "mtime": pa.array(times, pa.int64()),
        }
    )


def find_skip_reason(name: str) -> str | None:
    """Return why a file or folder is skipped, or None. Names of folders end with "/"."""
    if name.startswith("."):
        return "hidden"
    if name.endswith("/") or name.lower().endswith(IMAGE_ENDINGS):
        return None
    return "other file types"


def explain_no_image(root: str) -> InputError:
    """Return the error for a folder without images."""
    return InputError(
        f"--source {root}: no images in this folder; supported extensions are "
        f"{' '.join(IMAGE_ENDINGS)}"
    )


def _walk(
    root: str,
    skipped: Counter[str],
    order: Callable[[Iterator[str]], Iterator[str]],
    folder: str = "",
    ancestors: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[str]:
    """Yield the relative paths of the images, visiting the names of each folder in the order given
    by `order`.

    Because folder names end with "/", sorting each folder by name yields globally sorted paths.
    """
    path = os.path.join(root, folder)
    try:
        status = os.stat(path)
    except OSError as error:
        raise _explain_unlistable(root, path, error) from error
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        skipped["links to a parent folder"] += 1
        return
    for name in order(_list_names(root, path)):
        if reason := find_skip_reason(name):
            skipped[reason] += 1
        elif name.endswith("/"):
            yield from _walk(root, skipped, order, folder + name, ancestors | {identity})
        else:
            yield folder + name


def _list_names(root: str, path: str) -> Iterator[str]:
    """Yield the names of the direct children of a folder, with "/" appended to folders."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                yield entry.name + "/" * _is_folder(entry)
    except OSError as error:
        raise _explain_unlistable(root, path, error) from error


def _explain_unlistable(root: str, path: str, error: OSError) -> InputError:
    return InputError(f"--source {root}: {path} cannot be listed: {error.strerror}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
