# SPDX-License-Identifier: Apache-2.0
"""The user's modules, sent to the nodes of a cluster, which may not see the folder they lie in.

Sent are the ``.py`` files of the modules that the options name, and of all modules in the same
folder that they import, wherever in their code. Modules that lie elsewhere are taken as installed
on the nodes. Data files are not sent, nor what is imported by a name that is only made while
running.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ray_embed.config import RunConfig, is_callable_reference

# In the nodes' processes: which modules were sent, and the checksum of all files that came along.
_SENT = "RAY_EMBED_SENT"
# Ray's own: what a program is told that was submitted as a job.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@contextlib.contextmanager
def sent(config: RunConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """Give the options of `ray.init` that send the user's modules; they hold until it returns.

    Nothing is sent where there is nothing to send, nor from a job that was submitted with its code,
    which is on the nodes already and would be in conflict with this.

    Args:
        config: names the modules.
        folder: where the command was started.
    """
    names = _named(config)
    files = modules(names, folder)
    if not files or _has_its_code():
        yield {}
        return
    with tempfile.TemporaryDirectory() as staged:
        for file in files:
            copy = Path(staged, file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, copy)
        # Not as the folder to work in: that one is set by `uv run`, and by who submits a job.
        yield {
            "runtime_env": {
                "py_modules": sorted(str(path) for path in Path(staged).iterdir()),
                "env_vars": {_SENT: f"{','.join(names)} {_checksum(files, folder)}"},
            }
        }


def is_as_sent(folder: str) -> bool:
    """Whether modules may be imported from `folder` here: what was sent, if so, lies there too.

    A node may have a folder of the same name, with other code in it.
    """
    names, _, checksum = os.environ.get(_SENT, "").partition(" ")
    if not checksum:
        return True
    try:
        return _checksum(modules(names.split(","), Path(folder)), Path(folder)) == checksum
    except OSError:
        return False


def modules(names: Iterable[str], folder: Path) -> list[Path]:
    """Find the files in a folder that importing modules takes; nothing is imported for that.

    Args:
        names: the modules; those that are not in the folder are passed over.
        folder: where to look.

    Returns:
        Paths relative to the folder, sorted.
    """
    found: set[Path] = set()
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            # A package is imported before what is in it.
            waiting.append(parent)
        file = _file_of(name, folder)
        if file is not None:
            found.add(file)
            package = name if file.stem == "__init__" else parent
            waiting += _imported(folder / file, package)
    return sorted(found)


def _named(config: RunConfig) -> list[str]:
    given = (config.model, config.preprocess, *config.sources.values())
    references = [text for text in given if isinstance(text, str) and is_callable_reference(text)]
    return [*(reference.partition(":")[0] for reference in references), *config.imports]


def _has_its_code() -> bool:
    job = json.loads(os.environ.get(_JOB) or "{}").get("runtime_env") or {}
    return bool(job.get("working_dir") or job.get("py_modules"))


def _file_of(name: str, folder: Path) -> Path | None:
    parts = name.split(".")
    # Started where our own sources are: the nodes have the package installed.
    if parts[0] == "ray_embed" or not all(part.isidentifier() for part in parts):
        return None
    path = Path(*parts)
    for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if (folder / file).is_file():
            return file
    return None


def _imported(file: Path, package: str) -> Iterator[str]:
    """Give the names that may be modules; for ``from a import b``, `a` and ``a.b``."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        # Importing it will say so.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            with contextlib.suppress(ImportError):
                base = importlib.util.resolve_name(name, package)
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _checksum(files: Iterable[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = (folder / file).read_bytes()
        digest.update(f"{file.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
