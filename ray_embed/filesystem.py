# SPDX-License-Identifier: Apache-2.0
"""Files wherever they are: the few storage operations the package needs, over pyarrow.fs.

Every write of a run folder goes through :class:`Folder`: a file appears whole or not at all.
"""

import contextlib
import fcntl
import os
import posixpath
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pyarrow import fs as pafs

from ray_embed.errors import InputError, StorageError

TEMPORARY = ".tmp"
LOCK = f"{TEMPORARY}/lock"
# What was killed a moment ago takes so long to be gone.
_LOCK_SECONDS = 5.0
_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s\"]*@")


def is_uri(text: str) -> bool:
    """Whether `text` names a scheme (``s3://…``), not a path."""
    return bool(_URI.match(text))


def shown(uri: str) -> str:
    """Give the URI as it may be printed and stored: without user, password and query."""
    if not is_uri(uri):
        return uri
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def without_credentials(text: str, instead: str = "") -> str:
    """Give a text, another library's error say, without users and passwords of URIs in it."""
    return _CREDENTIALS.sub(instead, text)


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """Give the file system and the path in it that `uri` (or a local path) names.

    Raises:
        InputError: pyarrow knows no such file system, or the path is no text.
    """
    if not is_uri(uri):
        path = str(Path(uri).absolute())
        check_text(path)
        return pafs.LocalFileSystem(), path
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        said = without_credentials(str(error))
        raise InputError(f"{shown(uri)}: not a location that can be opened: {said}") from None
    return filesystem, path


def check_text(path: str) -> None:
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
    def at(cls, uri: str) -> "Folder":
        """Open the folder `uri` names; it need not exist yet."""
        return cls(*locate(uri))

    @property
    def is_local(self) -> bool:
        """Whether the operating system's own calls reach the folder."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def join(self, name: str) -> str:
        """Give the path of `name` for this folder's file system."""
        return posixpath.join(self.path, name)

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder `name`."""
        with _named(self.join(name), "looked at"):
            info = self.filesystem.get_file_info(self.join(name))
            return bool(info.type != pafs.FileType.NotFound)

    def names(self, name: str = "") -> Iterator[str]:
        """Give what is directly in the folder `name`, in any order; nothing where there is none."""
        with _named(self.join(name), "listed"):
            if self.is_local:
                # A name at a time, where pyarrow lists all at once and looks at each file.
                with contextlib.suppress(FileNotFoundError), os.scandir(self.join(name)) as entries:
                    yield from (entry.name for entry in entries)
                return
            selector = pafs.FileSelector(self.join(name), allow_not_found=True)
            yield from (info.base_name for info in self.filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """Read the whole file `name`."""
        with _named(self.join(name), "read"):
            with self.filesystem.open_input_file(self.join(name)) as stream:
                content: bytes = stream.read()
            return content

    def write(self, name: str, content: bytes, *, durable: bool = False) -> None:
        """Write the file `name` so that it is seen whole or not at all, replacing what was there.

        Object stores show an object only once it is complete; elsewhere the bytes go to a
        temporary file first, which is then renamed. A `durable` file outlasts a loss of power.
        """
        if not self.is_local:
            # Leaving the block by an exception would publish half the object: one write, no more.
            with (
                _named(self.join(name), "written"),
                self.filesystem.open_output_stream(self.join(name)) as stream,
            ):
                stream.write(content)
            return
        with self.staged(name) as temporary, open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def staged(self, name: str) -> Iterator[str]:
        """Give a temporary local path; on leaving without an error it becomes `name`."""
        temporary = Path(self.join(TEMPORARY)) / f"{posixpath.basename(name)}.{uuid.uuid4().hex}"
        final = Path(self.join(name))
        with _named(str(final), "written"):
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
        with _named(self.join(name), "deleted"):
            info = self.filesystem.get_file_info(self.join(name))
            if info.type == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.join(name))
            elif info.type != pafs.FileType.NotFound:
                self.filesystem.delete_file(self.join(name))

    def move(self, source: str, target: str) -> None:
        """Rename `source`, replacing the file or folder `target`."""
        # Deleting a folder takes a while, in which it would be seen half: it is renamed first.
        aside = f"{TEMPORARY}/{posixpath.basename(target)}.{uuid.uuid4().hex}"
        with _named(self.join(target), "written"):
            if self.exists(target):
                self.filesystem.move(self.join(target), self.join(aside))
            self.filesystem.move(self.join(source), self.join(target))
        self.delete(aside)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one that writes to the folder; what others left unfinished is cleared away.

        The operating system gives the folder free with the end of the process, however it ends.
        Leaves nothing where nothing else was written.

        Raises:
            InputError: another process writes to it.
            StorageError: nothing can be written to it.
        """
        if not self.is_local:
            yield
            return
        lock = Path(self.join(LOCK))
        with _named(self.path, "written"):
            held, made = _hold(lock)
        try:
            with _named(str(lock.parent), "listed"):
                _clear_beside(lock)
            yield
        finally:
            with contextlib.suppress(OSError):
                _clear_beside(lock)
                lock.unlink()
                lock.parent.rmdir()
                # Only where nothing came of it.
                for path in made:
                    path.rmdir()
            os.close(held)


@contextlib.contextmanager
def _named(path: str, doing: str) -> Iterator[None]:
    """Let an error of the storage say which file it was about, and what was tried.

    Raises:
        StorageError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        what = without_credentials(error.strerror or str(error))
        raise StorageError(f"{shown(path)}: cannot be {doing}: {what}") from error


def _hold(lock: Path) -> tuple[int, list[Path]]:
    """Lock a file for this process; gives its descriptor, and the folders made for it.

    Raises:
        InputError: another process holds it.
    """
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        made = [path for path in lock.parents[1:] if not path.exists()]
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it before may have deleted it.
            if lock.exists() and os.path.samestat(os.fstat(held), lock.stat()):
                os.ftruncate(held, 0)
                os.write(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return held, made
            os.close(held)
        except BlockingIOError as error:
            holder = os.read(held, 200).decode("utf-8", "replace").strip()
            os.close(held)
            if time.monotonic() > end:
                raise InputError(
                    f"{lock.parents[1]}: another ray-embed is writing to it ({holder}); wait for "
                    "it, stop it, or give another --out"
                ) from error
            time.sleep(0.1)
        except BaseException:
            os.close(held)
            raise


def _clear_beside(lock: Path) -> None:
    """Delete what processes that were killed have left unfinished."""
    for left in lock.parent.iterdir():
        if left == lock:
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()
