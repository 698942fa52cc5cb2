# SPDX-License-Identifier: Apache-2.0
"""Determine the resources of each actor, and wait for a node that has them."""

import time
from collections import Counter

import ray

from ray_embed.config import RunConfig
from ray_embed.core.console import Reminder
from ray_embed.errors import InputError
from ray_embed.runtime import nodes, resources
from ray_embed.runtime.actors import check_raylet
from ray_embed.runtime.autoscaler import Autoscaler, Growth
from ray_embed.runtime.nodes import Node
from ray_embed.runtime.resources import Resources

_POLL_SECONDS = 1.0


def plan_local_actors(
    config: RunConfig, machine: list[Node], threads: int | None
) -> tuple[Resources, int]:
    """Return the resources of each actor in our own local Ray, and the number of actors.

    Args:
        config: the options of the run.
        machine: this machine, as a list of one node.
        threads: the threads of an actor, if they are given.

    Raises:
        InputError: the machine lacks the resources for one actor.
    """
    each = resources.choose_resources(config, machine, threads)
    count = each.count_on(machine)
    if not each.gpus:
        # Ray was told that the node has as many cores as these actors need.
        count = max(count, config.actors or 1)
    if not count:
        raise _make_no_node_error(config, each, threads, machine, Growth.NO_AUTOSCALER)
    return each, min(config.actors or count, count)


def wait_for_resources(config: RunConfig, threads: int | None) -> Resources:
    """Return the resources of each actor on a cluster, once there is a node that has them.

    Args:
        config: the options of the run.
        threads: the threads of an actor, if they are given.

    Raises:
        InputError: no node has these resources, and the autoscaler cannot start one that does.
    """
    cluster = nodes.list_nodes()
    each = resources.choose_resources(config, cluster, threads)
    if each.count_on(cluster):
        return each
    # An autoscaler starts nodes for waiting actors. With a GPU, the cores are not known yet.
    demand = {"num_cpus": each.cpus, "num_gpus": each.gpus}
    holders = [
        ray.remote(_Placeholder).options(**demand).remote() for _ in range(config.actors or 1)
    ]
    try:
        return _wait_for_node(config, each, threads)
    finally:
        for holder in holders:
            ray.kill(holder)


class _Placeholder:
    """An actor that requests resources until the resources of the run's actors are known."""


def _wait_for_node(config: RunConfig, asked: Resources, threads: int | None) -> Resources:
    autoscaler = Autoscaler({"CPU": asked.cpus, "GPU": asked.gpus})
    reminder = Reminder()
    more = "" if config.actors else "; one is asked for: --actors N starts machines for N"
    while True:
        cluster = nodes.list_nodes()
        each = resources.choose_resources(config, cluster, threads)
        if each.count_on(cluster):
            return each
        growth = autoscaler.growth()
        if growth in (Growth.NO_AUTOSCALER, Growth.NEVER):
            raise _make_no_node_error(config, asked, threads, cluster, growth)
        if growth is Growth.MAYBE and reminder.is_due():
            reminder.say(
                f"waiting for a machine: an actor asks for {asked}, and the cluster has "
                f"{describe_nodes(cluster)}; its autoscaler may start one{more}"
            )
            more = ""
        check_raylet()
        time.sleep(_POLL_SECONDS)


def _make_no_node_error(
    config: RunConfig, each: Resources, threads: int | None, cluster: list[Node], growth: Growth
) -> InputError:
    begun = threads and not config.cpus_per_actor
    why = f" (the run was begun with {threads} threads an actor)" if begun else ""
    started = ", nor can its autoscaler start one that has" if growth is Growth.NEVER else ""
    return InputError(
        f"an actor asks for {each}{why}, which no node has: the cluster has "
        f"{describe_nodes(cluster)}{started}; ask for less with --cpus-per-actor or "
        "--gpus-per-actor"
    )


def describe_nodes(cluster: list[Node]) -> str:
    """Describe nodes in a line: how many there are of each kind, and what each kind has."""
    kinds = Counter((node.cpus, node.gpus) for node in cluster)
    each = ", ".join(
        f"{count} with {cpus} CPU {gpus:g} GPU" for (cpus, gpus), count in sorted(kinds.items())
    )
    return f"{len(cluster)} node{'s' * (len(cluster) != 1)} ({each})" if cluster else "no nodes"
