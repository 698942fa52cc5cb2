# SPDX-License-Identifier: Apache-2.0
"""Check, before work starts, that every node of a cluster sees the files and has the software.

Nodes that join later are not checked: there, actors report what they miss.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_embed.config import RunConfig, is_callable_reference
from ray_embed.core.console import say
from ray_embed.core.uri import is_uri
from ray_embed.errors import InputError, get_first_line
from ray_embed.options import RANDOM
from ray_embed.runs import identity
from ray_embed.runs.workspace import Target
from ray_embed.runtime.actors import check_node
from ray_embed.storage.filesystem import TEMPORARY

_PACKAGES = ("ray", *identity.PACKAGES)
_SECONDS, _POLL_SECONDS = 120.0, 1.0
# The number of nodes to name; the others are counted.
_MAX_NAMED = 3
# What is wrong, up to the names of the nodes, and how to fix it.
_Problem = tuple[str, str]


@dataclass(frozen=True)
class _Seen:
    """What a process has: versions of Python and of packages, and the paths it sees."""

    versions: dict[str, str]
    paths: frozenset[str]


def check(config: RunConfig, target: Target) -> None:
    """Compare the nodes of a cluster with this process; a single node is not checked.

    A node that dies meanwhile, or does not answer, is skipped.

    Args:
        config: the options, which name the files.
        target: the run folder, which this process has locked.

    Raises:
        InputError: a node does not see a local path, or has other versions.
        RunError: Ray's process on this machine is gone.
    """
    nodes = {
        node["NodeID"]: f"{node['NodeManagerAddress']} (node {node['NodeID'][:8]})"
        for node in ray.nodes()
        if node["Alive"]
    }
    if len(nodes) < 2:
        return
    options = dict(_list_local_paths(config))
    token = None
    if target.folder.is_local:
        # A new file tells this folder from another one of the same name.
        token = Path(target.folder.join(f"{TEMPORARY}/probe-{uuid.uuid4().hex}"))
        token.touch()
        options[str(token)] = f"--out {target.out}"
    try:
        local = _Seen(*_make_probe()(_PACKAGES, list(options)))
        lacking: defaultdict[_Problem, list[str]] = defaultdict(list)
        for node, remote in _probe_nodes(nodes, list(options)):
            for problem in _compare(local, remote, options):
                lacking[problem].append(nodes[node])
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
    if lacking:
        raise InputError("\n".join(_format_problem(problem, on) for problem, on in lacking.items()))


def _list_local_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the files and folders that are named by a path, with the option that names each."""
    weights = None if config.weights == RANDOM else config.weights
    given = [("--model ", config.model), ("--weights ", weights)]
    given += [(f"--source {split}=", source) for split, source in config.sources.items()]
    for option, value in given:
        if isinstance(value, str) and not is_uri(value) and not is_callable_reference(value):
            yield str(Path(value).absolute()), f"{option}{value}"


def _make_probe() -> Callable[[tuple[str, ...], list[str]], tuple[dict[str, str], frozenset[str]]]:
    """Return the function that probes: an inner one, so that Ray sends its code along.

    A node that lacks this package could not import it.
    """

    def probe(packages: tuple[str, ...], paths: list[str]) -> tuple[dict[str, str], frozenset[str]]:
        import contextlib
        import platform
        from importlib import metadata
        from pathlib import Path

        # Ray itself decides which patch versions of Python are compatible.
        versions = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for package in packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                # The remains of a package may have none.
                versions[package] = metadata.version(package) or "not installed"
        # Checkpoints are named by what their files have in common.
        return versions, frozenset(
            path for path in paths if Path(path).exists() or Path(f"{path}.index").exists()
        )

    return probe


def _probe_nodes(nodes: dict[str, str], paths: list[str]) -> Iterator[tuple[str, _Seen]]:
    probe = ray.remote(_make_probe())
    asked = {}
    for node in nodes:
        affinity = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": affinity}
        asked[probe.options(**options).remote(_PACKAGES, paths)] = node
    end = time.monotonic() + _SECONDS
    while asked and time.monotonic() < end:
        answered, _ = ray.wait(list(asked), timeout=_POLL_SECONDS)
        if not answered:
            check_node()
        for reference in answered:
            node = asked.pop(reference)
            try:
                yield node, _Seen(*ray.get(reference))
            except RayError as error:
                say(
                    f"{nodes[node]}: cannot be checked, continuing without: {get_first_line(error)}"
                )
    for node in asked.values():
        say(f"{nodes[node]}: does not answer, continuing without checking it")


def _compare(local: _Seen, remote: _Seen, options: dict[str, str]) -> Iterator[_Problem]:
    for path, option in options.items():
        if path in local.paths and path not in remote.paths:
            yield (
                f"{option}: it is not seen on",
                "put it on a disk that all nodes share, or on object storage (s3://…)",
            )
    for package in ("Python", *_PACKAGES):
        mine, other = (seen.versions.get(package, "not installed") for seen in (local, remote))
        if mine != other:
            yield (
                f"{package} is {mine} here, and {other} on",
                "install the same on all machines",
            )


def _format_problem(problem: _Problem, nodes: list[str]) -> str:
    what, fix = problem
    more = f" and {len(nodes) - _MAX_NAMED} more" if len(nodes) > _MAX_NAMED else ""
    return f"{what} {', '.join(nodes[:_MAX_NAMED])}{more}; {fix}"
