# SPDX-License-Identifier: Apache-2.0
"""An encoder is built before Ray has started only if nothing that Ray knows matters."""

import os

import numpy as np
import pytest
from support.pictures import make_folder
from support.sample_runs import save_encoder

from ray_embed import RunConfig
from ray_embed.extraction.early_build import build_early
from ray_embed.extraction.prepare import make_encoder_spec
from ray_embed.options import CPU_BATCH_SIZE
from ray_embed.runs.workspace import open_target
from ray_embed.runtime import nodes
from ray_embed.sources.open import open_sources


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "may_have_gpus", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    source = make_folder(tmp_path / "valid", {"a": 2})
    model = str(save_encoder(tmp_path / "encoder.keras"))
    return {"sources": {"valid": source}, "model": model, "out": str(tmp_path / "run")}


def start(options):
    """Start to build early; return the requests, to which later ones are added, and `build`."""
    config = RunConfig(**options)
    requests = []

    def build(*request):
        requests.append(request)
        return lambda: len(requests)

    with open_target(config) as target:
        return requests, build_early(build, config, target, open_sources(config), None)


def test_request_is_sent_once(options):
    requests, build = start(options)
    spec = make_encoder_spec(RunConfig(**options), None, CPU_BATCH_SIZE)
    assert requests == [(spec, 2, None)]
    wait = build(spec, 2, None)
    assert requests == [(spec, 2, None)]
    assert wait() == 1
    # A Ray with another number of cores.
    build(spec, 4, None)
    assert requests[1:] == [(spec, 4, None)]


def test_request_has_what_is_asked_for(options):
    np.savez(options["out"] + ".npz", images=np.zeros((3, 20, 30, 3), np.uint8), labels=[0, 1, 2])
    options |= {"sources": {"valid": options["out"] + ".npz"}}
    ((spec, threads, _),), _ = start(options | {"cpus_per_actor": 3, "batch_size": 7})
    assert (spec.image_shape, spec.batch_size, threads) == ((20, 30, 3), 7, 3)


def images():
    yield np.zeros((4, 4, 3), np.uint8), 0


@pytest.mark.parametrize(
    "changed",
    [
        {"sources": {"valid": images}},
        {"gpus_per_actor": 0.5},
        {"preprocess": abs},
        {"model": object()},
    ],
    ids=["dataset", "GPUs asked for", "preprocessing in Python", "model in Python"],
)
def test_nothing_is_sent_that_the_run_does_not_need(options, changed):
    requests, build = start(options | changed)
    assert not requests
    build("later", 1, None)
    assert requests == [("later", 1, None)]


def test_nothing_is_sent_where_there_may_be_gpus(options, monkeypatch):
    monkeypatch.setattr(nodes, "may_have_gpus", lambda: True)
    requests, _ = start(options)
    assert not requests
