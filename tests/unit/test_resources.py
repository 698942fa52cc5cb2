# SPDX-License-Identifier: Apache-2.0
"""How many actors there are and what each gets, and the command that goes on with a run."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ray_embed.cli import _command
from ray_embed.config import make_config
from ray_embed.errors import InputError
from ray_embed.filesystem import Folder
from ray_embed.plan import make_plan
from ray_embed.session import Resources, _resources
from ray_embed.sources import open_sources


def resources(*nodes: dict[str, float], ours: bool = False, **options) -> Resources:
    config = make_config({"sources": {"a": "x"}, "model": "m.keras", **options})
    return _resources(config, list(nodes), ours)


def cpu(count: int, gpus: int = 0) -> dict[str, float]:
    return {"CPU": count, "GPU": gpus} if gpus else {"CPU": count}


def test_threads_of_an_actor_do_not_depend_on_the_number_of_actors():
    threads = {resources(cpu(2), ours=True, actors=n).cpus for n in (None, 1, 2, 8)}
    assert threads == {2}
    assert resources(cpu(2), ours=True, actors=8).actors == 8
    assert resources(cpu(16), cpu(8)) == Resources(6, 4, 0.0)


def test_one_actor_a_gpu_with_the_cores_of_its_own_node():
    assert resources(cpu(8), cpu(8, gpus=1)) == Resources(1, 8, 1.0)
    assert resources(cpu(32, gpus=4), cpu(16, gpus=4)) == Resources(8, 4, 1.0)
    assert resources(cpu(32, gpus=4), actors=2).cpus == resources(cpu(32, gpus=4)).cpus


def test_a_share_of_a_gpu_lies_within_one():
    assert resources(cpu(8, gpus=2), gpus_per_actor=0.6).actors == 2
    assert resources(cpu(8, gpus=2), gpus_per_actor=0.5).actors == 4
    assert resources(cpu(8, gpus=5), gpus_per_actor=2).actors == 2
    assert resources(cpu(8, gpus=2), gpus_per_actor=0).gpus == 0.0


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ([cpu(4)], {"gpus_per_actor": 1}),
        ([cpu(4), cpu(4)], {"cpus_per_actor": 8}),
        ([cpu(4, gpus=1)], {"gpus_per_actor": 2}),
    ],
)
def test_what_no_node_has_is_an_error_instead_of_waiting_for_ever(nodes, options):
    with pytest.raises(InputError, match="no node has"):
        resources(*nodes, **options)


def test_more_actors_than_fit_are_not_asked_for():
    assert resources(cpu(8), actors=9, cpus_per_actor=4).actors == 2


def test_the_command_that_goes_on_never_starts_anew(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ray-embed", "run", "--out", "a b", "--overwrite"])
    assert _command() == "ray-embed run --out 'a b'"


def test_other_pixels_in_an_array_file_of_the_same_size_are_another_source(tmp_path: Path):
    digests = Counter()
    for seed in (0, 0, 1):
        images = np.random.default_rng(seed).random((4, 5, 5, 1), np.float32)
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(4))
        config = make_config({"sources": str(tmp_path / "a.npz"), "model": "m.keras"})
        plan = make_plan(
            open_sources(config),
            {},
            Folder.at(str(tmp_path / f"plan{seed}")),
            shard_size=None,
            batch_size=32,
            limit=None,
        )
        digests[plan.splits[0].digest] += 1
    assert sorted(digests.values()) == [1, 2]
