# SPDX-License-Identifier: Apache-2.0
"""The files TensorBoard's projector reads, each written without holding all rows.

The checkpoint follows TensorFlow's tensor bundle (``SaveV2`` slices, merged by renaming); the rest
follows what TensorBoard's projector plugin reads: ``metadata.tsv``, ``projector_config.pbtxt`` and
a sprite, all by paths relative to the folder.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

CHECKPOINT = "embedding.ckpt-1"
SPRITE_SIDE = 8192
_CELL = 1000
_PAGE_CHUNK = 1_000_000
_BYTE_ORDER_MARK = "\ufeff".encode()
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def tensor_name(variable: str) -> str:
    """Give the checkpoint key of the variable `variable` of a ``tf.train.Checkpoint``."""
    return f"{variable}/{_VALUE}"


def variable_of(column: str) -> str:
    """Give the variable's name for a feature column: `embedding` or `embedding_<layer>`."""
    return "embedding" + column.removeprefix("feature")


@dataclass(frozen=True)
class Slice:
    """Some consecutive rows of a variable of `total` rows: `values` is (n, D) float32."""

    variable: str
    start: int
    total: int
    values: np.ndarray[Any, Any]


def write_checkpoint(folder: Path, variables: list[str], slices: Iterable[Slice]) -> None:
    """Write the slices, one after the other, and join them without copying.

    The same slices in the same order give the same bytes.
    """
    import tensorflow as tf

    temporary = folder / ".slices"
    prefixes: list[str] = []
    for part in slices:
        rows, dimension = part.values.shape
        prefixes.append(str(temporary / f"{len(prefixes):08d}"))
        where = f"{part.total} {dimension} {part.start},{rows}:0,{dimension}"
        tf.raw_ops.SaveV2(
            prefix=prefixes[-1],
            tensor_names=[tensor_name(part.variable)],
            shape_and_slices=[where],
            tensors=[tf.constant(part.values)],
        )
    prefixes.append(str(temporary / "objects"))
    tf.raw_ops.SaveV2(
        prefix=prefixes[-1],
        tensor_names=[_OBJECT_GRAPH, tensor_name("save_counter")],
        shape_and_slices=["", ""],
        tensors=[tf.constant(_object_graph(variables)), tf.constant(1, tf.int64)],
    )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(folder / CHECKPOINT)
    )
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "{CHECKPOINT}"\nall_model_checkpoint_paths: "{CHECKPOINT}"\n'
    )


def _object_graph(variables: list[str]) -> bytes:
    """Serialize what ``tf.train.Checkpoint(embedding=tf.Variable(…))`` needs to find its values."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    root = graph.nodes.add()
    for number, name in enumerate([*variables, "save_counter"], start=1):
        root.children.add(node_id=number, local_name=name)
        graph.nodes.add().attributes.add(
            name="VARIABLE_VALUE", full_name=name, checkpoint_key=tensor_name(name)
        )
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def write_metadata(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write ``metadata.tsv``: a header, then the rows of the tables (without features)."""
    with open(path, "wb") as file:
        _write_lines(file, _lines(tables))


def _lines(tables: Iterable[pa.Table]) -> Iterator[str]:
    names: list[str] | None = None
    for table in tables:
        if names is None:
            extras = [n for n in table.column_names if n not in ("label", "split", "key", "index")]
            names = ["label", "split", "key", "index", *extras]
            yield "\t".join(cell(name) for name in names)
        columns = [[cell(value) for value in table[name].to_pylist()] for name in names]
        yield from ("\t".join(row) for row in zip(*columns, strict=True))


def cell(value: Any) -> str:
    r"""Give a value as a cell that the page shows as it is.

    ``\\ \t \n \r`` are escaped, null is ``(none)``, empty text ``(empty)``, and a cell has at
    most 1,000 characters.
    """
    if value is None:
        return "(none)"
    text = str(value)[:_CELL].translate(_ESCAPES)
    if len(text) > _CELL:
        # Never half an escape: an odd number of backslashes at the end would be one.
        text = text[:_CELL]
        if (len(text) - len(text.rstrip("\\"))) % 2:
            text = text[:-1]
    return text or "(empty)"


def _write_lines(file: IO[bytes], lines: Iterable[str]) -> None:
    """Write lines so that no character is lost at a boundary of the page's chunks.

    The page decodes the file in chunks of 1,000,000 bytes; a character that a boundary cuts would
    be lost, and so would a byte order mark that starts a chunk. So the row before it gets trailing
    spaces.
    """
    position = 0
    waiting = b""
    for line in lines:
        encoded = line.encode("utf-8", "replace")
        if waiting:
            start = position + len(waiting) + 1
            pad = _padding(start, encoded)
            file.write(waiting + b" " * pad + b"\n")
            position = start + pad
        waiting = encoded
    if waiting:
        file.write(waiting + b"\n")


def _padding(start: int, line: bytes) -> int:
    """Give how many bytes further a line must start for a boundary to lose none of it."""
    for pad in range(len(line) + 1):
        first = -(start + pad) % _PAGE_CHUNK
        cuts = range(first, len(line), _PAGE_CHUNK)
        if not any(_loses(line, at) for at in cuts):
            return pad
    return 0


def _loses(line: bytes, cut: int) -> bool:
    return line[cut] & 0xC0 == 0x80 or line.startswith(_BYTE_ORDER_MARK, cut)


def sprite_cell(points: int) -> int:
    """Give the side in pixels of one picture in the sprite; 0 where no sprite can hold them."""
    return min(64, SPRITE_SIDE // _grid(points))


def _grid(points: int) -> int:
    return math.isqrt(max(points, 1) - 1) + 1


def write_sprite(path: Path, points: int, pngs: Iterable[bytes]) -> None:
    """Write the sprite: a square grid, row by row, of pictures fitted into square cells."""
    import tensorflow as tf

    side, grid = sprite_cell(points), _grid(points)
    sheet = np.full((grid * side, grid * side, 3), 255, np.uint8)
    for at, png in enumerate(pngs):
        top, left = at // grid * side, at % grid * side
        sheet[top : top + side, left : left + side] = _fitted(png, side)
    # The least compression: a tenth larger, several times as fast.
    path.write_bytes(tf.io.encode_png(sheet, compression=1).numpy())


def _fitted(png: bytes, side: int) -> np.ndarray[Any, Any]:
    import tensorflow as tf

    picture = tf.io.decode_png(png, channels=3).numpy()
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    # The nearest pixel keeps the few pixels of a small picture sharp.
    rows = np.minimum(np.arange(max(1, round(height * factor))) / factor, height - 1).astype(int)
    columns = np.minimum(np.arange(max(1, round(width * factor))) / factor, width - 1).astype(int)
    small = picture[rows][:, columns]
    fitted = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    fitted[top : top + small.shape[0], left : left + small.shape[1]] = small
    return fitted


def write_config(path: Path, variables: list[str], metadata: str, sprite: int) -> None:
    """Write ``projector_config.pbtxt``.

    Args:
        path: the file.
        variables: those that share metadata and sprite; the page shows the first of them first.
        metadata: the name of their metadata file.
        sprite: the side in pixels of the sprite's pictures, 0 for no sprite.
    """
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    config = ProjectorConfig()
    for variable in variables:
        embedding = config.embeddings.add()
        embedding.tensor_name = tensor_name(variable)
        embedding.metadata_path = metadata
        if sprite:
            embedding.sprite.image_path = "sprite.png"
            embedding.sprite.single_image_dim.extend([sprite, sprite])
    path.write_text(text_format.MessageToString(config))


def write_event_file(folder: Path) -> None:
    """Write an event file without events: TensorBoard lists only folders that have one."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with open(folder / "events.out.tfevents.0.ray_embed", "wb") as file:
        RecordWriter(file).write(Event(file_version="brain.Event:2").SerializeToString())
