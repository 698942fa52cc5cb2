# SPDX-License-Identifier: Apache-2.0
"""All private names of Ray that the package uses, because Ray has no public ones for these uses.

Another version of Ray may lack these names. The functions then raise whatever error results, and
the callers treat the requested information as unknown.
"""

import atexit
import contextlib
import ctypes
import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import ray

from ray_embed.runtime import idle_agent

# The maximum time to wait for a raylet. Afterwards, Ray itself waits.
_START_SECONDS, _POLL_SECONDS = 10.0, 0.02


def list_draining_nodes() -> frozenset[str]:
    """Return the ids of the nodes that are about to be removed.

    Actors receive no signal about this, and the public `ray.nodes` does not report it.
    """
    return frozenset(_state().get_draining_nodes())


def get_process_id(actor: Any) -> int:
    """Return the process id of an actor, or 0 while the actor waits for resources.

    The public table of actors needs the dashboard, and names a node even for waiting actors.
    """
    return int(_state().actor_table(actor._actor_id.hex())["Pid"])


def find_node_of_death(actor_id: str) -> str | None:
    """Return the id of the node whose death ended an actor, or None if only its process ended.

    The public exception contains this only as text.
    """
    entry = _state().actor_table(actor_id)
    if not entry["DeathCause"].actor_died_error_context.HasField("node_death_info"):
        return None
    return str(entry["Address"]["NodeID"])


def was_draining(node_id: str) -> bool:
    """Return whether a dead node was being drained.

    Ray's public flag for this, `preempted`, is set only if the node died after its deadline.
    """
    from ray.core.generated.gcs_pb2 import NodeSnapshot

    for id_, info in _gcs_client().get_all_node_info().items():
        if id_.hex() == node_id:
            return bool(info.state_snapshot.state == NodeSnapshot.DRAINING)
    return False


def cluster_status(timeout: float) -> Any:
    """Return the ``GetClusterStatusReply`` of the autoscaler that `ray up` and KubeRay start.

    Args:
        timeout: the maximum number of seconds to wait.
    """
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    return GetClusterStatusReply.FromString(_gcs_client().get_cluster_status(timeout_s=timeout))


def legacy_autoscaler_status() -> dict[str, Any]:
    """Return the status that the legacy autoscaler writes, as plain data."""
    from ray.experimental.internal_kv import _internal_kv_get

    return dict(json.loads(_internal_kv_get(b"__autoscaling_status")))


def count_gpus() -> int:
    """Return the number of GPUs that Ray finds on this machine, before it is started."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    return int(get_accelerator_manager_for_resource("GPU").get_current_node_num_accelerators())


@contextlib.contextmanager
def only_on_loopback() -> Iterator[None]:
    """Make a Ray that is started in this context listen on the loopback address only.

    Ray does so by default on systems where it does not support clusters. On others, it listens on
    all addresses, whatever address it is given.
    """
    from ray._private import ray_constants

    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextlib.contextmanager
def without_helpers() -> Iterator[None]:
    """Let a Ray that is started in this context do without the helpers that only clusters need.

    These are the processes that forward logs to the driver, ask for more nodes, and serve the
    dashboard and the metrics. Each is a Python that imports Ray, and Ray's start waits for most of
    them. A Ray that lacks one of the names starts all or some of its helpers.
    """
    from ray._private import node, services

    def start_nothing(self: Any, *_: Any, **__: Any) -> None:
        pass

    with contextlib.ExitStack() as stack:
        for name in ("start_log_monitor", "start_monitor", "start_api_server"):
            stack.enter_context(_replaced(node.Node, name, start_nothing))
        if hasattr(ray._raylet, "METRICS_AGENT_PORT_NAME"):
            # In such versions, an agent tells its ports by files.
            name = "_build_python_executable_command_memory_profileable"
            build_command = _build_agent_command(getattr(services, name, None))
            stack.enter_context(_replaced(services, name, build_command))
        yield


@contextlib.contextmanager
def noticing_nodes_early() -> Iterator[None]:
    """Let a Ray that is started in this context notice its raylet as soon as that is there.

    Ray itself looks once per second, and the first look is always too early.
    """
    from ray._private import services

    get_node = getattr(services, "get_node", None)

    def wait_and_get_node(gcs_address: str, node_id: str) -> Any:
        client = ray._raylet.GcsClient(address=gcs_address)
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            if any(id_.hex() == node_id for id_ in client.get_all_node_info()):
                break
            time.sleep(_POLL_SECONDS)
        return get_node(gcs_address, node_id) if get_node else None

    with _replaced(services, "get_node", wait_and_get_node):
        yield


def _build_agent_command(original: Any) -> Any:
    """Return a function that Ray calls for the beginning of the command line of a helper."""
    from ray._private import ray_constants

    def build_command(component: str, *arguments: Any, **options: Any) -> list[str]:
        if component == ray_constants.PROCESS_TYPE_DASHBOARD_AGENT:
            return [sys.executable, "-I", "-S", idle_agent.__file__]
        command: list[str] = original(component, *arguments, **options)
        return command

    return build_command


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute in this context, if there is one."""
    before = getattr(owner, name, None)
    if before is None:
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def make_job_config(folders: Iterable[str]) -> Any:
    """Return the ``job_config`` of `ray.init` that puts folders on the import path of workers.

    By default, workers search only the folder of the script and the working folder.
    """
    from ray.job_config import JobConfig

    # Workers put one after the other first.
    return JobConfig(_py_driver_sys_path=[*folders][::-1])


def have_processes_died() -> bool:
    """Return whether a process of the Ray that this process started has died.

    `ray.nodes` would wait for a dead server.
    """
    node = ray._private.worker._global_node
    return node is not None and not node.remaining_processes_alive()


def is_used_by_others(actors: Iterable[Any]) -> bool:
    """Return whether this process holds objects of Ray, or has actors other than these."""
    worker = ray._private.worker.global_worker
    if worker.core_worker.get_all_reference_counts():
        return True
    ours = {actor._actor_id.hex() for actor in actors}
    return any(
        entry["State"] != "DEAD" and actor_id not in ours
        for actor_id, entry in _state().actor_table(None).items()
    )


def leave_to_parent() -> None:
    """Let a forked process exit without ending the Ray of its parent, and without hanging.

    The threads of Ray that its destructors wait for were not forked.
    """
    atexit.unregister(ray.shutdown)
    owners = (
        (ray._private.worker.global_worker, ("core_worker", "gcs_client")),
        (_state(), ("_global_state_accessor",)),
        (ray._private.worker._global_node, ("_gcs_client",)),
    )
    for owner, names in owners:
        for name in names:
            # Never destroyed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(getattr(owner, name, None)))
    ray._private.worker._global_node = None
    with contextlib.suppress(AttributeError):
        # Of the C library's handlers, the last one is called first. Only glibc gives it the status.
        library = ctypes.CDLL(None)
        library.on_exit(library._exit, None)


def _state() -> Any:
    from ray._private.state import state

    return state


def _gcs_client() -> Any:
    return ray._private.worker.global_worker.gcs_client
