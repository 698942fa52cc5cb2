# SPDX-License-Identifier: Apache-2.0
"""Scripts with runs that start Ray themselves, each in a Python process of its own."""

import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

# A light actor, because what is kept of a run does not depend on what its actors do.
_BEGINNING = '''
import os, sys, threading, time
from pathlib import Path
import ray
import ray_embed
from ray_embed.config import make_config
from ray_embed.core import user_code
from ray_embed.core.imported_code import ImportedCode
from ray_embed.runtime import warm_ray
from ray_embed.runtime.session import open_session

class Actor:
    def __init__(self, threads, folder):
        os.chdir(folder)
        user_code.add_to_path(folder)
        self._code = ImportedCode()

    def call(self, function, *arguments):
        return function(*arguments)

    def reuse(self, folder):
        return self._code.prepare_for_run(folder)

def call(function, *arguments, **options):
    """Call a function in the actor of a run of its own."""
    given = {"sources": {"a": "x"}, "model": "m.keras", "cpus_per_actor": 1, "actors": 1}
    with open_session([make_config(given | options)], Actor) as running:
        return running.call(function, *arguments)()

def node():
    return ray.get_runtime_context().get_node_id()

def is_running(pid):
    for _ in range(100):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        if stat.rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.05)
    return True

def import_helper():
    import helper_of_a_run
    return helper_of_a_run.NAME

'''


def run_script(
    script: str, folder: Path, environment: Mapping[str, str] | None = None, timeout: float = 120
) -> str:
    """Run a script that calls the functions above, and return what it printed on stderr.

    It fails where an assertion of the script does.
    """
    path = folder / "script_with_runs.py"
    path.write_text(_BEGINNING + textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stderr
