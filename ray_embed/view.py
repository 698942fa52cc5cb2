# SPDX-License-Identifier: Apache-2.0
"""Opens TensorBoard on a run's projector."""

import contextlib
import getpass
import os
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from ray_embed.errors import InputError, RunError
from ray_embed.filesystem import Folder
from ray_embed.projector import CONFIG
from ray_embed.results import load
from ray_embed.scratch import fetched
from ray_embed.uri import shown


@contextlib.contextmanager
def projector_folder(run: str) -> Iterator[Path]:
    """Give the projector folder of a run; a local copy of one on an object store.

    Raises:
        InputError: no run, or it was not reduced yet.
        RunError: there is no room for the copy, or the storage fails.
    """
    uri = load(run).projector_path
    folder = Folder.at(uri)
    if not folder.exists(CONFIG):
        name = shown(run)
        raise InputError(f"{name}: nothing to view yet; `ray-embed reduce {name}` makes it")
    if folder.is_local:
        yield Path(folder.path)
        return
    with tempfile.TemporaryDirectory(prefix="ray_embed-") as scratch:
        yield fetched(uri, Path(scratch), "view")


def view(run: str, host: str, port: int | None, say: Callable[[str], None]) -> NoReturn:
    """Serve a run's projector with TensorBoard until interrupted.

    Args:
        run: the run folder.
        host: the address to listen on.
        port: the port; None for the first free one from 6006 on.
        say: takes the lines for the user.

    Raises:
        InputError: no such run, or the port is taken.
        RunError: TensorBoard does not start, or the run cannot be fetched.
    """
    with projector_folder(run) as folder:
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
    except program.TensorBoardServerException as error:
        raise RunError(f"TensorBoard does not start: {error.msg}") from error
    # The plugin finds out whether it is active when first asked, and says no until it has.
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{url.rstrip('/')}/data/plugins_listing").read()  # noqa: S310
    return url
