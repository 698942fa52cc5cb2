# SPDX-License-Identifier: Apache-2.0
"""Reuse the actors of a run in the next run of the same process, because starting an actor takes
seconds.

Only within :func:`keep_actors`, and only for actors that have not imported user code.
"""

import contextlib
from collections.abc import Hashable, Iterator
from typing import Any

import ray
from ray.exceptions import ActorHandleNotFoundError, GetTimeoutError, RayError

from ray_embed.config import RunConfig, is_callable_reference
from ray_embed.core import user_code

_TIMEOUT_SECONDS = 10.0


class _Kept:
    """The actors kept most recently, and the key that another run must match."""

    is_open = False
    key: Hashable = None
    actors: tuple[Any, ...] = ()


@contextlib.contextmanager
def keep_actors() -> Iterator[None]:
    """Keep the actors of runs alive until the context exits."""
    before, _Kept.is_open = _Kept.is_open, True
    try:
        yield
    finally:
        _Kept.is_open = before
        take(None)


def keep(key: Hashable, actors: list[Any]) -> None:
    """Keep the actors of a finished run, or stop them outside of :func:`keep_actors`."""
    if _Kept.is_open:
        _Kept.key, _Kept.actors = key, tuple(actors)
    else:
        end(actors)


def take(key: Hashable) -> list[Any]:
    """Return the kept actors if they match `key`; otherwise stop them to free their resources.

    Args:
        key: everything an actor depends on, such as its resources; None if the run cannot reuse
            actors.
    """
    actors, fit = list(_Kept.actors), key is not None and key == _Kept.key
    _Kept.key, _Kept.actors = None, ()
    if fit:
        return actors
    end(actors)
    return []


def hand_over(actor: Any, folder: str) -> bool:
    """Change the working directory of an actor. Return False if that fails."""
    try:
        answer = actor.call.remote(user_code.change_folder, folder)
        return bool(ray.get(answer, timeout=_TIMEOUT_SECONDS))
    except (RayError, GetTimeoutError):
        return False


def runs_user_code(config: RunConfig) -> bool:
    """Return whether the encoder of a run needs user code."""
    given = (config.model, config.preprocess)
    return bool(config.imports) or any(
        value is not None and (not isinstance(value, str) or is_callable_reference(value))
        for value in given
    )


def end(actors: list[Any]) -> None:
    """Stop actors. Does nothing if Ray has been shut down."""
    if not ray.is_initialized():
        # Any call would start Ray again.
        return
    for actor in actors:
        with contextlib.suppress(ActorHandleNotFoundError):
            ray.kill(actor)
