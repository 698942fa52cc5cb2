# SPDX-License-Identifier: Apache-2.0
"""The run folder of a command: found, looked at, and held, so that nobody else writes to it."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.config import RunConfig
from ray_embed.core.console import say
from ray_embed.core.uri import get_base_name, is_uri, redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.runs import identity
from ray_embed.storage import manifest
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.lock import lock_folder


@dataclass(frozen=True)
class Target:
    """The run folder, and what ``run.json`` said before; None for a new run."""

    given: str
    folder: Folder
    before: dict[str, Any] | None

    @property
    def out(self) -> str:
        """The run folder as it may be shown."""
        return redact_uri(self.given)

    @property
    def uri(self) -> str:
        """Where the run folder is, for other processes."""
        return self.given if is_uri(self.given) else self.folder.path

    @property
    def is_resumed(self) -> bool:
        """Whether a run was begun here that is to be finished."""
        return self.before is not None and "identity" in self.before

    @property
    def threads(self) -> int | None:
        """The threads of an actor that the run was begun with, so that it goes on with them."""
        begun: int | None = (self.before or {}).get("identity", {}).get("threads per actor")
        return begun


@contextlib.contextmanager
def open_target(config: RunConfig) -> Iterator[Target]:
    """Open the run folder, for this process alone.

    Without `out` it is named after the model and its weights.

    Raises:
        InputError: it cannot be written to, holds something else, or another process writes to it.
    """
    out = config.out or choose_default_out(config)
    if config.out is None:
        say(f"run folder: {out}")
    try:
        folder = Folder.open(out)
    except InputError as error:
        raise InputError(f"--out {error}") from error
    if folder.is_local:
        _check_path(out, Path(folder.path))
    with contextlib.ExitStack() as stack:
        try:
            anew = config.overwrite and manifest.is_run(folder)
            if not anew:
                # Before anything is written to what may be something else.
                manifest.read_run(folder)
            stack.enter_context(lock_folder(folder))
            before = None if anew else manifest.read_run(folder)
        except StorageError as error:
            raise InputError(f"--out {redact_uri(out)}: {error}; give another folder") from error
        yield Target(out, folder, before)


def _check_path(out: str, path: Path) -> None:
    """Look whether a local run folder can be one.

    Raises:
        InputError: it cannot.
    """
    try:
        above = next(p for p in (path, *path.parents) if p.exists())
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; give another folder") from error
    if not above.is_dir():
        raise InputError(f"--out {out}: {above} is a file; give a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: {above} may not be written to; give another folder")


def choose_default_out(config: RunConfig) -> str:
    """Name the run folder after the model and its weights: ``runs/<model>-<weights>``."""
    model = config.model if isinstance(config.model, str) else identity.name_object(config.model)
    return make_default_name(str(model), config.weights)


def make_default_name(model: str, weights: str | None) -> str:
    """Name the run folder of a model and its weights, as they were given."""
    names = [Path(_get_last_name(model)).stem]
    if weights:
        names.append(_get_last_name(weights).partition(".")[0])
    return "runs/" + "-".join(re.sub(r"[^A-Za-z0-9_.-]", "_", name) for name in names)


def _get_last_name(given: str) -> str:
    if is_uri(given):
        return get_base_name(given)
    return given.rpartition(":")[2] if ":" in given else Path(given).name
