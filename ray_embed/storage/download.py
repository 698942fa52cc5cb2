# SPDX-License-Identifier: Apache-2.0
"""Local copies of what lies on an object store, for those that read only local files."""

import shutil
from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from ray_embed.core.uri import get_base_name, get_parent_uri, redact_uri
from ray_embed.errors import InputError, RunError, StorageError
from ray_embed.storage.filesystem import Folder, format_path
from ray_embed.storage.retry import call_with_retries, wrap_os_errors


def check_space(folder: Path, needed: int, what: str) -> None:
    """Look whether a local folder has room.

    Raises:
        RunError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder}: {free / 1e9:.1f} GB are free, and {needed / 1e9:.1f} are needed for "
            f"{what}; make room, or set TMPDIR to a folder that has it"
        )


def download(uri: str, into: Path, option: str) -> Path:
    """Copy the files that a URI means into a local folder; gives the same as a local path.

    Args:
        uri: a file, a folder with all below it, or the prefix of a checkpoint.
        into: the local folder.
        option: what it was given by, for errors.

    Raises:
        InputError: there is none.
        RunError: there is no room for it.
        StorageError: it cannot be read.
    """
    above, infos = Folder.open(get_parent_uri(uri)), find_files(uri, option)
    into.mkdir(parents=True, exist_ok=True)
    check_space(into, sum(info.size for info in infos), redact_uri(uri))
    for info in infos:
        target = into / info.path.removeprefix(f"{above.path}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = partial(
            pafs.copy_files,
            info.path,
            str(target),
            source_filesystem=above.filesystem,
            destination_filesystem=pafs.LocalFileSystem(),
        )
        with wrap_os_errors(format_path(above.filesystem, info.path), "read"):
            call_with_retries(copy)
    return into / get_base_name(uri)


def find_files(uri: str, option: str) -> list[pafs.FileInfo]:
    """Find the files that a URI means, see :func:`download`, and how large they are.

    Raises:
        InputError: there is none.
    """
    prefix = f"{get_base_name(uri)}."
    try:
        place = Folder.open(uri)
        info = place.get_info()
        if info.type == pafs.FileType.Directory:
            found = place.list_infos(recursive=True)
        elif info.is_file:
            found = [info]
        else:
            beside = Folder.open(get_parent_uri(uri)).list_infos()
            found = [one for one in beside if one.base_name.startswith(prefix)]
            if not any(one.base_name == f"{prefix}index" for one in found):
                found = []
    except (StorageError, InputError) as error:
        raise InputError(f"{option} {error}") from error
    if not found:
        raise InputError(
            f"{option} {redact_uri(uri)}: no such file or folder, nor the prefix of a checkpoint"
        )
    return [one for one in found if one.is_file]
