# SPDX-License-Identifier: Apache-2.0
"""`ray-embed run` of timm models, against a script that uses PyTorch, as whole processes.

    python tests/benchmarks/torch_encoders.py --work DIR [--images 4096] [--rounds 3]
        [--models mobilenetv3_small_100,resnet50,vit_small_patch16_224] [-- OPTIONS]

The script (timm_script.py) writes features and labels. `ray-embed run` also writes thumbnails, the
PCA and the projector. Both prepare images as timm does, and have the same random weights. The sides
take turns; ratios are those of medians. OPTIONS are handed on to ray-embed.

Engines differ in how they add, so features are compared by their cosine, each minus the mean of
all. Exit 0: done, and all agree; 1: they do not, or a process failed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import agreement
import numpy as np
import rates
import sides
from corpus import make_jpegs
from machine import described
from processes import Measured, measure
from rows import Row, last_line, ratio, row, table

SCRIPT, OURS = SIDES = ("script", "ray-embed")
MODELS = ("mobilenetv3_small_100", "resnet50", "vit_small_patch16_224")
# The encoder that takes little time shows what the rest takes.
FASTER = {("mobilenetv3_small_100", 4096): ">= 2.0"}
SIMILAR = 0.999


@dataclass
class Compared:
    """What all rounds of a model gave.

    Attributes:
        name: the model.
        images: how many there are.
        measured: the processes of each side.
        warm: the images per second once warm of each side.
        similarity: the smallest cosine of two features of the same image.
    """

    name: str
    images: int
    measured: dict[str, list[Measured]] = field(default_factory=lambda: {s: [] for s in SIDES})
    warm: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in SIDES})
    similarity: float = 1.0

    def run(self, folder: Path, work: Path, number: int, options: Sequence[str]) -> None:
        """Do one round, compare what the sides wrote, and delete it."""
        outs = {side: work / f"{self.name}-{side}" for side in SIDES}
        for side in sides.turns(SIDES, number):
            shutil.rmtree(outs[side], ignore_errors=True)
            command = make_command(side, self.name, folder, outs[side], options)
            done = measure(side, command, outs[side])
            warm = done.said()["once_warm"] if side == SCRIPT else rates.of_run(outs[side])
            print(
                f"{self.name}, {side}: {done.seconds:.2f} s, {done.cpu_seconds:.1f} CPU s, "
                f"{done.peak_pss_mb or 0:,.0f} MB, {warm or 0:.1f} images/s once warm",
                flush=True,
            )
            self.measured[side].append(done)
            if warm is not None:
                self.warm[side].append(warm)
        self.similarity = min(self.similarity, compare(outs[SCRIPT], outs[OURS]))
        for out in outs.values():
            shutil.rmtree(out)

    def rows(self) -> list[Row]:
        """Return the rows of the table."""
        seconds, cpu, warm = {}, {}, {}
        for side in SIDES:
            seconds[side] = statistics.median(done.seconds for done in self.measured[side])
            cpu[side] = statistics.median(done.cpu_seconds for done in self.measured[side])
            warm[side] = statistics.median(self.warm[side]) if self.warm[side] else None
        what = f"{self.name}, {self.images:,} images: "
        return [
            row(
                f"{what}the script's time over ray-embed's",
                FASTER.get((self.name, self.images)),
                seconds[SCRIPT] / seconds[OURS],
            ),
            row(f"{what}the script's CPU seconds over ray-embed's", None, cpu[SCRIPT] / cpu[OURS]),
            row(
                f"{what}images/s once warm over the script's",
                None,
                ratio(warm[OURS], warm[SCRIPT]),
            ),
            row(f"{what}smallest cosine of features", f">= {SIMILAR}", self.similarity, ""),
        ]


def make_command(
    side: str, name: str, folder: Path, out: Path, options: Sequence[str]
) -> list[str]:
    """Return the command of a side."""
    if side == SCRIPT:
        return sides.script("timm_script.py", name, folder, out)
    return sides.ray_embed(folder, out, f"timm:{name}", ["--weights", "random", *options])


def compare(script: Path, run: Path) -> float:
    """Return the smallest cosine of two features of the same image.

    Raises:
        ValueError: the sides have other images.
    """
    keys, expected = agreement.read_loop(script)
    found_keys, found = agreement.read_run(run)
    if sorted(keys) != found_keys:
        raise ValueError(f"{run}: {len(found_keys)} images instead of {len(keys)}, or others")
    expected = expected[sorted(range(len(keys)), key=keys.__getitem__)].astype(np.float64)
    mean = expected.mean(axis=0)
    expected, found = expected - mean, found - mean
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return float(((expected * found).sum(axis=1) / lengths).min())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default=",".join(MODELS), help="names of timm models")
    parser.add_argument("--quick", action="store_true", help="64 images, one round")
    parser.add_argument("options", nargs="*", help="after --: options for ray-embed")
    given = parser.parse_args()
    images, rounds = (64, 1) if given.quick else (given.images, given.rounds)
    work = given.work.resolve()
    folder = work / f"images-{images}"
    make_jpegs(folder, images)
    print(described())
    compared = [Compared(name, images) for name in given.models.split(",")]
    for each in compared:
        for number in range(rounds):
            each.run(folder, work / "torch_encoders", number, given.options)
    rows = [row for each in compared for row in each.rows()]
    print(f"\n{table(rows)}")
    print(last_line(rows))
    return int(any(each.similarity < SIMILAR for each in compared))


if __name__ == "__main__":
    sys.exit(main())
