# SPDX-License-Identifier: Apache-2.0
"""Choose, check and lock the run folder of a command, so that no other process writes to it."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.config import RunConfig
from ray_embed.core.console import say
from ray_embed.core.model_names import OPEN_CLIP
from ray_embed.core.uri import get_base_name, is_uri, redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.runs import identity
from ray_embed.storage import manifest
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.lock import lock_folder


@dataclass(frozen=True)
class Target:
    """The run folder, and the earlier content of its ``run.json``, which is None for a new run."""

    given: str
    folder: Folder
    before: dict[str, Any] | None

    @property
    def out(self) -> str:
        """The run folder as messages name it, without credentials."""
        return redact_uri(self.given)

    @property
    def uri(self) -> str:
        """The URI or absolute path of the run folder, for other processes."""
        return self.given if is_uri(self.given) else self.folder.path

    @property
    def is_resumed(self) -> bool:
        """Whether a run was already started here, and is therefore resumed."""
        return self.before is not None and "identity" in self.before

    @property
    def threads(self) -> int | None:
        """The threads per actor that the run started with and keeps, or None for a new run."""
        threads: int | None = (self.before or {}).get("identity", {}).get("threads per actor")
        return threads


@contextlib.contextmanager
def open_target(config: RunConfig) -> Iterator[Target]:
    """Open the run folder, and lock it for this process.

    Without `out`, the folder is named after the model and its weights.

    Raises:
        InputError: the folder cannot be written to, holds something else, or another process
            writes to it.
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
            overwrites = config.overwrite and manifest.is_run(folder)
            if not overwrites:
                # Refuse a folder that holds something else before the lock is written to it.
                manifest.read_run(folder)
            stack.enter_context(lock_folder(folder))
            before = None if overwrites else manifest.read_run(folder)
        except StorageError as error:
            raise InputError(f"--out {redact_uri(out)}: {error}; give another folder") from error
        yield Target(out, folder, before)


def _check_path(out: str, path: Path) -> None:
    """Check that a local run folder exists or can be created.

    Raises:
        InputError: the path is invalid, is a file, or is not writable.
    """
    try:
        existing = next(p for p in (path, *path.parents) if p.exists())
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; give another folder") from error
    if not existing.is_dir():
        raise InputError(f"--out {out}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: {existing} may not be written to; give another folder")


def choose_default_out(config: RunConfig) -> str:
    """Return the default run folder: ``runs/<model>-<weights>``."""
    model = config.model if isinstance(config.model, str) else identity.name_object(config.model)
    return make_default_name(str(model), config.weights)


def make_default_name(model: str, weights: str | None) -> str:
    """Return the default run folder for a model and its weights."""
    names = [Path(_get_last_name(model)).stem]
    if weights:
        names.append(_get_last_name(weights).partition(".")[0])
    return "runs/" + "-".join(re.sub(r"[^A-Za-z0-9_.-]", "_", name) for name in names)


def make_sweep_name(run: str) -> str:
    """Return the default folder of a sweep, given the default run folder of its common options."""
    return f"{run}-sweep"


def _get_last_name(reference: str) -> str:
    if is_uri(reference):
        return get_base_name(reference)
    if reference.startswith(OPEN_CLIP) and reference.count(":") == 1:
        # Many models have weights of the same name.
        return reference.removeprefix(OPEN_CLIP).replace("/", "-")
    return reference.rpartition(":")[2] if ":" in reference else Path(reference).name
