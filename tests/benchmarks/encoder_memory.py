# SPDX-License-Identifier: Apache-2.0
"""The memory of an engine beside the estimate by which a sweep divides encoders into passes.

    python tests/benchmarks/encoder_memory.py [--only MobileNetV2,ResNet50] [--sides 96,224]

Opens the same encoder several times in a fresh process, as the actor of a sweep does, and runs two
batches of 16 at once. Memory is what the process has for itself (USS); the first encoder, which
also pays for libraries, is left out. An actor gives half of its memory to encoders, so estimates
may be too low by a factor of two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from machine import described
from processes import HERE, psutil
from rows import Row, last_line, row, table

BATCH, OPENED, THREADS = 16, 5, 2
ENGINES = ("openvino", "tensorflow")
WITHIN = "<= 2"


def measure(model: str, side: int, engine: str) -> tuple[float, list[float]]:
    """Open an encoder several times in this process.

    Returns:
        The estimate, and what each one added to the memory of this process, both in MB.
    """
    import encoder_engines

    from ray_embed.encoders import artifacts
    from ray_embed.encoders.build import build
    from ray_embed.encoders.engines.registry import open_engine
    from ray_embed.encoders.probe_images import blank_batch
    from ray_embed.encoders.spec import EncoderSpec
    from ray_embed.runtime.memory import estimate_bytes

    spec = EncoderSpec(
        model=encoder_engines.encoders()[model](side),
        folder=str(HERE),
        batch_size=BATCH,
        engine=engine,
    )
    encoder = build(spec, THREADS)
    estimate = estimate_bytes(artifacts.count_bytes(encoder), artifacts.count_batch_bytes(encoder))
    batch, added, opened = blank_batch(encoder, BATCH), [], []
    before = memory()
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(OPENED):
            opened.append(open_engine(encoder, THREADS))
            list(threads.map(opened[-1], [batch] * 2 * THREADS))
            after = memory()
            added.append(after - before)
            before = after
    return estimate / 1e6, added


def memory() -> float:
    """The MB that this process has for itself."""
    return float(psutil.Process().memory_full_info().uss) / 1e6


def make_row(model: str, side: int, engine: str, estimate: float, added: list[float]) -> Row:
    """Return the row of an encoder."""
    print(
        f"{model} {side} {engine}: estimated {estimate:.0f} MB, added "
        + ", ".join(f"{value:.0f}" for value in added),
        flush=True,
    )
    what = f"{model} {side} × {side}, {engine}: memory of an encoder over the estimate"
    return row(what, WITHIN, statistics.median(added[1:]) / estimate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="MobileNetV2,ResNet50", help="as in encoder_engines.py")
    parser.add_argument("--sides", default="96,224", help="sides of the images in pixels")
    parser.add_argument("--work", type=Path, help="not used")
    parser.add_argument("--quick", action="store_true", help="one model of one size")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        model, side, engine = given.measure
        print(json.dumps(measure(model, int(side), engine)))
        return
    print(described())
    names = ["MobileNetV2"] if given.quick else given.only.split(",")
    sides = [32] if given.quick else [int(side) for side in given.sides.split(",")]
    rows = []
    for model, side, engine in [(m, s, e) for m in names for s in sides for e in ENGINES]:
        command = [sys.executable, __file__, "--measure", model, str(side), engine]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE)
        estimate, added = json.loads(done.stdout.splitlines()[-1])
        rows.append(make_row(model, side, engine, estimate, added))
    print(f"\n{table(rows)}")
    print(last_line(rows))


if __name__ == "__main__":
    main()
