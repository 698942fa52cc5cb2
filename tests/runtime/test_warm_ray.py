# SPDX-License-Identifier: Apache-2.0
"""The Ray that the runs of a process share: how long it lives, and when a run needs another one."""

from pathlib import Path

import pytest
from support.nodes import Nodes
from support.own_ray import run_script

_STAYS = (
    "Ray stays up for further runs, until this process ends or 10 minutes have passed without a run"
)


def test_second_run_uses_the_ray_of_the_first(tmp_path: Path) -> None:
    said = run_script(
        """
        first, its_node = call(os.getpid), node()
        assert call(os.getpid) == first
        assert node() == its_node
        raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
        Path("pids").write_text(f"{first} {raylet}")
        """,
        tmp_path,
    )
    assert said.splitlines() == [_STAYS]
    _assert_ended(tmp_path)


def _assert_ended(folder: Path) -> None:
    run_script(
        """
        for pid in Path("pids").read_text().split():
            assert not is_running(pid)
        """,
        folder,
    )


def test_actors_compute_at_the_priority_of_the_command(tmp_path: Path) -> None:
    run_script(
        """
        assert call(os.nice, 0) == os.nice(0)
        """,
        tmp_path,
    )


def test_session_ends_ray_and_the_actors(tmp_path: Path) -> None:
    said = run_script(
        """
        with ray_embed.Session():
            first = call(os.getpid)
            with ray_embed.Session():
                assert call(os.getpid) == first
            assert call(os.getpid) == first
        assert not ray.is_initialized()
        assert not is_running(first)
        """,
        tmp_path,
    )
    assert said == ""


def test_ray_of_the_user_is_left_alone(tmp_path: Path) -> None:
    said = run_script(
        """
        first = call(os.getpid)
        ray.shutdown()
        assert call(os.getpid) != first
        ray.shutdown()
        ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
        its_node, its_object = node(), ray.put("kept")
        second = call(os.getpid)
        assert not is_running(second)
        with ray_embed.Session():
            third = call(os.getpid)
            assert call(os.getpid) == third
        assert not is_running(third)
        assert node() == its_node
        assert ray.get(its_object) == "kept"
        """,
        tmp_path,
    )
    assert said.splitlines() == [_STAYS] * 2


def test_changes_that_actors_inherit_need_another_ray(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "helper_of_a_run.py").write_text("NAME = 'library'\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "helper_of_a_run.py").write_text("NAME = 'folder'\n")
    run_script(
        """
        first = call(os.getpid)
        os.environ["KERAS_BACKEND"] = "other"
        assert call(os.getenv, "KERAS_BACKEND") == "other"
        del os.environ["KERAS_BACKEND"]
        assert call(os.getenv, "KERAS_BACKEND") is None
        sys.path.insert(0, str(Path("library").absolute()))
        code = {"model": "helper_of_a_run:make", "weights": "w.h5"}
        assert call(import_helper, **code) == "library"
        second = call(os.getpid, **code)
        assert call(os.getpid, **code) == second
        os.chdir("folder")
        assert call(import_helper, **code) == "folder"
        """,
        tmp_path,
    )


def test_more_actors_than_cores_need_another_ray(tmp_path: Path) -> None:
    run_script(
        """
        its_node = call(node)
        many = (os.cpu_count() or 1) + 1
        given = {"sources": {"a": "x"}, "model": "m", "actors": many, "cpus_per_actor": 1}
        with open_session([make_config(given)], Actor) as running:
            workers = running.pool.fill(None)
            pids = ray.get([worker.actor.call.remote(os.getpid) for worker in workers])
            assert len(set(pids)) == many
        other_node = call(node)
        assert other_node != its_node
        assert call(node, actors=1) == other_node
        """,
        tmp_path,
    )


def test_failed_and_interrupted_runs_leave_ray(tmp_path: Path) -> None:
    said = run_script(
        """
        import signal
        first, its_node = call(os.getpid), call(node)
        try:
            call(time.sleep, "no number")
        except ray_embed.RunError:
            second = call(os.getpid)
        assert second != first
        threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            call(time.sleep, 60)
        except KeyboardInterrupt:
            third = call(os.getpid)
        assert third not in (first, second)
        assert not is_running(second)
        assert call(node) == its_node
        """,
        tmp_path,
    )
    assert said.splitlines() == [_STAYS]


def test_idle_ray_ends(tmp_path: Path) -> None:
    run_script(
        """
        warm_ray.IDLE_MINUTES = 1 / 60
        first = call(os.getpid)
        assert not is_running(first)
        while ray.is_initialized():
            time.sleep(0.1)
        # A run may start at the moment at which Ray ends.
        for _ in range(3):
            call(os.getpid)
            time.sleep(0.98)
        with ray_embed.Session():
            first = call(os.getpid)
            time.sleep(2)
            assert call(os.getpid) == first
        """,
        tmp_path,
    )


def test_idle_ray_that_the_user_needs_stays(tmp_path: Path) -> None:
    run_script(
        """
        warm_ray.IDLE_MINUTES = 1 / 60
        first = call(os.getpid)
        its_object = ray.put("kept")
        assert not is_running(first)
        time.sleep(1)
        assert ray.get(its_object) == "kept"
        second = call(os.getpid)
        assert not is_running(second)
        os.environ["KERAS_BACKEND"] = "other"
        call(os.getpid)
        assert ray.get(its_object) == "kept"
        """,
        tmp_path,
    )


def test_dead_ray_is_replaced(tmp_path: Path) -> None:
    said = run_script(
        """
        first = call(os.getpid)
        os.kill(first, 9)
        second = call(os.getpid)
        assert second != first
        processes = ray._private.worker._global_node.all_processes
        os.kill(processes["raylet"][0].process.pid, 9)
        time.sleep(1)
        assert call(os.getpid) not in (first, second)
        """,
        tmp_path,
    )
    assert said.splitlines() == [_STAYS] * 2


def test_forked_process_leaves_ray_to_its_parent(tmp_path: Path) -> None:
    said = run_script(
        """
        first = call(os.getpid)
        child = os.fork()
        if child == 0:
            try:
                call(os.getpid)
            except ray_embed.RunError as error:
                assert "spawn" in str(error)
                sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert call(os.getpid) == first
        import multiprocessing
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert call(os.getpid) == first
        """,
        tmp_path,
    )
    assert said.splitlines() == [_STAYS]


def test_runs_of_two_threads(tmp_path: Path) -> None:
    run_script(
        """
        from concurrent.futures import ThreadPoolExecutor

        call(os.getpid)
        many = (os.cpu_count() or 1) + 1
        with ThreadPoolExecutor(4) as threads:
            runs = [threads.submit(call, time.sleep, 0.5) for _ in range(3)]
            runs.append(threads.submit(call, time.sleep, 0.5, actors=many))
            runs += [threads.submit(call, time.sleep, 0.5) for _ in range(3)]
            for run in runs:
                run.result()
        first = call(os.getpid)
        assert call(os.getpid) == first
        """,
        tmp_path,
    )


def test_cluster_is_left_after_each_run_but_not_in_a_session(tmp_path: Path) -> None:
    with Nodes() as nodes:
        nodes.start("--num-cpus=1")
        said = run_script(
            """
            address = os.environ["RAY_ADDRESS"]
            first = call(os.getpid)
            assert not ray.is_initialized()
            assert not is_running(first)
            code = {"model": "helper_of_a_run:make", "weights": "w.h5"}
            Path("helper_of_a_run.py").write_text("NAME = 'first'")
            with ray_embed.Session():
                second = call(os.getpid)
                assert call(os.getpid, address=address) == second
                assert call(import_helper, **code) == "first"
                third = call(os.getpid, **code)
                assert call(os.getpid, **code) == third
                Path("helper_of_a_run.py").write_text("NAME = 'changed'")
                assert call(import_helper, **code) == "changed"
            assert not ray.is_initialized()
            """,
            tmp_path,
            {**nodes.environment, "RAY_ADDRESS": nodes.address},
        )
    assert said == ""


def test_actors_with_gpus_are_kept_in_sessions_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    run_script(
        """
        first, its_node = call(os.getpid), call(node)
        assert not is_running(first)
        with ray_embed.Session():
            second = call(os.getpid)
            assert call(os.getpid) == second
            assert call(node) == its_node
        """,
        tmp_path,
    )
