# SPDX-License-Identifier: Apache-2.0
"""Pieces of a merge may be done by any process: the projector's files are the same bytes."""

import shutil
from functools import partial

import pytest
import ray
from support.merge_actors import start_merge_actor
from support.pictures import make_folder
from support.sample_runs import config, contents, copy, save_encoder

import ray_embed
from ray_embed.projector import reduce
from ray_embed.runtime import remote_map


@pytest.fixture(scope="module")
def run(ray_session, tmp_path_factory):
    root = tmp_path_factory.mktemp("merging")
    make_folder(root / "data", {"a": 30, "b": 20})
    (root / "data" / "a" / "0002.png").write_bytes(b"no picture")
    save_encoder(root / "encoder.keras")
    ray_embed.run(config({"data": root / "data"}, root / "encoder.keras", root / "run"))
    return root / "run"


@pytest.mark.parametrize("limit", [100, 20], ids=["all are shown", "a sample is shown"])
def test_other_processes_give_the_same_bytes(run, tmp_path, monkeypatch, limit):
    # A group a part.
    monkeypatch.setattr(reduce, "_GROUP_BYTES", 1)
    here, there = copy(run, tmp_path / "here"), copy(run, tmp_path / "there")
    for folder in (here, there):
        shutil.rmtree(folder / "projector")
    reduce.merge(str(here), limit)
    helpers = [start_merge_actor() for _ in range(3)]
    ray.get([one.count.remote() for one in helpers])
    ray.kill(helpers[1])
    reduce.merge(str(there), limit, remote_map=partial(remote_map.map_in_actors, helpers))
    assert contents(there / "projector") == contents(here / "projector")
    assert len(contents(here / "projector")) > 13
    counts = [ray.get(helpers[at].count.remote()) for at in (0, 2)]
    # 2 blocks, then 13 parts of 4, each by three in turn, of whom one is gone.
    assert sum(counts) in (9, 10)
    assert not list(there.glob(".tmp/*"))
