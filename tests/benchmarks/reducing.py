# SPDX-License-Identifier: Apache-2.0
"""`reduce` against reading the parts' bytes and writing as many as it writes, plainly.

    python tests/benchmarks/reducing.py --rows 1000000 --dimension 512 --rounds 3 --work DIR
    python tests/benchmarks/reducing.py --rows 4096 --dimension 1280 --thumbnails --work DIR
    python tests/benchmarks/reducing.py --rows 1000000 --dimension 512 --pca --work DIR

DIR gets a run folder of random features, made once and kept: parts of 512 rows through the
package's own `store.commit`, labels of 100 classes, keys as `class_07/000123.jpg`, and with
`--thumbnails` a PNG of 64 × 64 a record. The exact PCA, which is a pass of its own and has the
benchmark `exact_pca.py`, is left out unless there is `--pca`. Each side runs in a process of its
own; they take turns, and the one that begins changes from round to round, so that both find the
files in the page cache alike. Both import the same before the clock starts: as long after what the
other one wrote was deleted, for a virtual machine gives memory back meanwhile. Memory is the most
that a process had resident, imports and all.

Exit 0: the checkpoint's tensor and its sample are the parts' rows; 1: they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from in_turns import Taken, alternate, measure, side
from rows import last_line, row, table

from ray_embed import planning
from ray_embed.core.arrays import as_column
from ray_embed.images.thumbnails import encode_png
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder

OWNER = part_files.Owner("f" * 64, "f" * 64)
SIDES = ("reduce", "plain")
SHARD, CLASSES, SIDE = 512, 100, 64
PICTURES = 256  # different ones; each is drawn many times
TENSOR = "{}/.ATTRIBUTES/VARIABLE_VALUE"
BUFFER = 8 << 20


def make_run(path: Path, rows: int, dimension: int, thumbnails: bool) -> None:
    """Write the run folder, unless it is there; `run.json` comes last."""
    folder = Folder.open(str(path))
    if folder.exists(layout.RUN):
        return
    for part in parts_of(rows, dimension, thumbnails):
        part_files.write_part(folder, part, OWNER, part.features.num_rows)
    split = planning.SplitPlan(
        ordinal=0,
        name="valid",
        root="/",
        label_type="string",
        extras=(),
        shard_size=SHARD,
        shards_per_file=64,
        records=rows,
    )
    planning.save(folder, planning.Plan((split,), "string", ()))
    output = {"layer": "top", "column": "feature", "dimension": dimension}
    manifest.write_run(
        folder,
        {
            "fingerprint": "f" * 64,
            "config": {"projector_limit": 100_000},
            "encoder": {"outputs": [output]},
        },
        "0",
    )


def parts_of(rows: int, dimension: int, thumbnails: bool) -> Iterator[part_files.Part]:
    random = np.random.default_rng(0)
    pictures = list(pngs(random)) if thumbnails else []
    for number, start in enumerate(range(0, rows, SHARD)):
        index = np.arange(start, min(start + SHARD, rows))
        classes = index * CLASSES // rows
        features = pa.table(
            {
                "index": pa.array(index),
                "key": [f"class_{c:02d}/{i:06d}.jpg" for c, i in zip(classes, index, strict=True)],
                "label": [f"class_{c:02d}" for c in classes],
                "split": ["valid"] * len(index),
                "feature": as_column(random.random((len(index), dimension), np.float32)),
            }
        )
        shown = index if thumbnails else index[:0]
        thumbs = pa.table(
            [pa.array(shown), pa.array([pictures[i * 7 % PICTURES] for i in shown], pa.binary())],
            part_files.THUMBNAIL_SCHEMA,
        )
        yield part_files.Part(number, features, part_files.REJECT_SCHEMA.empty_table(), thumbs)


def pngs(random: np.random.Generator) -> Iterator[bytes]:
    """Give pictures as an extraction keeps them, that compress as photographs made small do."""
    import tensorflow as tf

    for _ in range(PICTURES):
        coarse = random.random((1, 4, 4, 3), np.float32) * 255
        smooth = tf.image.resize(coarse, (SIDE, SIDE), method="bicubic")[0]
        noisy = smooth + random.normal(0, random.uniform(0, 1), smooth.shape).astype(np.float32)
        picture = tf.cast(tf.clip_by_value(noisy, 0, 255), tf.uint8)
        yield encode_png(picture.numpy())


def without_thumbnails() -> None:
    """Let a run have no sprite: more points than a sheet has pixels are not made here."""
    from ray_embed.projector import sprite

    sprite.choose_cell_size = lambda points: 0


def without_pca() -> None:
    """Let no features have one."""
    from ray_embed.projector import reduce as reduce_module

    reduce_module._compute_components = lambda *arguments: {}


def reduced(path: Path, thumbnails: bool, threads: int | None) -> Callable[[], None]:
    """Import what `reduce` needs, and give it."""
    from ray_embed.encoders.tensorflow_setup import start_tensorflow
    from ray_embed.projector.reduce import reduce

    start_tensorflow(threads, str(Path.cwd()))
    import tensorboard.plugins.projector  # noqa: F401
    import tensorflow as tf

    tf.constant(0)
    if not thumbnails:
        without_thumbnails()

    def call() -> None:
        reduce(str(path), None, threads)

    return call


def plainly(path: Path, thumbnails: bool) -> Callable[[], None]:
    """Give reading all parts and writing files as long as those of the projector folder."""
    kinds = [layout.FEATURES, layout.THUMBNAILS] if thumbnails else [layout.FEATURES]
    sources = [file for kind in kinds for file in sorted((path / kind).iterdir())]
    lengths = json.loads((path / "lengths.json").read_text())
    target = path / "plain"

    def call() -> None:
        content = np.random.default_rng(0).bytes(BUFFER)
        for source in sources:
            source.read_bytes()
        target.mkdir()
        for name, length in lengths.items():
            with open(target / name, "wb", buffering=0) as file:
                for start in range(0, length, BUFFER):
                    file.write(memoryview(content)[: length - start])

    return call


def measured(arguments: argparse.Namespace) -> None:
    """Do one side in this process, and print what it took."""
    path = Path(arguments.work)
    if not arguments.pca:
        without_pca()
    call = reduced(path, arguments.thumbnails, arguments.threads)
    if arguments.side == "plain":
        call = plainly(path, arguments.thumbnails)
    measure(call)


def from_scratch(arguments: argparse.Namespace, path: Path, name: str) -> Taken:
    """Measure a side that finds nothing of what an earlier one wrote."""
    for left in ("projector", "plain"):
        shutil.rmtree(path / left, ignore_errors=True)
    options = ["--work", path, *(["--thumbnails"] if arguments.thumbnails else [])]
    options += ["--pca"] if arguments.pca else []
    options += ["--threads", arguments.threads] if arguments.threads else []
    result = side(Path(__file__).name, name, *options)
    if name == "reduce":
        files = (path / "projector").iterdir()
        (path / "lengths.json").write_text(json.dumps({f.name: f.stat().st_size for f in files}))
    return result


def is_right(path: Path) -> bool:
    """Whether tensor and sample are the rows of the parts."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path / "projector"))
    tensor = reader.get_tensor(TENSOR.format("embedding"))
    start = 0
    for file in sorted((path / "features").iterdir()):
        column = pq.read_table(file, columns=["feature"])["feature"].combine_chunks()
        values = column.flatten().to_numpy()
        rows = len(values) // tensor.shape[1]
        if tensor[start : start + rows].tobytes() != values.tobytes():
            return False
        start += rows
    name = TENSOR.format("sample")
    if start != len(tensor) or not reader.has_tensor(name):
        return start == len(tensor)
    lines = (path / "projector" / "sample.tsv").read_text().splitlines()[1:]
    drawn = [int(line.split("\t")[3]) for line in lines]
    return reader.get_tensor(name).tobytes() == tensor[drawn].tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--thumbnails", action="store_true", help="a sprite too")
    parser.add_argument("--pca", action="store_true", help="the exact PCA too")
    parser.add_argument("--threads", type=int, help="[all that there are]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", required=True, help="a folder for run folders, kept")
    parser.add_argument("--quick", action="store_true", help="few rows, one round: to try it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measured(arguments)
        return 0
    if arguments.quick:
        arguments.rows, arguments.rounds = 20_000, 1
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with_or = "with" if arguments.thumbnails else "without"
    path = Path(arguments.work) / f"{arguments.rows}x{arguments.dimension}-{with_or}"
    make_run(path, arguments.rows, arguments.dimension, arguments.thumbnails)
    for name in SIDES:
        from_scratch(arguments, path, name)  # once for the page cache, and for the lengths
    taken = alternate(SIDES, arguments.rounds, lambda name: from_scratch(arguments, path, name))
    from_scratch(arguments, path, "reduce")
    right = is_right(path)
    print(f"tensors {'are' if right else 'ARE NOT'} the rows of the parts")
    what = f"reduce of {arguments.rows:,} × {arguments.dimension}, {with_or} thumbnails"
    what += ", with PCA" if arguments.pca else ""
    over = taken["reduce"].seconds / taken["plain"].seconds
    found = [
        row(f"{what}, over plain reading and writing", "<= 1.5", over),
        row(f"{what}, peak memory", "<= 1000", taken["reduce"].peak, "MB"),
    ]
    print(f"\n{table(found)}")
    print(last_line(found))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
