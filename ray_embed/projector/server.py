# SPDX-License-Identifier: Apache-2.0
"""Open TensorBoard with the projectors of one or more runs."""

import contextlib
import getpass
import json
import os
import re
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from pyarrow.fs import FileType

from ray_embed.core.uri import join_uri, redact_uri
from ray_embed.encoders.tensorflow_setup import hide_startup_messages
from ray_embed.errors import InputError, RunError
from ray_embed.runs.reader import open_run
from ray_embed.storage import layout, manifest
from ray_embed.storage.download import download
from ray_embed.storage.filesystem import Folder, locate

# How many levels below a folder to look for runs: `runs/run7` and `runs/training3/epoch-10`.
_LEVELS = 2
# How many seconds to wait for the plugin, which imports TensorFlow first.
_PATIENCE = 30
# The page puts a run's name into URLs without escaping it.
_UNSAFE = re.compile(r"[&#+%]")


@contextlib.contextmanager
def open_log_folder(given: Sequence[str], say: Callable[[str], None]) -> Iterator[Path]:
    """Yield a folder for TensorBoard's ``--logdir`` that has the projectors of runs.

    For one run, it is the run's own projector folder. For several, it is a temporary folder of
    links, which are named by :func:`make_unique_names`. Projectors on an object store are copied
    first.

    Args:
        given: run folders, and folders that hold run folders.
        say: called with a line for each run that is skipped because it has not been reduced.

    Raises:
        InputError: there is no run among the folders, or none has been reduced.
        RunError: there is not enough space for a copy, or the storage fails.
    """
    found = [run for one in given for run in find_runs(one)]
    runs = list({_normalize_path(run): run for run in found}.values())
    ready = [run for run in runs if _is_reduced(run)]
    waiting = [redact_uri(run) for run in runs if run not in ready]
    if not ready:
        names = ", ".join(waiting)
        raise InputError(f"{names}: nothing to view yet; `ray-embed reduce {waiting[0]}` makes it")
    for name in waiting:
        say(f"left out  {name}: not reduced yet; `ray-embed reduce {name}` does that")
    with tempfile.TemporaryDirectory(prefix="ray_embed-") as scratch:
        copies, links = Path(scratch, "copies"), Path(scratch, "links")
        folders = [_fetch_projector(run, copies / str(at)) for at, run in enumerate(ready)]
        if list(given) == ready and len(ready) == 1:
            yield folders[0]
            return
        for name, folder in zip(make_unique_names(ready), folders, strict=True):
            link = links / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder, target_is_directory=True)
        yield links


def _is_reduced(run: str) -> bool:
    return Folder.open(join_uri(run, layout.PROJECTOR)).exists(layout.PROJECTOR_CONFIG)


def find_runs(given: str) -> list[str]:
    """Return the run folders of a path or URI: the folder itself, or those up to two levels below.

    Raises:
        InputError: the folder is not a run folder and contains none.
    """
    folder = Folder.open(given)
    if folder.exists(layout.RUN):
        open_run(given)
        return [given]
    below = [join_uri(given, name) for name in _find_runs_below(folder, _LEVELS)]
    if not below:
        name = redact_uri(given)
        raise InputError(
            f"{name}: not a run folder, and it holds none; `ray-embed run --out {name}` writes one"
        )
    return below


def _find_runs_below(folder: Folder, levels: int, name: str = "") -> Iterator[str]:
    """Yield the run folders below the folder `name`, by their paths from `folder`."""
    infos = (info for info in folder.list_infos(name) if info.type == FileType.Directory)
    for info in sorted(infos, key=lambda info: info.base_name):
        inside = f"{name}/{info.base_name}".lstrip("/")
        if manifest.is_run(Folder(folder.filesystem, folder.join(inside))):
            yield inside
        elif levels > 1:
            yield from _find_runs_below(folder, levels - 1, inside)


def make_unique_names(runs: Sequence[str]) -> list[str]:
    """Name runs after their folders, with as many parent folders as needed to tell them apart.

    All names have the same number of folders, so that no name is a subfolder of another one.
    """
    paths = [_UNSAFE.sub("_", _normalize_path(run)).strip("/").split("/") for run in runs]
    for length in range(1, min(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"{number}-{path[-1]}" for number, path in enumerate(paths, 1)]


def _normalize_path(run: str) -> str:
    return os.path.normpath(locate(run)[1])


def _fetch_projector(run: str, copy: Path) -> Path:
    uri = join_uri(run, layout.PROJECTOR)
    folder = Folder.open(uri)
    return Path(folder.path) if folder.is_local else download(uri, copy, "view")


def view(runs: Sequence[str], host: str, port: int | None, say: Callable[[str], None]) -> NoReturn:
    """Serve the projectors of runs with one TensorBoard until interrupted.

    Args:
        runs: run folders, and folders that hold run folders.
        host: the address to listen on.
        port: the port. If None, the first free port from 6006 on.
        say: prints a line for the user.

    Raises:
        InputError: a run does not exist, or the port is in use.
        RunError: TensorBoard does not start, or a run cannot be fetched.
    """
    with open_log_folder(runs, say) as folder:
        # TensorBoard imports TensorFlow when it is first asked for the runs.
        with hide_startup_messages():
            url = _serve(folder, host, port).rstrip("/")
        say(f"{url}/#projector")
        if "SSH_CONNECTION" in os.environ:
            used = url.rpartition(":")[2]
            say(
                "from your own machine: "
                f"ssh -L {used}:localhost:{used} {getpass.getuser()}@{socket.gethostname()}"
            )
        while True:
            time.sleep(3600)


def _serve(folder: Path, host: str, port: int | None) -> str:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tensorboard import default, program

    server = program.TensorBoard(default.get_plugins())
    arguments = ["tensorboard", "--logdir", str(folder), "--host", host]
    server.configure(argv=arguments + ([] if port is None else ["--port", str(port)]))
    try:
        url: str = server.launch()
    except program.TensorBoardPortInUseError as error:
        raise InputError(f"--port {port}: it is in use; choose another one") from error
    except SystemExit as error:
        # TensorBoard has printed the reason, and would exit the program here.
        where = host if port is None else f"{host} --port {port}"
        raise InputError(f"--host {where}: TensorBoard cannot listen there") from error
    except program.TensorBoardServerException as error:
        raise RunError(f"TensorBoard does not start: {error.msg}") from error
    _wait_until_active(url.rstrip("/"))
    return url


def _wait_until_active(url: str) -> None:
    """Wait, for a limited time, until the plugin has found the runs: the page asks only once."""
    until = time.monotonic() + _PATIENCE
    with contextlib.suppress(OSError, ValueError, KeyError):
        while time.monotonic() < until:
            listing = urllib.request.urlopen(f"{url}/data/plugins_listing").read()  # noqa: S310
            if json.loads(listing)["projector"]["enabled"]:
                return
            time.sleep(0.1)
