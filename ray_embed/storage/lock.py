# SPDX-License-Identifier: Apache-2.0
"""Allow only one writer per run folder, by means of an operating system lock or leases.

Object stores have no locks. There, each writer writes its own object, the lease, and then looks for
other writers' leases. A writer that sees another lease steps back, so that at most one of two
writers continues. A writer renews its lease every few seconds, so that others can distinguish it
from the lease of a writer that was killed.
"""

import contextlib
import fcntl
import os
import random
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from ray_embed.core.console import say
from ray_embed.errors import InputError, StorageError
from ray_embed.storage.filesystem import TEMPORARY, Folder
from ray_embed.storage.retry import wrap_os_errors

LOCK = f"{TEMPORARY}/lock"
LEASES = f"{TEMPORARY}/leases"
# How long a process may take to disappear after it was killed.
_LOCK_SECONDS = 5.0
_RENEW_SECONDS, _STALE_SECONDS = 5.0, 30.0


@contextlib.contextmanager
def lock_folder(folder: Folder) -> Iterator[None]:
    """Lock a run folder for this process, and delete unfinished files that killed processes left.

    If the process is killed, a local folder is free immediately, and a folder on an object store is
    free half a minute later. If nothing else was written to the folder, nothing is left behind.

    Raises:
        InputError: another process writes to the folder.
        StorageError: the folder cannot be written to.
    """
    with _hold_lock(folder) if folder.is_local else _hold_lease(folder):
        yield


@contextlib.contextmanager
def _hold_lock(folder: Folder) -> Iterator[None]:
    lock = Path(folder.join(LOCK))
    with wrap_os_errors(folder.display_path(), "written"):
        descriptor, created = _acquire_lock(lock)
    try:
        with wrap_os_errors(str(lock.parent), "listed"):
            _delete_leftovers(lock)
        yield
    finally:
        with contextlib.suppress(OSError):
            _delete_leftovers(lock)
            lock.unlink()
            lock.parent.rmdir()
            # This fails, as it should, if something was written to these folders.
            for path in created:
                path.rmdir()
        os.close(descriptor)


def _acquire_lock(lock: Path) -> tuple[int, list[Path]]:
    """Lock a file for this process; return its descriptor, and the folders that were created.

    Raises:
        InputError: another process holds the lock.
    """
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        created = [path for path in lock.parents[1:] if not path.exists()]
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have deleted the file.
            if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{_describe_process()}\n".encode())
                return descriptor, created
            os.close(descriptor)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            if time.monotonic() > end:
                raise _make_error(str(lock.parents[1]), holder) from error
            time.sleep(0.1)
        except BaseException:
            os.close(descriptor)
            raise


def _describe_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _make_error(folder: str, holder: str) -> InputError:
    return InputError(
        f"{folder}: another ray-embed is writing to it ({holder}); wait for it, stop it, or give a "
        "new run another --out"
    )


def _delete_leftovers(lock: Path) -> None:
    """Delete the unfinished files of processes that were killed."""
    for path in lock.parent.iterdir():
        if path == lock:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def _hold_lease(folder: Folder) -> Iterator[None]:
    own_lease = f"{LEASES}/{uuid.uuid4().hex}"
    _acquire_lease(folder, own_lease)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew_lease, args=(folder, own_lease, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        with contextlib.suppress(StorageError):
            folder.delete(own_lease)


def _acquire_lease(folder: Folder, own_lease: str) -> None:
    """Write this process's lease, and wait until there is no other lease.

    Raises:
        InputError: another lease is being renewed.
    """
    seen: dict[str, int] = {}
    while True:
        folder.write(own_lease, _describe_process().encode())
        leases = {
            info.base_name: info.mtime_ns for info in folder.list_infos(LEASES) if info.is_file
        }
        # All times are from the clock of the store.
        now = leases.pop(own_lease.rpartition("/")[2], max(leases.values(), default=0))
        others = {}
        for name, renewed in leases.items():
            holder = _read_holder(folder, name)
            if holder is None:
                continue
            if now - renewed > _STALE_SECONDS * 1e9 or _is_gone(holder):
                folder.delete(f"{LEASES}/{name}")
            else:
                others[name] = renewed
                if seen.get(name, renewed) != renewed:
                    folder.delete(own_lease)
                    raise _make_error(folder.display_path(), holder)
        if not others:
            return
        folder.delete(own_lease)
        if not seen:
            say(f"{folder.display_path()}: another ray-embed may be writing to it; waiting")
        seen = others
        # Two writers that start at the same time both step back, so their retries must differ.
        time.sleep(random.uniform(1, 3))  # noqa: S311 - no secret


def _read_holder(folder: Folder, name: str) -> str | None:
    """Return the process that holds a lease; None if the lease has just been deleted."""
    try:
        return folder.read(f"{LEASES}/{name}").decode("utf-8", "replace")
    except StorageError:
        return None


def _is_gone(holder: str) -> bool:
    """Return whether the holder of a lease was a process on this machine that has ended."""
    _, number, _, host = (*holder.split(" ", 3), "", "", "")[:4]
    if host != socket.gethostname() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _renew_lease(folder: Folder, own_lease: str, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_SECONDS):
        # An error does no harm, because the next renewal follows soon.
        with contextlib.suppress(StorageError):
            folder.write(own_lease, _describe_process().encode())
