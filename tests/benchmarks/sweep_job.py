# SPDX-License-Identifier: Apache-2.0
"""Sweep over all weights in a folder.

python tests/benchmarks/sweep_job.py IMAGES WEIGHTS OUT MODEL
"""

from __future__ import annotations

import sys

import sides

import ray_embed


def main(images: str, weights: str, out: str, model: str) -> None:
    size = sides.MODELS[model]
    config = ray_embed.RunConfig(
        sources={"valid": images}, model=model, image_size=(size, size), out=out
    )
    runs = ray_embed.sweep(config, weights=[f"{weights}/*.weights.h5"])
    print(", ".join(f"{name}: {run.rows}" for name, run in runs.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
