# SPDX-License-Identifier: Apache-2.0
"""Ray: connected to or started here, and the processes that work in it."""

import contextlib
import itertools
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from ray_embed.config import LOCAL, RunConfig, choose_ray_address
from ray_embed.core.uri import shown
from ray_embed.encoders import build_process, legacy_keras
from ray_embed.encoders.spec import Encoder, EncoderSpec
from ray_embed.errors import RunError, first_line
from ray_embed.extraction.worker import Extractor
from ray_embed.runtime import capacity, nodes, resources
from ray_embed.runtime.actor_pool import Crew
from ray_embed.runtime.actors import ActorDiedError, Worker, check_node, result
from ray_embed.runtime.connect import join
from ray_embed.runtime.nodes import Loss, Node
from ray_embed.runtime.resources import Resources

# One shard computes while the other one decodes.
SHARDS_AN_ACTOR = 2


class Session:
    """A Ray that is connected, and the actors that were started in it.

    Args:
        config: what is asked of it.
        each: what each extractor gets.
        actors: how many extractors there are; None for as many as fit on the nodes, as they come.
        build: builds the encoder beside the actors; None to have the first extractor build it.
        inherits: whether actors have the environment of this process, as those of a Ray that it has
            started.
    """

    def __init__(
        self,
        config: RunConfig,
        each: Resources,
        actors: int | None,
        build: build_process.Build | None = None,
        inherits: bool = False,
    ) -> None:
        self.resources = each
        self._build = build
        self._environment = {} if inherits else legacy_keras.environment()
        self.folder = str(Path.cwd())
        self._attempts = config.max_attempts
        self._started: list[Any] = []
        # Unique, as other runs may use the same Ray of the user's.
        run = Path(shown(config.out or "run")).absolute().name or "run"
        self._name = f"{run}-{uuid.uuid4().hex[:6]}"
        self._numbers = itertools.count()
        self.crew = Crew(self._extractor, each, actors)

    def start_building(
        self, spec: EncoderSpec, kept: build_process.Weights | None
    ) -> Callable[[], Encoder]:
        """Start building the encoder; gives a function that waits for it.

        With a GPU an actor must build it, as the engine is chosen by what it gives there.
        """
        if self._build is not None and not self.resources.gpus:
            return self._build(spec, kept)
        return self._start_call("build", spec, kept)

    def reduce(self, out: str, limit: int) -> int:
        """Have the parts merged, by all nodes; see :func:`ray_embed.projector.reduce.merge`."""
        first = self.crew.first
        others = [one.actor for one in self.crew.workers if one.node not in (None, first.node)]
        points: int = self._start_call("reduce", out, limit, others)()
        return points

    def start(self, name: str, actor: type[Any], *arguments: Any, **options: Any) -> Any:
        """Start an actor that ends with the session; the call returns at once.

        Args:
            name: by which the dashboard shows it, after the name of the run; used only once.
            actor: its class.
            arguments: of the class.
            options: for Ray.
        """
        options["name"] = f"{self._name}-{name}"
        if self._environment:
            options["runtime_env"] = {"env_vars": self._environment}
        handle = ray.remote(actor).options(**options).remote(*arguments)
        self._started.append(handle)
        return handle

    def close(self) -> None:
        """End the actors."""
        for handle in self._started:
            ray.kill(handle)

    def _start_call(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Call an extractor; gives what waits for the result, calling again if it dies."""

        def started() -> tuple[Worker, Any, Any]:
            # Rather one that is there: where one has died, there may be no room for another.
            worker = self.crew.first
            return worker, worker.actor, getattr(worker.actor, method).remote(*arguments)

        def meanwhile() -> None:
            check_node()
            self.crew.say_waiting()

        first = started()

        def waited() -> Any:
            worker, actor, reference = first
            tries = 1
            while True:
                try:
                    return result(reference, meanwhile)
                except ActorDiedError as error:
                    tries += error.loss is Loss.PROCESS
                    if tries > self._attempts:
                        raise
                worker.renew(actor)
                worker, actor, reference = started()

        return waited

    def _extractor(self) -> Any:
        return self.start(
            # Another number also in place of one that died, whose name is taken for a moment.
            f"extractor-{next(self._numbers)}",
            Extractor,
            self.resources.cpus,
            self.folder,
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_concurrency=SHARDS_AN_ACTOR,
        )


@contextlib.contextmanager
def session(config: RunConfig, threads: int | None = None) -> Iterator[Session]:
    """Connect to Ray, or start one here; leave it as it was found.

    Args:
        config: what is asked of it.
        threads: of an actor, as the run was begun with; None for a new run.

    Raises:
        InputError: the cluster cannot be reached, or has not what an actor asks for.
    """
    threads = config.cpus_per_actor or threads
    if ray.is_initialized():
        running = Session(config, capacity.found(config, threads), config.actors)
        try:
            yield running
        finally:
            running.close()
        return
    ours = choose_ray_address(config.address) == LOCAL
    with contextlib.ExitStack() as stack:
        build = None
        if ours and isinstance(config.model, str):
            some = resources.threads(threads, os.cpu_count() or 1)
            build = stack.enter_context(build_process.start_build_process(some, str(Path.cwd())))
        here = _connect(config, threads)
        stack.callback(ray.shutdown)
        if ours:
            each, actors = capacity.here(config, here, threads)
            yield Session(config, each, actors, build, inherits=True)
        else:
            yield Session(config, capacity.found(config, threads), config.actors)


def _connect(config: RunConfig, threads: int | None) -> list[Node]:
    """Connect to Ray, or start one here; gives the nodes.

    A Ray of our own pretends to have the cores for as many actors as were asked for.
    """
    address = choose_ray_address(config.address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        cores = os.cpu_count() or 1
        _start(max(cores, (config.actors or 1) * resources.threads(threads, cores)), options)
        return [replace(node, cpus=cores) for node in nodes.alive()]
    join(address, config, options)
    return nodes.alive()


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
