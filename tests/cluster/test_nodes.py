# SPDX-License-Identifier: Apache-2.0
"""Runs on clusters whose nodes differ, come and go; real ones of Ray, with pretended GPUs."""

import pytest
from many_nodes import add, assert_whole, cluster_of, drain, kill, running, undisturbed


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(autouse=True)
def paced(monkeypatch, tmp_path):
    """The encoder's pace and log, on all nodes that are started after this."""
    # It would hide the pretended GPUs.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PACE", "0.5")
    monkeypatch.setenv("PACE_END", str(tmp_path / "fast"))
    monkeypatch.setenv("PACE_LOG", str(tmp_path / "log"))


def actors(batches):
    """The processes that encoded, each with its node and its GPUs."""
    return {(batch.process, batch.node, batch.gpus) for batch in batches}


def test_each_gpu_gets_an_actor_of_its_own(tmp_path, expected):
    with cluster_of((4, 2), (4, 2)) as cluster, running(tmp_path, cluster.address) as run:
        run.until(lambda batches: len(actors(batches)) == 4, "four actors")
        assert_whole(run, expected)
        gpus = {(node.node_id, gpu) for node in cluster.worker_nodes for gpu in "01"}
    found = actors(run.batches())
    assert len(found) == 4
    assert {(node, gpu) for _, node, gpu in found} == gpus


def test_nodes_join_and_leave_while_it_runs(tmp_path, expected):
    with cluster_of((2, 2)) as cluster, running(tmp_path, cluster.address) as run:
        (first,) = cluster.worker_nodes
        run.until_works(first, 4)
        # For building the encoder, one batch is encoded twice.
        building = run.encoded_again
        second = add(cluster, 1, 1)
        run.until_works(second)
        drain(cluster, first, seconds=3600)
        third = add(cluster, 1, 1)
        run.until_works(third)
        left = len(run.batches())
        run.until(lambda batches: len(batches) >= left + 6, "six batches more")
        assert first.node_id not in {batch.node for batch in run.batches()[left:]}
        kill(cluster, first)
        assert run.encoded_again == building
        kill(cluster, second)
        assert_whole(run, expected)
        # Those that were under way on the node that was killed.
        assert run.encoded_again <= building + 2


def test_what_no_node_has_is_an_error_that_names_it(tmp_path):
    with (
        cluster_of((4, 2)) as cluster,
        running(tmp_path, cluster.address, "--gpus-per-actor", 4) as run,
    ):
        assert run.finished() == 2
    said = run.said()
    assert "an actor asks for 1 CPU and 4 GPU, which no node has" in said
    assert "the cluster has 2 nodes (1 with 0 CPU 0 GPU, 1 with 4 CPU 2 GPU)" in said
    assert "ask for less with --cpus-per-actor or --gpus-per-actor" in said
    assert not (tmp_path / "run" / "run.json").exists()
