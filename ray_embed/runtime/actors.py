# SPDX-License-Identifier: Apache-2.0
"""Actors that are started anew where they die, and the results of their calls."""

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
from ray_embed.runtime.nodes import Loss, loss

_LOOK_SECONDS = 5.0


class ActorDiedError(RunError):
    """An actor's process ended while it was working.

    Args:
        message: what Ray says of it.
        can_resume: as of RunError.
        loss: what was lost with it, which may say nothing about its work.
    """

    def __init__(self, message: str, can_resume: bool = True, loss: Loss = Loss.PROCESS) -> None:
        super().__init__(message, can_resume)
        self.loss = loss


class Worker:
    """An actor that is started anew where it has died.

    Ray could do so by itself; then nobody would know which work it was that an actor died of.
    `node` is where the actor has answered from; None while it is still to be started.

    Args:
        start: starts the actor, returning at once.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self.node: str | None = None
        self._actor = start()

    @property
    def actor(self) -> Any:
        """The actor, which is started where it was dismissed."""
        if self._actor is None:
            self._actor = self._start()
        return self._actor

    @property
    def is_starting(self) -> bool:
        """Whether the actor has been started, and is not there yet."""
        return self._actor is not None and self.node is None

    def renew(self, died: Any) -> None:
        """End the actor `died` and start another one, unless that was done before.

        It waits for room, wherever that may be.
        """
        if self._actor is died:
            self.dismiss()
            self._actor = self._start()

    def dismiss(self) -> None:
        """End the actor, so that there is room for others; it is started when it is needed."""
        if self._actor is not None:
            ray.kill(self._actor)
        self.node = self._actor = None


def check_node() -> None:
    """Look whether Ray's process on this machine is there, to be called while waiting.

    Calls of actors that are still to be started would else wait for it for ever.

    Raises:
        RunError: it is gone.
    """
    ours = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] and node["NodeID"] == ours for node in ray.nodes()):
        raise RunError("Ray's process on this machine (raylet) is gone: killed, or out of memory")


def result(reference: Any, meanwhile: Callable[[], None] = check_node) -> Any:
    """Wait for a remote call; our own errors arrive as themselves.

    Args:
        reference: of the call.
        meanwhile: called every few seconds.

    Raises:
        RayEmbedError: the call raised one.
        ActorDiedError: the process ended, for whatever reason.
        RunError: it failed otherwise, or Ray has gone.
    """
    try:
        return _awaited(reference, meanwhile)
    except RayTaskError as error:
        if isinstance(error.cause, RayEmbedError):
            raise error.cause from error
        raise RunError(f"an error in an actor:\n{error}") from error
    except RayActorError as error:
        if error.actor_init_failed:
            raise RunError(f"an actor cannot start:\n{error}") from error
        raise ActorDiedError(str(error), loss=loss(error)) from error
    except (OutOfMemoryError, WorkerCrashedError, NodeDiedError) as error:
        raise ActorDiedError(str(error)) from error
    except RayError as error:
        raise RunError(f"Ray cannot go on: {error}") from error


def _awaited(reference: Any, meanwhile: Callable[[], None]) -> Any:
    while True:
        try:
            return ray.get(reference, timeout=_LOOK_SECONDS)
        except GetTimeoutError as error:
            if isinstance(error, RayTaskError):
                # The call itself has raised it.
                raise
            meanwhile()
