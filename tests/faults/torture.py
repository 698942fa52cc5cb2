# SPDX-License-Identifier: Apache-2.0
"""Kills everything there is to kill, over and over, and compares what comes out in the end.

    make torture                      100 kills
    make torture ARGS="--kills 10 --seed 3"

One run is left alone; the same command, for another folder, is started again and again while its
processes are killed (SIGKILL) at random moments, until so many kills have been dealt. Then it may
finish. Where it finishes before that, its folder is compared and the next one is begun.

Exit 0: each folder holds, byte for byte, what the undisturbed one holds (event files aside), and
whoever was not killed itself said how to go on; 1: not so.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.pictures import make_folder
from support.sample_runs import part_files, read_results

SHARD, BATCH = 8, 4
# How often each is chosen: losing Ray costs the driver a quarter to a whole minute.
KINDS = {"actor": 50, "driver": 20, "guard": 10, "builder": 5, "raylet": 20, "gcs": 5, "all": 5}


def save_encoder(path: Path) -> None:
    """Save an encoder that takes about a fifth of a second a shard."""
    import keras

    keras.utils.set_random_seed(3)
    image = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(192, 3, padding="same", activation="relu")(image)
    x = keras.layers.Conv2D(192, 3, padding="same", activation="relu")(x)
    keras.Model(image, keras.layers.Conv2D(6, 3)(x)).save(path)


def make_inputs(work: Path, records: int) -> None:
    make_folder(work / "valid", {"a": records // 2, "b": records - records // 2})
    for at in range(5, records // 2, 97):
        (work / "valid" / "a" / f"{at:04d}.png").write_bytes(b"no picture")
    save_encoder(work / "encoder.keras")


def command(out: Path) -> list[str]:
    words = ["run", "--source", "valid", "--model", "encoder.keras", "--out", str(out)]
    words += ["--engine", "tensorflow", "--actors", "2", "--cpus-per-actor", "1"]
    words += ["--shard-size", str(SHARD), "--batch-size", str(BATCH)]
    return [sys.executable, "-m", "ray_embed", *words]


def start(work: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as said:
        return subprocess.Popen(
            command(out), cwd=work, stdout=said, stderr=said, start_new_session=True
        )


def victims(process: subprocess.Popen[bytes]) -> dict[str, list[psutil.Process]]:
    """The processes of a command, by what they are."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in KINDS}
    guard = psutil.Process(process.pid)
    everyone = [guard, *guard.children(recursive=True)]
    for one in everyone:
        try:
            line = one.cmdline()
        except psutil.Error:
            continue
        words = " ".join(line)
        if one.pid == guard.pid:
            found["guard"].append(one)
        elif words.startswith("ray::"):
            found["actor"].append(one)
        elif line and line[0].endswith("raylet/raylet"):
            found["raylet"].append(one)
        elif line and line[0].endswith("gcs/gcs_server"):
            found["gcs"].append(one)
        elif "encoders.build_process" in words:
            found["builder"].append(one)
        elif one.ppid() == guard.pid:
            found["driver"].append(one)
    found["all"] = everyone
    return found


def kill(kind: str, process: subprocess.Popen[bytes], choose: random.Random) -> bool:
    """Kill one process of a kind, or all there are; whether there was one."""
    try:
        chosen = victims(process)[kind]
    except psutil.Error:
        return False
    if kind != "all" and chosen:
        chosen = [choose.choice(chosen)]
    killed = False
    for one in chosen:
        try:
            one.kill()
            killed = True
        except psutil.Error:
            continue
    return killed


def wait_for_all(everyone: list[psutil.Process]) -> int:
    """Wait until what was started is gone; how many stayed."""
    # Those of a Ray that was killed while it was starting look for it only now and then.
    _, alive = psutil.wait_procs(everyone, 60)
    for one in alive:
        with_name = " ".join(one.cmdline()[:2]) if one.is_running() else "?"
        print(f"left behind: {with_name}", flush=True)
        one.kill()
    return len(alive)


def rows_of(run: Path) -> list[tuple[int, str]]:
    found = []
    for kind in ("features", "rejects"):
        for part in part_files(run, kind):
            table = pq.read_table(part, columns=["index", "key"])
            found += zip(table["index"].to_pylist(), table["key"].to_pylist(), strict=True)
    return found


def compared(calm: Path, run: Path) -> dict[str, int]:
    """Count what was lost, doubled, moved, and the files whose bytes differ."""
    expected, found = rows_of(calm), rows_of(run)
    keys = dict(expected)
    files = [read_results(folder) for folder in (calm, run)]
    return {
        "records": len(expected),
        "lost": len({index for index, _ in expected} - {index for index, _ in found}),
        "doubled": len(found) - len({index for index, _ in found}),
        "moved": sum(keys.get(index) != key for index, key in found),
        "files": len(files[0]),
        "different": sum(
            files[0].get(name) != files[1].get(name) for name in {*files[0], *files[1]}
        ),
        "rejects": sum(len(pq.read_table(part)) for part in part_files(run, "rejects")),
    }


def torture(work: Path, calm: Path, kills: int, seed: int) -> tuple[Counter[str], list[str], int]:
    """Deal the kills; gives how many of each kind, what went wrong, and the number of folders."""
    choose = random.Random(seed)
    dealt: Counter[str] = Counter()
    wrong: list[str] = []
    log = work / "log.txt"
    number = starts = left = 0
    while True:
        out = work / f"run{number}"
        before = log.stat().st_size if log.exists() else 0
        process = start(work, out, log)
        starts += 1
        everyone: set[psutil.Process] = set()
        killed_itself = False
        while process.poll() is None and dealt.total() < kills:
            end = time.monotonic() + choose.uniform(0, 25)
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.02)
                try:
                    main = psutil.Process(process.pid)
                    everyone |= {main, *main.children(recursive=True)}
                except psutil.Error:
                    break
            kind = choose.choices(list(KINDS), list(KINDS.values()))[0]
            if process.poll() is None and kill(kind, process, choose):
                dealt[kind] += 1
                killed_itself |= kind in ("guard", "all")
                parts = len(part_files(out)) if out.exists() else 0
                print(f"{dealt.total():4} {kind:8} {parts} parts are there", flush=True)
        code = process.wait(300)
        everyone.discard(psutil.Process())
        left += wait_for_all([one for one in everyone if one.is_running()])
        said = log.read_bytes()[before:].decode("utf-8", "replace")
        if code == 0:
            found = compared(calm, out)
            print(f"{out.name}: {found}", flush=True)
            if found["lost"] or found["doubled"] or found["moved"] or found["different"]:
                wrong.append(f"{out.name}: {found}")
            number += 1
            if dealt.total() >= kills:
                break
        elif not killed_itself and " with: ray-embed run" not in said:
            wrong.append(f"exit {code} without a word on how to go on: ...{said[-500:]}")
        elif "Traceback" in said and not killed_itself:
            wrong.append(f"a traceback: ...{said[-1500:]}")
    if left:
        wrong.append(f"{left} processes stayed behind")
    print(f"{starts} starts of the command", flush=True)
    return dealt, wrong, number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--records", type=int, default=1200)
    parser.add_argument("--seed", type=int, help="[drawn and printed]")
    parser.add_argument("--work", type=Path, help="[a temporary folder]")
    given = parser.parse_args()
    seed = random.randrange(1 << 30) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        # Sessions of Ray that were killed are not cleared away by anybody else.
        os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")
        os.environ["HOME"] = str(work)
        os.environ.pop("RAY_ADDRESS", None)
        try:
            make_inputs(work, given.records)
            began = time.monotonic()
            calm = work / "calm"
            if start(work, calm, work / "calm.txt").wait(600):
                print((work / "calm.txt").read_text())
                return 1
            print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
            began = time.monotonic()
            dealt, wrong, folders = torture(work, calm, given.kills, seed)
        finally:
            shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
    kinds = ", ".join(f"{count} {kind}" for kind, count in dealt.most_common())
    print(
        f"\n{dealt.total()} kills ({kinds}) over {folders} extraction(s) of {given.records} "
        f"records, {time.monotonic() - began:.0f} s, seed {seed}: "
        + ("nothing lost, doubled or moved, all bytes equal" if not wrong else "WRONG")
    )
    for line in wrong:
        print(line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
