# SPDX-License-Identifier: Apache-2.0
"""``module:callable`` references and modules of the user's, found and called with clear errors."""

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

_BRING = (
    "start the command in the folder that holds it, or set PYTHONPATH; to the nodes of a cluster "
    "it comes by the cluster file's file_mounts, or by `ray rsync-up`"
)

# The folders that were put on the import path, the last one first.
_added: list[str] = []


def add_to_path(folder: str) -> None:
    """Put `folder` on the import path, as `python -m` does for the folder it is started in.

    On a node of a cluster where it is another one, what was sent from it comes first.
    """
    _added.insert(0, folder)
    if not user_modules.is_as_sent(folder):
        # Ray has put it first.
        sys.path[:] = [*(path for path in sys.path if path != folder), folder]
    elif folder not in sys.path:
        sys.path.insert(0, folder)


def change_folder(folder: str) -> bool:
    """Work in another folder from now on, and import the user's modules from there.

    Returns:
        False, and nothing is changed, if modules of the folder before were imported.
    """
    before = tuple(_added)
    files = (getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
    if any(file is not None and file.startswith(before) for file in files):
        return False
    sys.path[:] = [path for path in sys.path if path not in before]
    _added.clear()
    os.chdir(folder)
    add_to_path(folder)
    importlib.invalidate_caches()
    return True


@contextlib.contextmanager
def hide_modules(*names: str) -> Iterator[None]:
    """Let modules that were not imported before appear as not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_module(name: str, given: str) -> Any:
    """Import a module of the user's.

    Args:
        name: the module.
        given: the option and value that named it, for errors.

    Raises:
        InputError: it is not found (says where it was looked for) or fails while being imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            mend = legacy_keras.suggest_legacy_keras(error) or f"; install it, or {_BRING}"
            raise InputError(
                f"{given}: its import of {error.name!r} fails: no such module{mend}"
            ) from error
        raise InputError(
            f"{given}: no module named {error.name!r} in {(*_added, Path.cwd())[0]} nor on the "
            f"Python path; {_BRING}"
        ) from error
    except Exception as error:
        raise InputError(
            f"{given}: fails while being imported: {type(error).__name__}: {error}"
            f"{legacy_keras.suggest_legacy_keras(error)}"
        ) from error


def resolve_callable(reference: Any, option: str) -> Callable[..., Any]:
    """Give the callable that ``module:callable`` names; a callable is given back as it is.

    Raises:
        InputError: it cannot be imported, or is no callable.
    """
    if callable(reference):
        return reference  # type: ignore[no-any-return]
    module_name, _, attribute = str(reference).partition(":")
    if not attribute:
        raise InputError(f"{option} {reference}: write it as module:callable")
    module = import_module(module_name, f"{option} {reference}")
    try:
        found = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        names = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing public"
        raise InputError(
            f"{option} {reference}: {getattr(module, '__file__', module_name)} has no "
            f"{attribute!r}; it has {names}"
        ) from error
    if not callable(found):
        raise InputError(f"{option} {reference}: it is {type(found).__name__}, not a callable")
    return found  # type: ignore[no-any-return]


def is_factory(value: Any) -> bool:
    """Whether a value in hand is a function or class to be called, not an object to be used."""
    return inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, partial)


def call_reference(reference: Any, kwargs: dict[str, Any], option: str) -> Any:
    """Call the user's callable.

    Raises:
        InputError: it cannot be found, or fails.
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
