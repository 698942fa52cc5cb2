# SPDX-License-Identifier: Apache-2.0
"""Looks, before work starts, whether each node of a cluster sees the files and has the software.

Nodes that join later are not looked at: there, actors say what they miss.
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
# So many nodes are named; of the others, how many they are.
_NAMED = 3
# What is wrong, up to the names of the nodes, and the mend.
_Problem = tuple[str, str]


@dataclass(frozen=True)
class _Seen:
    """What a process has: versions of Python and of packages, and which paths it sees."""

    versions: dict[str, str]
    paths: frozenset[str]


def check(config: RunConfig, target: Target) -> None:
    """Compare the nodes of a cluster with this process; a single node is not looked at.

    A node that dies meanwhile, or does not answer, is passed over.

    Args:
        config: names the files.
        target: the run folder, which this process holds alone.

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
    options = dict(_local_paths(config))
    token = None
    if target.folder.is_local:
        # By its name, as another folder may be of the same name.
        token = Path(target.folder.join(f"{TEMPORARY}/probe-{uuid.uuid4().hex}"))
        token.touch()
        options[str(token)] = f"--out {target.out}"
    try:
        here = _Seen(*_look()(_PACKAGES, list(options)))
        lacking: defaultdict[_Problem, list[str]] = defaultdict(list)
        for node, there in _seen_by(nodes, list(options)):
            for problem in _differences(here, there, options):
                lacking[problem].append(nodes[node])
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
    if lacking:
        raise InputError("\n".join(_told(problem, on) for problem, on in lacking.items()))


def _local_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Give the files and folders that are named by a path, with the option that names each."""
    weights = None if config.weights == RANDOM else config.weights
    given = [("--model ", config.model), ("--weights ", weights)]
    given += [(f"--source {split}=", source) for split, source in config.sources.items()]
    for option, value in given:
        if isinstance(value, str) and not is_uri(value) and not is_callable_reference(value):
            yield str(Path(value).absolute()), f"{option}{value}"


def _look() -> Callable[[tuple[str, ...], list[str]], tuple[dict[str, str], frozenset[str]]]:
    """Give the function that looks: one within another, so that Ray takes its code along.

    A node that lacks this package could not import it.
    """

    def look(packages: tuple[str, ...], paths: list[str]) -> tuple[dict[str, str], frozenset[str]]:
        import contextlib
        import platform
        from importlib import metadata
        from pathlib import Path

        # Ray itself says which patches of Python it takes for the same.
        versions = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for package in packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                # What is left of a package may have none.
                versions[package] = metadata.version(package) or "not installed"
        # Checkpoints are named by what their files have in common.
        return versions, frozenset(
            path for path in paths if Path(path).exists() or Path(f"{path}.index").exists()
        )

    return look


def _seen_by(nodes: dict[str, str], paths: list[str]) -> Iterator[tuple[str, _Seen]]:
    look = ray.remote(_look())
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        asked[look.options(**options).remote(_PACKAGES, paths)] = node
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
                say(f"{nodes[node]}: cannot be looked at, gone on without: {get_first_line(error)}")
    for node in asked.values():
        say(f"{nodes[node]}: does not answer, gone on without looking at it")


def _differences(here: _Seen, there: _Seen, options: dict[str, str]) -> Iterator[_Problem]:
    for path, option in options.items():
        if path in here.paths and path not in there.paths:
            yield (
                f"{option}: it is not seen on",
                "put it on a disk that all nodes share, or on object storage (s3://…)",
            )
    for package in ("Python", *_PACKAGES):
        mine, other = (seen.versions.get(package, "not installed") for seen in (here, there))
        if mine != other:
            yield (
                f"{package} is {mine} here, and {other} on",
                "install the same on all machines",
            )


def _told(problem: _Problem, nodes: list[str]) -> str:
    what, mend = problem
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return f"{what} {', '.join(nodes[:_NAMED])}{more}; {mend}"
