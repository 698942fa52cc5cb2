# SPDX-License-Identifier: Apache-2.0
"""Restart dead actors, and wait for the results of calls."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ray_embed.errors import RayEmbedError, RunError
from ray_embed.runtime.nodes import DeathCause, find_death_cause

_POLL_SECONDS = 5.0


class ActorDiedError(RunError):
    """An actor died while executing a call.

    Args:
        message: Ray's message.
        can_resume: see RunError.
        cause: why the actor died.
    """

    def __init__(
        self, message: str, can_resume: bool = True, cause: DeathCause = DeathCause.PROCESS
    ) -> None:
        super().__init__(message, can_resume)
        self.cause = cause


class Worker:
    """An actor that is restarted when it dies.

    Ray's own restarts are not used, because they hide which call killed the actor. `node` is the
    node of the actor; None until its first response.

    Args:
        start: function that starts the actor without waiting for it.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self.node: str | None = None
        self._actor = start()

    @property
    def actor(self) -> Any:
        """The actor handle. A dismissed actor is started again."""
        if self._actor is None:
            self._actor = self._start()
        return self._actor

    @property
    def is_starting(self) -> bool:
        """Whether the actor was started but has not responded yet."""
        return self._actor is not None and self.node is None

    def restart(self, dead: Any) -> None:
        """End the actor `dead` and start another one, unless that was done before.

        The new one may start on any node.
        """
        if self._actor is dead:
            self.dismiss()
            self._actor = self._start()

    def dismiss(self) -> None:
        """Stop the actor to free its resources. It is started again on demand."""
        if self._actor is not None:
            ray.kill(self._actor)
        self.node = self._actor = None


def check_raylet() -> None:
    """Check that the raylet on this machine is alive.

    Call this while waiting, because calls to actors that have not started would otherwise wait
    forever.

    Raises:
        RunError: the raylet has died.
    """
    ours = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] and node["NodeID"] == ours for node in ray.nodes()):
        raise RunError(
            "the Ray process on this machine (raylet) has died; it may have been killed, or have "
            "run out of memory"
        )


def get_result(reference: Any, check: Callable[[], None] = check_raylet) -> Any:
    """Wait for the result of a remote call.

    Args:
        reference: the reference that the call returned.
        check: function to call every few seconds while waiting.

    Raises:
        RayEmbedError: raised by the call itself.
        ActorDiedError: the actor's process ended.
        RunError: the call failed for another reason, or Ray has died.
    """
    try:
        return _wait(reference, check)
    except RayTaskError as error:
        if isinstance(error.cause, RayEmbedError):
            raise error.cause from error
        raise RunError(f"an actor raised an error:\n{error}") from error
    except RayActorError as error:
        if error.actor_init_failed:
            raise RunError(f"an actor failed to start:\n{error}") from error
        raise ActorDiedError(str(error), cause=find_death_cause(error)) from error
    except NodeDiedError as error:
        raise ActorDiedError(str(error), cause=DeathCause.NODE) from error
    except (OutOfMemoryError, WorkerCrashedError) as error:
        raise ActorDiedError(str(error)) from error
    except RayError as error:
        raise RunError(f"Ray failed: {error}") from error


def _wait(reference: Any, check: Callable[[], None]) -> Any:
    while True:
        try:
            return ray.get(reference, timeout=_POLL_SECONDS)
        except GetTimeoutError as error:
            if isinstance(error, RayTaskError):
                # A timeout raised inside the call.
                raise
            check()
