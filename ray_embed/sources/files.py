# SPDX-License-Identifier: Apache-2.0
"""Files of sources, on a local disk or an object store: locate, stat and read them."""

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

# An object store answers slowly, and many requests at a time. What is read ahead is bounded.
_MAX_REQUESTS, _AHEAD_BYTES = 32, 256 << 20


@dataclass(frozen=True)
class File:
    """A file: `path` as the operating system has it, or as `filesystem` has it, in UTF-8."""

    path: bytes
    filesystem: pafs.FileSystem | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is on an object store."""
        return self.filesystem is not None

    def __str__(self) -> str:
        name = make_key(self.path)
        return name if self.filesystem is None else format_path(self.filesystem, name)


def locate_file(name: str) -> File:
    """Return the file or folder of a path or URI."""
    if not is_uri(name):
        return File(os.fsencode(name))
    filesystem, path = locate(name)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    return File(path.encode(), None if local else filesystem)


def resolve_path(folder: File, path: bytes) -> File:
    """Return the file that a record names.

    Args:
        folder: what a relative path starts at.
        path: a relative path, an absolute local one, or a URI.
    """
    if b"://" in path and is_uri(path.decode("utf-8", "replace")):
        return locate_file(path.decode())
    filesystem = None if path.startswith(b"/") else folder.filesystem
    return File(os.path.join(folder.path, path), filesystem)


def stat_local_file(path: str | bytes | Path) -> SizeAndTime:
    """Return the size and time of a local file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    if not (status_of.S_ISREG(status.st_mode) or status_of.S_ISDIR(status.st_mode)):
        # A pipe or a device would be read for ever.
        return None, None
    return status.st_size, status.st_mtime_ns


def stat_files(files: Sequence[File]) -> list[SizeAndTime]:
    """Return the size and time of files; ask an object store for many at a time.

    Raises:
        StorageError: the store does not answer, or refuses to.
    """
    if not any(file.is_remote for file in files):
        return [stat_local_file(file.path) for file in files]
    with ThreadPoolExecutor(min(_MAX_REQUESTS, len(files))) as pool:
        return list(pool.map(_stat_file, files))


def _stat_file(file: File) -> SizeAndTime:
    if file.filesystem is None:
        return stat_local_file(file.path)
    filesystem, path = file.filesystem, file.path.decode()
    try:
        info = call_with_retries(lambda: filesystem.get_file_info(path))
    except OSError as error:
        raise StorageError(f"{file}: cannot be accessed: {explain_error(error)}") from error
    return (info.size, info.mtime_ns) if info.is_file else (None, None)


def open_file(file: File) -> IO[bytes]:
    """Open a file for reading at any position.

    Raises:
        OSError: it cannot be opened.
    """
    if file.filesystem is None:
        return open(file.path, "rb")
    filesystem, path = file.filesystem, file.path.decode()
    opened: IO[bytes] = call_with_retries(lambda: filesystem.open_input_file(path))
    return opened


def read_file(file: File, planned: SizeAndTime) -> bytes | str:
    """Read a whole file; return the reason instead if its record is to be rejected.

    Args:
        file: the file.
        planned: its size and time when the run was planned; an object is compared with them.

    Raises:
        InputError: it has been removed or has changed since then.
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
        raise explain_change(file)
    return content


def _read_object(file: File) -> tuple[bytes, int | None]:
    """Return the content and the time of an object."""
    filesystem: Any = file.filesystem
    with filesystem.open_input_file(file.path.decode()) as stream:
        return stream.read(), _parse_time(stream.metadata())


def _parse_time(metadata: dict[str, bytes] | None) -> int | None:
    """Return the time in an object's metadata, in ns; None if the store reports none."""
    modified = (metadata or {}).get("Last-Modified")
    if modified is None:
        return None
    return int(datetime.fromisoformat(modified.decode()).timestamp()) * 10**9


def explain_change(file: File, what: str = "has changed") -> InputError:
    """Return the error for a file that is not what was planned."""
    return InputError(
        f"{file}: it {what} since the run was planned; restore what was there (with its time), or "
        "start again with --overwrite"
    )


class FileContents:
    """Iterates over the contents of files, which it reads ahead; the first error ends it.

    Args:
        files: the files, in order.
        planned: the size and time of each when the run was planned.
    """

    def __init__(self, files: Sequence[File], planned: Sequence[SizeAndTime]) -> None:
        self._files, self._planned = files, planned
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._read_ahead()
        except (InputError, StorageError) as error:
            self._error = error

    def raise_error(self) -> None:
        """Raise the error that ended the iteration, if any; a TensorFlow graph would drop it."""
        if self._error:
            raise self._error

    def _read_ahead(self) -> Iterator[bytes]:
        waiting: deque[tuple[Future[bytes], int]] = deque()
        held = 0
        with ThreadPoolExecutor(min(_MAX_REQUESTS, len(self._files))) as pool:
            try:
                for file, planned in zip(self._files, self._planned, strict=True):
                    size = planned[0] or 0
                    while waiting and (len(waiting) >= _MAX_REQUESTS or held + size > _AHEAD_BYTES):
                        first, weight = waiting.popleft()
                        held -= weight
                        yield first.result()
                    waiting.append((pool.submit(_read_content, file, planned), size))
                    held += size
                for first, _ in waiting:
                    yield first.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _read_content(file: File, planned: SizeAndTime) -> bytes:
    content = read_file(file, planned)
    # Nothing cannot be decoded either; the reason is found then.
    return content if isinstance(content, bytes) else b""


def check_unchanged(files: Iterable[File], planned: Iterable[SizeAndTime]) -> None:
    """Compare the size and time of files with those when planned.

    Raises:
        InputError: one has changed, or is gone.
        StorageError: the store does not answer.
    """
    all_files = list(files)
    for file, before, now in zip(all_files, planned, stat_files(all_files), strict=True):
        if before != (None, None) and now != before:
            raise explain_change(file, "is gone" if now == (None, None) else "has changed")
