# SPDX-License-Identifier: Apache-2.0
"""Room for at least one actor: on the nodes that are there, or on one that is waited for."""

import time
from collections import Counter

import ray

from ray_embed.config import RunConfig
from ray_embed.core.console import Reminder
from ray_embed.errors import InputError
from ray_embed.runtime import nodes, resources
from ray_embed.runtime.actors import check_node
from ray_embed.runtime.nodes import Autoscaler, Growth, Node
from ray_embed.runtime.resources import Resources

_LOOK_SECONDS = 1.0


def here(config: RunConfig, there: list[Node], threads: int | None) -> tuple[Resources, int]:
    """Give what each actor gets on a Ray of our own, and how many there are.

    Args:
        config: what is asked for.
        there: this machine.
        threads: of an actor, where they are given.

    Raises:
        InputError: it has no room for one.
    """
    each = resources.each(config, there, threads)
    fit = each.fit(there)
    if not each.gpus:
        # It was given the cores for what was asked.
        fit = max(fit, config.actors or 1)
    if not fit:
        raise _never(config, each, threads, there, Growth.NO_AUTOSCALER)
    return each, min(config.actors or fit, fit)


def found(config: RunConfig, threads: int | None) -> Resources:
    """Give what each actor gets on a cluster, once there is a node that has it.

    Args:
        config: what is asked for.
        threads: of an actor, where they are given.

    Raises:
        InputError: no node has it, and none will.
    """
    there = nodes.alive()
    each = resources.each(config, there, threads)
    if each.fit(there):
        return each
    # An autoscaler starts what actors ask for; what is asked with a GPU is not all known yet.
    demand = {"num_cpus": each.cpus, "num_gpus": each.gpus}
    holders = [ray.remote(_Holder).options(**demand).remote() for _ in range(config.actors or 1)]
    try:
        return _awaited(config, each, threads)
    finally:
        for holder in holders:
            ray.kill(holder)


class _Holder:
    """Takes the place of an extractor until it is known what that gets."""


def _awaited(config: RunConfig, asked: Resources, threads: int | None) -> Resources:
    autoscaler = Autoscaler({"CPU": asked.cpus, "GPU": asked.gpus})
    reminder = Reminder()
    more = "" if config.actors else "; one is asked for: --actors N starts machines for N"
    while True:
        there = nodes.alive()
        each = resources.each(config, there, threads)
        if each.fit(there):
            return each
        growth = autoscaler.growth()
        if growth in (Growth.NO_AUTOSCALER, Growth.NEVER):
            raise _never(config, asked, threads, there, growth)
        if growth is Growth.MAYBE and reminder.is_due():
            reminder.say(
                f"waiting for a machine: an actor asks for {asked}, and the cluster has "
                f"{described(there)}; its autoscaler may start one{more}"
            )
            more = ""
        check_node()
        time.sleep(_LOOK_SECONDS)


def _never(
    config: RunConfig, each: Resources, threads: int | None, there: list[Node], growth: Growth
) -> InputError:
    begun = threads and not config.cpus_per_actor
    why = f" (the run was begun with {threads} threads an actor)" if begun else ""
    started = ", nor can its autoscaler start one that has" if growth is Growth.NEVER else ""
    return InputError(
        f"an actor asks for {each}{why}, which no node has: the cluster has {described(there)}"
        f"{started}; ask for less with --cpus-per-actor or --gpus-per-actor"
    )


def described(there: list[Node]) -> str:
    """Say how many nodes there are, and what they have, each kind once."""
    kinds = Counter((node.cpus, node.gpus) for node in there)
    each = ", ".join(
        f"{count} with {cpus} CPU {gpus:g} GPU" for (cpus, gpus), count in sorted(kinds.items())
    )
    return f"{len(there)} node{'s' * (len(there) != 1)} ({each})" if there else "no nodes"
