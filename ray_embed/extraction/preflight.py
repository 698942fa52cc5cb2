# SPDX-License-Identifier: Apache-2.0
"""Check before a run that every node can access the files and has the required software.

Nodes that join later are not checked; actors report missing files or software there.
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

from ray_embed.config import RunConfig, is_callable_reference, names_data_set
from ray_embed.core.console import say
from ray_embed.core.model_names import names_model
from ray_embed.core.uri import is_uri
from ray_embed.encoders.frameworks.base import Framework
from ray_embed.encoders.frameworks.registry import find_framework
from ray_embed.errors import InputError, get_first_line
from ray_embed.extraction.prepare import make_encoder_spec
from ray_embed.options import RANDOM
from ray_embed.runs import identity
from ray_embed.runs.workspace import Target
from ray_embed.runtime.actors import check_raylet
from ray_embed.storage.filesystem import TEMPORARY

_PACKAGES = ("ray", "pillow", *identity.PACKAGES)
_PROBE_TIMEOUT_SECONDS, _POLL_SECONDS = 120.0, 1.0
# Maximum number of nodes to name in a message.
_MAX_NAMED = 3
# A problem (to be followed by the names of the nodes), and how to fix it.
_Problem = tuple[str, str]


@dataclass(frozen=True)
class _Environment:
    """The environment of a process: Python and package versions, and the paths it can access."""

    versions: dict[str, str]
    paths: frozenset[str]


def check(config: RunConfig, target: Target) -> None:
    """Compare the environment of every node with this process.

    Does nothing on a single node. Nodes that die or do not respond are skipped.

    Args:
        config: the run configuration, for its paths.
        target: the (locked) run folder.

    Raises:
        InputError: a node cannot access a local path or has different versions.
        RunError: the raylet on this machine has died.
    """
    nodes = {
        node["NodeID"]: f"{node['NodeManagerAddress']} (node {node['NodeID'][:8]})"
        for node in ray.nodes()
        if node["Alive"]
    }
    if len(nodes) < 2:
        return
    framework = find_framework(make_encoder_spec(config, None, 1))
    options = dict(_list_local_paths(config, framework))
    token = None
    if target.folder.is_local:
        # A new file distinguishes this folder from one with the same path on another machine.
        token = Path(target.folder.join(f"{TEMPORARY}/probe-{uuid.uuid4().hex}"))
        token.touch()
        options[str(token)] = f"--out {target.out}"
    try:
        packages = (*_PACKAGES, *framework.packages)
        local = _Environment(*_make_probe()(packages, list(options)))
        nodes_by_problem: defaultdict[_Problem, list[str]] = defaultdict(list)
        for node, remote in _probe_nodes(nodes, packages, list(options)):
            for problem in _compare(local, remote, packages, options):
                nodes_by_problem[problem].append(nodes[node])
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
    if nodes_by_problem:
        raise InputError(
            "\n".join(_format_problem(problem, on) for problem, on in nodes_by_problem.items())
        )


def _list_local_paths(config: RunConfig, framework: Framework) -> Iterator[tuple[str, str]]:
    """Yield all local paths in the configuration, with the option of each."""
    weights = None if config.weights == RANDOM else config.weights
    given = [("--model ", config.model), ("--weights ", weights)]
    given += [(f"--source {split}=", source) for split, source in config.sources.items()]
    for option, value in given:
        if not isinstance(value, str) or names_data_set(value) or names_model(value):
            continue
        if not is_uri(value) and not is_callable_reference(value):
            yield str(Path(value).absolute()), f"{option}{value}"
    model = config.model
    if isinstance(model, str) and not is_uri(model) and Path(model).is_file():
        for name in framework.list_companions(Path(model)):
            path = Path(model).absolute().parent / name
            yield str(path), f"--model {model}, its file {path}"


def _make_probe() -> Callable[[tuple[str, ...], list[str]], tuple[dict[str, str], frozenset[str]]]:
    """Return the probe as an inner function, so that Ray pickles it by value.

    It must also run on nodes where ray_embed is not installed.
    """

    def probe(packages: tuple[str, ...], paths: list[str]) -> tuple[dict[str, str], frozenset[str]]:
        import contextlib
        import platform
        from importlib import metadata
        from pathlib import Path

        # Ray checks the patch version of Python itself.
        versions = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for package in packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                # Leftovers of an uninstalled package may have no version.
                versions[package] = metadata.version(package) or "not installed"
        # Checkpoints are given by their prefix.
        return versions, frozenset(
            path for path in paths if Path(path).exists() or Path(f"{path}.index").exists()
        )

    return probe


def _probe_nodes(
    nodes: dict[str, str], packages: tuple[str, ...], paths: list[str]
) -> Iterator[tuple[str, _Environment]]:
    probe = ray.remote(_make_probe())
    asked = {}
    for node in nodes:
        affinity = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": affinity}
        asked[probe.options(**options).remote(packages, paths)] = node
    end = time.monotonic() + _PROBE_TIMEOUT_SECONDS
    while asked and time.monotonic() < end:
        answered, _ = ray.wait(list(asked), timeout=_POLL_SECONDS)
        if not answered:
            check_raylet()
        for reference in answered:
            node = asked.pop(reference)
            try:
                yield node, _Environment(*ray.get(reference))
            except RayError as error:
                say(f"{nodes[node]}: check failed, continuing without it: {get_first_line(error)}")
    for node in asked.values():
        say(f"{nodes[node]}: no response, continuing without checking it")


def _compare(
    local: _Environment, remote: _Environment, packages: tuple[str, ...], options: dict[str, str]
) -> Iterator[_Problem]:
    for path, option in options.items():
        if path in local.paths and path not in remote.paths:
            yield (
                f"{option}: not accessible on",
                "use a shared file system or object storage (s3://…)",
            )
    for package in ("Python", *packages):
        mine, other = (seen.versions.get(package, "not installed") for seen in (local, remote))
        if mine != other:
            yield (
                f"{package} is {mine} here, but {other} on",
                "install the same version on all machines",
            )


def _format_problem(problem: _Problem, nodes: list[str]) -> str:
    what, fix = problem
    more = f" and {len(nodes) - _MAX_NAMED} more" if len(nodes) > _MAX_NAMED else ""
    return f"{what} {', '.join(nodes[:_MAX_NAMED])}{more}; {fix}"
