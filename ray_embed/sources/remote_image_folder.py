# SPDX-License-Identifier: Apache-2.0
"""A folder tree of images on an object store: as one on a disk, folders listed side by side."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice

import pyarrow as pa

from ray_embed.core.threads import OrderedMap, open_ordered_map
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.files import SizeAndTime
from ray_embed.sources.image_folder import BATCH, as_records, no_image, passed_over
from ray_embed.sources.open import Listed
from ray_embed.storage.filesystem import Folder

_AT_ONCE = 8
# A name, a folder's with a "/" at its end, and what was seen of it.
_Entry = tuple[str, SizeAndTime]


def open_objects(split: str, uri: str) -> Listed:
    """Open a folder tree as a source of image files, sorted by relative path in code-point order.

    The names in one folder are in memory together, as the store lists them.

    Raises:
        InputError: there is no image in it, or it cannot be listed.
    """
    records = partial(_records, Folder.open(uri), redact_uri(uri))
    if next(records(Counter()), None) is None:
        raise no_image(redact_uri(uri))
    return Listed(split, redact_uri(uri), "files", pa.string(), records, location=uri)


def _records(root: Folder, name: str, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
    with open_ordered_map(_AT_ONCE) as mapped:
        try:
            files = _walk(root, _listed(root, ""), skipped, mapped)
            while some := list(islice(files, BATCH)):
                paths, looked_at = zip(*some, strict=True)
                yield as_records(list(paths), list(looked_at))
        except StorageError as error:
            raise InputError(f"--source {name}: {error}") from error


def _walk(
    root: Folder, entries: list[_Entry], skipped: Counter[str], mapped: OrderedMap, inside: str = ""
) -> Iterator[_Entry]:
    """Yield the images by relative path; folders are listed before it is their turn."""
    wanted = []
    for entry in entries:
        if what := passed_over(entry[0]):
            skipped[what] += 1
        else:
            wanted.append(entry)
    below = (inside + name for name, _ in wanted if name.endswith("/"))
    listed = mapped(partial(_listed, root), below)
    for name, looked_at in wanted:
        if name.endswith("/"):
            yield from _walk(root, next(listed), skipped, mapped, inside + name)
        else:
            yield inside + name, looked_at


def _listed(root: Folder, inside: str) -> list[_Entry]:
    """List a folder in the order of the whole paths below it."""
    return sorted(
        (info.base_name, (info.size, info.mtime_ns))
        if info.is_file
        else (f"{info.base_name}/", (None, None))
        for info in root.list_infos(inside)
    )
