# SPDX-License-Identifier: Apache-2.0
"""Keep the projector's files in a temporary folder until they are complete."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ray_embed.encoders.tensorflow_setup import hide_startup_messages
from ray_embed.errors import StorageError, get_first_line
from ray_embed.projector import checkpoint
from ray_embed.projector.merge_task import MergeSettings
from ray_embed.storage import layout
from ray_embed.storage.download import check_space
from ray_embed.storage.filesystem import TEMPORARY, Folder

# The approximate size of a metadata line.
_LINE_BYTES = 128
# The space for data files that wait to be uploaded to an object store.
_WAITING_BYTES = 512 << 20


@contextlib.contextmanager
def target(folder: Folder, points: int, row: int) -> Iterator[Path]:
    """Create a local folder for the projector's files, and delete it afterwards.

    If the run folder is local, the folder is created in it, and renamed when complete. Otherwise,
    it is created in the machine's temporary folder and holds all files except the data files, which
    are uploaded one by one.

    Raises:
        RunError: there is not enough space for `points` of `row` bytes each, and their metadata.
        StorageError: the folder cannot be created.
    """
    base = Path(folder.join(TEMPORARY)) if folder.is_local else Path(tempfile.gettempdir())
    with writing(base):
        base.mkdir(parents=True, exist_ok=True)
        if folder.is_local:
            for stale in base.glob("projector-*"):
                # A merge left this behind when its process was killed.
                shutil.rmtree(stale, ignore_errors=True)
        waiting = points * row if folder.is_local else min(points * row, _WAITING_BYTES)
        check_space(base, waiting + points * _LINE_BYTES, "the projector's files")
        target = Path(tempfile.mkdtemp(prefix="projector-", dir=base))
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def publish(settings: MergeSettings, target: Path) -> None:
    """Upload the projector's files to a run folder on an object store that has the data files."""
    folder = settings.folder
    files = {path.name: path for path in target.iterdir()}
    data = {checkpoint.data_file(number, settings.files) for number in range(settings.files)}
    for info in folder.list_infos(layout.PROJECTOR):
        if info.base_name not in files and info.base_name not in data:
            folder.delete(f"{layout.PROJECTOR}/{info.base_name}")
    config = files.pop(layout.PROJECTOR_CONFIG)
    for name, path in sorted(files.items()):
        folder.put(path, f"{layout.PROJECTOR}/{name}")
    folder.put(config, f"{layout.PROJECTOR}/{layout.PROJECTOR_CONFIG}")


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn write errors, whether from Python or TensorFlow, into storage errors.

    Raises:
        StorageError: a file cannot be written.
    """
    with hide_startup_messages():
        import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise StorageError(f"{target}: cannot be written: {get_first_line(error)}") from error
