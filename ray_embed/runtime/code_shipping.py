# SPDX-License-Identifier: Apache-2.0
"""Send the user's modules to the nodes of a cluster, which may lack access to their folder.

The files sent are the ``.py`` files of the modules that the options name, and of all modules in the
same folder that they import. Modules located elsewhere must be installed on the nodes. Data files,
and modules whose names are computed at run time, are not sent.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_embed.config import RunConfig, is_callable_reference
from ray_embed.core import user_modules

# Ray sets this variable for a program that was submitted as a job.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@contextlib.contextmanager
def ship_modules(config: RunConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the options of `ray.init` that send the user's modules, valid within the context.

    Nothing is sent if the run uses no module of the folder, or if the program was submitted as a
    job with its code: that code is on the nodes already, and a second copy would conflict.

    Args:
        config: the options of the run, which name the modules.
        folder: the folder that the command was started in.
    """
    names = _list_module_names(config)
    files = _find_files_to_send(config, folder)
    if not files:
        yield {}
        return
    with tempfile.TemporaryDirectory() as staged:
        for file in files:
            copy = Path(staged, file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, copy)
        # Do not use `working_dir`, which `uv run` and job submission set.
        yield {
            "runtime_env": {
                "py_modules": sorted(str(path) for path in Path(staged).iterdir()),
                "env_vars": {user_modules.SENT: user_modules.describe_sent(names, files, folder)},
            }
        }


def describe_modules(config: RunConfig, folder: Path) -> str:
    """Return a description of what :func:`ship_modules` sends, with the content of the files.

    It is empty if nothing is sent.
    """
    files = _find_files_to_send(config, folder)
    return user_modules.describe_sent(_list_module_names(config), files, folder) if files else ""


def _find_files_to_send(config: RunConfig, folder: Path) -> list[Path]:
    if _is_job_with_code():
        return []
    return user_modules.find_files(_list_module_names(config), folder)


def _list_module_names(config: RunConfig) -> list[str]:
    given = (config.model, config.preprocess, *config.sources.values())
    references = [text for text in given if isinstance(text, str) and is_callable_reference(text)]
    return [*(reference.partition(":")[0] for reference in references), *config.imports]


def _is_job_with_code() -> bool:
    job = json.loads(os.environ.get(_JOB) or "{}").get("runtime_env") or {}
    return bool(job.get("working_dir") or job.get("py_modules"))
