# SPDX-License-Identifier: Apache-2.0
"""Everything on an object store: sources, model, weights and the run folder."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs
from support import object_store
from support.command import Command, Result
from support.object_store import Faults
from support.pictures import make_folder
from support.sample_runs import copy, read_results, save_encoder

import ray_embed

OPTIONS = ["--shard-size", 16, "--batch-size", 8, "--actors", 2, "--cpus-per-actor", 1]


def local_copy(uri: str, into: Path) -> Path:
    into.mkdir()
    fs.copy_files(uri, str(into))
    return into


@dataclass(frozen=True)
class Shared:
    """One run on this machine and one on the store, of the same pictures."""

    data: Path
    local: Path
    # Of `data`, `encoder.keras` and `run`.
    root: str
    done: Counter[str]
    extracted: Result
    viewed: Result
    reduced: Result


def arguments_of(root: str, out: str) -> list[object]:
    """Give the words after `extract` or `run` of a run on the store."""
    words = ["--source", f"{root}/data", "--model", f"{root}/encoder.keras"]
    return [*words, "--out", out, *OPTIONS]


@pytest.fixture(scope="module")
def shared(
    ray_session: None, store_address: str, tmp_path_factory: pytest.TempPathFactory
) -> Shared:
    """Make the run on the store while one in twenty requests fails."""
    folder = tmp_path_factory.mktemp("shared")
    data = make_folder(folder / "data", {"a": 60, "b": 40})
    (data / "a" / "0007.png").write_bytes(b"no picture")
    (data / "b" / "notes.txt").write_bytes(b"no picture either")
    model = save_encoder(folder / "encoder.keras")
    out, root = folder / "local", "s3://shared"
    sizes = {"shard_size": 16, "batch_size": 8, "actors": 2, "cpus_per_actor": 1}
    config = ray_embed.RunConfig(sources={"data": str(data)}, model=str(model), out=out, **sizes)
    ray_embed.run(config)
    faults = Faults()

    def called(*arguments: object) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "ray_embed", *map(str, arguments)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    with (
        object_store.proxy(store_address, faults) as proxied,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in object_store.environment(proxied).items():
            patch.setenv(name, value)
        object_store.make_bucket("shared")
        object_store.upload(data, f"{root}/data")
        object_store.upload(model, f"{root}/encoder.keras")
        faults.share = 0.05
        extracted = called("extract", *arguments_of(root, f"{root}/run"))
        viewed = called("view", f"{root}/run")
        reduced = called("reduce", f"{root}/run")
    return Shared(data, out, root, faults.done, extracted, viewed, reduced)


@pytest.mark.slow
def test_a_run_under_faults_gives_the_bytes_of_a_local_one(
    shared: Shared, tmp_path: Path, store: Faults
) -> None:
    print(dict(shared.done))
    assert shared.extracted.code == 0, shared.extracted.err
    assert shared.reduced.code == 0, shared.reduced.err
    assert "100 records: 99 embedded, 1 rejected (1 not an image)" in shared.extracted.out
    assert shared.extracted.out.endswith(f"next      ray-embed reduce {shared.root}/run\n")
    assert "data: skipped 1 .txt" in shared.extracted.err
    assert shared.done["500"] and shared.done["reset"] and shared.done["cut off"], shared.done
    found = local_copy(f"{shared.root}/run", tmp_path / "away")
    assert read_results(found) == read_results(shared.local)
    # A lease is given back.
    assert not [path for path in found.glob(".tmp/**/*") if path.is_file()]


@pytest.mark.slow
def test_other_forms_of_sources_weights_and_layers(
    ray_embed: Command, ray_embed_process: Command, tmp_path: Path, store: Faults, bucket: str
) -> None:
    """A listing with relative paths and URIs, arrays packed or not, and a checkpoint's prefix."""
    import tensorflow as tf

    save_encoder(tmp_path / "encoder.keras", seed=1)
    other = tf.keras.models.load_model(save_encoder(tmp_path / "other.keras", seed=2))
    tf.train.Checkpoint(other).write(str(tmp_path / "weights" / "ckpt"))
    data = make_folder(tmp_path / "data", {"a": 9, "ünï & b": 5})
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    np.savez(data / "plain.npz", images=images, labels=np.arange(20))
    np.savez_compressed(data / "packed.npz", images=images, labels=np.arange(20))
    object_store.upload(tmp_path, bucket)
    names = [f"a/{at:04d}.png" for at in range(9)] + [f"ünï & b/{at:04d}.png" for at in range(5)]

    def write_list(name: str, paths: list[str]) -> None:
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["path", "label"], *((path, path[-6:]) for path in paths)])

    write_list("data/local.csv", names)
    write_list("away.csv", names[:9] + [f"{bucket}/data/ünï & b/{at:04d}.png" for at in range(5)])
    object_store.upload(tmp_path / "away.csv", f"{bucket}/data/away.csv")
    common = ["--shard-size", 8, "--batch-size", 8]

    def run(call: Command, out: str, root: str, listing: str) -> None:
        done = call(
            *("run", "--model", f"{root}/encoder.keras", "--weights", f"{root}/weights/ckpt"),
            *("--source", f"listed={root}/data/{listing}", "--source", f"{root}/data/plain.npz"),
            *("--source", f"packed={root}/data/packed.npz", "--out", out, *common),
        )
        assert done.code == 0, done.err

    run(ray_embed, "local", str(tmp_path), "local.csv")
    run(ray_embed_process, f"{bucket}/run", bucket, "away.csv")
    expected, found = (table_of(run) for run in (str(tmp_path / "local"), f"{bucket}/run"))
    assert found["split"].value_counts().to_pylist() == expected["split"].value_counts().to_pylist()
    assert found.drop_columns(["key"]).equals(expected.drop_columns(["key"]))
    # As written in the listing.
    assert found["key"][9].as_py() == f"{bucket}/data/ünï & b/0000.png"


@pytest.mark.slow
def test_judging_with_random_weights_and_comparing(
    shared: Shared, ray_embed: Command, ray_embed_process: Command, tmp_path: Path, bucket: str
) -> None:
    copy(shared.local, tmp_path / "local")
    fs.copy_files(f"{shared.root}/run", f"{bucket}/run")
    found = {}
    for call, out in ((ray_embed, "local"), (ray_embed_process, f"{bucket}/run")):
        done = call("evaluate", out, "--random-weights", "--json")
        assert done.code == 0, done.err
        found[out] = json.loads(done.out)
    assert found[f"{bucket}/run"] == found["local"]
    (entry,) = found["local"].values()
    assert set(entry["measures"]) == {"encoder", "raw_pixels", "random_weights"}
    kept = local_copy(f"{bucket}/run", tmp_path / "away")
    assert json.loads((kept / "evaluation.json").read_text())["layers"] == found["local"]
    assert (kept / "random-weights" / "run.json").exists()
    done = ray_embed("compare", "local", f"{bucket}/run/random-weights", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["same_records"]


def table_of(run: str) -> pa.Table:
    return ray_embed.load(run).to_table().replace_schema_metadata()


@pytest.mark.slow
def test_status_reduce_and_view_work_without_ray(
    shared: Shared, ray_embed_process: Command, store: Faults
) -> None:
    run = f"{shared.root}/run"
    # Before it was reduced.
    assert shared.viewed.code == 2
    assert shared.reduced.code == 0, shared.reduced.err
    status = ray_embed_process("status", run, "--verify", "--json")
    assert status.code == 0, status.out + status.err
    told = json.loads(status.out)
    assert (told["run"], told["rows"], told["projector"]) == (run, 99, True)
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ray_embed", "status", run],
        capture_output=True,
        text=True,
    )
    assert imported.returncode == 0
    assert not {"ray", "tensorflow"} & {
        line.rpartition("|")[2].strip() for line in imported.stderr.splitlines()
    }
    viewer = subprocess.Popen(
        [sys.executable, "-m", "ray_embed", "view", run], stdout=subprocess.PIPE, text=True
    )
    try:
        from urllib.request import urlopen

        url = viewer.stdout.readline().partition("#")[0]
        about = json.load(urlopen(f"{url}data/plugin/projector/info?run=."))
        assert about["embeddings"][0]["tensorShape"] == [99, 5]
    finally:
        viewer.kill()
        viewer.wait()


@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken", "InvalidAccessKeyId"])
def test_credentials_that_are_refused_are_told_without_the_secret(
    ray_embed: Command, tmp_path: Path, store: Faults, bucket: str, code: str
) -> None:
    make_folder(tmp_path / "data", {"a": 4})
    save_encoder(tmp_path / "encoder.keras")
    store.deny = code
    for arguments in (
        ["run", "--source", f"{bucket}/data", "--model", "encoder.keras", "--out", "run"],
        ["run", "--source", "data", "--model", f"{bucket}/encoder.keras", "--out", "run"],
        ["run", "--source", "data", "--model", "encoder.keras", "--out", f"{bucket}/run"],
        ["status", f"{bucket}/run"],
    ):
        found = ray_embed(*arguments)
        assert found.code == 2 or (arguments[0] == "status" and found.code == 1), found.err
        assert "credentials" in found.err, found.err
        assert "Traceback" not in found.err
        assert object_store.SECRET not in found.err + found.out
    assert not (tmp_path / "run").exists()


def test_a_password_in_a_uri_is_shown_nowhere(
    ray_embed: Command, tmp_path: Path, store: Faults, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder(tmp_path / "data", {"a": 6})
    save_encoder(tmp_path / "encoder.keras")
    object_store.upload(data, f"{bucket}/data")
    host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    within = f"s3://{object_store.KEY}:hidden@{bucket.removeprefix('s3://')}"
    query = f"?endpoint_override={host}&scheme=http"
    found = ray_embed(
        *("run", "--source", f"{within}/data{query}", "--model", "encoder.keras"),
        *("--out", f"{within}/run{query}", "--max-rejects", 0),
    )
    assert found.code == 0, found.err
    assert "hidden" not in found.out + found.err
    filesystem = fs.S3FileSystem(
        access_key="x", secret_key="y", endpoint_override=host, scheme="http", region="us-east-1"
    )
    selector = fs.FileSelector(bucket.removeprefix("s3://"), recursive=True)
    for info in filesystem.get_file_info(selector):
        if info.is_file:
            assert b"hidden" not in filesystem.open_input_file(info.path).read(), info.path
    assert ray_embed("status", f"{within}/run{query}").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "{0}/none"], "--source {0}/none: no such file or folder"),
        (["--source", "s3://no-such-bucket/x"], "s3://no-such-bucket/x: "),
        (["--source", "{0}/data/list.txt"], "--source {0}/data/list.txt: unsupported file type"),
        (["--source", "{0}/empty"], "--source {0}/empty: no images in this folder"),
        (["--model", "{0}/none.keras"], "--model {0}/none.keras: no such file"),
        (["--weights", "{0}/none"], "--weights {0}/none: no such file"),
        (["--out", "s3://no-such-bucket/run"], "--out s3://no-such-bucket/run: "),
        (["--out", "{0}/data"], "{0}/data: it is not a run folder"),
        (["--out", "s4://x/y"], "--out s4://x/y: not a location that can be opened"),
    ],
)
def test_bad_uris_are_named(
    ray_embed: Command,
    tmp_path: Path,
    store: Faults,
    store_address: str,
    arguments: list[str],
    said: str,
) -> None:
    object_store.make_bucket("bad")
    data = make_folder(tmp_path / "data", {"a": 2})
    (data / "list.txt").write_text("path\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("")
    object_store.upload(data, "s3://bad/data")
    object_store.upload(tmp_path / "empty", "s3://bad/empty")
    save_encoder(tmp_path / "encoder.keras")
    given = {"--source": "data", "--model": "encoder.keras", "--out": "run"}
    given |= {arguments[0]: arguments[1].format("s3://bad")}
    found = ray_embed("run", *(word for pair in given.items() for word in pair))
    assert found.code == 2, found.err
    assert said.format("s3://bad") in found.err
    assert "/tmp" not in found.err
    assert "Traceback" not in found.err


@pytest.mark.slow
def test_changed_objects_are_refused(
    shared: Shared, ray_embed_process: Command, bucket: str
) -> None:
    # The same content, a second and more after the other; it matters to no other test.
    object_store.upload(shared.data / "a" / "0003.png", f"{shared.root}/data/a/0003.png")
    fs.copy_files(f"{shared.root}/run", f"{bucket}/run")
    found = ray_embed_process("run", *arguments_of(shared.root, f"{bucket}/run"))
    assert found.code == 2, found.err
    assert "0003.png" in found.err and "has changed" in found.err


@pytest.mark.slow
def test_what_an_actor_finds_wrong_names_the_uri(
    ray_embed_process: Command, tmp_path: Path, store: Faults, bucket: str
) -> None:
    make_folder(tmp_path / "data", {"a": 2})
    (tmp_path / "list.txt").write_text("path\n")
    save_encoder(tmp_path / "encoder.keras")
    object_store.upload(tmp_path, bucket)
    common = ["run", "--source", "data", "--out", "run"]
    for arguments, said in (
        (["--model", f"{bucket}/list.txt"], f"--model {bucket}/list.txt: not a model"),
        (
            ["--model", f"{bucket}/encoder.keras", "--weights", f"{bucket}/list.txt"],
            f"{bucket}/list.txt",
        ),
    ):
        found = ray_embed_process(*common, *arguments)
        assert found.code == 2, found.err
        assert said in found.err
        assert "ray_embed-" not in found.err


@pytest.mark.slow
def test_second_writer_is_refused_unless_the_first_is_dead(
    ray_embed: Command,
    tmp_path: Path,
    store: Faults,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray_embed.storage import lock
    from ray_embed.storage.filesystem import Folder

    monkeypatch.setattr(lock, "_RENEW_SECONDS", 1.0)
    make_folder(tmp_path / "data", {"a": 4})
    save_encoder(tmp_path / "encoder.keras")
    run = f"{bucket}/run"
    arguments = ["run", "--source", "data", "--model", "encoder.keras", "--out", run]
    with lock.lock_folder(Folder.open(run)):
        found = ray_embed(*arguments)
    assert found.code == 2, found.err
    assert f"another ray-embed is writing to it (process {os.getpid()} on" in found.err
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    here = os.uname().nodename
    Folder.open(run).write(
        ".tmp/leases/left", f"process {dead.stdout.decode().strip()} on {here}".encode()
    )
    with lock.lock_folder(Folder.open(run)):
        assert "left" not in [info.base_name for info in Folder.open(run).list_infos(".tmp/leases")]


def test_lease_of_a_gone_writer_of_another_machine_expires(
    tmp_path: Path, store: Faults, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_embed.storage import lock
    from ray_embed.storage.filesystem import Folder

    monkeypatch.setattr(lock, "_STALE_SECONDS", 3.0)
    folder = Folder.open(f"{bucket}/run")
    folder.write(".tmp/leases/left", b"process 1 on elsewhere")
    with lock.lock_folder(folder):
        assert "left" not in [info.base_name for info in folder.list_infos(".tmp/leases")]
    assert not folder.list_infos(".tmp/leases")


def test_full_disk_is_reported_before_anything_is_copied(
    ray_embed: Command, tmp_path: Path, store: Faults, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_embed.errors import RunError
    from ray_embed.storage import download

    save_encoder(tmp_path / "encoder.keras")
    object_store.upload(tmp_path / "encoder.keras", f"{bucket}/encoder.keras")
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(20, 10, 10))
    with pytest.raises(RunError, match="set TMPDIR to a folder that has it"):
        download.download(f"{bucket}/encoder.keras", tmp_path / "into", "--model")
    assert not list((tmp_path / "into").iterdir())
