# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM at any moment: while Ray starts, while the encoder is built, while merging."""

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support.pictures import make_folder
from support.sample_runs import save_encoder

MOMENTS = 6


def started(folder, words):
    return subprocess.Popen(
        [sys.executable, "-m", "ray_embed", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupted(folder, words, is_time, *numbers):
    """Start the command and interrupt it when it is time; None where it was done before.

    `is_time` gets the processes of the command.
    """
    process = started(folder, words)
    everyone = set()
    while not is_time(everyone) and process.poll() is None:
        time.sleep(0.02)
        everyone |= set(psutil.Process(process.pid).children(recursive=True))
    if process.poll() is not None:
        process.communicate()
        return None
    for number in numbers:
        os.kill(process.pid, number)
        # Two that are there at once are one.
        time.sleep(0.1)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    seconds = time.monotonic() - began
    _, alive = psutil.wait_procs(everyone, 15)
    left = [one.name() for one in alive if one.is_running()]
    for one in alive:
        one.kill()
    return process.returncode, said, seconds, left


def inputs(folder):
    """Write what the command takes; gives its words."""
    make_folder(folder / "valid", {"a": 30, "b": 30})
    save_encoder(folder / "encoder.keras")
    return shlex.split("run --source valid --model encoder.keras --out run --shard-size 4")


def after(seconds):
    """Tell when so many seconds have passed since the first call."""
    ends = []

    def is_time(everyone):
        ends.append(time.monotonic() + seconds)
        return time.monotonic() >= ends[0]

    return is_time


def has_raylet(everyone):
    names = []
    for one in everyone:
        with contextlib.suppress(psutil.Error):
            names.append(one.name())
    return "raylet" in names


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["Ray starts", "shards are done"])
def test_twice_ends_it_at_once(tmp_path, moment):
    words = inputs(tmp_path)
    part = tmp_path / "run" / "features" / "part-00000000.parquet"
    is_time = has_raylet if moment == "Ray starts" else lambda _: part.exists()
    code, said, seconds, left = interrupted(tmp_path, words, is_time, signal.SIGINT, signal.SIGTERM)
    assert code == 130, said
    assert "Traceback" not in said
    assert f" with: {shlex.join(['ray-embed', *words])}" in said
    assert seconds < 2
    assert not left


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupt_at_any_moment(tmp_path):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    choose = random.Random(seed)
    words = inputs(tmp_path)
    began = time.monotonic()
    process = started(tmp_path, [*words[:-4], "--out", "calm"])
    process.communicate(timeout=120)
    takes = time.monotonic() - began
    assert process.returncode == 0
    # One in each part of the time it takes, so that few are enough.
    part = takes / MOMENTS
    moments = [max(0.05, choose.uniform(at, at + 1) * part) for at in range(MOMENTS)]
    tried = 0
    for moment in moments:
        number = choose.choice([signal.SIGINT, signal.SIGTERM])
        found = interrupted(tmp_path, words, after(moment), number)
        if found is None:
            continue
        tried += 1
        code, said, seconds, left = found
        about = f"{number.name} after {moment:.1f} s, it took {seconds:.1f} s: {said}"
        # Python itself is not there yet in the first moments.
        if moment > 1:
            assert code == 130, about
            assert "Traceback" not in said, about
            again = re.search(r" with: ray-embed (.*)", said)
            assert again, about
            assert shlex.split(again[1]) == words, about
        assert seconds < 15, about
        assert not left, f"{left} {about}"
    assert tried >= MOMENTS // 2
