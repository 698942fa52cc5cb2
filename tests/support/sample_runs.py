# SPDX-License-Identifier: Apache-2.0
"""Make small runs with awkward pictures, labels and rejects, and read their folders."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from support.pictures import picture

# The files and folders of a run that are for readers.
RESULTS = ("features", "rejects", "thumbnails", "pca", "pca.parquet", "projector")

# Labels that are difficult for a line-based format.
AWKWARD = (
    "plain",
    "tab\there",
    "line\nbreak",
    "carriage\rreturn",
    "both\r\n",
    "back\\slash",
    "looks\\tescaped",
    '"quoted"',
    "",
    " ",
    "\u2028separated\u2029",
    "next\x85line\x0b\x0c\x1c\x1d\x1e",
    "žluťoučký 猫 🐈",
    "\ufeffmarked",
    "007",
    "NA",
    "(none)",
    "x" * 3000,
)


def save_encoder(path: Path, *, seed: int = 1, dimension: int = 5, side: int = 16) -> Path:
    """Save an encoder with the layers `early` (4 maps) and `late` (`dimension` maps)."""
    import keras

    keras.utils.set_random_seed(seed)
    image = keras.Input((side, side, 3))
    x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, name="early")(image))
    keras.Model(image, keras.layers.Conv2D(dimension, 3, name="late")(x)).save(path)
    return path


def write_listing(root: Path, labels: list[str], broken: set[int] | None = None) -> Path:
    """Write pictures of many shapes, and a listing of them; `broken` files are not pictures."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "list.csv", "w", newline="", encoding="utf-8") as file:
        listing = csv.writer(file, quoting=csv.QUOTE_ALL)
        listing.writerow(["path", "label", "note", "a\tb"])
        for number, label in enumerate(labels):
            name = f"{number:03d}.png"
            if number in (broken or ()):
                (root / name).write_bytes(b"no picture")
            else:
                picture(number, (8 + 5 * number % 90, 90 - 7 * number % 80)).save(root / name)
            listing.writerow([name, label, label[::-1], number])
    return root / "list.csv"


def write_flat(root: Path, count: int, broken: set[int] | None = None) -> Path:
    """Write pictures directly into a folder, so that they have no label."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = root / f"{number:03d}.png"
        if number in (broken or ()):
            path.write_bytes(b"no picture")
        else:
            picture(500 + number).save(path)
    # A name that is not UTF-8.
    odd = os.path.join(os.fsencode(root), b"\xff\xfe.png")
    picture(499).save(root / "odd.png")
    os.rename(root / "odd.png", odd)
    return root


def config(sources: dict[str, Path], model: Path, out: Path, **options: Any) -> Any:
    """Return the configuration of a run with small shards and the same numbers on any machine."""
    import ray_embed

    usual = {
        "engine": "tensorflow",
        "actors": 1,
        "cpus_per_actor": 1,
        "batch_size": 4,
        "shard_size": 4,
    }
    return ray_embed.RunConfig(
        sources={split: str(path) for split, path in sources.items()},
        model=str(model),
        out=str(out),
        **(usual | options),
    )


def part_files(run: Path, kind: str = "features") -> list[Path]:
    """List the parts of a kind in the order of their shards."""
    return sorted((run / kind).glob("part-*.parquet"))


def read_parts(run: Path, kind: str = "features") -> pa.Table:
    """Read the parts of a kind, one after the other, with pyarrow alone."""
    return pa.concat_tables(
        [pq.read_table(part).replace_schema_metadata() for part in part_files(run, kind)]
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_results(run: Path, kinds: tuple[str, ...] = RESULTS) -> dict[str, bytes]:
    """Read all files that must have the same bytes, whatever happened during the run."""
    return {
        name: content
        for name, content in contents(run).items()
        if name.split("/")[0] in kinds and "tfevents" not in name
    }


def copy(run: Path, to: Path) -> Path:
    """Copy a run folder, to damage the copy."""
    shutil.copytree(run, to, symlinks=True)
    return to
