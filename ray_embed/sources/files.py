# SPDX-License-Identifier: Apache-2.0
"""Files of sources, on a local disk or an object store: found, looked at, and read."""

import os
import stat as status_of
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from pyarrow import fs as pafs

from ray_embed.core.keys import make_key
from ray_embed.core.uri import is_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.storage.filesystem import format_path, locate
from ray_embed.storage.retry import call_with_retries, explain_error

# Bytes, and modification time in ns; both None where there is no file.
SizeAndTime = tuple[int | None, int | None]

# An object store takes long to answer, and answers many at a time. What was read ahead is bounded.
_AT_ONCE, _AHEAD_BYTES = 32, 256 << 20


@dataclass(frozen=True)
class File:
    """A file: `path` as the operating system has it, or as `filesystem` has it, in UTF-8."""

    path: bytes
    filesystem: pafs.FileSystem | None = None

    def __str__(self) -> str:
        name = make_key(self.path)
        return name if self.filesystem is None else format_path(self.filesystem, name)


def find(name: str) -> File:
    """Find a file or folder by its path, or its URI."""
    if not is_uri(name):
        return File(os.fsencode(name))
    filesystem, path = locate(name)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    return File(path.encode(), None if local else filesystem)


def below(folder: File, path: bytes) -> File:
    """Find the file that a record names: from its source's folder on, from ``/`` on, or by URI."""
    if b"://" in path and is_uri(path.decode("utf-8", "replace")):
        return find(path.decode())
    here = None if path.startswith(b"/") else folder.filesystem
    return File(os.path.join(folder.path, path), here)


def size_and_time(path: str | bytes | Path) -> SizeAndTime:
    """Look at a local file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    if not (status_of.S_ISREG(status.st_mode) or status_of.S_ISDIR(status.st_mode)):
        # A pipe or a device would be read for ever.
        return None, None
    return status.st_size, status.st_mtime_ns


def look_at(files: Sequence[File]) -> list[SizeAndTime]:
    """Look at files, many at a time where they are on an object store.

    Raises:
        StorageError: the store does not answer, or refuses to.
    """
    if not any(file.filesystem for file in files):
        return [size_and_time(file.path) for file in files]
    with ThreadPoolExecutor(min(_AT_ONCE, len(files))) as pool:
        return list(pool.map(_look_at, files))


def _look_at(file: File) -> SizeAndTime:
    if file.filesystem is None:
        return size_and_time(file.path)
    filesystem, path = file.filesystem, file.path.decode()
    try:
        info = call_with_retries(lambda: filesystem.get_file_info(path))
    except OSError as error:
        raise StorageError(f"{file}: cannot be looked at: {explain_error(error)}") from error
    return (info.size, info.mtime_ns) if info.is_file else (None, None)


def open_file(file: File) -> IO[bytes]:
    """Open a file for reading anywhere in it.

    Raises:
        OSError: it cannot be opened.
    """
    if file.filesystem is None:
        return open(file.path, "rb")
    filesystem, path = file.filesystem, file.path.decode()
    opened: IO[bytes] = call_with_retries(lambda: filesystem.open_input_file(path))
    return opened


def read(file: File, planned: SizeAndTime) -> bytes | str:
    """Read a whole file; gives the reason where it is one for which a record is set aside.

    Args:
        file: where it is.
        planned: what it was when the run was planned; an object is compared with it.

    Raises:
        InputError: it is gone since, or has changed.
        StorageError: the storage fails, or refuses to.
    """
    try:
        if file.filesystem is None:
            with open(file.path, "rb") as local:
                return local.read()
        content, time = call_with_retries(partial(_read_object, file))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"{file}: it is gone since the run was planned") from error
    except OSError as error:
        if file.filesystem is None and isinstance(error, (PermissionError, IsADirectoryError)):
            return "unreadable"
        raise StorageError(f"{file}: cannot be read: {explain_error(error)}") from error
    size, before = planned
    if size is None:
        return content
    # Not every store tells the time with the object.
    if size != len(content) or (None not in (time, before) and time != before):
        raise changed(file)
    return content


def _read_object(file: File) -> tuple[bytes, int | None]:
    """Give the content and the time of an object."""
    filesystem: Any = file.filesystem
    with filesystem.open_input_file(file.path.decode()) as stream:
        return stream.read(), _time(stream.metadata())


def _time(metadata: dict[str, bytes] | None) -> int | None:
    """Give the time that a store tells with an object it opens; None where it tells none."""
    told = (metadata or {}).get("Last-Modified")
    if told is None:
        return None
    return int(datetime.fromisoformat(told.decode()).timestamp()) * 10**9


def changed(file: File, what: str = "has changed") -> InputError:
    """Make the error for a file that is not what was planned."""
    return InputError(
        f"{file}: it {what} since the run was planned; put back what was there (with its time), or "
        "start anew with --overwrite"
    )


class Contents:
    """The contents of files, read ahead; the first that cannot be read ends them.

    Args:
        files: which, in order.
        planned: what each was when the run was planned.
    """

    def __init__(self, files: Sequence[File], planned: Sequence[SizeAndTime]) -> None:
        self._files, self._planned = files, planned
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._ahead()
        except (InputError, StorageError) as error:
            self._error = error

    def check(self) -> None:
        """Raise what has ended them; whoever reads them in a graph would not hear of it."""
        if self._error:
            raise self._error

    def _ahead(self) -> Iterator[bytes]:
        waiting: deque[tuple[Future[bytes], int]] = deque()
        held = 0
        with ThreadPoolExecutor(min(_AT_ONCE, len(self._files))) as pool:
            try:
                for file, planned in zip(self._files, self._planned, strict=True):
                    size = planned[0] or 0
                    while waiting and (len(waiting) >= _AT_ONCE or held + size > _AHEAD_BYTES):
                        first, weight = waiting.popleft()
                        held -= weight
                        yield first.result()
                    waiting.append((pool.submit(_content, file, planned), size))
                    held += size
                for first, _ in waiting:
                    yield first.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _content(file: File, planned: SizeAndTime) -> bytes:
    found = read(file, planned)
    # Why not is found out with those that cannot be decoded.
    return found if isinstance(found, bytes) else b""


def check_unchanged(files: Iterable[File], planned: Iterable[SizeAndTime]) -> None:
    """Compare files with what they were when planned.

    Raises:
        InputError: one has changed, or is gone.
        StorageError: the store does not answer.
    """
    looked_at = list(files)
    for file, before, now in zip(looked_at, planned, look_at(looked_at), strict=True):
        if before != (None, None) and now != before:
            raise changed(file, "is gone" if now == (None, None) else "has changed")
