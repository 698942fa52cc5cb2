# SPDX-License-Identifier: Apache-2.0
"""Import the user's modules, and find and call ``module:callable``, with clear errors."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any

from ray_embed.core import legacy_keras, user_modules
from ray_embed.errors import InputError

_FIX = (
    "start the command in the folder that holds it, or set PYTHONPATH; to copy it to the nodes of "
    "a cluster, use file_mounts in the cluster file, or `ray rsync-up`"
)

# The folders that were added to the import path, the latest first.
_added: list[str] = []


def add_to_path(folder: str) -> None:
    """Put `folder` on the import path, as `python -m` does for the folder it is started in.

    If a cluster node has different code in a folder of that name, the code that was sent to the
    node takes precedence.
    """
    _added.insert(0, folder)
    if not user_modules.matches_sent_code(folder):
        # Ray has put the sent code first.
        sys.path[:] = [*(path for path in sys.path if path != folder), folder]
    elif folder not in sys.path:
        sys.path.insert(0, folder)


def is_added(folder: str) -> bool:
    """Return whether :func:`add_to_path` put a folder on the import path."""
    return folder in _added


def is_added_above(file: str) -> bool:
    """Return whether a file is below a folder that :func:`add_to_path` put on the import path."""
    return any(Path(file).is_relative_to(folder) for folder in _added)


def enter_folder(folder: str) -> None:
    """Work in the folder that the command was started in, and import the user's modules from it.

    Ray's workers have another working directory, and user code may use relative paths. A folder
    that is missing on this node only goes on the import path.
    """
    if Path(folder).is_dir():
        os.chdir(folder)
    add_to_path(folder)


def change_folder(folder: str) -> None:
    """Work in another folder from now on, and import the user's modules from there."""
    sys.path[:] = [path for path in sys.path if path not in _added]
    _added.clear()
    os.chdir(folder)
    add_to_path(folder)
    importlib.invalidate_caches()


@contextlib.contextmanager
def hide_modules(*names: str) -> Iterator[None]:
    """Make modules appear not to be installed, unless they have already been imported."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_module(name: str, given: str) -> Any:
    """Import one of the user's modules.

    Args:
        name: the module.
        given: the option that names the module, with its value, for error messages.

    Raises:
        InputError: the module is not found, or its import fails.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            fix = legacy_keras.suggest_legacy_keras(error) or f"; install it, or {_FIX}"
            raise InputError(
                f"{given}: its import of {error.name!r} fails: no such module{fix}"
            ) from error
        raise InputError(
            f"{given}: no module named {error.name!r} in {(*_added, Path.cwd())[0]} nor on the "
            f"Python path; {_FIX}"
        ) from error
    except Exception as error:
        raise InputError(
            f"{given}: fails while being imported: {type(error).__name__}: {error}"
            f"{legacy_keras.suggest_legacy_keras(error)}"
        ) from error


def resolve_callable(reference: Any, option: str) -> Callable[..., Any]:
    """Return the callable that ``module:callable`` names; a callable is returned as it is.

    Raises:
        InputError: the reference cannot be imported, or is not callable.
    """
    if callable(reference):
        return reference  # type: ignore[no-any-return]
    module_name, _, attribute = str(reference).partition(":")
    if not attribute:
        raise InputError(f"{option} {reference}: write it as module:callable")
    module = import_module(module_name, f"{option} {reference}")
    try:
        value = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        names = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing public"
        raise InputError(
            f"{option} {reference}: {getattr(module, '__file__', module_name)} has no "
            f"{attribute!r}; it has {names}"
        ) from error
    if not callable(value):
        raise InputError(f"{option} {reference}: it is {type(value).__name__}, not a callable")
    return value  # type: ignore[no-any-return]


def is_factory(value: Any) -> bool:
    """Return whether a value is a function or class to call, not an object to use."""
    return inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, partial)


def call_reference(reference: Any, kwargs: dict[str, Any], option: str) -> Any:
    """Call a callable from the user, or the one that ``module:callable`` names.

    Raises:
        InputError: the callable cannot be found, or it fails.
    """
    function = resolve_callable(reference, option)
    try:
        return function(**kwargs)
    except InputError:
        raise
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
        raise InputError(
            f"{option} {reference}: calling it with ({given}) fails: "
            f"{type(error).__name__}: {error}{legacy_keras.suggest_legacy_keras(error)}"
        ) from error
