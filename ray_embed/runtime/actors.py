# SPDX-License-Identifier: Apache-2.0
"""Restart actors that die, and wait for the results of their calls."""

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
from ray_embed.runtime.nodes import Loss, find_loss

_POLL_SECONDS = 5.0


class ActorDiedError(RunError):
    """An actor's process ended while it was working.

    Args:
        message: Ray's message.
        can_resume: see RunError.
        loss: why the actor died.
    """

    def __init__(self, message: str, can_resume: bool = True, loss: Loss = Loss.PROCESS) -> None:
        super().__init__(message, can_resume)
        self.loss = loss


class Worker:
    """An actor that is restarted when it dies.

    Ray could restart it, but then it would not be known which work an actor died of. `node` is the
    node that the actor has answered from; None before its first answer.

    Args:
        start: starts the actor, and returns at once.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self.node: str | None = None
        self._actor = start()

    @property
    def actor(self) -> Any:
        """The actor. It is started if it was dismissed."""
        if self._actor is None:
            self._actor = self._start()
        return self._actor

    @property
    def is_starting(self) -> bool:
        """Whether the actor was started, and has not answered yet."""
        return self._actor is not None and self.node is None

    def restart(self, dead: Any) -> None:
        """End the actor `dead` and start another one, unless that was done before.

        The new one may start on any node.
        """
        if self._actor is dead:
            self.dismiss()
            self._actor = self._start()

    def dismiss(self) -> None:
        """End the actor, to free its resources. It is started again when it is needed."""
        if self._actor is not None:
            ray.kill(self._actor)
        self.node = self._actor = None


def check_node() -> None:
    """Check that Ray's process on this machine (the raylet) is alive.

    It is called while waiting, since calls of actors that have not started would wait forever.

    Raises:
        RunError: the process is gone.
    """
    ours = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] and node["NodeID"] == ours for node in ray.nodes()):
        raise RunError("Ray's process on this machine (raylet) is gone: killed, or out of memory")


def get_result(reference: Any, check: Callable[[], None] = check_node) -> Any:
    """Wait for the result of a remote call.

    Args:
        reference: the reference that the call returned.
        check: a function to call every few seconds while waiting.

    Raises:
        RayEmbedError: the call raised it.
        ActorDiedError: the actor's process ended.
        RunError: the call failed otherwise, or Ray is gone.
    """
    try:
        return _wait(reference, check)
    except RayTaskError as error:
        if isinstance(error.cause, RayEmbedError):
            raise error.cause from error
        raise RunError(f"an error in an actor:\n{error}") from error
    except RayActorError as error:
        if error.actor_init_failed:
            raise RunError(f"an actor cannot start:\n{error}") from error
        raise ActorDiedError(str(error), loss=find_loss(error)) from error
    except NodeDiedError as error:
        raise ActorDiedError(str(error), loss=Loss.NODE) from error
    except (OutOfMemoryError, WorkerCrashedError) as error:
        raise ActorDiedError(str(error)) from error
    except RayError as error:
        raise RunError(f"Ray cannot go on: {error}") from error


def _wait(reference: Any, check: Callable[[], None]) -> Any:
    while True:
        try:
            return ray.get(reference, timeout=_POLL_SECONDS)
        except GetTimeoutError as error:
            if isinstance(error, RayTaskError):
                # The call itself raised it.
                raise
            check()
