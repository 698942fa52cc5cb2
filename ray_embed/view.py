# SPDX-License-Identifier: Apache-2.0
"""Opens TensorBoard on a run's projector."""

import contextlib
import getpass
import os
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ray_embed.errors import InputError, RunError
from ray_embed.filesystem import is_uri, shown
from ray_embed.results import load


def projector_folder(run: str) -> Path:
    """Give the projector folder of a run.

    Raises:
        InputError: no run, or it was not reduced yet.
    """
    if is_uri(run):
        raise InputError(f"{shown(run)}: only local run folders can be viewed so far")
    folder = Path(load(run).projector_path).absolute()
    if not (folder / "projector_config.pbtxt").exists():
        raise InputError(f"{run}: nothing to view yet; `ray-embed reduce {run}` makes it")
    return folder


def view(
    run: str, host: str, port: int | None, say: Callable[[str], None], wait: bool = True
) -> None:
    """Serve a run's projector with TensorBoard until interrupted.

    Args:
        run: the run folder.
        host: the address to listen on.
        port: the port; None for the first free one from 6006 on.
        say: takes the lines for the user.
        wait: whether to stay until interrupted.

    Raises:
        InputError: no such run, or the port is taken.
    """
    folder = projector_folder(run)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tensorboard import default, program

    server = program.TensorBoard(default.get_plugins())
    arguments = ["tensorboard", "--logdir", str(folder), "--host", host]
    server.configure(argv=arguments + ([] if port is None else ["--port", str(port)]))
    try:
        url = server.launch()
    except program.TensorBoardPortInUseError as error:
        raise InputError(f"--port {port}: it is in use; choose another one") from error
    except program.TensorBoardServerException as error:
        raise RunError(f"TensorBoard does not start: {error.msg}") from error
    # The plugin finds out whether it is active when first asked, and says no until it has.
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{url.rstrip('/')}/data/plugins_listing").read()  # noqa: S310
    say(f"{url.rstrip('/')}/#projector")
    if "SSH_CONNECTION" in os.environ:
        used = url.rstrip("/").rpartition(":")[2]
        say(
            "from your own machine: "
            f"ssh -L {used}:localhost:{used} {getpass.getuser()}@{socket.gethostname()}"
        )
    while wait:
        time.sleep(3600)
