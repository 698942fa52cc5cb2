# SPDX-License-Identifier: Apache-2.0
"""Copy files from an object store to a local folder, for libraries that read only local files."""

import shutil
from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from ray_embed.core.uri import get_base_name, get_parent_uri, redact_uri
from ray_embed.errors import InputError, RunError, StorageError
from ray_embed.storage.filesystem import Folder, format_path
from ray_embed.storage.retry import call_with_retries, wrap_os_errors


def check_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of a local folder has enough free space.

    Args:
        folder: the local folder.
        needed: the number of bytes.
        what: what will be written there, for the error message.

    Raises:
        RunError: there is not enough space.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder}: {what} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make "
            "room, or set TMPDIR to a folder that has it"
        )


def download(uri: str, into: Path, option: str) -> Path:
    """Copy the files of a URI into a local folder.

    Args:
        uri: a file, a folder with everything below it, or the prefix of a checkpoint.
        into: the local folder.
        option: the option that names the URI, for error messages.

    Returns:
        The local path that corresponds to the URI.

    Raises:
        InputError: no file is found.
        RunError: there is not enough free space.
        StorageError: a file cannot be read.
    """
    parent, infos = Folder.open(get_parent_uri(uri)), find_files(uri, option)
    into.mkdir(parents=True, exist_ok=True)
    check_space(into, sum(info.size for info in infos), redact_uri(uri))
    for info in infos:
        target = into / info.path.removeprefix(f"{parent.path}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = partial(
            pafs.copy_files,
            info.path,
            str(target),
            source_filesystem=parent.filesystem,
            destination_filesystem=pafs.LocalFileSystem(),
        )
        with wrap_os_errors(format_path(parent.filesystem, info.path), "read"):
            call_with_retries(copy)
    return into / get_base_name(uri)


def find_files(uri: str, option: str) -> list[pafs.FileInfo]:
    """Find the files of a URI, with their sizes; see :func:`download`.

    Raises:
        InputError: no file is found.
    """
    prefix = f"{get_base_name(uri)}."
    try:
        folder = Folder.open(uri)
        info = folder.get_info()
        if info.type == pafs.FileType.Directory:
            infos = folder.list_infos(recursive=True)
        elif info.is_file:
            infos = [info]
        else:
            siblings = Folder.open(get_parent_uri(uri)).list_infos()
            infos = [sibling for sibling in siblings if sibling.base_name.startswith(prefix)]
            if not any(info.base_name == f"{prefix}index" for info in infos):
                infos = []
    except (StorageError, InputError) as error:
        raise InputError(f"{option} {error}") from error
    if not infos:
        raise InputError(
            f"{option} {redact_uri(uri)}: no such file, folder or prefix of a checkpoint; check "
            "the URI"
        )
    return [info for info in infos if info.is_file]
