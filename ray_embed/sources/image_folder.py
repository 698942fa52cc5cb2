# SPDX-License-Identifier: Apache-2.0
"""A folder tree of images: the label is the first folder under the root."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from ray_embed.core.keys import make_key
from ray_embed.errors import InputError
from ray_embed.sources.external_sort import sort_names
from ray_embed.sources.files import SizeAndTime, size_and_time
from ray_embed.sources.open import Listed

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
BATCH = 4096
_NAMES_HELD = 100_000


def open_folder(split: str, root: str | Path) -> Listed:
    """Open a folder tree as a source of image files, sorted by relative path in code-point order.

    Raises:
        InputError: there is no image in it.
    """
    # Any image will do, so that a large folder is neither listed to its end nor sorted for it.
    if next(_walk(str(root), Counter(), iter), None) is None:
        raise no_image(str(root))
    return Listed(
        split,
        str(root),
        "files",
        pa.string(),
        lambda skipped: _records(str(root), skipped),
        location=str(root),
    )


def _records(root: str, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
    within = os.path.join(root, "")
    files = _walk(root, skipped, lambda names: sort_names(names, _NAMES_HELD))
    while paths := list(islice(files, BATCH)):
        yield as_records(paths, [size_and_time(within + path) for path in paths])


def as_records(paths: list[str], looked_at: list[SizeAndTime]) -> pa.RecordBatch:
    """Make records of image files by their relative paths: the first folder is the label."""
    folders = (path.partition("/") for path in paths)
    sizes, times = zip(*looked_at, strict=True)
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


def passed_over(name: str) -> str | None:
    """Say as what a file or folder, with a "/" at its end, is passed over; None where it is not."""
    if name.startswith("."):
        return "hidden"
    if name.endswith("/") or name.lower().endswith(ENDINGS):
        return None
    return "other endings"


def no_image(root: str) -> InputError:
    """Make the error for a folder without images."""
    return InputError(
        f"--source {root}: no image in this folder; the endings {' '.join(ENDINGS)} count"
    )


def _walk(
    root: str,
    skipped: Counter[str],
    order: Callable[[Iterator[str]], Iterator[str]],
    inside: str = "",
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[str]:
    """Yield the relative paths of the images, each folder in the given order of its names.

    Sorting each folder with its subfolders' names ending in "/" gives the order of the whole
    paths.
    """
    here = os.path.join(root, inside)
    try:
        status = os.stat(here)
    except OSError as error:
        raise _cannot_be_listed(root, here, error) from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        skipped["links to a folder above"] += 1
        return
    for name in order(_names(root, here)):
        if what := passed_over(name):
            skipped[what] += 1
        elif name.endswith("/"):
            yield from _walk(root, skipped, order, inside + name, above | {identity})
        else:
            yield inside + name


def _names(root: str, here: str) -> Iterator[str]:
    """Yield what is directly in a folder, folders with a "/" at their end."""
    try:
        with os.scandir(here) as entries:
            for entry in entries:
                yield entry.name + "/" * _is_folder(entry)
    except OSError as error:
        raise _cannot_be_listed(root, here, error) from error


def _cannot_be_listed(root: str, here: str, error: OSError) -> InputError:
    return InputError(f"--source {root}: {here} cannot be listed: {error.strerror}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
