# SPDX-License-Identifier: Apache-2.0
"""Keep the actors of a run for the next run of the same process, because starting an actor takes
seconds.

Only actors in which the next run cannot notice anything of the run before.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorHandleNotFoundError, GetTimeoutError, RayError

from ray_embed.config import RunConfig, is_callable_reference
from ray_embed.core.imported_code import is_installed
from ray_embed.runtime import nodes

_TIMEOUT_SECONDS, _POLL_SECONDS = 10.0, 0.02


@dataclass(frozen=True)
class ActorKey:
    """What an actor depends on: what it was started with, and the user's code that it executes."""

    surroundings: Hashable
    code: tuple[str, ...]

    def serves(self, other: "ActorKey") -> bool:
        """Return whether an actor with this key can be used for a run with another key."""
        return self.surroundings == other.surroundings and self.code in ((), other.code)


class _Kept:
    """The actors kept most recently, and what they depend on."""

    key: ActorKey | None = None
    actors: tuple[Any, ...] = ()


def keep(key: ActorKey, actors: list[Any]) -> None:
    """Keep the actors of a finished run."""
    _Kept.key, _Kept.actors = key, tuple(actors)


def take(key: ActorKey | None) -> list[Any]:
    """Return the kept actors if they fit; otherwise stop them to free their resources.

    Args:
        key: what the actors of a run depend on; None if the run needs new ones.
    """
    actors, kept_key = list_actors(), _Kept.key
    forget()
    if key is not None and kept_key is not None and kept_key.serves(key):
        return actors
    end(actors)
    return []


def forget() -> None:
    """Keep no actors any more, because Ray ends."""
    _Kept.key, _Kept.actors = None, ()


def list_actors() -> list[Any]:
    """Return the kept actors."""
    return list(_Kept.actors)


def hand_over(actor: Any, folder: str) -> bool:
    """Prepare an actor for a run in a folder. Return False if the run needs a new one."""
    try:
        return bool(ray.get(actor.reuse.remote(folder), timeout=_TIMEOUT_SECONDS))
    except (RayError, GetTimeoutError):
        return False


def describe_user_code(configs: Iterable[RunConfig]) -> tuple[str, ...] | None:
    """Return the code of the user that the actors of some runs execute, and its arguments.

    It may change settings of its process, such as Keras's precision, so that only runs with the
    same code can share an actor.

    Returns:
        None if a run needs new actors: the initial weights of a model depend on what its process
        did before.
    """
    described = [_describe_code_of_run(config) for config in configs]
    if None in described:
        return None
    return tuple(sorted({code for run in described for code in run or ()}))


def _describe_code_of_run(config: RunConfig) -> list[str] | None:
    model, preprocess = config.model, config.preprocess
    code = [f"import {module}" for module in config.imports]
    if isinstance(model, str) and is_callable_reference(model):
        if config.weights is None:
            return None
        code.append(f"model {model} {_format_arguments(config.model_kwargs)}")
    if isinstance(preprocess, str) and is_callable_reference(preprocess):
        code.append(f"preprocess {preprocess}")
    for split, source in config.sources.items():
        if not isinstance(source, str):
            # Models and functions stay in this process, but actors may open a dataset.
            kind = source if hasattr(source, "__qualname__") else type(source)
            code.append(f"source {kind.__module__}:{kind.__qualname__}")
        elif is_callable_reference(source):
            arguments = _format_arguments(config.source_kwargs.get(split, {}))
            code.append(f"source {source} {arguments}")
    return code


def read_package_times() -> tuple[int, ...]:
    """Return times that change if packages are installed, of which an actor may have others."""
    return tuple(
        Path(folder).stat().st_mtime_ns
        for folder in sys.path
        if is_installed(folder) and Path(folder).is_dir()
    )


def _format_arguments(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, default=repr)


def end(actors: list[Any], *, waits: bool = False) -> None:
    """Stop actors. Does nothing if Ray has been shut down.

    Args:
        actors: the actors.
        waits: whether to wait for the end of their processes, which must be on this machine.
    """
    if not ray.is_initialized():
        # Any call would start Ray again.
        return
    processes = [nodes.find_process_id(actor) for actor in actors] if waits else []
    for actor in actors:
        with contextlib.suppress(ActorHandleNotFoundError):
            ray.kill(actor)
    end_of_wait = time.monotonic() + _TIMEOUT_SECONDS
    while any(map(_is_running, processes)) and time.monotonic() < end_of_wait:
        time.sleep(_POLL_SECONDS)


def _is_running(process: int) -> bool:
    """Return whether a process runs; 0 is none."""
    if not process:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
