# SPDX-License-Identifier: Apache-2.0
"""A cluster whose nodes do not share a disk: code that is sent there, and what is said before work.

The nodes are real ones, on this machine, that see other folders in the place of some.
"""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.command import Result
from support.nodes import Node, Nodes, skip_unless_folders_can_be_hidden
from support.onnx_files import save_onnx
from support.pictures import make_folder
from support.sample_runs import read_parts, save_encoder, write_listing

import ray_embed as package

pytestmark = pytest.mark.slow

MODULES = {
    "my_project.py": """
        import keras
        import tensorflow as tf

        import beside
        from parts.encoders import width

        class ByPyFunction(keras.Model):
            # Python within the graph: each actor has to make it anew.
            def __init__(self):
                super().__init__()
                self.conv = keras.layers.Conv2D(width(), 3, kernel_initializer="ones")

            def call(self, images):
                maps = self.conv(images)
                result = tf.py_function(lambda x: tf.sort(x, axis=-1), [maps], tf.float32)
                result.set_shape(maps.shape)
                return result

        def encoder():
            model = ByPyFunction()
            model(tf.zeros((1, 8, 8, 3)))
            return model

        def images():
            import numpy as np
            import lazily

            where = [module.__file__ for module in (beside, lazily)]
            return [
                (np.full((8, 8, 3), at, np.uint8), where[at % 2], f"{at}") for at in range(20)
            ]

        def preprocess(images):
            return images / beside.LARGEST
        """,
    "beside.py": "LARGEST = 255.0",
    "lazily.py": "",
    "parts/__init__.py": "",
    "parts/encoders.py": "from .numbers import WIDTH\ndef width():\n    return WIDTH",
    "parts/numbers.py": "WIDTH = 5",
}
FLAGS = ["--engine", "tensorflow", "--cpus-per-actor", 1, "--shard-size", 4, "--batch-size", 4]


@dataclass(frozen=True)
class Apart:
    """A cluster whose second node, the only one with CPUs, does not see `half`.

    No node sees `private`; they see `elsewhere` in its place.
    """

    nodes: Nodes
    shared: Path
    half: Path
    private: Path
    elsewhere: Path

    def run(self, folder: Path, *words: object, **environment: str) -> Result:
        """Call ``ray-embed run`` in `folder`, on the cluster."""
        done = subprocess.run(
            [sys.executable, "-m", "ray_embed", "run", "--address", self.nodes.address]
            + [str(word) for word in words],
            cwd=folder,
            env={**self.nodes.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    names = ("shared", "half", "private", "elsewhere", "empty")
    shared, half, private, elsewhere, empty = (tmp_path_factory.mktemp(name) for name in names)
    skip_unless_folders_can_be_hidden(empty)
    with Nodes() as nodes:
        nodes.start("--num-cpus=0", seen_as={private: elsewhere})
        nodes.start("--num-cpus=2", seen_as={private: elsewhere, half: empty})
        yield Apart(nodes, shared, half, private, elsewhere)


def write_modules(folder: Path) -> Path:
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def with_modules(out: Path) -> list[object]:
    words = ["--model", "my_project:encoder", "--source", "valid=my_project:images"]
    return [*words, "--preprocess", "my_project:preprocess", *FLAGS, "--out", out]


def imported_from(run: Path) -> set[Path]:
    """The folders that the modules of the source were imported from."""
    table = read_parts(run)
    assert table["key"].to_pylist() == [str(at) for at in range(20)]
    files = {Path(file) for file in table["label"].to_pylist()}
    assert {file.name for file in files} == {"beside.py", "lazily.py"}
    return {file.parent for file in files}


# Code


def test_modules_are_sent_to_nodes_that_do_not_see_them(apart, tmp_path):
    project = write_modules(apart.private / "project")
    run = apart.shared / "sent"
    result = apart.run(project, *with_modules(run))
    assert result.code == 0, result.err
    assert all("runtime_resources" in folder.parts for folder in imported_from(run))
    assert not (run / ".tmp").exists()


def test_other_code_in_a_folder_of_the_same_name_is_not_taken(apart):
    project = write_modules(apart.private / "stale")
    stale = write_modules(apart.elsewhere / "stale")
    (stale / "beside.py").write_text("LARGEST = 1.0")
    run = apart.shared / "not_stale"
    result = apart.run(project, *with_modules(run))
    assert result.code == 0, result.err
    assert all("runtime_resources" in folder.parts for folder in imported_from(run))


def test_the_folder_itself_is_taken_where_it_is_seen(apart):
    # With the data files beside the modules.
    project = write_modules(apart.shared / "project")
    run = apart.shared / "seen"
    result = apart.run(project, *with_modules(run))
    assert result.code == 0, result.err
    assert imported_from(run) == {project}


def test_a_job_that_was_submitted_with_its_code_sends_none(apart):
    project = write_modules(apart.private / "job")
    job = json.dumps({"runtime_env": {"working_dir": str(project)}})
    run = apart.shared / "job"
    result = apart.run(project, *with_modules(run), RAY_JOB_CONFIG_JSON_ENV_VAR=job)
    assert result.code == 0, result.err
    assert all("working_dir_files" in folder.parts for folder in imported_from(run))


def test_a_module_that_is_nowhere_is_named_with_the_folder_the_command_was_started_in(apart):
    (apart.private / "nothing").mkdir()
    words = ["--model", "my_own:encoder", "--source", make_folder(apart.shared / "a", {"b": 1})]
    result = apart.run(apart.private / "nothing", *words, "--out", apart.shared / "nowhere")
    assert result.code == 2
    assert "--model my_own:encoder: no module named 'my_own'" in result.err
    assert str(apart.private / "nothing") in result.err
    assert "Traceback" not in result.err


# Files and software


def saved(folder: Path) -> list[object]:
    """Save a model with a checkpoint, and sources of each kind; gives the options for them."""
    import keras
    import tensorflow as tf

    folder.mkdir()
    model = keras.saving.load_model(save_encoder(folder / "encoder.keras"))
    tf.train.Checkpoint(model).write(str(folder / "weights"))
    np.savez(folder / "c.npz", images=np.zeros((2, 16, 16, 3), np.uint8), labels=np.arange(2))
    words = ["--model", folder / "encoder.keras", "--weights", folder / "weights"]
    words += ["--source", f"a={make_folder(folder / 'a', {'x': 3})}"]
    words += ["--source", f"b={write_listing(folder / 'b', ['y', 'z'])}"]
    return [*words, "--source", f"c={folder / 'c.npz'}", *FLAGS]


def test_what_all_nodes_see_is_gone_on_with(apart, tmp_path):
    result = apart.run(tmp_path, *saved(apart.shared / "files"), "--out", apart.shared / "run")
    assert result.code == 0, result.err
    assert read_parts(apart.shared / "run").num_rows == 7
    # On a busy machine an actor may have to be waited for, which is said.
    said = [line for line in result.err.splitlines() if not line.startswith("waiting for")]
    assert not any("node" in line for line in said)


def test_each_path_that_a_node_does_not_see_is_named_before_work_starts(apart, tmp_path):
    folder, run = apart.half / "files", apart.half / "run"
    result = apart.run(tmp_path, *saved(folder), "--out", run)
    assert result.code == 2
    lines = result.err.splitlines()
    for given in (
        f"--model {folder}/encoder.keras",
        f"--weights {folder}/weights",
        f"--source a={folder}/a",
        f"--source b={folder}/b/list.csv",
        f"--source c={folder}/c.npz",
        f"--out {run}",
    ):
        (line,) = [line for line in lines if f"{given}: " in line]
        assert re.search(r"not accessible on [\d.]+ \(node [0-9a-f]{8}\);", line)
        assert "use a shared file system or object storage (s3://" in line
    assert len(lines) == 6
    assert not run.exists()


def test_what_is_nowhere_is_no_fault_of_the_nodes(apart, tmp_path):
    words = ["--model", "none.keras", "--source", make_folder(apart.shared / "n", {"b": 1})]
    result = apart.run(tmp_path, *words, "--out", apart.shared / "none")
    assert result.code == 2
    assert "--model none.keras: no such file" in result.err


@pytest.fixture
def start_another(apart: Apart) -> Iterator[Callable[..., Node]]:
    """Starts one more node, that nothing is placed on."""
    before = len(apart.nodes.nodes)
    yield lambda **options: apart.nodes.start("--num-cpus=0", **options)
    for node in apart.nodes.nodes[before:]:
        node.end()
    del apart.nodes.nodes[before:]


def run_of_files(apart: Apart, tmp_path: Path) -> Result:
    source = make_folder(tmp_path / "source", {"x": 3})
    model = save_encoder(tmp_path / "encoder.keras")
    words = ["--model", model, "--source", source, "--out", tmp_path / "run", *FLAGS]
    return apart.run(tmp_path, *words)


def pretend_version(folder: Path, name: str) -> dict[str, str]:
    """Return the environment of a process that finds version 1.2.3 of a package."""
    other = folder / "other" / f"{name}-1.2.3.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    return {"PYTHONPATH": str(other.parent)}


def test_weights_beside_an_onnx_file_are_needed_on_the_nodes(apart, tmp_path):
    model = save_onnx(apart.shared / "beside.onnx", external="beside.bin")
    source = make_folder(apart.shared / "pictures", {"x": 9})
    words = ["--model", model, "--source", source, *FLAGS, "--engine", "onnxruntime"]
    run = apart.shared / "onnx"
    result = apart.run(tmp_path, *words, "--out", run)
    assert result.code == 0, result.err
    assert read_parts(run).num_rows == 9
    weights = apart.shared / "beside.bin"
    shutil.move(weights, apart.half / "beside.bin")
    weights.symlink_to(apart.half / "beside.bin")
    result = apart.run(tmp_path, *words, "--out", apart.shared / "onnx-2")
    assert result.code == 2
    assert f"--model {model}, its file {weights}: not accessible on" in result.err


def test_a_node_with_another_onnxruntime_is_named_for_onnx_files(apart, tmp_path, start_another):
    start_another(environment=pretend_version(tmp_path, "onnxruntime"))
    result = run_of_files(apart, tmp_path)
    assert result.code == 0, result.err
    words = ["--model", save_onnx(tmp_path / "m.onnx"), "--source", tmp_path / "source"]
    result = apart.run(tmp_path, *words, "--out", tmp_path / "other-run", *FLAGS)
    assert result.code == 2
    said = f"onnxruntime is {metadata.version('onnxruntime')} here, but 1.2.3 on"
    assert said in result.err


def test_a_node_with_another_tensorflow_is_named(apart, tmp_path, start_another):
    start_another(environment=pretend_version(tmp_path, "tensorflow"))
    result = run_of_files(apart, tmp_path)
    assert result.code == 2
    here = re.escape(metadata.version("tensorflow"))
    assert re.fullmatch(
        rf"ray-embed: tensorflow is {here} here, but 1\.2\.3 on [\d.]+ \(node [0-9a-f]{{8}}\); "
        "install the same version on all machines\n",
        result.err,
    )


def test_a_node_without_ray_embed_is_named(apart, tmp_path, start_another):
    (tmp_path / "empty").mkdir()
    # What tells that it is installed, and what is imported.
    found = [place for entry in sys.path for place in Path(entry).glob("ray_embed-*.dist-info")]
    places = [Path(package.__file__).parent, *found]
    start_another(seen_as=dict.fromkeys(places, tmp_path / "empty"))
    result = run_of_files(apart, tmp_path)
    assert result.code == 2
    said = f"ray_embed is {package.__version__} here, but not installed on"
    assert re.search(rf"{re.escape(said)} [\d.]+ \(node [0-9a-f]{{8}}\); install", result.err)
    assert "Traceback" not in result.err


def test_a_node_that_dies_is_passed_over(apart, tmp_path, start_another):
    node = start_another()
    processes = psutil.Process(node.process.pid).children(recursive=True)
    for process in processes:
        process.kill()
    result = run_of_files(apart, tmp_path)
    assert result.code == 0, result.err
