# SPDX-License-Identifier: Apache-2.0
"""One writer to a run folder at a time: by a lock of the operating system, or by leases.

An object store has no locks. There each writer puts an object of its own, and then looks for
others': whoever sees another's steps back, so that of two at most one goes on. It writes its object
again and again, so that it can be told from that of a writer that was killed.
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
# What was killed a moment ago takes so long to be gone.
_LOCK_SECONDS = 5.0
_RENEW_SECONDS, _STALE_SECONDS = 5.0, 30.0


@contextlib.contextmanager
def lock_folder(folder: Folder) -> Iterator[None]:
    """Be the only one that writes to the folder; what others left unfinished is cleared away.

    A local folder is free with the end of the process, however it ends; one on an object store
    half a minute later. Leaves nothing where nothing else was written.

    Raises:
        InputError: another process writes to it.
        StorageError: nothing can be written to it.
    """
    with _hold_lock(folder) if folder.is_local else _hold_lease(folder):
        yield


@contextlib.contextmanager
def _hold_lock(folder: Folder) -> Iterator[None]:
    lock = Path(folder.join(LOCK))
    with wrap_os_errors(folder.display_path(), "written"):
        held, made = _acquire_lock(lock)
    try:
        with wrap_os_errors(str(lock.parent), "listed"):
            _delete_leftovers(lock)
        yield
    finally:
        with contextlib.suppress(OSError):
            _delete_leftovers(lock)
            lock.unlink()
            lock.parent.rmdir()
            # Only where nothing came of it.
            for path in made:
                path.rmdir()
        os.close(held)


def _acquire_lock(lock: Path) -> tuple[int, list[Path]]:
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
                os.write(held, f"{_describe_process()}\n".encode())
                return held, made
            os.close(held)
        except BlockingIOError as error:
            holder = os.read(held, 200).decode("utf-8", "replace").strip()
            os.close(held)
            if time.monotonic() > end:
                raise _make_error(str(lock.parents[1]), holder) from error
            time.sleep(0.1)
        except BaseException:
            os.close(held)
            raise


def _describe_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _make_error(folder: str, holder: str) -> InputError:
    return InputError(
        f"{folder}: another ray-embed is writing to it ({holder}); wait for it or stop it; a new "
        "run may have another --out"
    )


def _delete_leftovers(lock: Path) -> None:
    """Delete what processes that were killed have left unfinished."""
    for left in lock.parent.iterdir():
        if left == lock:
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


@contextlib.contextmanager
def _hold_lease(folder: Folder) -> Iterator[None]:
    ours = f"{LEASES}/{uuid.uuid4().hex}"
    _acquire_lease(folder, ours)
    over = threading.Event()
    renewing = threading.Thread(target=_renew_lease, args=(folder, ours, over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(StorageError):
            folder.delete(ours)


def _acquire_lease(folder: Folder, ours: str) -> None:
    """Put our lease once there is no other.

    Raises:
        InputError: another one is being renewed.
    """
    seen: dict[str, int] = {}
    while True:
        folder.write(ours, _describe_process().encode())
        leases = {
            info.base_name: info.mtime_ns for info in folder.list_infos(LEASES) if info.is_file
        }
        # By the clock of the store, which has them all.
        now = leases.pop(ours.rpartition("/")[2], max(leases.values(), default=0))
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
                    folder.delete(ours)
                    raise _make_error(folder.display_path(), holder)
        if not others:
            return
        folder.delete(ours)
        if not seen:
            say(f"{folder.display_path()}: another ray-embed wrote to it just now; waiting to see")
        seen = others
        # Two that start at once both step back: not to the same moment.
        time.sleep(random.uniform(1, 3))  # noqa: S311 - no secret


def _read_holder(folder: Folder, name: str) -> str | None:
    """Read whose lease it is; None where it has just been given back."""
    try:
        return folder.read(f"{LEASES}/{name}").decode("utf-8", "replace")
    except StorageError:
        return None


def _is_gone(holder: str) -> bool:
    """Whether the holder of a lease was a process of this machine that is no more."""
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


def _renew_lease(folder: Folder, ours: str, over: threading.Event) -> None:
    while not over.wait(_RENEW_SECONDS):
        # What fails is tried again in a moment.
        with contextlib.suppress(StorageError):
            folder.write(ours, _describe_process().encode())
