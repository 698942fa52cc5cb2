# SPDX-License-Identifier: Apache-2.0
"""How many actors there are and what each gets, and the command that goes on with a run."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ray_embed.config import make_config
from ray_embed.errors import InputError
from ray_embed.planning import make_plan
from ray_embed.runtime import capacity, resources
from ray_embed.runtime.nodes import Node
from ray_embed.runtime.resources import Resources
from ray_embed.sources.open import open_sources
from ray_embed.storage.filesystem import Folder


def config(**options):
    return make_config({"sources": {"a": "x"}, "model": "m.keras", **options})


def each(*nodes: Node, threads: int | None = None, **options) -> Resources:
    return resources.choose_resources(
        config(**options), list(nodes), options.get("cpus_per_actor", threads)
    )


def fit(*nodes: Node, **options) -> int:
    return each(*nodes, **options).count_on(nodes)


def node(cpus: int, gpus: float = 0) -> Node:
    return Node("a" * 56, cpus, gpus)


def test_threads_of_an_actor_do_not_depend_on_the_number_of_actors():
    found = [capacity.plan_local_actors(config(actors=n), [node(2)], None) for n in (None, 1, 2, 8)]
    assert {each.cpus for each, _ in found} == {2}
    assert [count for _, count in found] == [1, 1, 2, 8]
    assert each(node(16), node(8)) == Resources(4, 0.0)
    assert fit(node(16), node(8)) == 6


def test_one_actor_a_gpu_with_the_cores_of_its_own_node():
    assert each(node(8), node(8, gpus=1)) == Resources(8, 1.0)
    assert fit(node(8), node(8, gpus=1)) == 1
    assert each(node(32, gpus=4), node(16, gpus=4)) == Resources(4, 1.0)
    assert fit(node(32, gpus=4), node(16, gpus=4)) == 8
    assert each(node(32, gpus=4), actors=2).cpus == each(node(32, gpus=4)).cpus


def test_a_share_of_a_gpu_lies_within_one():
    assert fit(node(8, gpus=2), gpus_per_actor=0.6) == 2
    assert fit(node(8, gpus=2), gpus_per_actor=0.5) == 4
    assert fit(node(8, gpus=5), gpus_per_actor=2) == 2
    assert each(node(8, gpus=2), gpus_per_actor=0).gpus == 0.0


def test_a_node_holds_no_more_actors_than_it_has_cores_for():
    assert fit(node(4, gpus=8)) == 4
    assert fit(node(8, gpus=4), cpus_per_actor=4) == 2
    assert fit(node(8, gpus=2), node(0, gpus=2)) == 2


def test_a_node_whose_gpus_are_too_few_does_not_decide_about_the_cores():
    assert each(node(2, gpus=1), node(32, gpus=4), gpus_per_actor=2) == Resources(16, 2.0)


def test_a_run_goes_on_with_the_threads_it_was_begun_with():
    assert each(node(16, gpus=4), threads=2) == Resources(2, 1.0)
    assert each(node(16), threads=3).cpus == 3
    assert capacity.plan_local_actors(config(), [node(2)], 8) == (Resources(8, 0.0), 1)


def test_what_is_not_known_yet_is_left_to_the_node_that_comes():
    assert each(node(0), gpus_per_actor=0.5) == Resources(1, 0.5)
    assert each(node(0)) == each() == Resources(1, 0.0)


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ([node(4)], {"gpus_per_actor": 1}),
        ([node(4), node(4)], {"cpus_per_actor": 8}),
        ([node(4, gpus=1)], {"gpus_per_actor": 2}),
        ([], {}),
    ],
)
def test_what_no_node_has(nodes, options):
    assert fit(*nodes, **options) == 0


def test_what_this_machine_has_not_is_an_error_instead_of_waiting_for_ever():
    with pytest.raises(InputError, match=r"1 CPU and 1 GPU, which no node has.*4 CPU 0 GPU"):
        capacity.plan_local_actors(config(gpus_per_actor=1), [node(4)], None)


def test_gpus_are_given_out_in_parts_or_whole():
    with pytest.raises(InputError, match=r"--gpus-per-actor 1\.5: give a part of one, or a whole"):
        each(node(4, gpus=4), gpus_per_actor=1.5)


def test_other_pixels_in_an_array_file_of_the_same_size_are_another_source(tmp_path: Path):
    digests = Counter()
    for seed in (0, 0, 1):
        images = np.random.default_rng(seed).random((4, 5, 5, 1), np.float32)
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(4))
        config = make_config({"sources": str(tmp_path / "a.npz"), "model": "m.keras"})
        plan = make_plan(
            open_sources(config),
            {},
            Folder.open(str(tmp_path / f"plan{seed}")),
            shard_size=None,
            batch_size=32,
            limit=None,
        )
        digests[plan.splits[0].digest] += 1
    assert sorted(digests.values()) == [1, 2]
