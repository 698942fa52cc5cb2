# SPDX-License-Identifier: Apache-2.0
"""Ray: connected to or started here, and the processes that work in it."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ray_embed.config import LOCAL, RunConfig, ray_address
from ray_embed.encoder import Encoder, EncoderSpec, apart
from ray_embed.errors import InputError, RayEmbedError, RunError, first_line
from ray_embed.extractor import Extractor
from ray_embed.uri import shown, without_credentials

# One shard computes while the other one decodes.
SHARDS_AN_ACTOR = 2
_THREADS = 4
_CPU_BATCH, _GPU_BATCH = 16, 128
_LOOK_SECONDS = 5.0


class ActorDiedError(RunError):
    """An actor's process ended while it was working.

    Args:
        message: what Ray says of it.
        goes_on: as of RunError.
        preempted: whether its machine was taken away, which says nothing about the work.
    """

    def __init__(self, message: str, goes_on: bool = True, preempted: bool = False) -> None:
        super().__init__(message, goes_on)
        self.preempted = preempted


@dataclass(frozen=True)
class Resources:
    """How many actors there are, and what each of them gets."""

    actors: int
    cpus: int
    gpus: float

    @property
    def batch_size(self) -> int:
        """The usual number of images a batch: what a core's cache holds, or what fills a GPU."""
        return _GPU_BATCH if self.gpus else _CPU_BATCH


class Worker:
    """An actor that is started anew where it has died.

    Ray could do so by itself; then nobody would know which work it was that an actor died of.

    Args:
        start: starts the actor, returning at once.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self.actor = start()

    def renew(self, died: Any) -> None:
        """End the actor `died` and start another one, unless that was done before."""
        if self.actor is died:
            ray.kill(died)
            self.actor = self._start()


class Session:
    """A Ray that is connected, and the actors that were started in it.

    Args:
        config: what is asked of it.
        resources: how many extractors there may be, and what each gets.
        build: builds the encoder beside the actors; None to have the first extractor build it.
    """

    def __init__(
        self, config: RunConfig, resources: Resources, build: apart.Build | None = None
    ) -> None:
        self.resources = resources
        self._build = build
        self.folder = str(Path.cwd())
        self._attempts = config.max_attempts
        self._started: list[Any] = []
        # Importing TensorFlow takes seconds, so this starts at once.
        self._workers = [Worker(self._extractor)]

    def start_building(
        self, spec: EncoderSpec, kept: apart.Weights | None
    ) -> Callable[[], Encoder]:
        """Start building the encoder; gives a function that waits for it.

        With a GPU an actor must build it, as the engine is chosen by what it gives there.
        """
        if self._build is not None and not self.resources.gpus:
            return self._build(spec, kept)
        return self._start_call("build", spec, kept)

    def reduce(self, out: str, limit: int) -> int:
        """Have the parts merged; see :func:`ray_embed.reducer.merge`."""
        points: int = self._start_call("reduce", out, limit)()
        return points

    def workers(self, count: int) -> list[Worker]:
        """Give `count` extractors, or one; those that are not there yet are started."""
        while len(self._workers) < count:
            self._workers.append(Worker(self._extractor))
        return self._workers[: max(1, count)]

    def start(self, actor: type[Any], *arguments: Any, **options: Any) -> Any:
        """Start an actor that ends with the session; the call returns at once."""
        handle = ray.remote(actor).options(**options).remote(*arguments)
        self._started.append(handle)
        return handle

    def close(self) -> None:
        """End the actors."""
        for handle in self._started:
            ray.kill(handle)

    def _start_call(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Call the first extractor; gives what waits for the result, calling again if it dies."""
        worker = self._workers[0]

        def started() -> tuple[Any, Any]:
            return worker.actor, getattr(worker.actor, method).remote(*arguments)

        first = started()

        def waited() -> Any:
            actor, reference = first
            for _ in range(self._attempts - 1):
                with contextlib.suppress(ActorDiedError):
                    return result(reference)
                worker.renew(actor)
                actor, reference = started()
            return result(reference)

        return waited

    def _extractor(self) -> Any:
        return self.start(
            Extractor,
            self.resources.cpus,
            self.folder,
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_concurrency=SHARDS_AN_ACTOR,
        )


@contextlib.contextmanager
def session(config: RunConfig) -> Iterator[Session]:
    """Connect to Ray, or start one here; leave it as it was found.

    Raises:
        InputError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        running = Session(config, _resources(config, _nodes(), ours=False))
        try:
            yield running
        finally:
            running.close()
        return
    ours = ray_address(config.address) == LOCAL
    with contextlib.ExitStack() as stack:
        build = None
        if ours and isinstance(config.model, str):
            threads = _threads(config, os.cpu_count() or 1)
            build = stack.enter_context(apart.builder(threads, str(Path.cwd())))
        nodes = _connect(config)
        stack.callback(ray.shutdown)
        yield Session(config, _resources(config, nodes, ours), build)


def _connect(config: RunConfig) -> list[dict[str, float]]:
    """Connect to Ray, or start one here; gives what each node has.

    A Ray of our own pretends to have the cores for as many actors as were asked for.
    """
    address = ray_address(config.address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        cores = os.cpu_count() or 1
        _start(max(cores, (config.actors or 1) * _threads(config, cores)), options)
        return [{**node, "CPU": cores} for node in _nodes()]
    try:
        ray.init(address, **options)
    except (ConnectionError, ValueError, RayError) as error:
        raise InputError(
            f"--address {shown(address)}: no Ray cluster answers there "
            f"({without_credentials(str(error))}); is it running, and does it want a token "
            "(RAY_AUTH_MODE=token)?"
        ) from error
    return _nodes()


def _start(cpus: int, options: dict[str, Any]) -> None:
    """Start a Ray that listens on the loopback address only.

    It does so by itself on systems for which it knows no clusters; else it listens on all
    addresses, whichever it is asked for.

    Raises:
        RunError: it does not start.
    """
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            LOCAL,
            num_cpus=cpus,
            include_dashboard=False,
            # Workers that nobody has asked for would take the cores while the first actor starts.
            _system_config={"prestart_worker_first_driver": False},
            **options,
        )
    except Exception as error:
        # It has no class of its own for these.
        raise RunError(f"Ray does not start on this machine: {first_line(error)}") from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _threads(config: RunConfig, cores: int) -> int:
    return config.cpus_per_actor or min(_THREADS, cores)


def _resources(config: RunConfig, nodes: list[dict[str, float]], ours: bool) -> Resources:
    """Give what was asked, else one actor a GPU, else a fixed function of the nodes' cores.

    The threads of an actor never depend on the number of actors, so that the features do not.

    Raises:
        InputError: no node has what one actor asks for.
    """
    share = config.gpus_per_actor
    with_gpus = [node for node in nodes if node.get("GPU", 0) > 0]
    if share != 0 and with_gpus:
        share = share or 1.0
        slots = [_slots(node["GPU"], share) for node in with_gpus]
        each = [
            int(node.get("CPU", 0)) // max(count, 1)
            for node, count in zip(with_gpus, slots, strict=True)
        ]
        cpus = config.cpus_per_actor or max(1, min(each))
        fitting = sum(slots)
    else:
        cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1] or [1]
        cpus = _threads(config, min(cores))
        fitting = 0 if share else sum(count // cpus for count in cores)
        share = share or 0.0
    if ours and not share:
        # A Ray of our own was given the cores for what was asked.
        fitting = max(fitting, config.actors or 1)
    if fitting == 0:
        has = ", ".join(f"{n.get('CPU', 0):g} CPU {n.get('GPU', 0):g} GPU" for n in nodes)
        raise InputError(
            f"an actor asks for {cpus} CPU and {share:g} GPU, which no node has ({has}); ask for "
            "less with --cpus-per-actor or --gpus-per-actor"
        )
    return Resources(min(config.actors or fitting, fitting), cpus, share)


def _slots(gpus: float, share: float) -> int:
    """How many actors a node's GPUs hold: a part of a GPU lies within one."""
    return int(gpus) * int(1 / share) if share <= 1 else int(gpus // share)


def check_node() -> None:
    """Look whether Ray's process on this machine is there, to be called while waiting.

    Calls of actors that are still to be started would else wait for it for ever.

    Raises:
        RunError: it is gone.
    """
    ours = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] and node["NodeID"] == ours for node in ray.nodes()):
        raise RunError("Ray's process on this machine (raylet) is gone: killed, or out of memory")


def result(reference: Any) -> Any:
    """Wait for a remote call; our own errors arrive as themselves.

    Raises:
        RayEmbedError: the call raised one.
        ActorDiedError: the process ended, for whatever reason.
        RunError: it failed otherwise, or Ray has gone.
    """
    try:
        return _awaited(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RayEmbedError):
            raise error.cause from error
        raise RunError(f"an error in an actor:\n{error}") from error
    except RayActorError as error:
        if error.actor_init_failed:
            raise RunError(f"an actor cannot start:\n{error}") from error
        raise ActorDiedError(str(error), preempted=error.preempted) from error
    except (OutOfMemoryError, WorkerCrashedError, NodeDiedError) as error:
        raise ActorDiedError(str(error)) from error
    except RayError as error:
        raise RunError(f"Ray cannot go on: {error}") from error


def _awaited(reference: Any) -> Any:
    while True:
        try:
            return ray.get(reference, timeout=_LOOK_SECONDS)
        except GetTimeoutError as error:
            if isinstance(error, RayTaskError):
                # The call itself has raised it.
                raise
            check_node()
