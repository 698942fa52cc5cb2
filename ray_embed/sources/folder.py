# SPDX-License-Identifier: Apache-2.0
"""A folder tree of images: the label is the first folder under the root."""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from ray_embed.errors import InputError
from ray_embed.keys import key_of
from ray_embed.sources import Listed

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
_BATCH = 4096


def open_folder(split: str, root: Path) -> Listed:
    """Open a folder tree as a source of image files, sorted by relative path in code-point order.

    Raises:
        InputError: there is no image in it.
    """
    if next(_walk(str(root), Counter()), None) is None:
        raise InputError(
            f"--source {root}: no image in this folder; the endings {' '.join(ENDINGS)} count"
        )
    return Listed(
        split,
        str(root),
        "files",
        pa.string(),
        lambda skipped: _records(str(root), skipped),
    )


def _records(root: str, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
    files = _walk(root, skipped)
    while chunk := list(islice(files, _BATCH)):
        paths, sizes, times = zip(*chunk, strict=True)
        folders = (path.partition("/") for path in paths)
        yield pa.record_batch(
            {
                "key": pa.array([key_of(path) for path in paths], pa.string()),
                "label": pa.array(
                    [key_of(first) if slash else None for first, slash, _ in folders], pa.string()
                ),
                "path": pa.array([os.fsencode(path) for path in paths], pa.binary()),
                "size": pa.array(sizes, pa.int64()),
                "mtime": pa.array(times, pa.int64()),
            }
        )


def _walk(
    root: str,
    skipped: Counter[str],
    inside: str = "",
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[tuple[str, int | None, int | None]]:
    """Yield (relative path, size, mtime) in the order of the whole relative paths.

    Sorting each folder with its subfolders' names ending in "/" gives the order of the whole
    paths without holding more than one folder's names a level.
    """
    here = os.path.join(root, inside)
    try:
        status = os.stat(here)
        entries = list(os.scandir(here))
    except OSError as error:
        raise InputError(f"--source {root}: {here} cannot be listed: {error.strerror}") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        skipped["links to a folder above"] += 1
        return
    named = sorted((entry.name + "/" * _is_folder(entry), entry) for entry in entries)
    for name, entry in named:
        if name.startswith("."):
            skipped["hidden"] += 1
        elif name.endswith("/"):
            yield from _walk(root, skipped, inside + name, above | {identity})
        elif not name.lower().endswith(ENDINGS):
            skipped["other endings"] += 1
        else:
            yield inside + name, *size_and_time(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def size_and_time(entry: os.DirEntry[str] | Path) -> tuple[int | None, int | None]:
    """Give the size in bytes and the modification time in ns; both None where there is no file."""
    try:
        status = entry.stat()
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns
