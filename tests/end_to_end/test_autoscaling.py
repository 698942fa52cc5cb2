# SPDX-License-Identifier: Apache-2.0
"""Runs on a cluster that starts its machines as they are asked for; Ray's own fake one."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import psutil
import pytest
from support.many_nodes import assert_complete, run_undisturbed, start_run

pytestmark = pytest.mark.longest
# As the fake provider names the machine it is started on.
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PORTS = (6379, 8265, 10001)
ADDRESS = "127.0.0.1:6379"


def taken(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def fake_cloud(folder, kind):
    """Start a head without cores, whose autoscaler may start two machines of two GPUs."""
    if busy := [port for port in PORTS if taken(port)]:
        pytest.skip(f"ports that it needs are taken: {busy}")
    machine = {"CPU": 4, "GPU": 2, "object_store_memory": 150 * 2**20}
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    environment = {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": str(kind - 1),
    }
    if kind == 2:
        provider |= {"launch_multiple": True, "head_node_id": HEAD}
        environment["RAY_CLOUD_INSTANCE_ID"] = HEAD
        environment["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = HEAD
    nothing = ("setup_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")
    nothing += ("initialization_commands", "head_setup_commands", "worker_setup_commands")
    nothing += ("head_start_ray_commands", "worker_start_ray_commands")
    described = {
        **{key: [] for key in nothing},
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 1,
        "upscaling_speed": 10,
        "provider": provider,
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "two": {"resources": machine, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
    }
    file = folder / "cloud.json"
    file.write_text(json.dumps(described))
    words = ["start", "--head", "--num-cpus=0", "--port=6379", "--include-dashboard=false"]
    words += [f"--autoscaling-config={file}", "--block"]
    log = folder / "head"
    with open(log, "w") as said:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=environment,
            stdout=said,
            stderr=said,
        )
    try:
        end = time.monotonic() + 60
        while not taken(6379):
            assert time.monotonic() < end and head.poll() is None, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        kill_all(head)


def kill_all(head):
    """End a process and all that it has started, and wait until its ports are free again."""
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(head.pid).children(recursive=True)
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=20)
    head.kill()
    head.wait()
    end = time.monotonic() + 20
    while any(map(taken, PORTS)) and time.monotonic() < end:
        time.sleep(0.2)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def cloud(request, monkeypatch, tmp_path, expected):
    # The undisturbed run's Ray has made a token, which `ray start` takes by itself.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PACE", "2")
    monkeypatch.setenv("PACE_END", str(tmp_path / "fast"))
    monkeypatch.setenv("PACE_LOG", str(tmp_path / "log"))
    with fake_cloud(tmp_path, request.param):
        yield


def nodes_of(batches):
    return {batch.node for batch in batches}


def test_a_cluster_without_machines_is_waited_for(cloud, tmp_path, expected):
    with start_run(tmp_path, ADDRESS, "--gpus-per-actor", 1) as run:
        run.wait_until(lambda batches: len({batch.process for batch in batches}) == 2, "two actors")
        assert_complete(run, expected)
    # What was asked for, and no more.
    assert len(nodes_of(run.read_batches())) == 1
    said = run.read_output()
    assert said.count("waiting for a machine: an actor asks for 1 CPU and 1 GPU") == 1
    assert "the cluster has 1 node (1 with 0 CPU 0 GPU)" in said
    assert "--actors N starts machines for N" in said


def test_as_many_machines_are_started_as_actors_ask_for(cloud, tmp_path, expected):
    with start_run(tmp_path, ADDRESS, "--gpus-per-actor", 1, "--actors", 4) as run:
        run.wait_until(
            lambda batches: len({batch.process for batch in batches}) == 4, "four actors"
        )
        assert_complete(run, expected)
    assert len(nodes_of(run.read_batches())) == 2
    assert "starts machines for N" not in run.read_output()


def test_more_actors_than_there_are_ever_machines_for(cloud, tmp_path, expected):
    with start_run(tmp_path, ADDRESS, "--gpus-per-actor", 1, "--actors", 9) as run:
        run.wait_until(
            lambda batches: len({batch.process for batch in batches}) == 4, "four actors"
        )
        assert_complete(run, expected)
    assert len(nodes_of(run.read_batches())) == 2


def test_what_no_machine_ever_has_is_an_error(cloud, tmp_path):
    with start_run(tmp_path, ADDRESS, "--gpus-per-actor", 4) as run:
        assert run.finish() == 2
    said = run.read_output()
    assert "an actor asks for 1 CPU and 4 GPU, which no node has: the cluster has 1 node" in said
    assert "nor can its autoscaler start one that has" in said
