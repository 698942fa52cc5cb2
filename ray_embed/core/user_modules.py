# SPDX-License-Identifier: Apache-2.0
"""Find the files of the user's modules without importing them."""

import ast
import contextlib
import hashlib
import importlib.util
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

# The environment variable that tells processes on cluster nodes which modules were sent, and the
# checksum of all files sent with them.
SENT = "RAY_EMBED_SENT"


def matches_sent_code(folder: str) -> bool:
    """Return whether modules may be imported from `folder` on this machine.

    A cluster node may have a folder of the same name whose code differs from what was sent.
    """
    names, _, checksum = os.environ.get(SENT, "").partition(" ")
    if not checksum:
        return True
    try:
        return (
            _compute_checksum(find_files(names.split(","), Path(folder)), Path(folder)) == checksum
        )
    except OSError:
        return False


def describe_sent(names: Iterable[str], files: Iterable[Path], folder: Path) -> str:
    """Return the value of the environment variable `SENT` for the modules and files to send."""
    return f"{','.join(names)} {_compute_checksum(files, folder)}"


def find_files(names: Iterable[str], folder: Path) -> list[Path]:
    """Find the files in a folder that importing some modules would read, without importing them.

    Args:
        names: the modules; those outside the folder are skipped.
        folder: where to look.

    Returns:
        Paths relative to the folder, sorted.
    """
    files: set[Path] = set()
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            # A package is imported before its modules.
            waiting.append(parent)
        file = _find_file(name, folder)
        if file is not None:
            files.add(file)
            package = name if file.stem == "__init__" else parent
            waiting += _list_imports(folder / file, package)
    return sorted(files)


def _find_file(name: str, folder: Path) -> Path | None:
    parts = name.split(".")
    # Nodes have this package installed.
    if parts[0] == "ray_embed" or not all(part.isidentifier() for part in parts):
        return None
    path = Path(*parts)
    for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if (folder / file).is_file():
            return file
    return None


def _list_imports(file: Path, package: str) -> Iterator[str]:
    """Yield names that may be modules: `a` and ``a.b`` for ``from a import b``."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        # The import will report the error.
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


def _compute_checksum(files: Iterable[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = (folder / file).read_bytes()
        digest.update(f"{file.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
