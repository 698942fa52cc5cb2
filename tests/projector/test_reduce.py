# SPDX-License-Identifier: Apache-2.0
"""The projector folder: what `reduce` makes of the parts, and what a real TensorBoard serves."""

import contextlib
import io
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from PIL import Image
from support.ports import find_free_port
from support.projector_page import assert_shows, parse_metadata
from support.sample_runs import (
    AWKWARD,
    config,
    contents,
    copy,
    part_files,
    read_parts,
    save_encoder,
    write_flat,
    write_listing,
)

import ray_embed as package

TENSOR = "embedding/.ATTRIBUTES/VARIABLE_VALUE"
BROKEN = {4, 5, 6, 7, 13}


def tensor(variable):
    return f"{variable}/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.fixture(scope="module")
def runs(ray_session, tmp_path_factory):
    """Three runs over the same records: `whole`, in `two` steps, and of several `layers`.

    Of the shards of four, the second is rejected as a whole; the labels are awkward, the second
    split has none.
    """
    root = tmp_path_factory.mktemp("runs")
    model = save_encoder(root / "encoder.keras")
    sources = {
        "valid": write_listing(root / "valid", list(AWKWARD), BROKEN),
        "test": write_flat(root / "test", 6),
    }
    kept = {"empty_label": "keep"}
    package.run(config(sources, model, root / "whole", **kept))
    two = package.extract(config(sources, model, root / "two", **kept))
    assert not (root / "two" / "projector").exists()
    package.reduce(two.path)
    package.run(config(sources, model, root / "layers", layers=("early", "late"), **kept))
    return SimpleNamespace(
        root=root,
        model=model,
        sources=sources,
        whole=root / "whole",
        two=root / "two",
        layers=root / "layers",
    )


def features_of(run, column="feature"):
    values = read_parts(run)[column].combine_chunks()
    return values.flatten().to_numpy().reshape(len(values), -1)


# --- what is written -----------------------------------------------------------------------------


def test_sample_is_as_awkward_as_it_should_be(runs):
    rows = [pq.read_metadata(part).num_rows for part in part_files(runs.whole)]
    assert rows == [4, 0, 4, 3, 2, 4, 3]
    assert read_parts(runs.whole, "rejects")["index"].to_pylist() == sorted(BROKEN)


def test_projector_holds_the_files_of_the_contract_and_no_others(runs):
    names = set(contents(runs.whole / "projector"))
    events = {name for name in names if "tfevents" in name}
    assert len(events) == 1
    assert names - events == {
        "checkpoint",
        "embedding.ckpt-1.index",
        *(name for name in names if name.startswith("embedding.ckpt-1.data-")),
        "metadata.tsv",
        "sprite.png",
        "bookmarks.json",
        "projector_config.pbtxt",
    }


def test_nothing_temporary_is_left(runs):
    for run in (runs.whole, runs.two, runs.layers):
        assert not contents(run / ".tmp")
        assert not [name for name in contents(run / "projector") if "/." in f"/{name}"]


def test_extract_then_reduce_gives_the_bytes_of_run(runs):
    for folder in ("features", "rejects", "thumbnails", "projector"):
        assert contents(runs.two / folder) == contents(runs.whole / folder), folder


def test_reducing_twice_gives_the_same_bytes(runs, tmp_path, ray_embed):
    before = contents(runs.two / "projector")
    run = copy(runs.two, tmp_path / "r")
    assert package.reduce(str(run)) == 20
    assert contents(run / "projector") == before
    result = ray_embed("reduce", run)
    assert result.code == 0, result.err
    assert "20 points" in result.out
    assert f"ray-embed view {run}" in result.out
    assert contents(run / "projector") == before


@pytest.mark.parametrize("limit", [9, 100])
def test_any_number_of_threads_gives_the_same_bytes(runs, tmp_path, monkeypatch, limit):
    import tensorflow as tf

    # A group of two parts or so, that there is something to do at the same time.
    monkeypatch.setattr("ray_embed.projector.reduce._GROUP_BYTES", 100)
    run = copy(runs.layers, tmp_path / "r")
    found = []
    for threads in (1, 2, 5):
        assert package.reduce(str(run), limit, threads) == 20
        found.append(contents(run / "projector"))
    assert found[0] == found[1] == found[2]
    reader = tf.train.load_checkpoint(str(run / "projector"))
    expected = features_of(run, "feature_late")
    assert reader.get_tensor(tensor("embedding_late")).tobytes() == expected.tobytes()
    if limit < 20:
        _, points = parse_metadata(found[0]["sample.tsv"])
        table = read_parts(run)
        rows = [table["index"].to_pylist().index(int(cells[3])) for cells in points]
        assert len(rows) == limit
        sample = reader.get_tensor(tensor("sample_late"))
        assert sample.tobytes() == expected[rows].tobytes()


def test_reducing_replaces_what_was_there(runs, tmp_path):
    run = copy(runs.two, tmp_path / "r")
    (run / "projector" / "sprite.png").write_bytes(b"old")
    (run / "projector" / "embedding.ckpt-9.index").write_bytes(b"older")
    package.reduce(str(run))
    assert contents(run / "projector") == contents(runs.two / "projector")


def test_no_path_in_the_folder_is_absolute(runs):
    for name, content in contents(runs.whole / "projector").items():
        assert os.fsencode(runs.root) not in content, name


def test_folder_can_be_read_by_others(runs):
    assert (runs.whole / "projector").stat().st_mode & 0o055 == 0o055


@pytest.mark.parametrize("name", ["whole", "layers"])
def test_metadata_row_k_is_record_k(runs, name):
    run = getattr(runs, name)
    names, points = parse_metadata((run / "projector" / "metadata.tsv").read_bytes())
    assert names == ["label", "split", "key", "index", "note", r"a\tb"]
    records = read_parts(run).to_pylist()
    assert len(points) == len(records) == 20
    for cells, record in zip(points, records, strict=True):
        wanted = [record[column] for column in ("label", "split", "key", "index", "note", "a\tb")]
        for cell, value in zip(cells, wanted, strict=True):
            assert_shows(cell, value)


def test_awkward_labels_came_through_to_the_parts(runs):
    table = read_parts(runs.whole)
    kept = [label for at, label in enumerate(AWKWARD) if at not in BROKEN]
    assert table["label"].to_pylist() == kept + [None] * 7
    assert table["key"].to_pylist()[-1] == r"\xff\xfe.png"
    assert table["split"].to_pylist() == ["valid"] * 13 + ["test"] * 7


def test_sprite_cell_k_is_the_thumbnail_of_record_k(runs):
    with Image.open(runs.whole / "projector" / "sprite.png") as image:
        assert image.format == "PNG"
        sprite = np.asarray(image.convert("RGB")).astype(int)
    thumbnails = read_parts(runs.whole, "thumbnails")
    assert thumbnails["index"].to_pylist() == read_parts(runs.whole)["index"].to_pylist()
    side, row = 64, 5
    assert sprite.shape == (row * side, row * side, 3)
    fitted = [fit(png, side) for png in thumbnails["png"].to_pylist()]
    for at in range(len(fitted)):
        cell = sprite[at // row * side :, at % row * side :][:side, :side]
        distances = [np.abs(cell - other).mean() for other in fitted]
        assert int(np.argmin(distances)) == at
        assert distances[at] < 15, at


def fit(png, side):
    with Image.open(io.BytesIO(png)) as image:
        assert max(image.size) <= 64
        factor = side / max(image.size)
        size = [max(1, round(length * factor)) for length in image.size]
        small = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (side, side), (255, 255, 255))
    sheet.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(sheet).astype(int)


# --- the checkpoint ------------------------------------------------------------------------------


def test_checkpoint_is_restored_by_tensorflow(runs):
    import tensorflow as tf

    expected = features_of(runs.whole)
    variable = tf.Variable(tf.zeros(expected.shape))
    path = tf.train.latest_checkpoint(str(runs.whole / "projector"))
    status = tf.train.Checkpoint(embedding=variable).restore(path)
    status.assert_existing_objects_matched()
    status.assert_consumed()
    assert variable.numpy().tobytes() == expected.tobytes()
    assert expected.any()


def test_checkpoint_holds_features_their_coordinates_and_what_restoring_needs(runs):
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(runs.whole / "projector"))
    shapes = reader.get_variable_to_shape_map()
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    assert matrices == {TENSOR: [20, 5], tensor("pca"): [20, 5]}
    assert reader.get_variable_to_dtype_map()[TENSOR] == tf.float32


def test_several_layers_are_one_tensor_each_and_share_metadata_and_sprite(runs):
    import tensorflow as tf
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    expected = {
        "embedding_early": features_of(runs.layers, "feature_early"),
        "embedding_late": features_of(runs.layers, "feature_late"),
    }
    assert [values.shape for values in expected.values()] == [(20, 4), (20, 5)]
    variables = {name: tf.Variable(tf.zeros(v.shape)) for name, v in expected.items()}
    path = tf.train.latest_checkpoint(str(runs.layers / "projector"))
    tf.train.Checkpoint(**variables).restore(path).assert_consumed()
    for name, values in expected.items():
        assert variables[name].numpy().tobytes() == values.tobytes()
    settings = ProjectorConfig()
    text_format.Parse((runs.layers / "projector/projector_config.pbtxt").read_text(), settings)
    names = [*expected, "pca_early", "pca_late"]
    assert [e.tensor_name for e in settings.embeddings] == [tensor(name) for name in names]
    for embedding in settings.embeddings:
        assert embedding.metadata_path == "metadata.tsv"
        assert embedding.sprite.image_path == "sprite.png"
        assert list(embedding.sprite.single_image_dim) == [64, 64]
    # The last layer alone is the same features as with another layer beside it.
    np.testing.assert_allclose(expected["embedding_late"], features_of(runs.whole), rtol=1e-5)


# --- parts that are not as they should be --------------------------------------------------------


@pytest.mark.parametrize("gone", [(0,), (1,), (3,), (6,), (2, 5)])
def test_missing_shards_are_said_and_nothing_is_changed(runs, tmp_path, ray_embed, gone):
    run = copy(runs.two, tmp_path / "r")
    parts = part_files(run)
    for number in gone:
        parts[number].unlink()
    before = contents(run)
    result = ray_embed("reduce", run)
    assert result.code == 1
    assert result.out == ""
    assert f"{7 - len(gone)} of 7 shards" in result.err
    assert "ray-embed extract" in result.err
    assert "Traceback" not in result.err
    assert contents(run) == before


def test_part_of_another_run_is_noticed(runs, tmp_path, ray_embed):
    run = copy(runs.two, tmp_path / "r")
    other = part_files(run)[3]
    shutil.copy(part_files(runs.layers)[3], other)
    before = contents(run)
    result = ray_embed("reduce", run)
    assert result.code in (1, 2)
    assert other.name in result.err
    assert "Traceback" not in result.err
    assert contents(run) == before


def test_part_of_another_run_with_the_same_columns_is_noticed(runs, tmp_path, ray_embed):
    run = copy(runs.two, tmp_path / "r")
    part = part_files(run)[2]
    table = pq.read_table(part)
    footer = {**table.schema.metadata, b"ray_embed.fingerprint": b"0" * 64}
    pq.write_table(table.replace_schema_metadata(footer), part)
    result = ray_embed("reduce", run)
    assert result.code in (1, 2)
    assert part.name in result.err
    assert "Traceback" not in result.err


def test_parts_that_changed_places_are_noticed(runs, tmp_path, ray_embed):
    run = copy(runs.two, tmp_path / "r")
    first, third = part_files(run)[0], part_files(run)[2]
    contents_of_first = first.read_bytes()
    first.write_bytes(third.read_bytes())
    third.write_bytes(contents_of_first)
    result = ray_embed("reduce", run)
    assert result.code in (1, 2)
    assert first.name in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("kind", ["features", "thumbnails"])
@pytest.mark.parametrize("harm", ["cut", "emptied", "not Parquet"])
def test_damaged_part_is_named_without_a_traceback(runs, tmp_path, ray_embed, kind, harm):
    run = copy(runs.two, tmp_path / "r")
    part = part_files(run, kind)[2]
    content = part.read_bytes()
    part.write_bytes({"cut": content[:-40], "emptied": b"", "not Parquet": b"x" * 99}[harm])
    before = contents(run / "projector")
    result = ray_embed("reduce", run)
    assert result.code in (1, 2)
    assert f"{kind}/{part.name}" in result.err
    assert "Traceback" not in result.err
    assert contents(run / "projector") == before


def test_missing_thumbnails_are_named_without_a_traceback(runs, tmp_path, ray_embed):
    run = copy(runs.two, tmp_path / "r")
    part_files(run, "thumbnails")[2].unlink()
    result = ray_embed("reduce", run)
    assert result.code in (1, 2)
    assert "thumbnails/part-00000002.parquet" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("what", ["nowhere", "empty", "other"])
def test_reduce_of_what_is_no_run(tmp_path, ray_embed, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    result = ray_embed("reduce", what)
    assert result.code == 2
    assert result.out == ""
    assert what in result.err
    assert "Traceback" not in result.err
    assert contents(tmp_path / "other") == {"file": b"x"}


@pytest.fixture(scope="module")
def one_row(ray_session, tmp_path_factory, runs):
    root = tmp_path_factory.mktemp("one")
    source = write_listing(root / "valid", ["only"])
    package.extract(config({"valid": source}, runs.model, root / "run"))
    return root / "run"


def test_one_row_is_reduced_and_said_to_be_not_shown(one_row, tmp_path, ray_embed):
    run = copy(one_row, tmp_path / "r")
    result = ray_embed("reduce", run)
    assert result.code == 0, result.err
    _, points = parse_metadata((run / "projector" / "metadata.tsv").read_bytes())
    assert points == [["only", "valid", "000.png", "0", "ylno", "0"]]
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(run / "projector"))
    assert reader.get_tensor(TENSOR).tobytes() == features_of(run).tobytes()
    said = (result.out + result.err).lower()
    assert "tensorboard" in said
    assert re.search(r"\b(one|1|single)\b (row|point|record)", said), said


def test_run_of_one_row_says_so_too(one_row, runs, tmp_path, ray_embed):
    run = copy(one_row, tmp_path / "r")
    source = one_row.parent / "valid" / "list.csv"
    result = ray_embed(
        *("run", "--source", f"valid={source}", "--model", runs.model, "--out", run),
        *("--engine", "tensorflow", "--actors", 1, "--cpus-per-actor", 1),
        *("--batch-size", 4, "--shard-size", 4),
    )
    assert result.code == 0, result.err
    said = (result.out + result.err).lower()
    assert "tensorboard" in said
    assert re.search(r"\b(one|1|single)\b (row|point|record)", said), said


def test_nothing_but_rejects_is_exit_1(runs, tmp_path, ray_embed):
    source = write_listing(tmp_path / "valid", ["a", "b", "c", "d", "e"], {0, 1, 2, 3, 4})
    with pytest.raises(package.RunError, match="all records were rejected"):
        package.extract(config({"valid": source}, runs.model, tmp_path / "run"))
    result = ray_embed("reduce", "run")
    assert result.code == 1
    assert "all records were rejected" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run" / "projector").exists()


# --- a real TensorBoard --------------------------------------------------------------------------


class Server:
    """A TensorBoard process, asked over HTTP."""

    def __init__(self, logdir):
        self.port = find_free_port()
        with open(logdir.parent / f"tensorboard-{self.port}.log", "wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)),
                    *("--host", "127.0.0.1", "--port", str(self.port), "--reload_interval", "1"),
                ],
                cwd="/",
                stdout=log,
                stderr=log,
            )

    def wait(self, until, seconds=90):
        """Ask until the answer is as wanted; the server takes a while to start and to look."""
        end = time.monotonic() + seconds
        answer = None
        while time.monotonic() < end:
            assert self._process.poll() is None, "TensorBoard ended"
            with contextlib.suppress(requests.ConnectionError):
                answer = until()
                if answer:
                    return answer
            time.sleep(0.2)
        raise AssertionError(f"TensorBoard did not get there: {answer}")

    def get(self, route, **query):
        return requests.get(f"http://127.0.0.1:{self.port}{route}", params=query, timeout=30)

    def projector(self, route, **query):
        answer = self.get(f"/data/plugin/projector/{route}", **query)
        assert answer.status_code == 200, answer.text
        return answer

    def stop(self):
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        self._process.wait(30)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()


@pytest.fixture(scope="module")
def servers(runs, tmp_path_factory):
    """Two servers: of one run's projector after it was moved, and of a folder of runs."""
    place = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(runs.whole, place / "first")
    moved = place / "deep" / "down" / "moved"
    moved.parent.mkdir(parents=True)
    (place / "first").rename(moved)
    parent = place / "all"
    parent.mkdir()
    for name in ("whole", "layers"):
        shutil.copytree(getattr(runs, name), parent / name)
    one, many = Server(moved / "projector"), Server(parent)
    yield SimpleNamespace(one=one, many=many)
    one.stop()
    many.stop()


def assert_serves(server, run, folder, columns):
    """Compare all that the server says of a run with the Parquet and the files, byte for byte."""
    info = server.projector("info", run=run).json()
    embeddings = {e["tensorName"]: e for e in info["embeddings"]}
    coordinates = [variable.replace("embedding", "pca") for variable in columns]
    assert set(embeddings) == {tensor(variable) for variable in (*columns, *coordinates)}
    metadata = (folder / "projector" / "metadata.tsv").read_bytes()
    sprite = (folder / "projector" / "sprite.png").read_bytes()
    for variable, column in columns.items():
        name = tensor(variable)
        expected = features_of(folder, column)
        assert embeddings[name]["tensorShape"] == list(expected.shape)
        assert embeddings[name]["metadataPath"] == "metadata.tsv"
        assert embeddings[name]["sprite"]["imagePath"] == "sprite.png"
        assert embeddings[name]["sprite"]["singleImageDim"] == [64, 64]
        answer = server.projector("tensor", run=run, name=name, num_rows=100_000)
        assert answer.content == expected.astype("<f4").tobytes()
        few = server.projector("tensor", run=run, name=name, num_rows=7)
        assert few.content == expected[:7].astype("<f4").tobytes()
        answer = server.projector("metadata", run=run, name=name, num_rows=100_000)
        assert answer.content == metadata
        _, points = parse_metadata(answer.content)
        assert len(points) == len(expected)
        for cells, label in zip(points, read_parts(folder)["label"].to_pylist(), strict=True):
            assert_shows(cells[0], label)
        # Fewer points have their own metadata all the same.
        few = server.projector("metadata", run=run, name=name, num_rows=7)
        assert parse_metadata(few.content)[1] == points[:7]
        answer = server.projector("sprite_image", run=run, name=name)
        assert answer.content == sprite
        assert answer.headers["content-type"] == "image/png"


def test_tensorboard_serves_a_moved_run_byte_for_byte(servers, runs):
    server = servers.one
    server.wait(lambda: server.projector("runs").json() == ["."])
    assert_serves(server, ".", runs.whole, {"embedding": "feature"})


def test_tensorboard_shows_the_projector_as_active(servers):
    for server in (servers.one, servers.many):
        listing = server.wait(
            lambda server=server: [
                plugins
                for plugins in [server.get("/data/plugins_listing").json()]
                if plugins["projector"]["enabled"]
            ]
        )
        assert listing[0]["projector"]["enabled"] is True


def test_tensorboard_serves_a_folder_of_runs(servers, runs):
    server = servers.many
    wanted = {"whole/projector", "layers/projector"}
    server.wait(lambda: set(server.projector("runs").json()) == wanted)
    assert_serves(server, "whole/projector", runs.whole, {"embedding": "feature"})
    assert_serves(
        server,
        "layers/projector",
        runs.layers,
        {"embedding_early": "feature_early", "embedding_late": "feature_late"},
    )


# --- ray-embed view ------------------------------------------------------------------------------


@contextlib.contextmanager
def viewing(run, *arguments, **environment):
    """Start ``ray-embed view``; return the process and a function that waits for its next line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_embed", "view", str(run), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    lines = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield process, lambda seconds=60: lines.get(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        reader.join(10)
        process.stdout.close()
        process.stderr.close()


def listening(process):
    everyone = [process, *process.children(recursive=True)]
    return {
        connection.laddr.ip
        for one in everyone
        for connection in one.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def test_view_serves_on_localhost_alone_and_says_where(runs):
    port = find_free_port()
    remote = {"SSH_CONNECTION": "192.0.2.1 1 192.0.2.2 22"}
    with viewing(runs.whole, "--port", str(port), **remote) as (process, next_line):
        url = re.search(r"http://(localhost|127\.0\.0\.1):(\d+)/\S*", next_line())
        assert url
        assert int(url[2]) == port
        tunnel = next_line()
        assert re.search(rf"ssh -L {port}:(localhost|127\.0\.0\.1):{port} \S+@\S+", tunnel)
        root = f"http://127.0.0.1:{port}"
        assert requests.get(root, timeout=30).status_code == 200
        answer = requests.get(
            f"{root}/data/plugin/projector/tensor",
            params={"run": ".", "name": TENSOR, "num_rows": 100_000},
            timeout=30,
        )
        assert answer.content == features_of(runs.whole).tobytes()
        server = psutil.Process(process.pid)
        assert listening(server) <= {"127.0.0.1", "::1"}
        everyone = [server, *server.children(recursive=True)]
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
        assert "Traceback" not in process.stderr.read()
        _, alive = psutil.wait_procs(everyone, 10)
        assert not alive


def test_view_finds_a_port_and_needs_no_tunnel_at_home(runs):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(kept):
            patch.delenv(name)
        with viewing(runs.whole) as (process, next_line):
            assert re.search(r"http://(localhost|127\.0\.0\.1):\d+/", next_line())
            os.killpg(process.pid, signal.SIGINT)
            rest = next_line()
            assert rest is None or "ssh -L" not in rest


def test_view_that_is_terminated_leaves_nothing_behind(runs, tmp_path):
    for name in ("whole", "layers"):
        shutil.copytree(getattr(runs, name), tmp_path / "runs" / name)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with viewing(tmp_path / "runs", TMPDIR=str(scratch)) as (process, next_line):
        assert re.search(r"http://(localhost|127\.0\.0\.1):\d+/", next_line())
        assert list(scratch.glob("ray_embed-*"))
        process.terminate()
        assert process.wait(20) == 130
        assert "Traceback" not in process.stderr.read()
    assert not list(scratch.glob("ray_embed-*"))


def test_view_of_a_port_in_use(runs, ray_embed_process):
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = ray_embed_process("view", runs.whole, "--port", port, timeout=90)
    assert result.code == 2
    assert result.out == ""
    assert str(port) in result.err
    assert "Traceback" not in result.err


def test_view_of_a_run_without_projector(one_row, tmp_path, ray_embed):
    run = copy(one_row, tmp_path / "r")
    shutil.rmtree(run / "projector", ignore_errors=True)
    result = ray_embed("view", run)
    assert result.code == 2
    assert result.out == ""
    assert "ray-embed reduce" in result.err
    assert "Traceback" not in result.err


def test_view_of_nothing(tmp_path, ray_embed):
    result = ray_embed("view", "nowhere")
    assert result.code == 2
    assert "nowhere" in result.err
    assert "Traceback" not in result.err


def test_status_knows_whether_there_is_a_projector(runs, one_row, ray_embed):
    assert json.loads(ray_embed("status", runs.whole, "--json").out)["projector"] is True
    assert json.loads(ray_embed("status", one_row, "--json").out)["projector"] is False


def test_schema_of_all_parts_is_one(runs):
    for run in (runs.whole, runs.layers):
        schemas = [pq.read_schema(part).remove_metadata() for part in part_files(run)]
        assert all(schema == schemas[0] for schema in schemas)
        assert schemas[0].field("index").type == pa.int64()
