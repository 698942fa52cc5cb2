# SPDX-License-Identifier: Apache-2.0
"""The files TensorBoard's projector reads, each written without holding all rows.

The checkpoint follows TensorFlow's tensor bundle (``SaveV2`` slices, merged by renaming); the rest
follows what TensorBoard's projector plugin reads, all by paths relative to the folder.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.core.arrays import Matrix
from ray_embed.encoders.tensorflow_setup import quiet_start

# In a run folder.
CHECKPOINT = "embedding.ckpt-1"
# A checkpoint's data, where it is one file.
_ONLY = ".data-00000-of-00001"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"


def tensor_name(variable: str) -> str:
    """Give the checkpoint key of the variable `variable` of a ``tf.train.Checkpoint``."""
    return f"{variable}/{_VALUE}"


def variable_of(column: str) -> str:
    """Give the variable's name for a feature column: `embedding` or `embedding_<layer>`."""
    return "embedding" + column.removeprefix("feature")


@dataclass(frozen=True)
class Slice:
    """Some consecutive rows of a variable of `total` rows: `values` is (n, D) float32, n > 0."""

    variable: str
    start: int
    total: int
    values: Matrix


def sampled(variable: str) -> str:
    """Give the name of the variable that holds a sample of another one's rows."""
    return "sample" + variable.removeprefix("embedding")


def data_file(number: int, count: int) -> str:
    """Name the data file `number` of a checkpoint of `count` of them."""
    return f"{CHECKPOINT}.data-{number:05d}-of-{count:05d}"


def write_slices(folder: Path, slices: Sequence[Slice]) -> tuple[bytes, Path]:
    """Write some slices into a file in a folder of their own.

    The same slices in the same order give the same bytes.

    Returns:
        their index, to join them by, and the file.
    """
    with quiet_start():
        import tensorflow as tf

    prefix = f"{folder}/slices"
    shapes = [(part.total, part.values.shape[1], part.start, len(part.values)) for part in slices]
    # Arrays are handed over as they are: `tf.constant` would copy them.
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[tensor_name(part.variable) for part in slices],
        shape_and_slices=[f"{n} {d} {start},{rows}:0,{d}" for n, d, start, rows in shapes],
        tensors=[part.values for part in slices],
    )
    return Path(f"{prefix}.index").read_bytes(), Path(f"{prefix}{_ONLY}")


def write_checkpoint(folder: Path, variables: list[str], indexes: Sequence[bytes]) -> None:
    """Write what makes a checkpoint of data files that are there, or will be, in this order.

    TensorFlow joins indexes while it renames the data files, without looking into them: so empty
    ones stand for those that may be on another machine by now.
    """
    with quiet_start():
        import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix=".slices-", dir=folder) as scratch:
        prefixes = [f"{scratch}/{number:08d}" for number in range(len(indexes))]
        for prefix, index in zip(prefixes, indexes, strict=True):
            Path(f"{prefix}.index").write_bytes(index)
            Path(f"{prefix}{_ONLY}").touch()
        objects = f"{scratch}/objects"
        tf.raw_ops.SaveV2(
            prefix=objects,
            tensor_names=[_OBJECT_GRAPH, tensor_name("save_counter")],
            shape_and_slices=["", ""],
            tensors=[tf.constant(_object_graph(variables)), tf.constant(1, tf.int64)],
        )
        joined = Path(scratch) / "joined" / CHECKPOINT
        joined.parent.mkdir()
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=[*prefixes, objects],
            destination_prefix=str(joined),
            delete_old_dirs=False,
        )
        last = data_file(len(indexes), len(indexes) + 1)
        for name in (last, f"{CHECKPOINT}.index"):
            (joined.parent / name).replace(folder / name)
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


def metadata_of(config: str) -> dict[str, str]:
    """Give the metadata files that a config names, by variable."""
    embeddings = _parsed(config).embeddings
    return {
        one.tensor_name.removesuffix(f"/{_VALUE}"): one.metadata_path
        for one in embeddings
        if one.metadata_path
    }


def with_bookmarks(config: str, paths: Mapping[str, str]) -> str:
    """Name files of saved views in a config.

    Args:
        config: the text of ``projector_config.pbtxt``.
        paths: the files, by variable.
    """
    from google.protobuf import text_format

    parsed = _parsed(config)
    for one in parsed.embeddings:
        path = paths.get(one.tensor_name.removesuffix(f"/{_VALUE}"))
        if path is not None:
            one.bookmarks_path = path
    text: str = text_format.MessageToString(parsed)
    return text


def _parsed(config: str) -> Any:
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    return text_format.Parse(config, ProjectorConfig())


def write_event_file(folder: Path) -> None:
    """Write an event file without events: TensorBoard lists only folders that have one."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with open(folder / "events.out.tfevents.0.ray_embed", "wb") as file:
        RecordWriter(file).write(Event(file_version="brain.Event:2").SerializeToString())
