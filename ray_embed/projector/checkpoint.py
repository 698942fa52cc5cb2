# SPDX-License-Identifier: Apache-2.0
"""Write the files that TensorBoard's projector reads, never holding all rows in memory.

The checkpoint is TensorFlow's tensor bundle (``SaveV2`` slices, merged by renaming). The rest is
what TensorBoard's projector plugin reads. All paths are relative to the folder.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.core.arrays import Matrix
from ray_embed.encoders.tensorflow_setup import hide_startup_messages

# The prefix of the checkpoint in the projector folder.
CHECKPOINT = "embedding.ckpt-1"
# The suffix of a checkpoint's data if it is a single file.
_SINGLE_FILE_SUFFIX = ".data-00000-of-00001"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"


def tensor_name(variable: str) -> str:
    """Return the checkpoint key of a variable of a ``tf.train.Checkpoint``."""
    return f"{variable}/{_VALUE}"


def get_variable_name(column: str) -> str:
    """Return the name of a feature column's variable: `embedding` or `embedding_<layer>`."""
    return "embedding" + column.removeprefix("feature")


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of a variable of `total` rows: `values` is (n, D) float32, n > 0."""

    variable: str
    start: int
    total: int
    values: Matrix


def sampled(variable: str) -> str:
    """Return the name of the variable that holds a sample of another variable's rows."""
    return "sample" + variable.removeprefix("embedding")


def data_file(number: int, count: int) -> str:
    """Return the name of the data file `number` of a checkpoint with `count` of them."""
    return f"{CHECKPOINT}.data-{number:05d}-of-{count:05d}"


def write_slices(folder: Path, slices: Sequence[Slice]) -> tuple[bytes, Path]:
    """Write slices into a file in a new folder.

    The same slices in the same order result in the same bytes.

    Returns:
        the index, which is needed to join the files, and the path of the data file.
    """
    with hide_startup_messages():
        import tensorflow as tf

    prefix = f"{folder}/slices"
    shapes = [(part.total, part.values.shape[1], part.start, len(part.values)) for part in slices]
    # Pass arrays as they are: `tf.constant` would copy them.
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[tensor_name(part.variable) for part in slices],
        shape_and_slices=[f"{n} {d} {start},{rows}:0,{d}" for n, d, start, rows in shapes],
        tensors=[part.values for part in slices],
    )
    return Path(f"{prefix}.index").read_bytes(), Path(f"{prefix}{_SINGLE_FILE_SUFFIX}")


def write_checkpoint(folder: Path, variables: list[str], indexes: Sequence[bytes]) -> None:
    """Write the files that join data files, in the order of `indexes`, into a checkpoint.

    TensorFlow joins the indexes while it renames the data files, but does not read the data files.
    Empty files therefore stand in for them, because they may be on another machine.
    """
    with hide_startup_messages():
        import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix=".slices-", dir=folder) as scratch:
        prefixes = [f"{scratch}/{number:08d}" for number in range(len(indexes))]
        for prefix, index in zip(prefixes, indexes, strict=True):
            Path(f"{prefix}.index").write_bytes(index)
            Path(f"{prefix}{_SINGLE_FILE_SUFFIX}").touch()
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
    """Serialize the graph by which ``tf.train.Checkpoint(embedding=…)`` finds its values."""
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
        variables: the variables, which share metadata and sprite. The page initially shows the
            first one.
        metadata: the name of their metadata file.
        sprite: the side of the sprite's images in pixels, or 0 if there is no sprite.
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
    """Return the names of the metadata files in a config, by variable."""
    embeddings = _parse_config(config).embeddings
    return {
        embedding.tensor_name.removesuffix(f"/{_VALUE}"): embedding.metadata_path
        for embedding in embeddings
        if embedding.metadata_path
    }


def add_bookmarks(config: str, paths: Mapping[str, str]) -> str:
    """Add the files of saved views to a config.

    Args:
        config: the text of ``projector_config.pbtxt``.
        paths: the files, by variable.
    """
    from google.protobuf import text_format

    parsed = _parse_config(config)
    for embedding in parsed.embeddings:
        path = paths.get(embedding.tensor_name.removesuffix(f"/{_VALUE}"))
        if path is not None:
            embedding.bookmarks_path = path
    text: str = text_format.MessageToString(parsed)
    return text


def _parse_config(config: str) -> Any:
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    return text_format.Parse(config, ProjectorConfig())


def write_event_file(folder: Path) -> None:
    """Write an event file without events. TensorBoard lists only folders that hold one."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with open(folder / "events.out.tfevents.0.ray_embed", "wb") as file:
        RecordWriter(file).write(Event(file_version="brain.Event:2").SerializeToString())
