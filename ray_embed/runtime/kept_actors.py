# SPDX-License-Identifier: Apache-2.0
"""Keep the actors of a run for the next run of the same process, as starting one takes seconds.

Only within :func:`keep_actors`, and only actors that imported nothing of the user's.
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
    """The actors that were kept last, and what makes them fit another run."""

    is_open = False
    key: Hashable = None
    actors: tuple[Any, ...] = ()


@contextlib.contextmanager
def keep_actors() -> Iterator[None]:
    """Keep the actors of runs in a Ray that is connected, until the context ends."""
    before, _Kept.is_open = _Kept.is_open, True
    try:
        yield
    finally:
        _Kept.is_open = before
        take(None)


def keep(key: Hashable, actors: list[Any]) -> None:
    """Keep actors that finished a run; outside of :func:`keep_actors` they are ended."""
    if _Kept.is_open:
        _Kept.key, _Kept.actors = key, tuple(actors)
    else:
        end(actors)


def take(key: Hashable) -> list[Any]:
    """Return the kept actors if they fit; else end them, as they hold resources.

    Args:
        key: what an actor depends on, such as its resources; None for a run that takes none.
    """
    actors, fit = list(_Kept.actors), key is not None and key == _Kept.key
    _Kept.key, _Kept.actors = None, ()
    if fit:
        return actors
    end(actors)
    return []


def hand_over(actor: Any, folder: str) -> bool:
    """Move an actor to the folder of a run; return False if it cannot work there."""
    try:
        answer = actor.call.remote(user_code.change_folder, folder)
        return bool(ray.get(answer, timeout=_TIMEOUT_SECONDS))
    except (RayError, GetTimeoutError):
        return False


def runs_user_code(config: RunConfig) -> bool:
    """Return whether the encoder of a run needs Python code of the user's."""
    given = (config.model, config.preprocess)
    return bool(config.imports) or any(
        value is not None and (not isinstance(value, str) or is_callable_reference(value))
        for value in given
    )


def end(actors: list[Any]) -> None:
    """End actors. Those of a Ray that was shut down have ended with it."""
    if not ray.is_initialized():
        # Any call would start another Ray.
        return
    for actor in actors:
        with contextlib.suppress(ActorHandleNotFoundError):
            ray.kill(actor)
