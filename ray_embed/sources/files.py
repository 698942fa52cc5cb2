# SPDX-License-Identifier: Apache-2.0
"""Locate, stat and read source files on a local disk or an object store."""

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

# Size in bytes and modification time in ns, or (None, None) if the file does not exist.
SizeAndTime = tuple[int | None, int | None]

# Object stores have high latency but serve many requests in parallel. Read-ahead is limited.
_MAX_REQUESTS, _MAX_READ_AHEAD_BYTES = 32, 256 << 20


@dataclass(frozen=True)
class File:
    """A file.

    `path` is an OS path for local files, and a UTF-8 path within `filesystem` for remote files.
    """

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
    """Return the File for a path or URI."""
    if not is_uri(name):
        return File(os.fsencode(name))
    filesystem, path = locate(name)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    return File(path.encode(), None if local else filesystem)


def resolve_path(folder: File, path: bytes) -> File:
    """Resolve the path of a record.

    Args:
        folder: the base folder for relative paths.
        path: a relative path, an absolute local path, or a URI.
    """
    if b"://" in path and is_uri(path.decode("utf-8", "replace")):
        return locate_file(path.decode())
    filesystem = None if path.startswith(b"/") else folder.filesystem
    return File(os.path.join(folder.path, path), filesystem)


def stat_local_file(path: str | bytes | Path) -> SizeAndTime:
    """Return the size and modification time of a local file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    if not (status_of.S_ISREG(status.st_mode) or status_of.S_ISDIR(status.st_mode)):
        # Reading a pipe or a device might never end.
        return None, None
    return status.st_size, status.st_mtime_ns


def stat_files(files: Sequence[File]) -> list[SizeAndTime]:
    """Return the sizes and modification times of files, with parallel requests for remote files.

    Raises:
        StorageError: the object store does not respond or denies access.
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
    """Return the contents of a file, or the reason (a str) if its record must be rejected.

    Args:
        file: the file.
        planned: its size and modification time when the run was planned; checked for remote files.

    Raises:
        InputError: the file has been removed or has changed since then.
        StorageError: the storage fails or denies access.
    """
    try:
        if file.filesystem is None:
            with open(file.path, "rb") as local:
                return local.read()
        content, time = call_with_retries(partial(_read_object, file))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"{file}: the file was removed after the run was planned") from error
    except OSError as error:
        if file.filesystem is None and isinstance(error, (PermissionError, IsADirectoryError)):
            return "unreadable"
        raise StorageError(f"{file}: cannot be read: {explain_error(error)}") from error
    size, before = planned
    if size is None:
        return content
    # Not every object store returns the modification time with the contents.
    if size != len(content) or (None not in (time, before) and time != before):
        raise explain_change(file)
    return content


def _read_object(file: File) -> tuple[bytes, int | None]:
    """Return the contents and modification time of a remote file."""
    filesystem: Any = file.filesystem
    with filesystem.open_input_file(file.path.decode()) as stream:
        return stream.read(), _parse_time(stream.metadata())


def _parse_time(metadata: dict[str, bytes] | None) -> int | None:
    """Return the modification time in ns from an object's metadata, or None if there is none."""
    modified = (metadata or {}).get("Last-Modified")
    if modified is None:
        return None
    return int(datetime.fromisoformat(modified.decode()).timestamp()) * 10**9


def explain_change(file: File, what: str = "has changed") -> InputError:
    """Return the error for a file that has changed since the run was planned."""
    return InputError(
        f"{file}: the file {what} since the run was planned; restore the original file, including "
        "its modification time, or start over with --overwrite"
    )


def read_contents(files: Sequence[File], planned: Sequence[SizeAndTime]) -> Iterator[bytes]:
    """Yield the contents of files in order, with read-ahead.

    Args:
        files: the files.
        planned: the size and modification time of each when the run was planned.

    Raises:
        InputError: a file has been removed or has changed since then.
        StorageError: the storage fails or denies access.
    """
    waiting: deque[tuple[Future[bytes], int]] = deque()
    held = 0
    with ThreadPoolExecutor(min(_MAX_REQUESTS, len(files))) as pool:
        try:
            for file, stat in zip(files, planned, strict=True):
                size = stat[0] or 0
                while waiting and (
                    len(waiting) >= _MAX_REQUESTS or held + size > _MAX_READ_AHEAD_BYTES
                ):
                    first, weight = waiting.popleft()
                    held -= weight
                    yield first.result()
                waiting.append((pool.submit(_read_content, file, stat), size))
                held += size
            for first, _ in waiting:
                yield first.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_content(file: File, planned: SizeAndTime) -> bytes:
    content = read_file(file, planned)
    # Empty contents fail to decode, so the reason is determined later by `diagnose`.
    return content if isinstance(content, bytes) else b""


def check_unchanged(files: Iterable[File], planned: Iterable[SizeAndTime]) -> None:
    """Check that files still have their planned size and modification time.

    Raises:
        InputError: a file has changed or is missing.
        StorageError: the object store does not respond.
    """
    all_files = list(files)
    for file, before, now in zip(all_files, planned, stat_files(all_files), strict=True):
        if before != (None, None) and now != before:
            raise explain_change(file, "is gone" if now == (None, None) else "has changed")
