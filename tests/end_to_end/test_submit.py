# SPDX-License-Identifier: Apache-2.0
"""cluster/submit.py alone, and what cluster/README.md says of own machines, with two of them."""

import contextlib
import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from support import built_wheel, machines
from support.features import assert_features_equal
from support.pictures import make_folder

import ray_embed
from ray_embed.config import choose_ray_address

SUBMIT = built_wheel.ROOT / "cluster/submit.py"
BIN = Path(sys.executable).parent


def called(words, **options):
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=300, **options
    )


def test_takes_the_options_of_run(tmp_path):
    copied = shutil.copy(SUBMIT, tmp_path)
    ours = called([sys.executable, copied, "--help"], cwd=tmp_path)
    assert (ours.returncode, ours.stderr) == (0, "")
    assert ours.stdout == called([BIN / "ray-embed", "run", "--help"]).stdout


def test_says_how_the_package_comes_to_a_node(tmp_path):
    # -S leaves out what is installed.
    copied = shutil.copy(SUBMIT, tmp_path)
    done = called([sys.executable, "-S", copied, "--help"], cwd=tmp_path)
    assert done.returncode == 2
    assert "make wheel" in done.stderr
    assert "file_mounts" in done.stderr
    assert "Traceback" not in done.stderr


def test_works_in_the_cluster_of_the_node_unless_told_otherwise(monkeypatch):
    calls = []
    monkeypatch.setattr("ray_embed.cli.commands.main", lambda: calls.append(sys.argv[:]))
    monkeypatch.setattr(sys, "argv", ["submit.py", "--source", "a b"])
    # Whatever is set is taken back at the end.
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.delenv("RAY_ADDRESS")
    runpy.run_path(str(SUBMIT), run_name="__main__")
    assert calls == [["ray-embed", "run", "--source", "a b"]]
    assert choose_ray_address(None) == "auto"
    assert choose_ray_address("10.0.0.1:6379") == "10.0.0.1:6379"


MODULE = """
def encoder(side):
    import keras

    keras.utils.set_random_seed(1)
    image = keras.Input((side, side, 3))
    return keras.Model(image, keras.layers.Conv2D(5, 3)(image))
"""


@dataclass(frozen=True)
class Laptop:
    """Where a user works: a folder with the cluster file, and the way to the machines."""

    folder: Path
    machines: list[machines.Machine]

    def call(self, *words, cwd=None, **environment):
        """Call one of the environment's commands, as `ray`, in the network of the machines."""
        alone = {"HOME": self.folder, "TMPDIR": self.folder, "RAY_TMPDIR": self.folder}
        return called(
            [*self.machines[0].make_prefix("net"), BIN / words[0], *words[1:]],
            cwd=cwd or self.folder,
            env={
                **os.environ,
                **{name: str(value) for name, value in alone.items()},
                **environment,
            },
            stdin=subprocess.DEVNULL,
        )

    def processes(self, machine):
        """Name all that runs in a machine."""
        names = set()
        for one in machine.first.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                names.add(one.name())
        return names


@pytest.fixture(scope="module")
def laptop() -> Iterator[Laptop]:
    """Two machines on which `ray up` has started what cluster/local.yaml says."""
    if why := machines.find_obstacle():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as name:
        there = machines.start(Path(name))
        try:
            for machine in there:
                give_python(machine, Path(name) / "home")
            folder = Path(name) / "laptop"
            folder.mkdir()
            yield set_up(Laptop(folder, there), Path(name) / "key")
        finally:
            for machine in there:
                machines.stop(machine)
            # What Ray keeps of its connections, wherever TMPDIR is.
            hashed = hashlib.sha256(Path(name).name.encode()).hexdigest()[:10]
            for left in Path("/tmp").glob(f"ray_ssh_*/{hashed}"):
                shutil.rmtree(left)


def give_python(machine, home):
    """Give a machine a ~/venv that has all that ours has, except for our package.

    So the cluster file's own commands install the wheel and need no network.
    """
    done = called([*machine.make_prefix("mount"), sys.executable, "-m", "venv", home / "venv"])
    assert done.returncode == 0, done.stderr
    (packages,) = machine.home.glob("venv/lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    script = machine.home / "venv/bin/ray"
    script.write_text(f"#!{home}/venv/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    script.chmod(0o755)
    (machine.home / ".config/pip").mkdir(parents=True)
    (machine.home / ".config/pip/pip.conf").write_text("[install]\nno-deps = yes\nno-index = yes")


def set_up(laptop, key):
    """Follow README.md: build the wheel, make a token, edit the cluster file, and `ray up`."""
    built_wheel.make_wheel(laptop.folder / "dist")
    (laptop.folder / "my_project.py").write_text(MODULE)
    config = yaml.safe_load((built_wheel.ROOT / "cluster/local.yaml").read_text())
    head, worker = laptop.machines
    # Ray keeps connections by this name, which must not be those of another run of the tests.
    config["cluster_name"] = laptop.folder.parent.name
    config["provider"].update(head_ip=head.address, worker_ips=[worker.address])
    config["auth"].update(ssh_user="root", ssh_private_key=str(key))
    config["file_mounts"]["~/my_project.py"] = "my_project.py"
    (laptop.folder / "local.yaml").write_text(yaml.safe_dump(config))
    assert laptop.call("ray", "get-auth-token", "--generate").returncode == 0
    up = laptop.call("ray", "up", "--yes", "local.yaml")
    assert up.returncode == 0, up.stdout + up.stderr
    end = time.monotonic() + 200
    status = ""
    while "2 local.cluster.node" not in status:
        assert time.monotonic() < end, status
        time.sleep(2)
        status = laptop.call("ray", "exec", "local.yaml", "ray status").stdout
    return laptop


def plain_features(folder):
    """What the encoder gives without us, in the order of the paths."""
    import tensorflow as tf

    names: dict = {}
    exec(MODULE, names)
    paths = sorted(folder.rglob("*.png"))
    images = [tf.image.resize(tf.io.decode_image(path.read_bytes(), 3), (16, 16)) for path in paths]
    maps = names["encoder"](16)(tf.stack(images) / 255, training=False)
    return np.mean(maps, axis=(1, 2)), [path.parent.name for path in paths]


def assert_right(run, folder):
    features, labels = ray_embed.load(str(run)).to_numpy()
    expected, expected_labels = plain_features(folder)
    assert_features_equal(features, expected)
    assert list(labels) == expected_labels


@pytest.mark.slow
def test_nodes_have_what_the_cluster_file_names(laptop):
    for machine in laptop.machines:
        assert (machine.home / "my_project.py").read_text() == MODULE
        assert (machine.home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
        assert list(machine.home.glob("venv/lib/python*/site-packages/ray_embed/py.typed"))
    where = laptop.call("ray", "exec", "local.yaml", "python -c 'import ray_embed as r; print(r)'")
    assert "/home/venv/lib/" in where.stdout


@pytest.mark.slow
def test_ray_submit(laptop, tmp_path):
    source = make_folder(tmp_path / "valid", {"a": 20, "b": 15})
    # So that each machine has room for one actor.
    cores = os.cpu_count()
    words = ["--source", source, "--model", "my_project:encoder", "--out", tmp_path / "run"]
    words += ["--shard-size", 4, "--actors", 2, "--cpus-per-actor", cores]
    done = laptop.call(
        *("ray", "submit", "local.yaml", SUBMIT, "--", *words),
        # `ray submit` puts blanks between the words and no quotes around them.
        *("--model-kwargs", """'{"side": 16}'"""),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "35 records: 35 embedded" in done.stdout
    assert_right(tmp_path / "run", source)


@pytest.mark.slow
def test_ray_submit_says_how_a_module_comes_to_the_nodes(laptop, tmp_path):
    source = make_folder(tmp_path / "valid", {"a": 2})
    words = ["--source", source, "--model", "not_there:encoder", "--out", tmp_path / "run"]
    done = laptop.call("ray", "submit", "local.yaml", SUBMIT, "--", *words)
    assert done.returncode != 0
    assert "no module named 'not_there'" in done.stdout
    assert "file_mounts in the cluster file, or `ray rsync-up`" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_ray_job_submit(laptop, tmp_path):
    source = make_folder(tmp_path / "valid", {"a": 10, "b": 5})
    (tmp_path / "project").mkdir()
    (tmp_path / "project/job_project.py").write_text(MODULE)
    words = ["--source", source, "--model", "job_project:encoder", "--out", tmp_path / "a run"]
    words += ["--model-kwargs", '{"side": 16}']
    submit = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265"]
    submit += ["--working-dir", tmp_path / "project", "--", "ray-embed", "run", *words]
    done = laptop.call(*submit, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_right(tmp_path / "a run", source)


@pytest.mark.slow
def test_nobody_is_let_in_without_the_token(laptop):
    listed = ["ray", "job", "list", "--address", "http://127.0.0.1:8265"]
    assert laptop.call(*listed, RAY_AUTH_MODE="token").returncode == 0
    done = laptop.call(*listed, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="x" * 64)
    assert done.returncode != 0
    assert "Unauthenticated" in done.stderr or "Authentication" in done.stderr


@pytest.mark.slow
def test_ray_down(laptop):
    head = laptop.machines[0]
    assert {"gcs_server", "raylet"} <= laptop.processes(head)
    done = laptop.call("ray", "down", "--yes", "local.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not {"gcs_server", "raylet"} & laptop.processes(head)
