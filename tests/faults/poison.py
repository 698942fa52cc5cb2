# SPDX-License-Identifier: Apache-2.0
"""Pictures that crash the process, or hang it, among many that do not.

    python tests/faults/poison.py --records 2000 --each 5

The encoder of `fragile.py` does what some pictures tell it. The same command is run twice in
different folders: once with an encoder that obeys them, once with one that does not. Exactly those
pictures must be rejected, and all other rows be as in the run in which nothing happens.

Exit 0: so it is; 1: not so.
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
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.pictures import make_folder
from support.sample_runs import read_parts

HERE = Path(__file__).resolve().parent
COLOURS = {"crashes the process": (255, 0, 255), "hangs": (0, 255, 255)}


def make_inputs(work: Path, records: int, each: int, seed: int) -> dict[str, str]:
    """Write pictures; gives the reason by the key of each that must be rejected."""
    root = make_folder(work / "valid", {"a": records // 2, "b": records - records // 2})
    names = sorted(root.rglob("*.png"))
    # The first one has none before it that passes; beside it lie two that are none.
    chosen = [names[0], *random.Random(seed).sample(names[3:], each * len(COLOURS) - 1)]
    reasons = {}
    for at, name in enumerate(chosen):
        reason, colour = list(COLOURS.items())[at % len(COLOURS)]
        Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).save(name)
        reasons[str(name.relative_to(root))] = reason
    names[1].unlink()
    names[1].symlink_to(root / "nowhere.png")
    names[2].write_bytes(b"no picture")
    reasons |= {
        str(names[1].relative_to(root)): "missing",
        str(names[2].relative_to(root)): "not an image",
    }
    shutil.copy(HERE / "fragile.py", work)
    return reasons


def run(work: Path, out: str, obeys: bool, *options: str) -> tuple[int, str]:
    words = ["extract", "--source", "valid", "--model", "fragile:encoder", "--out", out]
    words += ["--image-size", "16,16", "--engine", "tensorflow", *options]
    words += ["--actors", "2", "--cpus-per-actor", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "ray_embed", *words],
        cwd=work,
        env={**os.environ, "FRAGILE": str(int(obeys))},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def differences(work: Path, reasons: dict[str, str]) -> list[str]:
    """Say what is not as it must be."""
    found = {row["key"]: row["reason"] for row in read_parts(work / "hurt", "rejects").to_pylist()}
    wrong = []
    if found != reasons:
        wrong.append(f"rejected: {found}, and not {reasons}")
    calm, hurt = read_parts(work / "calm", "features"), read_parts(work / "hurt", "features")
    kept = calm.filter(pa.array([key not in reasons for key in calm["key"].to_pylist()]))
    if kept.drop_columns("feature").to_pylist() != hurt.drop_columns("feature").to_pylist():
        wrong.append("other rows are not all there, or not in order")
    else:
        was, now = (np.array(table["feature"].to_pylist()) for table in (kept, hurt))
        largest = np.abs(was - now).max() / np.abs(was).max()
        if largest > 1e-6:
            wrong.append(f"other rows differ by {largest:.1e} of the largest value")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--each", type=int, default=5, help="crashes, and hangs")
    parser.add_argument("--shard-size", type=int, default=128)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="poison-") as temporary:
        work = Path(temporary)
        os.environ["HOME"] = temporary
        os.environ.pop("RAY_ADDRESS", None)
        reasons = make_inputs(work, given.records, given.each, given.seed)
        common = ["--shard-size", str(given.shard_size)]
        code, said = run(work, "calm", False, *common)
        if code:
            print(said)
            return 1
        began = time.monotonic()
        limits = ["--shard-timeout", str(given.timeout), "--max-attempts", str(given.attempts)]
        code, said = run(work, "hurt", True, *common, *limits)
        seconds = time.monotonic() - began
        if code:
            print(said)
            return 1
        wrong = differences(work, reasons)
    print(
        f"{given.records} records, {given.each} that crash, {given.each} that hang, "
        f"{given.attempts} attempts, {seconds:.0f} s: "
        + ("; ".join(wrong) or "exactly those are rejected, all other rows are as without them")
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
