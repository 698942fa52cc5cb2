# SPDX-License-Identifier: Apache-2.0
"""Read and write files on local disks and object stores, through pyarrow.fs.

Every write to a run folder goes through :class:`Folder`, so that a file appears completely or not
at all.
"""

import contextlib
import functools
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs as pafs

from ray_embed.core.uri import add_to_query, is_uri, redact_uri, remove_credentials
from ray_embed.errors import InputError
from ray_embed.storage.retry import call_with_retries, explain_error, wrap_os_errors

Result = TypeVar("Result")

TEMPORARY = ".tmp"
# File systems that show an object only when it is complete.
_OBJECT_STORES = ("s3", "gcs", "abfs")
_SCHEMES = {"s3": "s3://", "gcs": "gs://", "abfs": "abfs://", "hdfs": "hdfs://"}


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI or a local path, and the path in that file system.

    Raises:
        InputError: pyarrow does not know the file system, the file system does not answer, or the
            path is not UTF-8.
    """
    if not is_uri(uri):
        path = str(Path(uri).absolute())
        check_utf8(path)
        return pafs.LocalFileSystem(), path
    try:
        parts = urlsplit(quote(uri, safe="%/:?=&@+~!$'()*,;[]"))
        filesystem, base = _open_filesystem(urlunsplit(parts._replace(path="")))
    except OSError as error:
        raise InputError(f"{redact_uri(uri)}: cannot be opened: {explain_error(error)}") from error
    except (ValueError, ImportError) as error:
        reason = remove_credentials(str(error))
        raise InputError(
            f"{redact_uri(uri)}: not a location that can be opened: {reason}"
        ) from None
    return filesystem, posixpath.join(base, unquote(parts.path).lstrip("/")).rstrip("/")


@functools.lru_cache(maxsize=64)
def _open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Open the file system of a URI. For S3, this asks for the region of the bucket."""
    if uri.startswith("file:"):
        return pafs.LocalFileSystem(), "/"
    if uri.startswith("s3:"):
        # This writes a small object with one request instead of three.
        uri = add_to_query(uri, allow_delayed_open="true")
    located: tuple[pafs.FileSystem, str] = call_with_retries(lambda: pafs.FileSystem.from_uri(uri))
    return located


def format_path(filesystem: pafs.FileSystem, path: str) -> str:
    """Return a path on a file system in the form for messages: a URI if it is not local."""
    scheme = _SCHEMES.get(filesystem.type_name, "")
    return f"{scheme}{path}"


def check_utf8(path: str) -> None:
    """Refuse a path that is not UTF-8, because Arrow takes paths as text.

    Raises:
        InputError: the path is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise InputError(f"{name}: its name is not UTF-8; rename it, or link to it") from None


@dataclass(frozen=True)
class Folder:
    """A folder on any file system. Names are relative to it, and use ``/`` as the separator."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def open(cls, uri: str) -> "Folder":
        """Return the folder of a URI or a local path. It need not exist yet."""
        return cls(*locate(uri))

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local disk, so that functions of `os` work with it."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def join(self, name: str = "") -> str:
        """Return the path of `name`, or of the folder itself, on the folder's file system."""
        return posixpath.join(self.path, name) if name else self.path

    def display_path(self, name: str = "") -> str:
        """Return the path or URI of `name`, or of the folder itself, in the form for messages."""
        return format_path(self.filesystem, self.join(name))

    def get_info(self, name: str = "") -> pafs.FileInfo:
        """Return what is known about the file or folder `name`, which need not exist."""
        with wrap_os_errors(self.display_path(name), "accessed"):
            return self._retry(lambda: self.filesystem.get_file_info(self.join(name)))

    def exists(self, name: str = "") -> bool:
        """Return whether there is a file or folder `name`."""
        return bool(self.get_info(name).type != pafs.FileType.NotFound)

    def list_names(self, name: str = "") -> Iterator[str]:
        """Yield the names in the folder `name`, in any order. A missing folder has none."""
        if not self.is_local:
            yield from (info.base_name for info in self.list_infos(name))
            return
        with (
            wrap_os_errors(self.display_path(name), "listed"),
            contextlib.suppress(FileNotFoundError),
            # This yields one name at a time. pyarrow lists all at once, and examines every file.
            os.scandir(self.join(name)) as entries,
        ):
            yield from (entry.name for entry in entries)

    def list_infos(self, name: str = "", *, recursive: bool = False) -> list[pafs.FileInfo]:
        """Return what is known about the entries of the folder `name`.

        The list is empty if there is no such folder. With `recursive`, it includes everything below
        the folder.
        """
        selector = pafs.FileSelector(
            self.join(name).rstrip("/"), allow_not_found=True, recursive=recursive
        )
        with wrap_os_errors(self.display_path(name), "listed"):
            return self._retry(lambda: self.filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """Read the whole file `name`."""
        with wrap_os_errors(self.display_path(name), "read"):
            content: bytes = self.read_with(name, lambda stream: stream.read())
            return content

    def read_with(self, name: str, read: Callable[[pa.NativeFile], Result]) -> Result:
        """Open the file `name`, and return the result of `read`, which may be called again.

        Raises:
            OSError: the file cannot be opened or read.
        """

        def attempt() -> Result:
            with self.filesystem.open_input_file(self.join(name)) as stream:
                return read(stream)

        return self._retry(attempt)

    def write(self, name: str, content: bytes | pa.Buffer, *, durable: bool = False) -> None:
        """Write the file `name`, which appears completely or not at all, and replace an older file.

        Object stores show an object only when it is complete. On other file systems, the bytes go
        to a temporary file, which is then renamed. A `durable` file survives a power failure.
        """
        if not self.is_local:
            self._write_remote(name, content)
            return
        with self.stage(name) as temporary, open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def put(self, source: Path, name: str) -> None:
        """Copy a local file of any size to `name`, with the same guarantees as :meth:`write`."""
        if self.is_local:
            with self.stage(name) as temporary:
                shutil.copyfile(source, temporary)
            return
        with wrap_os_errors(str(source), "read"):
            empty = source.stat().st_size == 0
            mapped = None if empty else pa.memory_map(str(source))
        self._write_remote(name, b"" if mapped is None else mapped.read_buffer())

    def link(self, source: "Folder", name: str) -> None:
        """Write the file `name` of a local folder as a hard link to the same file of `source`,
        another local folder, or as a copy if the file system has no hard links between them.
        """
        with self.stage(name) as temporary:
            try:
                os.link(source.join(name), temporary)
            except OSError:
                shutil.copyfile(source.join(name), temporary)

    def _write_remote(self, name: str, content: bytes | pa.Buffer) -> None:
        path = self.join(name)
        is_atomic = self.filesystem.type_name in _OBJECT_STORES
        temporary = path if is_atomic else self.join(f"{TEMPORARY}/{uuid.uuid4().hex}")

        def attempt() -> None:
            if not is_atomic:
                for file in (temporary, path):
                    self.filesystem.create_dir(posixpath.dirname(file), recursive=True)
            # An exception in the block would publish half the object, so there is only one write.
            with self.filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
            if not is_atomic:
                self.filesystem.move(temporary, path)

        with wrap_os_errors(self.display_path(name), "written"):
            self._retry(attempt)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[str]:
        """Yield a temporary path in a local folder, which becomes `name` if no error is raised."""
        temporary = Path(self.join(TEMPORARY)) / f"{posixpath.basename(name)}.{uuid.uuid4().hex}"
        final = Path(self.join(name))
        with wrap_os_errors(str(final), "written"):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield str(temporary)
                final.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(final)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise

    def delete(self, name: str) -> None:
        """Delete the file or folder `name`, if there is one."""

        def attempt() -> None:
            info = self.filesystem.get_file_info(self.join(name))
            if info.type == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.join(name))
            elif info.type != pafs.FileType.NotFound:
                self.filesystem.delete_file(self.join(name))

        with wrap_os_errors(self.display_path(name), "deleted"):
            self._retry(attempt)

    def move(self, source: str, target: str) -> None:
        """Rename `source` in a local folder, and replace the file or folder `target`."""
        # Deleting a folder takes a while, so it is renamed first and nobody sees half of it.
        old = f"{TEMPORARY}/{posixpath.basename(target)}.{uuid.uuid4().hex}"
        with wrap_os_errors(self.join(target), "written"):
            if self.exists(target):
                self.filesystem.move(self.join(target), self.join(old))
            self.filesystem.move(self.join(source), self.join(target))
        self.delete(old)

    def _retry(self, operation: Callable[[], Result]) -> Result:
        # On local disks, a retry would fail in the same way.
        return operation() if self.is_local else call_with_retries(operation)
