# SPDX-License-Identifier: Apache-2.0
"""Runs on clusters whose nodes differ, come and go; real ones of Ray, with pretended GPUs."""

import time
from collections import Counter

import pytest
from PIL import Image
from support.many_nodes import (
    add,
    assert_complete,
    drain,
    kill,
    run_undisturbed,
    start_cluster,
    start_run,
)
from support.pictures import picture
from support.sample_runs import read_parts


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(autouse=True)
def paced(monkeypatch, tmp_path):
    """The encoder's pace and log, on all nodes that are started after this."""
    # It would hide the pretended GPUs.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # So that the last actor finds something to do, however long it takes to start.
    monkeypatch.setenv("PACE", "2")
    monkeypatch.setenv("PACE_END", str(tmp_path / "fast"))
    monkeypatch.setenv("PACE_LOG", str(tmp_path / "log"))


def actors(batches):
    """The processes that encoded, each with its node and its GPUs."""
    return {(batch.process, batch.node, batch.gpus) for batch in batches}


@pytest.mark.slow
def test_each_gpu_gets_an_actor_of_its_own(tmp_path, expected):
    with start_cluster((4, 2), (4, 2)) as cluster, start_run(tmp_path, cluster.address) as run:
        run.wait_until(lambda batches: len(actors(batches)) == 4, "four actors")
        assert_complete(run, expected)
        gpus = {(node.node_id, gpu) for node in cluster.worker_nodes for gpu in "01"}
    found = actors(run.read_batches())
    assert len(found) == 4
    assert {(node, gpu) for _, node, gpu in found} == gpus


@pytest.mark.slow
def test_nodes_join_and_leave_while_it_runs(tmp_path, expected):
    with start_cluster((2, 2)) as cluster, start_run(tmp_path, cluster.address) as run:
        (first,) = cluster.worker_nodes
        # Building the encoder takes 7 batches, of which it encodes two again.
        run.wait_for_batches(first, 10)
        building = run.count_repeated_batches()
        second = add(cluster, 1, 1)
        run.wait_for_batches(second)
        drain(cluster, first, seconds=3600)
        third = add(cluster, 1, 1)
        run.wait_for_batches(third)
        left = len(run.read_batches())
        run.wait_until(lambda batches: len(batches) >= left + 4, "four batches more")
        assert first.node_id not in {batch.node for batch in run.read_batches()[left:]}
        kill(cluster, first)
        assert run.count_repeated_batches() == building
        kill(cluster, second)
        assert_complete(run, expected)
        # Those that were under way on the node that was killed.
        assert run.count_repeated_batches() <= building + 2


@pytest.mark.slow
def test_what_no_node_has_is_an_error_that_names_it(tmp_path):
    with (
        start_cluster((4, 2)) as cluster,
        start_run(tmp_path, cluster.address, "--gpus-per-actor", 4) as run,
    ):
        assert run.finish() == 2
    said = run.read_output()
    assert "an actor asks for 1 CPU and 4 GPU, which no node has" in said
    assert "the cluster has 2 nodes (1 with 0 CPU 0 GPU, 1 with 4 CPU 2 GPU)" in said
    assert "ask for less with --cpus-per-actor or --gpus-per-actor" in said
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.longest
@pytest.mark.parametrize(
    ("words", "nodes", "each"),
    [
        (["--gpus-per-actor", 0.5], [(2, 1), (8, 2)], {(0, "0"): 2, (1, "0"): 2, (1, "1"): 2}),
        # The second has cores for two actors only.
        ([], [(1, 1), (2, 4)], {(0, "0"): 1, (1, "0"): 1, (1, "1"): 1}),
        (["--gpus-per-actor", 2], [(1, 1), (4, 5)], {(1, "0,1"): 1, (1, "2,3"): 1}),
        (["--gpus-per-actor", 0], [(1, 1), (2, 1)], {(0, "-"): 1, (1, "-"): 2}),
    ],
)
def test_actors_a_node_and_a_gpu(tmp_path, expected, monkeypatch, words, nodes, each):
    monkeypatch.setenv("PACE", "4")
    with start_cluster() as cluster:
        order = [add(cluster, *node).node_id for node in nodes]
        count = sum(each.values())
        with start_run(tmp_path, cluster.address, *words) as run:
            run.wait_until(lambda batches: len(actors(batches)) == count, f"{count} actors")
            assert_complete(run, expected)
    found = Counter((order.index(node), gpus) for _, node, gpus in actors(run.read_batches()))
    assert found == each


@pytest.mark.longest
def test_actors_that_find_no_room_wait_for_it_while_the_others_work(tmp_path, expected):
    with (
        start_cluster((1, 1)) as cluster,
        start_run(tmp_path, cluster.address, "--actors", 3) as run,
    ):
        run.wait_until(lambda _: "for room" in run.read_output(), "said")
        run.wait_for_batches(next(iter(cluster.worker_nodes)))
        new = add(cluster, 2, 2)
        run.wait_until(lambda batches: len(actors(batches)) == 3, "three actors")
        assert_complete(run, expected)
    assert sum(node == new.node_id for _, node, _ in actors(run.read_batches())) == 2
    assert (
        run.read_output().count("for room: 1 of 3 actors are placed, each asks for 1 CPU and") == 1
    )


@pytest.mark.longest
def test_the_end_does_not_wait_for_actors_without_room(tmp_path, expected):
    with (
        start_cluster((1, 1)) as cluster,
        start_run(tmp_path, cluster.address, "--actors", 9) as run,
    ):
        assert_complete(run, expected)
    assert len(actors(run.read_batches())) == 1


@pytest.mark.longest
def test_a_run_without_any_node_waits_and_says_so(tmp_path, expected):
    with start_cluster((1, 1)) as cluster, start_run(tmp_path, cluster.address) as run:
        (only,) = cluster.worker_nodes
        run.wait_for_batches(only, 3)
        kill(cluster, only)
        run.wait_until(
            lambda _: "waiting for room: 0 of 1 actors are placed" in run.read_output(), "said"
        )
        add(cluster, 1, 1)
        assert_complete(run, expected)
    assert (
        "each asks for 1 CPU and 1 GPU, and the cluster has 1 node (1 with 0 CPU"
        in run.read_output()
    )


@pytest.mark.longest
def test_what_dies_with_a_node_that_was_to_be_taken_away_counts_no_try(
    tmp_path, expected, monkeypatch
):
    # So that something is under way on it to its end.
    monkeypatch.setenv("PACE", "6")
    with (
        start_cluster((1, 1), (1, 1)) as cluster,
        start_run(tmp_path, cluster.address, "--max-attempts", 1) as run,
    ):
        run.wait_until(lambda batches: len(actors(batches)) == 2, "two actors")
        building = run.count_repeated_batches()
        going = next(iter(cluster.worker_nodes))
        # Long before its time, though not before Ray knows it everywhere.
        drain(cluster, going, seconds=3600)
        time.sleep(2)
        kill(cluster, going)
        assert_complete(run, expected)
    # With their tries used up, two shards would have been tried batch by batch, then whole.
    assert run.count_repeated_batches() <= building + 1


@pytest.mark.longest
def test_a_stream_is_read_where_the_run_was_started(tmp_path, tmp_path_factory):
    words = ("--source", "valid=paced:dataset")
    expected = run_undisturbed(tmp_path_factory.mktemp("streamed"), *words)
    with (
        start_cluster((1, 1), (1, 1), (1, 1)) as cluster,
        start_run(tmp_path, cluster.address, *words) as run,
    ):
        run.wait_until(lambda batches: len(actors(batches)) == 3, "three actors")
        for node in list(cluster.worker_nodes)[:2]:
            kill(cluster, node)
        assert_complete(run, expected)


@pytest.mark.longest
@pytest.mark.parametrize("last", [4, 6])
def test_records_are_tried_alone_where_there_is_room(tmp_path, monkeypatch, last):
    log = tmp_path / "deadly"
    monkeypatch.setenv("PACE", "0.1")
    monkeypatch.setenv("PACE_DEADLY", str(log))
    monkeypatch.setenv("PACE_DEADLY_NODE", str(last))
    (tmp_path / "pictures" / "b").mkdir(parents=True)
    for at in range(39):
        picture(at).save(tmp_path / "pictures" / "b" / f"{at}.png")
    Image.new("RGB", (16, 16), "white").save(tmp_path / "pictures" / "b" / "deadly.png")
    with start_cluster((1, 1), (1, 1)) as cluster, start_run(tmp_path, cluster.address) as run:
        # Its shard costs three actors, then it is tried alone: on the node that goes, then where
        # the other actor makes room.
        assert run.finish() == 0, run.read_output()
        raylets = [node.all_processes["raylet"][0].process for node in cluster.worker_nodes]
        assert sum(raylet.poll() is not None for raylet in raylets) == 1
    assert log.stat().st_size >= last
    assert read_parts(run.folder / "run").num_rows == 39
    rejects = read_parts(run.folder / "run", "rejects").to_pylist()
    assert [(one["key"], one["reason"]) for one in rejects] == [
        ("b/deadly.png", "crashes the process")
    ]
