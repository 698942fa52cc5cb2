# SPDX-License-Identifier: Apache-2.0
"""The Ray of this process, which a run starts or joins, and which later runs use again.

A Ray that was started on this machine stays up until it has been idle for some minutes, or until
the process ends. Its actors stay too, except those with a GPU, which the user's own code may need.
A cluster is left after each run, and a Ray of the user is never ended. Within a :class:`Session`,
the connection to a cluster and all actors are kept.
"""

import atexit
import contextlib
import os
import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from ray_embed.config import LOCAL, RunConfig, choose_ray_address
from ray_embed.core.console import say
from ray_embed.core.interrupts import defer_interrupts
from ray_embed.errors import RunError
from ray_embed.runtime import code_shipping, kept_actors, local_ray, ray_private
from ray_embed.runtime.actors import check_raylet
from ray_embed.runtime.connect import join_cluster
from ray_embed.runtime.kept_actors import ActorKey
from ray_embed.runtime.local_ray import Inherited

IDLE_MINUTES = 10.0


class Session:
    """Keep Ray and the processes with the encoder for all runs within a ``with`` block.

    Each run uses those of the run before it, also on a cluster or a Ray that you have started.
    When the block ends, so do the processes, and Ray if a run has started it on this machine. Until
    then, they hold their GPUs.

    Outside of a session, processes without a GPU on this machine are kept as well, for 10 idle
    minutes at most.
    """

    def __enter__(self) -> Self:
        with _state.changed:
            _state.sessions.append(self)
            _state.is_ending = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _state.changed:
            _state.sessions.remove(self)
            _state.is_ending = not _state.sessions
            _settle()


@dataclass(frozen=True)
class Connection:
    """A Ray that this process has started or joined for its runs.

    Attributes:
        identity: distinguishes it from any other Ray.
        address: the address of the cluster, or LOCAL if this process has started Ray.
        cpus: the (logical) CPUs with which Ray was started; 0 for a cluster.
        inherited: what the processes of a local Ray have inherited; None for a cluster.
        modules: a description of the modules that were sent to the cluster.
    """

    identity: Hashable
    address: str
    cpus: int = 0
    inherited: Inherited | None = None
    modules: str = ""

    @property
    def is_local(self) -> bool:
        """Whether this process has started Ray on this machine."""
        return self.inherited is not None


class _State:
    """What is kept between runs. To be used only while `changed` is held.

    Attributes:
        connection: the Ray that this process has started or joined, if any.
        runs: the runs in progress.
        sessions: the open sessions.
        is_ending: whether a session has ended during the runs in progress, so that Ray ends with
            them.
        timer: ends an idle Ray.
        is_forked: whether Ray belongs to the process from which this one was forked.
    """

    def __init__(self, *, is_forked: bool = False) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.connection: Connection | None = None
        self.runs: set[object] = set()
        self.sessions: list[Session] = []
        self.is_ending = False
        self.timer: threading.Timer | None = None
        self.is_forked = is_forked


_state = _State()


@contextlib.contextmanager
def use_ray(configs: Sequence[RunConfig], threads: int | None) -> Iterator[Connection | None]:
    """Use the Ray of this process during a run; start or join one if there is none that fits.

    Args:
        configs: the options of the run, or of runs that share the actors.
        threads: the threads per actor, if they are given.

    Yields:
        the Ray that this process has started or joined, or None for a Ray of the user.

    Raises:
        InputError: the cluster cannot be joined.
        RunError: Ray cannot be started.
    """
    run = object()
    try:
        with _state.changed:
            _stop_timer()
            connection = _connect(configs, threads)
            _state.runs.add(run)
        yield connection
    finally:
        with defer_interrupts(), _state.changed:
            _state.runs.discard(run)
            _settle()
            _state.changed.notify_all()


def will_start_ray(configs: Sequence[RunConfig], threads: int | None) -> bool:
    """Return whether :func:`use_ray` will start Ray on this machine."""
    if choose_ray_address(configs[0].address) != LOCAL:
        return False
    with _state.changed:
        if not _is_connected():
            return not ray.is_initialized()
        return not _fits(configs, threads) and not _state.runs and not _is_used_by_others()


def take_actors(key: ActorKey | None) -> list[Any]:
    """Return the actors that an earlier run has left if they fit; otherwise stop them."""
    with _state.changed:
        return kept_actors.take(key)


def leave_actors(key: ActorKey | None, actors: list[Any], *, have_gpus: bool) -> None:
    """Leave the actors of a run to the next one, or stop them.

    They are stopped if another run is in progress, which may be waiting for their resources.

    Args:
        key: what the actors depend on; None if no other run can use them.
        actors: the actors.
        have_gpus: whether they have GPUs.
    """
    with _state.changed:
        is_local = _state.connection is not None and _state.connection.is_local
        is_free = is_local and not have_gpus and not _state.is_ending
        if key is not None and (_state.sessions or is_free) and len(_state.runs) == 1:
            kept_actors.keep(key, actors)
        else:
            kept_actors.end(actors)


def _connect(configs: Sequence[RunConfig], threads: int | None) -> Connection | None:
    """Return the connection that fits a run, or None for a Ray of the user."""
    if _state.is_forked:
        raise RunError(
            "this process was forked from one whose Ray is still up, and cannot use Ray; start "
            "processes with the method `spawn`, or put the runs before the fork into `with "
            "ray_embed.Session():`",
            can_resume=False,
        )
    while _state.runs and _is_connected() and not _fits(configs, threads):
        say("waiting for the other run of this process, which uses Ray with other settings")
        _state.changed.wait()
    if _is_connected() and not _fits(configs, threads):
        if _is_used_by_others():
            _give_to_user()
        else:
            _end()
    if not _is_connected():
        _state.connection = None
        if not ray.is_initialized():
            _state.connection = _open(configs[0], threads)
    return _state.connection


def _open(config: RunConfig, threads: int | None) -> Connection:
    """Start Ray on this machine, or join a cluster."""
    address = choose_ray_address(config.address)
    if address != LOCAL:
        join_cluster(address, config, local_ray.QUIET)
        modules = code_shipping.describe_modules(config, Path.cwd())
        return Connection(_identify_ray(), address, modules=modules)
    cpus = local_ray.count_cpus(config, threads)
    local_ray.start_ray(cpus)
    # Ray's own handler would wait for messages.
    atexit.unregister(_end_at_exit)
    atexit.register(_end_at_exit)
    if not _state.sessions:
        say(
            f"Ray stays up for further runs, until this process ends or {IDLE_MINUTES:g} minutes "
            "have passed without a run"
        )
    return Connection(_identify_ray(), LOCAL, cpus, local_ray.read_inherited())


def _identify_ray() -> Hashable:
    context = ray.get_runtime_context()
    # Each Ray counts its jobs from 1.
    return context.get_node_id(), context.get_job_id()


def _is_connected() -> bool:
    """Return whether the current Ray is the one that this process has started or joined."""
    connection = _state.connection
    return (
        connection is not None and ray.is_initialized() and _identify_ray() == connection.identity
    )


def _fits(configs: Sequence[RunConfig], threads: int | None) -> bool:
    """Return whether a run can use the connection, and would not notice that it is not new."""
    connection, config = _state.connection, configs[0]
    if connection is None or choose_ray_address(config.address) != connection.address:
        return False
    if connection.inherited is None:
        is_same = connection.modules == code_shipping.describe_modules(config, Path.cwd())
        return is_same and _is_node_alive()
    inherited = local_ray.read_inherited()
    if kept_actors.describe_user_code(configs) == ():
        # Actors change their folder themselves; Ray only searches it for modules.
        inherited = replace(inherited, folder=connection.inherited.folder)
    return (
        inherited == connection.inherited
        and local_ray.count_cpus(config, threads) <= connection.cpus
        and not ray_private.have_processes_died()
    )


def _is_node_alive() -> bool:
    try:
        check_raylet()
    except RunError:
        return False
    return True


def _is_used_by_others() -> bool:
    """Return whether the user's own code uses our local Ray, for example with Ray Data."""
    if ray_private.have_processes_died():
        return False
    with contextlib.suppress(Exception):
        return ray_private.is_used_by_others(kept_actors.list_actors())
    return False


def _settle() -> None:
    """After a run or a session, decide how long to keep Ray."""
    if _state.runs:
        return
    if _state.is_ending:
        _end()
    elif _state.connection is not None and not _state.sessions:
        if _state.connection.is_local:
            _start_timer()
        else:
            _end()


def _start_timer() -> None:
    _stop_timer()
    timer = threading.Timer(IDLE_MINUTES * 60, lambda: _end_if_idle(timer))
    timer.daemon = True
    timer.start()
    _state.timer = timer


def _stop_timer() -> None:
    if _state.timer is not None:
        _state.timer.cancel()
        _state.timer = None


def _end_if_idle(timer: threading.Timer) -> None:
    """End Ray, unless a run or a session has begun since the timer was started."""
    with _state.changed:
        if _state.timer is not timer or _state.sessions:
            return
        if _is_connected() and _is_used_by_others():
            _give_to_user()
        else:
            _end()


def _give_to_user() -> None:
    """End the actors, but leave Ray as if the user had started it."""
    _stop_timer()
    kept_actors.take(None)
    _state.connection = None


def _end() -> None:
    """End what is kept."""
    _stop_timer()
    _state.is_ending = False
    if _is_connected():
        # This ends the actors, too.
        kept_actors.forget()
        with defer_interrupts():
            ray.shutdown()
    else:
        kept_actors.take(None)
    _state.connection = None


def _end_at_exit() -> None:
    with _state.changed:
        if not _state.runs:
            _end()


def _leave_to_parent() -> None:
    """In a forked process, leave Ray to the parent: its threads are not here."""
    global _state
    parent, _state = _state, _State(is_forked=_state.is_forked or _state.connection is not None)
    if parent.connection is not None:
        ray_private.leave_to_parent()
        atexit.unregister(_end_at_exit)


os.register_at_fork(after_in_child=_leave_to_parent)
