# SPDX-License-Identifier: Apache-2.0
"""Files wherever they are: the few storage operations the package needs, over pyarrow.fs.

Every write of a run folder goes through :class:`Folder`: a file appears whole or not at all.
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
# Of these an object is seen once it is complete, and not before.
_OBJECT_STORES = ("s3", "gcs", "abfs")
_SCHEMES = {"s3": "s3://", "gcs": "gs://", "abfs": "abfs://", "hdfs": "hdfs://"}


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """Give the file system and the path in it that `uri` (or a local path) names.

    Raises:
        InputError: pyarrow knows no such file system, it does not answer, or the path is no text.
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
        said = remove_credentials(str(error))
        raise InputError(f"{redact_uri(uri)}: not a location that can be opened: {said}") from None
    return filesystem, posixpath.join(base, unquote(parts.path).lstrip("/")).rstrip("/")


@functools.lru_cache(maxsize=64)
def _open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Open what holds a URI's paths: for S3 that asks where the bucket is."""
    if uri.startswith("file:"):
        return pafs.LocalFileSystem(), "/"
    if uri.startswith("s3:"):
        # A small object is written by one request, and not by three.
        uri = add_to_query(uri, allow_delayed_open="true")
    opened: tuple[pafs.FileSystem, str] = call_with_retries(lambda: pafs.FileSystem.from_uri(uri))
    return opened


def format_path(filesystem: pafs.FileSystem, path: str) -> str:
    """Give a path on a file system as messages name it: as a URI where it is not local."""
    scheme = _SCHEMES.get(filesystem.type_name, "")
    return f"{scheme}{path}"


def check_utf8(path: str) -> None:
    """Refuse a path that is not UTF-8, as Arrow's files are named by text.

    Raises:
        InputError: it is not.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise InputError(f"{name}: its name is not UTF-8; rename it, or link to it") from None


@dataclass(frozen=True)
class Folder:
    """A folder on any file system; names are relative to it, with ``/`` between the parts."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def open(cls, uri: str) -> "Folder":
        """Open the folder `uri` names; it need not exist yet."""
        return cls(*locate(uri))

    @property
    def is_local(self) -> bool:
        """Whether the operating system's own calls reach the folder."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def join(self, name: str = "") -> str:
        """Give the path of `name`, or of the folder, for this folder's file system."""
        return posixpath.join(self.path, name) if name else self.path

    def display_path(self, name: str = "") -> str:
        """Give the path or URI of `name` (or of the folder) as messages name it."""
        return format_path(self.filesystem, self.join(name))

    def get_info(self, name: str = "") -> pafs.FileInfo:
        """Look at the file or folder `name`, which need not be there."""
        with wrap_os_errors(self.display_path(name), "looked at"):
            return self._retry(lambda: self.filesystem.get_file_info(self.join(name)))

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder `name`."""
        return bool(self.get_info(name).type != pafs.FileType.NotFound)

    def list_names(self, name: str = "") -> Iterator[str]:
        """Give what is directly in the folder `name`, in any order; nothing where there is none."""
        if not self.is_local:
            yield from (info.base_name for info in self.list_infos(name))
            return
        with (
            wrap_os_errors(self.display_path(name), "listed"),
            contextlib.suppress(FileNotFoundError),
            # A name at a time, where pyarrow lists all at once and looks at each file.
            os.scandir(self.join(name)) as entries,
        ):
            yield from (entry.name for entry in entries)

    def list_infos(self, name: str = "", *, recursive: bool = False) -> list[pafs.FileInfo]:
        """Look at what is (directly) in the folder `name`; nothing where there is none."""
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
        """Open the file `name`, and give what `read` makes of it; it may be called again.

        Raises:
            OSError: it cannot be opened or read.
        """

        def attempt() -> Result:
            with self.filesystem.open_input_file(self.join(name)) as stream:
                return read(stream)

        return self._retry(attempt)

    def write(self, name: str, content: bytes | pa.Buffer, *, durable: bool = False) -> None:
        """Write the file `name` so that it is seen whole or not at all, replacing what was there.

        Object stores show an object only once it is complete; elsewhere the bytes go to a
        temporary file first, which is then renamed. A `durable` file outlasts a loss of power.
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
        """Write a copy of a local file, of any size, as `name`, as :meth:`write` does."""
        if self.is_local:
            with self.stage(name) as temporary:
                shutil.copyfile(source, temporary)
            return
        with wrap_os_errors(str(source), "read"):
            empty = source.stat().st_size == 0
            mapped = None if empty else pa.memory_map(str(source))
        self._write_remote(name, b"" if mapped is None else mapped.read_buffer())

    def _write_remote(self, name: str, content: bytes | pa.Buffer) -> None:
        path = self.join(name)
        whole = self.filesystem.type_name in _OBJECT_STORES
        first = path if whole else self.join(f"{TEMPORARY}/{uuid.uuid4().hex}")

        def attempt() -> None:
            if not whole:
                for file in (first, path):
                    self.filesystem.create_dir(posixpath.dirname(file), recursive=True)
            # Leaving the block by an exception would publish half the object: one write, no more.
            with self.filesystem.open_output_stream(first) as stream:
                stream.write(content)
            if not whole:
                self.filesystem.move(first, path)

        with wrap_os_errors(self.display_path(name), "written"):
            self._retry(attempt)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[str]:
        """Give a temporary path in a local folder; left without an error it becomes `name`."""
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
        """Delete the file or folder `name` where there is one."""

        def attempt() -> None:
            info = self.filesystem.get_file_info(self.join(name))
            if info.type == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.join(name))
            elif info.type != pafs.FileType.NotFound:
                self.filesystem.delete_file(self.join(name))

        with wrap_os_errors(self.display_path(name), "deleted"):
            self._retry(attempt)

    def move(self, source: str, target: str) -> None:
        """Rename `source` in a local folder, replacing the file or folder `target`."""
        # Deleting a folder takes a while, in which it would be seen half: it is renamed first.
        aside = f"{TEMPORARY}/{posixpath.basename(target)}.{uuid.uuid4().hex}"
        with wrap_os_errors(self.join(target), "written"):
            if self.exists(target):
                self.filesystem.move(self.join(target), self.join(aside))
            self.filesystem.move(self.join(source), self.join(target))
        self.delete(aside)

    def _retry(self, operation: Callable[[], Result]) -> Result:
        # What a local disk refuses it refuses again.
        return operation() if self.is_local else call_with_retries(operation)
