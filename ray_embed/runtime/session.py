# SPDX-License-Identifier: Apache-2.0
"""The actors of a run, on an existing Ray or on one that was started on this machine."""

import contextlib
import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray

from ray_embed.config import RunConfig
from ray_embed.core import legacy_keras
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.runtime import capacity, kept_actors, warm_ray
from ray_embed.runtime.actor_pool import ActorPool
from ray_embed.runtime.actors import ActorDiedError, Worker, check_raylet, get_result
from ray_embed.runtime.nodes import DeathCause, Node, list_nodes
from ray_embed.runtime.resources import Resources

# An actor encodes one shard while it decodes another.
SHARDS_PER_ACTOR = 2

Result = TypeVar("Result")


class RunSession:
    """The actors of a run.

    Args:
        config: the options of the run.
        actor_class: the class of the pool's actors. It is instantiated with the number of threads
            and the folder of the user's modules, and must have the methods ``call(function,
            *arguments)`` and ``reuse(folder)``, which returns whether the actor can be used for
            another run.
        each: the resources per actor.
        actors: the number of actors in the pool; None for as many as fit on all nodes, including
            nodes that join later.
        inherits: whether actors inherit the environment of this process, which is the case if this
            process started Ray.
        kept: actors of an earlier run to reuse.

    Attributes:
        are_reusable: whether the actors may be left to the next run. After an error, they may still
            write to the run folder.
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
        self.are_reusable = True
        self._are_here = inherits
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
        """Start an actor that lives as long as the run's session. Does not wait for it.

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
        """End the actors. After an error on this machine, wait until they have ended."""
        waits = self._are_here and not self.are_reusable
        kept_actors.end([*self._started, *self._kept], waits=waits)

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


@contextlib.contextmanager
def open_session(
    configs: Sequence[RunConfig], actor_class: type[Any], threads: int | None = None
) -> Iterator[RunSession]:
    """Use the Ray of this process, or connect to it, or start it on this machine, for a run.

    Args:
        configs: the options of the run, or of runs that share the actors and differ only in the
            encoder and the run folder.
        actor_class: the class of the actor pool; see :class:`RunSession`.
        threads: the threads per actor of the run that is resumed; None for a new run.

    Raises:
        InputError: the cluster cannot be reached, or does not have the resources that an actor
            needs.
    """
    config = configs[0]
    threads = config.cpus_per_actor or threads
    with warm_ray.use_ray(configs, threads) as connection:
        is_own = connection is not None and connection.is_local
        each, actors = _plan_actors(config, threads, is_own)
        key = _make_key(configs, actor_class, each)
        running = RunSession(
            config, actor_class, each, actors, inherits=is_own, kept=warm_ray.take_actors(key)
        )
        try:
            yield running
        except InputError:
            # The actors have done nothing wrong.
            raise
        except BaseException:
            running.are_reusable = False
            raise
        finally:
            if running.are_reusable:
                actors_left = running.release_pool()
                warm_ray.leave_actors(key, actors_left, have_gpus=bool(each.gpus))
            running.close()


def _plan_actors(
    config: RunConfig, threads: int | None, is_own: bool
) -> tuple[Resources, int | None]:
    """Return the resources of each actor, and the number of actors; None for as many as fit."""
    if is_own:
        return capacity.plan_local_actors(config, _list_this_node(), threads)
    return capacity.wait_for_resources(config, threads), config.actors


def _list_this_node() -> list[Node]:
    """Return this machine with its true number of cores, of which Ray may have been told more."""
    cores = os.cpu_count() or 1
    return [replace(node, cpus=cores) for node in list_nodes()]


def _make_key(
    configs: Sequence[RunConfig], actor_class: type[Any], each: Resources
) -> kept_actors.ActorKey | None:
    """Return what the actors of a run depend on, or None if it needs new ones."""
    code = kept_actors.describe_user_code(configs)
    if code is None:
        return None
    context = ray.get_runtime_context()
    surroundings = (
        (context.get_node_id(), context.get_job_id()),
        actor_class,
        each,
        str(legacy_keras.read_environment()),
        kept_actors.read_package_times(),
    )
    return kept_actors.ActorKey(surroundings, code)
