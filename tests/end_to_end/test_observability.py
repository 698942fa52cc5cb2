# SPDX-License-Identifier: Apache-2.0
"""What others see of a run that is under way: metrics, names of actors, and its status."""

import json
import re
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from support.pictures import make_folder
from support.sample_runs import save_encoder

import ray_embed as package
from ray_embed.runs.status import read_status

# A source whose last record comes when it is told to; all others are embedded before.
WAITING = """
    import pathlib, time
    import numpy as np
    import tensorflow as tf

    def images(count, pause=0.0, last=None):
        def give():
            for at in range(count):
                time.sleep(pause)
                yield np.full((16, 16, 3), at, np.uint8), at
            while last and not pathlib.Path(last).exists():
                time.sleep(0.05)

        signature = (tf.TensorSpec((16, 16, 3), tf.uint8), tf.TensorSpec((), tf.int64))
        return tf.data.Dataset.from_generator(give, output_signature=signature)
    """


def named(run: str) -> set[str]:
    """Name the actors of a run; there may be others in the same Ray."""
    return {name for name in ray.util.list_named_actors() if name.startswith(f"{run}-")}


def metrics(actors: set[str]) -> defaultdict[str, Counter[str]]:
    """Read the numbers of these actors: by their name, then by the actor's."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for node in ray.nodes():
        if node["Alive"]:
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            text = urllib.request.urlopen(url, timeout=60).read().decode()
            for line in text.splitlines():
                match = re.match(r'(ray_embed_\w+)\{.*\bactor="([^"]*)".*\} (\S+)', line)
                if match and match[2] in actors:
                    found[match[1]][match[2]] += float(match[3])
    return found


def wait_for(look, seconds=90):
    """Look again and again until there is something; give it."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_metrics_and_names_of_a_run_under_way(ray_session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "waiting.py").write_text(textwrap.dedent(WAITING))
    source = make_folder(tmp_path / "files", {"a": 30, "b": 11})
    (source / "a" / "0005.png").write_bytes(b"no picture")
    config = package.RunConfig(
        sources={"files": source, "slow": "waiting:images"},
        source_kwargs={"slow": {"count": 9, "last": "go"}},
        model=save_encoder(tmp_path / "encoder.keras"),
        out=tmp_path / "run 7",
        engine="tensorflow",
        actors=2,
        cpus_per_actor=1,
        shard_size=4,
        batch_size=4,
    )
    with ThreadPoolExecutor(1) as running:
        run = running.submit(package.run, config)
        try:
            wait_for(lambda: run.done() or len(named("run 7")) == 3)
            names = named("run 7")
            # What was counted is reported some seconds later.
            counted = wait_for(
                lambda: (
                    (numbers := metrics(names))["ray_embed_images_total"].total() == 48 and numbers
                )
            )
            extractors = {name for name in names if "extractor" in name}
            for name in extractors:
                ray.kill(ray.get_actor(name))
        finally:
            (tmp_path / "go").touch()
        again = wait_for(lambda: named("run 7") - names)
        run = run.result(timeout=300)
    assert {re.sub("-[0-9a-f]{6}-", " ", name) for name in names} == {
        "run 7 extractor-0",
        "run 7 extractor-1",
        "run 7 reader-slow",
    }
    assert again <= {f"{min(extractors)[:-1]}{number}" for number in (2, 3)}
    sums = {name: numbers.total() for name, numbers in counted.items()}
    assert set(sums) == {
        f"ray_embed_{name}_total"
        for name in ("images", "rejects", "read_bytes", "waiting_seconds", "computing_seconds")
    }
    # The last record of the stream makes a shard of its own.
    assert sums["ray_embed_images_total"] == run.rows - 1 == 48
    assert sums["ray_embed_rejects_total"] == run.rejects == 1
    stored = sum(path.stat().st_size for path in source.rglob("*.png"))
    assert sums["ray_embed_read_bytes_total"] == stored + 8 * 16 * 16 * 3
    assert set(counted["ray_embed_images_total"]) <= extractors
    assert sums["ray_embed_computing_seconds_total"] > 0
    assert sums["ray_embed_waiting_seconds_total"] > 0


SLOW = """
    import time
    import numpy as np

    def slowly(images):
        time.sleep(0.4)
        return np.asarray(images) / np.float32(255)
    """


@pytest.mark.slow
def test_status_while_it_runs(tmp_path):
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    source = make_folder(tmp_path / "files", {"a": 60})
    for number in (0, 7, 30, 59):
        (source / "a" / f"{number:04d}.png").write_bytes(b"no picture")
    save_encoder(tmp_path / "encoder.keras")
    words = ["run", "--source", "files", "--model", "encoder.keras", "--out", "run"]
    words += ["--preprocess", "slow:slowly", "--shard-size", "3", "--batch-size", "3"]
    ray_embed = [sys.executable, "-m", "ray_embed"]
    seen = []
    with subprocess.Popen([*ray_embed, *words], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            try:
                seen.append(read_status(str(tmp_path / "run")))
            except package.InputError as error:
                # Nothing but before it is planned.
                assert not seen, error
                assert "planned" in str(error)
            if seen and seen[-1].shards_done == 5:
                asked = [*ray_embed, "status", "run", "--json"]
                told = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
                assert told.returncode == 0, told.stderr
                assert 5 <= json.loads(told.stdout)["shards_done"] < 20
            time.sleep(0.02)
        said = process.stderr.read()
    assert process.returncode == 0, said
    seen.append(read_status(str(tmp_path / "run")))
    for found in seen:
        assert (found.shards_planned, found.records_planned) == (20, 60)
        assert found.rows + found.rejects == 3 * found.shards_done
        assert found.problems == ()
    done = [found.shards_done for found in seen]
    assert done == sorted(done)
    assert len(set(done)) > 10
    assert (seen[-1].rows, seen[-1].rejects, seen[-1].projector) == (56, 4, True)
