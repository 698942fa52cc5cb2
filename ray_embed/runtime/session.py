# SPDX-License-Identifier: Apache-2.0
"""A Ray session (an existing cluster, or Ray started on this machine) and the actors of a run."""

import contextlib
import itertools
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray

from ray_embed.config import LOCAL, RunConfig, choose_ray_address
from ray_embed.core import legacy_keras
from ray_embed.core.interrupts import defer_interrupts
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, RunError, get_first_line
from ray_embed.runtime import capacity, kept_actors, ray_private, resources
from ray_embed.runtime.actor_pool import ActorPool
from ray_embed.runtime.actors import ActorDiedError, Worker, check_raylet, get_result
from ray_embed.runtime.connect import join_cluster
from ray_embed.runtime.nodes import DeathCause, Node, list_nodes
from ray_embed.runtime.resources import Resources

# An actor encodes one shard while it decodes another.
SHARDS_PER_ACTOR = 2

Result = TypeVar("Result")


class Session:
    """A connection to Ray and the actors started through it.

    Args:
        config: the options of the run.
        actor_class: the class of the pool's actors. It is instantiated with the number of threads
            and the folder of the user's modules, and must have a method ``call(function,
            *arguments)``.
        each: the resources per actor.
        actors: the number of actors in the pool; None for as many as fit on all nodes, including
            nodes that join later.
        inherits: whether actors inherit the environment of this process, which is the case if this
            process started Ray.
        kept: actors of an earlier run to reuse.

    Attributes:
        awaits_end: whether to wait until a Ray that was started for this session has ended.
    """

    def __init__(
        self,
        config: RunConfig,
        actor_class: type[Any],
        each: Resources,
        actors: int | None,
        *,
        inherits: bool = False,
        kept: Sequence[Any] = (),
    ) -> None:
        self.resources = each
        self._actor_class = actor_class
        self._environment = {} if inherits else legacy_keras.read_environment()
        self.folder = str(Path.cwd())
        self.awaits_end = True
        self._attempts = config.max_attempts
        self._started: list[Any] = []
        self._kept = list(kept)
        # Unique, because other runs may use the same cluster.
        run = Path(redact_uri(config.out or "run")).absolute().name or "run"
        self._name = f"{run}-{uuid.uuid4().hex[:6]}"
        self._numbers = itertools.count()
        self.pool = ActorPool(self._start_actor, each, actors)

    def list_other_actors(self) -> list[Any]:
        """Return the started actors that run on other nodes than the first actor."""
        first = self.pool.first
        return [
            worker.actor for worker in self.pool.workers if worker.node not in (None, first.node)
        ]

    def start(self, name: str, actor: type[Any], *arguments: Any, **options: Any) -> Any:
        """Start an actor that lives as long as the session. Does not wait for it.

        Args:
            name: the (unique) suffix of its name in the dashboard; the prefix is the name of the
                run.
            actor: its class.
            arguments: the arguments of the class.
            options: Ray actor options.
        """
        options["name"] = f"{self._name}-{name}"
        if self._environment:
            options["runtime_env"] = {"env_vars": self._environment}
        handle = ray.remote(actor).options(**options).remote(*arguments)
        self._started.append(handle)
        return handle

    def close(self) -> None:
        """End the actors."""
        kept_actors.end([*self._started, *self._kept])

    def release_pool(self) -> list[Any]:
        """Return the started actors, which :meth:`close` no longer stops."""
        actors = [
            worker.actor
            for worker in self.pool.workers
            if worker.node is not None or worker is self.pool.first
        ]
        self._started = [actor for actor in self._started if actor not in actors]
        return actors

    def call(self, function: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
        """Start a function call in an actor of the pool.

        Returns: a function that waits for the result, and retries on another actor if the actor
        dies.
        """

        def start_call() -> tuple[Worker, Any, Any]:
            # Use a started actor: if an actor has died, there may be no resources for a new one.
            worker = self.pool.first
            return worker, worker.actor, worker.actor.call.remote(function, *arguments)

        def check_while_waiting() -> None:
            check_raylet()
            self.pool.report_waiting()

        first = start_call()

        def wait() -> Result:
            worker, actor, reference = first
            tries = 1
            while True:
                try:
                    return get_result(reference, check_while_waiting)  # type: ignore[no-any-return]
                except ActorDiedError as error:
                    tries += error.cause is DeathCause.PROCESS
                    if tries > self._attempts:
                        raise
                worker.restart(actor)
                worker, actor, reference = start_call()

        return wait

    def _start_actor(self) -> Any:
        while self._kept:
            actor = self._kept.pop(0)
            self._started.append(actor)
            if kept_actors.hand_over(actor, self.folder):
                return actor
            kept_actors.end([actor])
        return self.start(
            # Use a new number each time, because the name of a dead actor stays reserved for a
            # moment.
            f"{self._actor_class.__name__.lower()}-{next(self._numbers)}",
            self._actor_class,
            self.resources.cpus,
            self.folder,
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_concurrency=SHARDS_PER_ACTOR,
        )


def starts_own_ray(config: RunConfig) -> bool:
    """Return whether :func:`open_session` will start Ray on this machine."""
    return not ray.is_initialized() and choose_ray_address(config.address) == LOCAL


@contextlib.contextmanager
def open_session(
    config: RunConfig, actor_class: type[Any], threads: int | None = None
) -> Iterator[Session]:
    """Connect to Ray, or start it on this machine. An existing Ray is left as it was found.

    Args:
        config: the options of the run.
        actor_class: the class of the actor pool; see :class:`Session`.
        threads: the threads per actor of the run that is resumed; None for a new run.

    Raises:
        InputError: the cluster cannot be reached, or does not have the resources that an actor
            needs.
    """
    threads = config.cpus_per_actor or threads
    if ray.is_initialized():
        each = capacity.wait_for_resources(config, threads)
        needs_own = kept_actors.runs_user_code(config)
        key = (
            actor_class,
            each,
            str(legacy_keras.read_environment()),
            ray.get_runtime_context().job_id,
        )
        kept = kept_actors.take(None if needs_own else key)
        running = Session(config, actor_class, each, config.actors, kept=kept)
        is_reusable = not needs_own
        try:
            yield running
        except InputError:
            # The actors have done nothing wrong.
            raise
        except BaseException:
            is_reusable = False
            raise
        finally:
            if is_reusable:
                kept_actors.keep(key, running.release_pool())
            running.close()
        return
    is_own = starts_own_ray(config)
    awaits_end = True
    nodes_here = _connect(config, threads)
    try:
        if is_own:
            each, actors = capacity.plan_local_actors(config, nodes_here, threads)
            running = Session(config, actor_class, each, actors, inherits=True)
            yield running
            awaits_end = running.awaits_end
        else:
            yield Session(
                config, actor_class, capacity.wait_for_resources(config, threads), config.actors
            )
    finally:
        if awaits_end:
            ray.shutdown()


def _connect(config: RunConfig, threads: int | None) -> list[Node]:
    """Connect to Ray, or start it on this machine, and return the nodes.

    A local Ray is started with enough (logical) CPUs for the requested actors, even if the machine
    has fewer.
    """
    address = choose_ray_address(config.address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        cores = os.cpu_count() or 1
        _start(max(cores, (config.actors or 1) * resources.choose_threads(threads, cores)), options)
        return [replace(node, cpus=cores) for node in list_nodes()]
    join_cluster(address, config, options)
    return list_nodes()


def _start(cpus: int, options: dict[str, Any]) -> None:
    """Start Ray, listening only on the loopback address.

    Raises: RunError: Ray cannot be started.
    """
    try:
        # An interrupt while Ray connects can leave it waiting forever: it destroys a client whose
        # threads are still running (seen in Ray 2.60).
        with (
            defer_interrupts(),
            ray_private.only_on_loopback(),
            ray_private.without_helpers(),
            ray_private.noticing_nodes_early(),
        ):
            ray.init(
                LOCAL,
                num_cpus=cpus,
                include_dashboard=False,
                # Prestarted workers would compete for cores with the first actor.
                _system_config={"prestart_worker_first_driver": False},
                **options,
            )
    except Exception as error:
        # Ray has no specific exception for this.
        raise RunError(
            f"Ray could not be started on this machine: {get_first_line(error)}"
        ) from error
