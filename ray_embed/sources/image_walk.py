# SPDX-License-Identifier: Apache-2.0
"""Find the images below a folder, on a local disk or an object store, sorted by relative path.

Because the names of folders end with "/", sorting each folder by name yields globally sorted paths.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath

from ray_embed.core.threads import OrderedMap, open_ordered_map
from ray_embed.core.uri import is_uri, redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.external_sort import sort_names
from ray_embed.sources.files import SizeAndTime, stat_local_file
from ray_embed.storage.filesystem import Folder

TIFF_ENDINGS = (".tif", ".tiff")
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp"),
    *(".webp", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".dcm"),
    *TIFF_ENDINGS,
)
_NAMES_HELD = 100_000
_MAX_REQUESTS = 8
# Other endings than the first ones are counted together.
_MAX_REASONS = 20
# The path of an image, or the name of an entry of a folder ("/" is appended to folders), and its
# size and modification time.
Entry = tuple[str, SizeAndTime]


def walk_images(location: str, skipped: Counter[str], *, sort: bool = True) -> Iterator[Entry]:
    """Yield the images below a folder, a path or URI.

    Args:
        location: the folder.
        skipped: counter to update with the number of skipped files, by reason.
        sort: whether they must be in the order of their relative paths. Otherwise a local folder is
            listed only as far as the images are taken.

    Raises:
        InputError: a folder cannot be listed.
    """
    if is_uri(location):
        yield from _walk_store(location, skipped)
        return
    order = (lambda names: sort_names(names, _NAMES_HELD)) if sort else iter
    prefix = os.path.join(location, "")
    for path in _walk_disk(location, skipped, order):
        yield path, stat_local_file(prefix + path)


def list_folders(location: str) -> list[str]:
    """Return the names of the folders directly in a folder, a path or URI, sorted, without hidden
    ones.

    Raises:
        InputError: the folder cannot be listed.
    """
    if not is_uri(location):
        names = (name for name in _list_names(location, location) if name.endswith("/"))
    else:
        try:
            names = (name for name, _ in _list_entries(Folder.open(location), ""))
        except StorageError as error:
            raise _explain_store(location, error) from error
    return sorted(n.removesuffix("/") for n in names if n.endswith("/") and not n.startswith("."))


def describe_skipped(skipped: Counter[str]) -> str:
    """Return what was skipped, with the counts."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())


def _is_image(name: str, skipped: Counter[str]) -> bool:
    """Return whether a name is that of an image or a folder, or else count why it is skipped."""
    if name.startswith("."):
        reason = "hidden"
    elif name.endswith("/") or name.lower().endswith(IMAGE_ENDINGS):
        return True
    else:
        reason = PurePosixPath(name).suffix.lower() or "without a file extension"
    if reason not in skipped and len(skipped) >= _MAX_REASONS:
        reason = "other file types"
    skipped[reason] += 1
    return False


def _walk_disk(
    root: str,
    skipped: Counter[str],
    order: Callable[[Iterator[str]], Iterator[str]],
    folder: str = "",
    ancestors: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[str]:
    """Yield the paths of the images, visiting the names of each folder in the order given by
    `order`."""
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
        if not _is_image(name, skipped):
            continue
        if name.endswith("/"):
            yield from _walk_disk(root, skipped, order, folder + name, ancestors | {identity})
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


def _walk_store(location: str, skipped: Counter[str]) -> Iterator[Entry]:
    """Yield the images below a folder of a store; all names of a folder are in memory."""
    with open_ordered_map(_MAX_REQUESTS) as map_ordered:
        try:
            root = Folder.open(location)
            yield from _walk_entries(root, _list_entries(root, ""), skipped, map_ordered)
        except StorageError as error:
            raise _explain_store(location, error) from error


def _walk_entries(
    root: Folder,
    entries: list[Entry],
    skipped: Counter[str],
    map_ordered: OrderedMap,
    folder: str = "",
) -> Iterator[Entry]:
    """Yield the images of listed entries and below them. Subfolders are listed ahead of time."""
    wanted = [entry for entry in entries if _is_image(entry[0], skipped)]
    subfolders = (folder + name for name, _ in wanted if name.endswith("/"))
    listings = map_ordered(partial(_list_entries, root), subfolders)
    for name, stat in wanted:
        if name.endswith("/"):
            yield from _walk_entries(root, next(listings), skipped, map_ordered, folder + name)
        else:
            yield folder + name, stat


def _list_entries(root: Folder, folder: str) -> list[Entry]:
    """List a folder, sorted so that the full paths below it are in order."""
    return sorted(
        (info.base_name, (info.size, info.mtime_ns))
        if info.is_file
        else (f"{info.base_name}/", (None, None))
        for info in root.list_infos(folder)
    )


def _explain_store(location: str, error: StorageError) -> InputError:
    return InputError(f"--source {redact_uri(location)}: {error}")
