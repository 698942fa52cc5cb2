# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, one after the other, and one table of what was aimed at and what was measured.

    make bench
    make bench ARGS="--images 512,4096,16384 --rounds 3"
    make bench ARGS="--quick --only whole_process,once_warm"

Each benchmark is a script in this folder, which can be run alone, makes its inputs and prints all
its rounds. Exit 0: all have run and the features agree, whether or not the targets are met, which
depends on the machine; 1: one of them failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import sides
from machine import described
from processes import HERE
from rows import Row, from_last_line, table

# Those that are repeated.
ROUNDS = ("whole_process", "once_warm", "mixed_inputs", "sources", "sweeping", "second_run")
OTHERS = ("actor_memory", "planning", "driver", "reducing", "exact_pca", "wide_pca", "evaluating")


def run(name: str, arguments: list[str]) -> tuple[list[Row], bool]:
    """Run a benchmark, showing what it says; give its rows and whether it went well."""
    command = sides.script(f"{name}.py", *arguments)
    print(f"\n== {name}", flush=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not line.startswith("{"):
            print(line, end="", flush=True)
    fine = process.wait() == 0
    try:
        return from_last_line("".join(lines)), fine
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return [], False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="for all that is written")
    parser.add_argument("--images", default="512,4096,16384", help="numbers of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few images, one round: to try it")
    parser.add_argument("--only", help="names of benchmarks")
    given = parser.parse_args()
    there = [name for name in (*ROUNDS, *OTHERS) if (HERE / f"{name}.py").is_file()]
    names = given.only.split(",") if given.only else there
    if unknown := [name for name in names if name not in there]:
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(there)}")
    machine = described()
    rows: list[Row] = []
    failed = []
    for name in names:
        arguments = ["--work", str(given.work.resolve())]
        if name in ROUNDS:
            arguments += ["--rounds", str(given.rounds)]
        if name == "whole_process":
            arguments += ["--images", given.images]
        if given.quick:
            arguments += ["--quick"]
        found, fine = run(name, arguments)
        rows += found
        if not fine:
            failed.append(name)
    print(f"\n== all\n{machine}\n\n{table(rows)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
