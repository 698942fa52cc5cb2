# SPDX-License-Identifier: Apache-2.0
"""Start Ray on this machine, and describe what its processes inherit from this one."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ray_embed.config import LOCAL, RunConfig
from ray_embed.core import user_code
from ray_embed.core.imported_code import is_installed
from ray_embed.core.interrupts import defer_interrupts
from ray_embed.errors import RunError, get_first_line
from ray_embed.runtime import ray_private, resources

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

# Variables that concern only this process, or that packages set when they are imported, as they do
# in other processes.
_OWN_VARIABLES = {
    *("COLUMNS", "LINES", "PYTEST_CURRENT_TEST"),
    *("TF2_BEHAVIOR", "TPU_ML_PLATFORM", "TPU_ML_PLATFORM_VERSION"),
    *("ENABLE_RUNTIME_UPTIME_TELEMETRY", "HDF5_PLUGIN_PATH"),
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
}


@dataclass(frozen=True)
class Inherited:
    """What the processes of a local Ray inherit from this process when Ray starts.

    `search_path` lacks the folders of Python itself and of installed packages.
    """

    environment: dict[str, str]
    search_path: tuple[str, ...]
    folder: str


def read_inherited() -> Inherited:
    """Return what a Ray that is started now would inherit."""
    environment = {k: v for k, v in os.environ.items() if k not in _OWN_VARIABLES}
    return Inherited(environment, tuple(_list_own_folders()), str(Path.cwd()))


def count_cpus(config: RunConfig, threads: int | None) -> int:
    """Return the (logical) CPUs that the actors of a run need, at least those of the machine."""
    cores = os.cpu_count() or 1
    return max(cores, (config.actors or 1) * resources.choose_threads(threads, cores))


def start_ray(cpus: int) -> None:
    """Start Ray, listening only on the loopback address.

    Raises: RunError: Ray cannot be started.
    """
    try:
        # An interrupt while Ray connects can leave it waiting forever: it destroys a client whose
        # threads are still running (seen in Ray 2.60).
        with (
            defer_interrupts(),
            ray_private.only_on_loopback(),
            ray_private.without_helpers(),
            ray_private.noticing_nodes_early(),
        ):
            _call_in_lasting_thread(
                lambda: ray.init(
                    LOCAL,
                    num_cpus=cpus,
                    include_dashboard=False,
                    job_config=ray_private.make_job_config(_list_own_folders()),
                    # Prestarted workers would compete for cores with the first actor. By default,
                    # workers yield to all other processes, and starve on a busy machine.
                    _system_config={"prestart_worker_first_driver": False, "worker_niceness": 0},
                    **QUIET,
                )
            )
    except Exception as error:
        # Ray has no specific exception for this.
        raise RunError(
            f"Ray could not be started on this machine: {get_first_line(error)}"
        ) from error


def _call_in_lasting_thread(function: Callable[[], object]) -> None:
    """Call a function in a thread that lives as long as this process.

    On Linux, the processes of Ray are killed when the thread ends that has started them.
    """
    if threading.current_thread() is threading.main_thread():
        function()
        return
    called: Future[None] = Future()

    def call_and_stay() -> None:
        try:
            function()
        except Exception as error:
            called.set_exception(error)
        else:
            called.set_result(None)
            threading.Event().wait()

    threading.Thread(target=call_and_stay, daemon=True).start()
    called.result()


def _list_own_folders() -> list[str]:
    """Return the folders on the import path that another Python does not search by itself."""
    return [
        folder
        for folder in sys.path
        if folder and not user_code.is_added(folder) and not is_installed(folder)
    ]
